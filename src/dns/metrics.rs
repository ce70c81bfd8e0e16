//! What the DNS server counts.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = [(&'static str, &'static str); 1];

/// Counters, each looked up once, so that counting on the hot path is one addition.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    pub(super) requests_udp: Counter,
    pub(super) requests_tcp: Counter,
    pub(super) malformed: Counter,
    pub(super) dropped: Counter,
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) entries: Gauge,
    responses: [Counter; CODES.len()],
    pub(super) forwarded: Counter,
    pub(super) forward_failures: Counter,
    pub(super) forward_seconds: Histogram,
}

/// Response codes by number.
const CODES: [&str; 7] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];

impl Metrics {
    /// All at zero.
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("stoker_dns");
        let requests = Family::<Labels, Counter>::default();
        registry.register("requests", "Questions received", requests.clone());
        let counter = |family: &Family<Labels, Counter>, name, value| family.get_or_create(&[(name, value)]).clone();
        let cache = Family::<Labels, Counter>::default();
        registry.register("cache_lookups", "Questions looked up in the cache", cache.clone());
        let responses = Family::<Labels, Counter>::default();
        registry.register("responses", "Answers sent, by response code", responses.clone());
        let forwarded = Family::<Labels, Counter>::default();
        registry.register("forward_requests", "Questions asked of other servers, by outcome", forwarded.clone());
        let malformed = Counter::default();
        registry.register("malformed_requests", "Packets that could not be read", malformed.clone());
        let dropped = Counter::default();
        registry.register(
            "dropped_requests",
            "Questions left unanswered because too many were waiting",
            dropped.clone(),
        );
        let entries = Gauge::default();
        registry.register("cache_entries", "Answers in the cache", entries.clone());
        let forward_seconds = Histogram::new(exponential_buckets(0.000_25, 2.0, 16));
        registry.register("forward_duration_seconds", "Time that other servers took", forward_seconds.clone());
        Self {
            registry,
            requests_udp: counter(&requests, "proto", "udp"),
            requests_tcp: counter(&requests, "proto", "tcp"),
            malformed,
            dropped,
            hits: counter(&cache, "result", "hit"),
            misses: counter(&cache, "result", "miss"),
            entries,
            responses: CODES.map(|code| counter(&responses, "rcode", code)),
            forwarded: counter(&forwarded, "result", "answered"),
            forward_failures: counter(&forwarded, "result", "failed"),
            forward_seconds,
        }
    }

    /// Counts an answer by the code in its header.
    pub(super) fn count_response(&self, message: &[u8]) {
        let code = message.get(3).map_or(0, |flags| usize::from(flags & 0xf));
        self.responses[code.min(CODES.len() - 1)].inc();
    }

    /// In the OpenMetrics text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::new();
        metrics.requests_udp.inc();
        metrics.count_response(&[0, 0, 0x80, 0x83]);
        metrics.count_response(&[0, 0, 0x80, 0x8f]);
        let text = metrics.text();
        for line in [
            "stoker_dns_requests_total{proto=\"udp\"} 1",
            "stoker_dns_responses_total{rcode=\"NXDOMAIN\"} 1",
            "stoker_dns_responses_total{rcode=\"other\"} 1",
            "stoker_dns_responses_total{rcode=\"NOERROR\"} 0",
            "stoker_dns_cache_lookups_total{result=\"hit\"} 0",
        ] {
            assert!(text.contains(line), "`{line}` is missing in\n{text}");
        }
    }
}
