//! What the data path counts, under kube-proxy's names (B2.3).
//!
//! Only what is really measured is registered: a metric that stands still at zero would be worse than none. So there is
//! nothing about iptables, whose mode is served by nftables. What our layout could fail to clean up is what other modes left.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family as Labelled, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use stoker_model::service::{Endpoints, NamespacedName, ServiceChange};

use super::frontend::{Family, Place, Route, ServiceRoutes};
use crate::clock::Now;

type Labels = Vec<(&'static str, &'static str)>;
type Seconds = Gauge<f64, AtomicU64>;

/// Buckets of a histogram.
#[derive(Clone, Copy, Debug)]
enum Buckets {
    /// From a millisecond, each twice the one before.
    Write,
    /// Upstream's of the way from a change to the kernel.
    Programming,
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        match self {
            Self::Write => Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            Self::Programming => {
                let single = std::iter::once(0.25).chain(std::iter::once(0.5));
                let seconds = (1_u32..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
                Histogram::new(single.chain(seconds.map(f64::from)))
            }
        }
    }
}

type Histograms = Labelled<Labels, Histogram, Buckets>;

/// How much a write looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Extent {
    /// Everything was read and compared.
    Full,
    /// What changed.
    Partial,
}

/// The metrics of the proxy.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Vec<Family>,
    /// Triggers before this are of another process's time.
    begun: jiff::Timestamp,
    sync: Histograms,
    sync_full: Histograms,
    sync_partial: Histograms,
    last_sync: Labelled<Labels, Seconds>,
    last_queued: Labelled<Labels, Seconds>,
    programming: Histograms,
    no_local: Labelled<Labels, Gauge>,
    endpoints: Counter,
    endpoints_pending: Gauge,
    services: Counter,
    services_pending: Gauge,
    healthz: Labelled<Labels, Counter>,
    livez: Labelled<Labels, Counter>,
    flows: Labelled<Labels, Counter>,
    flow_search: Histograms,
    failures: Labelled<Labels, Counter>,
    cleanup_failures: Labelled<Labels, Counter>,
    /// Answers of `/healthz` on the port of metrics, for `/metrics/slis`.
    pings: Counter,
    noted: Mutex<Noted>,
}

/// What a later metric needs of an earlier event.
#[derive(Debug, Default)]
struct Noted {
    /// When changes happened that are not in the kernel yet.
    triggers: Vec<(Family, jiff::Timestamp)>,
    /// Services whose policy keeps traffic on this node, where they have no endpoint.
    without_local: HashMap<(Family, &'static str), HashSet<NamespacedName>>,
}

/// Triggers that are noted between two writes at most.
const TRIGGERS: usize = 10_000;

impl Metrics {
    /// All at zero, for these families.
    pub fn new(families: Vec<Family>, now: Now) -> Self {
        let mut registry = Registry::with_prefix("kubeproxy");
        let histograms = |buckets| Histograms::new_with_constructor(buckets);
        let metrics = Self {
            families,
            begun: now.wall,
            sync: histograms(Buckets::Write),
            sync_full: histograms(Buckets::Write),
            sync_partial: histograms(Buckets::Write),
            last_sync: Labelled::default(),
            last_queued: Labelled::default(),
            programming: histograms(Buckets::Programming),
            no_local: Labelled::default(),
            endpoints: Counter::default(),
            endpoints_pending: Gauge::default(),
            services: Counter::default(),
            services_pending: Gauge::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            flows: Labelled::default(),
            flow_search: histograms(Buckets::Write),
            failures: Labelled::default(),
            cleanup_failures: Labelled::default(),
            pings: Counter::default(),
            noted: Mutex::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        let r = &mut registry;
        r.register("sync_proxy_rules_duration_seconds", "Duration of a write of service rules", m.sync.clone());
        r.register(
            "sync_full_proxy_rules_duration_seconds",
            "Duration of a write that compared everything",
            m.sync_full.clone(),
        );
        r.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Duration of a write of what changed",
            m.sync_partial.clone(),
        );
        r.register("sync_proxy_rules_last_timestamp_seconds", "Last successful write", m.last_sync.clone());
        r.register("sync_proxy_rules_last_queued_timestamp_seconds", "Last change queued", m.last_queued.clone());
        r.register(
            "network_programming_duration_seconds",
            "From a change of endpoints to its rules",
            m.programming.clone(),
        );
        r.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local policy and no endpoint on this node",
            m.no_local.clone(),
        );
        r.register("sync_proxy_rules_endpoint_changes", "Changes of EndpointSlices", m.endpoints.clone());
        r.register("sync_proxy_rules_endpoint_changes_pending", "Those not written", m.endpoints_pending.clone());
        r.register("sync_proxy_rules_service_changes", "Changes of Services", m.services.clone());
        r.register("sync_proxy_rules_service_changes_pending", "Those not written", m.services_pending.clone());
        r.register("proxy_healthz", "Answers of /healthz", m.healthz.clone());
        r.register("proxy_livez", "Answers of /livez", m.livez.clone());
        r.register("conntrack_reconciler_deleted_entries", "Stale flows deleted", m.flows.clone());
        r.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Duration of a search for stale flows",
            m.flow_search.clone(),
        );
        r.register("sync_proxy_rules_nftables_sync_failures", "Failed writes of service rules", m.failures.clone());
        r.register(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Failed removals of what another proxy left",
            m.cleanup_failures.clone(),
        );
        Self { registry, ..metrics }
    }

    /// A change came in.
    pub(super) fn changed(&self, change: &ServiceChange, now: Now) {
        match change {
            ServiceChange::Service(_) | ServiceChange::ServiceGone(_) => {
                self.services.inc();
                self.services_pending.inc();
            }
            ServiceChange::Slice(slice, trigger) => {
                self.endpoints.inc();
                self.endpoints_pending.inc();
                let family = if matches!(slice.endpoints, Endpoints::V6(_)) { Family::Ipv6 } else { Family::Ipv4 };
                if let Some(trigger) = trigger.filter(|trigger| *trigger > self.begun) {
                    let mut noted = self.noted();
                    if noted.triggers.len() < TRIGGERS {
                        noted.triggers.push((family, trigger));
                    }
                }
            }
            ServiceChange::SliceGone(..) => {
                self.endpoints.inc();
                self.endpoints_pending.inc();
            }
            ServiceChange::Complete | ServiceChange::Restarting => return,
        }
        for family in &self.families {
            self.last_queued.get_or_create(&of(*family)).set(seconds(now));
        }
    }

    /// Everything is in the kernel.
    pub(super) fn written(&self, extent: Extent, took: Duration, now: Now) {
        let took = took.as_secs_f64();
        for family in &self.families {
            let labels = of(*family);
            self.sync.get_or_create(&labels).observe(took);
            match extent {
                Extent::Full => self.sync_full.get_or_create(&labels).observe(took),
                Extent::Partial => self.sync_partial.get_or_create(&labels).observe(took),
            }
            self.last_sync.get_or_create(&labels).set(seconds(now));
        }
        self.endpoints_pending.set(0);
        self.services_pending.set(0);
        let triggers = std::mem::take(&mut self.noted().triggers);
        for (family, trigger) in triggers {
            let waited = now.wall.duration_since(trigger).as_secs_f64();
            self.programming.get_or_create(&of(family)).observe(waited.max(0.0));
        }
    }

    /// A write failed.
    pub(super) fn failed(&self) {
        for family in &self.families {
            self.failures.get_or_create(&of(*family)).inc();
        }
    }

    /// A Service was compiled anew.
    pub(super) fn compiled(&self, name: &NamespacedName, routes: &ServiceRoutes) {
        let mut noted = self.noted();
        for family in &self.families {
            let ours = || routes.paths.iter().filter(|path| path.frontend.family() == *family);
            let cluster_ip = |place| matches!(place, Place::Address(ip) if routes.cluster_ips.contains(&ip));
            let internal = ours().any(|path| cluster_ip(path.frontend.place) && path.route == Route::Drop);
            let external = ours().any(|path| matches!(&path.route, Route::LocalOnly { local, .. } if local.is_empty()));
            for (policy, lacks) in [("internal", internal), ("external", external)] {
                let services = noted.without_local.entry((*family, policy)).or_default();
                if lacks {
                    services.insert(name.clone());
                } else {
                    services.remove(name);
                }
                let labels = vec![("ip_family", label(*family)), ("traffic_policy", policy)];
                self.no_local.get_or_create(&labels).set(i64::try_from(services.len()).unwrap_or(i64::MAX));
            }
        }
    }

    /// A search for stale flows is over.
    pub(super) fn searched(&self, family: Family, deleted: usize, took: Duration) {
        self.flows.get_or_create(&of(family)).inc_by(u64::try_from(deleted).unwrap_or(u64::MAX));
        self.flow_search.get_or_create(&of(family)).observe(took.as_secs_f64());
    }

    /// What another proxy left could not be removed.
    pub fn cleanup_failed(&self) {
        for family in &self.families {
            self.cleanup_failures.get_or_create(&of(*family)).inc();
        }
    }

    /// `/healthz` on the port of metrics was answered.
    pub(super) fn pinged(&self) {
        self.pings.inc();
    }

    /// The health checks by name, of which there is one, that cannot fail.
    pub(super) fn health_checks(&self) -> String {
        let count = self.pings.get();
        if count == 0 {
            return String::new();
        }
        format!(
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
             # HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {count}\n"
        )
    }

    /// `/healthz` or `/livez` was answered.
    pub(super) fn answered(&self, live: bool, healthy: bool) {
        let code = vec![("code", if healthy { "200" } else { "503" })];
        if live {
            self.livez.get_or_create(&code).inc();
        } else {
            self.healthz.get_or_create(&code).inc();
        }
    }

    /// In Prometheus' text format, which kube-proxy's own readers expect.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text.lines().filter(|line| *line != "# EOF").fold(String::new(), |mut text, line| {
            // OpenMetrics gives a counter's type without the suffix that its samples have, and a bound as `1.0`, which Go writes `1`.
            match line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
                Some(name) => text.push_str(&format!("# TYPE {name}_total counter")),
                None if line.contains("_bucket{le=") => text.push_str(&line.replacen(".0\"", "\"", 1)),
                None => text.push_str(line),
            }
            text.push('\n');
            text
        })
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// `IPv4` or `IPv6`.
pub(super) fn label(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

fn of(family: Family) -> Labels {
    vec![("ip_family", label(family))]
}

fn seconds(now: Now) -> f64 {
    now.wall.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use stoker_model::names::LAST_CHANGE_TRIGGER_TIME;
    use stoker_model::service::EndpointSlice;

    use super::*;
    use crate::clock::Clock;
    use crate::service::frontend::{Claim, Frontend, Path, Protocol};

    /// One path with this route, at the cluster IP or at a node port.
    fn routes(route: Route, node_port: bool) -> ServiceRoutes {
        let ip = [10, 96, 0, 10].into();
        let place = if node_port { Place::Node(Family::Ipv4) } else { Place::Address(ip) };
        let frontend = Frontend { place, protocol: Protocol::Tcp, port: 80 };
        let path = Path { frontend, claim: Claim::Allocated, route, allowed_sources: Box::default() };
        ServiceRoutes { paths: [path].into(), cluster_ips: [ip].into(), ..ServiceRoutes::default() }
    }

    #[test]
    fn no_metric_is_there_that_nothing_moves() {
        // B2.3
        let now = Clock.now();
        let metrics = Metrics::new(vec![Family::Ipv4], now);
        let still = sample_values(&metrics.text());
        let name = |name: &str| NamespacedName { namespace: "default".into(), name: name.into() };
        metrics.changed(&ServiceChange::ServiceGone(name("a")), now);
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": { "annotations": { LAST_CHANGE_TRIGGER_TIME: now.plus(Duration::from_secs(1)).wall.to_string() } },
            "addressType": "IPv4",
        }))
        .unwrap();
        metrics.changed(&ServiceChange::from(slice), now);
        let pending = metrics.text();
        assert!(pending.contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 1"), "{pending}");
        assert!(pending.contains("kubeproxy_sync_proxy_rules_service_changes_pending 1"), "{pending}");
        let local =
            Route::LocalOnly { local: Default::default(), everywhere: Default::default(), affinity_seconds: None };
        metrics.compiled(&name("a"), &routes(Route::Drop, false));
        metrics.compiled(&name("b"), &routes(local, true));
        metrics.written(Extent::Full, Duration::from_millis(3), now.plus(Duration::from_secs(3)));
        metrics.written(Extent::Partial, Duration::from_millis(3), now);
        metrics.searched(Family::Ipv4, 2, Duration::from_millis(1));
        metrics.failed();
        metrics.cleanup_failed();
        metrics.answered(true, true);
        metrics.answered(false, false);
        let text = metrics.text();
        let moved = sample_values(&text);
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            let sum = |values: &HashMap<String, f64>| -> f64 {
                values.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, value)| value).sum()
            };
            // What is written is not pending any more, and was seen above.
            assert!(sum(&moved) > sum(&still) || name.ends_with("_pending"), "nothing moves {name}:\n{text}");
        }
        let samples = [
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
            "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"} 2.0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_bucket{le=\"16.384\",ip_family=\"IPv4\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 2",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} ",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
            "# TYPE kubeproxy_proxy_healthz_total counter",
        ];
        for sample in samples {
            assert!(text.contains(sample), "{sample} is not in\n{text}");
        }
        metrics.compiled(&name("a"), &ServiceRoutes::default());
        assert!(metrics.text().contains("traffic_policy=\"internal\"} 0"));
    }

    #[test]
    fn buckets_and_triggers_are_upstreams() {
        // B2.3
        let now = Clock.now();
        let metrics = Metrics::new(vec![Family::Ipv4, Family::Ipv6], now);
        let change = |family: &str, at: Now| {
            let object = serde_json::json!({
                "metadata": { "annotations": { LAST_CHANGE_TRIGGER_TIME: at.wall.to_string() } }, "addressType": family,
            });
            ServiceChange::from(serde_json::from_value::<EndpointSlice>(object).unwrap())
        };
        let later = |seconds| now.plus(Duration::from_secs(seconds));
        metrics.changed(&change("IPv4", now), later(1));
        metrics.changed(&change("IPv6", later(2)), later(3));
        metrics.written(Extent::Partial, Duration::from_millis(3), later(4));
        metrics.searched(Family::Ipv6, 0, Duration::from_millis(1));
        let text = metrics.text();
        let programming = "kubeproxy_network_programming_duration_seconds";
        assert!(!text.contains(&format!("{programming}_count{{ip_family=\"IPv4\"}}")), "of before its start:\n{text}");
        assert!(text.contains(&format!("{programming}_sum{{ip_family=\"IPv6\"}} 2.0")), "{text}");
        let bounds = |name: &str| -> Vec<String> {
            let family = "\",ip_family=\"IPv6\"}";
            let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix("_bucket{le=\""));
            lines.filter_map(|rest| Some(rest.split_once(family)?.0.to_owned())).collect()
        };
        let seconds = (1..60).chain((60..=115).step_by(5)).chain((120..=300).step_by(30)).map(|s: i32| s.to_string());
        let expected: Vec<String> =
            ["0.25", "0.5"].map(str::to_owned).into_iter().chain(seconds).chain(["+Inf".to_owned()]).collect();
        assert_eq!(bounds(programming), expected);
        let doubled = [
            "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512", "1.024", "2.048",
            "4.096", "8.192", "16.384", "+Inf",
        ];
        for name in ["sync_proxy_rules", "sync_partial_proxy_rules", "conntrack_reconciler_sync"] {
            assert_eq!(bounds(&format!("kubeproxy_{name}_duration_seconds")), doubled, "{name}");
        }
        metrics.written(Extent::Full, Duration::from_millis(3), later(4));
        assert!(
            metrics
                .text()
                .contains("kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{le=\"8.192\",ip_family=\"IPv6\"} 1")
        );
    }

    fn sample_values(text: &str) -> HashMap<String, f64> {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }
}
