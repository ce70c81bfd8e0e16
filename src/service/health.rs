//! Is the proxy well, and should this node get traffic? Pure: from [`Health`] and the time to kube-proxy's answers (B2.1, B1.14).

use std::time::Duration;

use serde_json::{Map, Value, json};
use stoker_model::service::NamespacedName;

use super::frontend::Family;
use super::metrics::label;
use super::owner::{Health, HealthCheck};
use crate::clock::Now;

/// An HTTP status and a JSON body.
pub(super) type Answer = (u16, Value);

/// Whether no change has waited too long: twice the sync period. Before the first write there is nothing to complain of.
pub(super) fn is_live(health: &Health, sync_period: Duration, now: Now) -> bool {
    let late = |since: Now| now.monotonic.saturating_sub(since.monotonic) >= 2 * sync_period;
    health.last_updated.is_none() || !health.queued_since.is_some_and(late)
}

/// The answer of `/livez`, or with `eligible` that of `/healthz`.
pub(super) fn answer(
    health: &Health,
    families: &[Family],
    sync_period: Duration,
    eligible: Option<bool>,
    now: Now,
) -> Answer {
    let live = is_live(health, sync_period, now);
    let well = live && eligible != Some(false);
    // Go's zero time stands for never.
    let never = || "0001-01-01T00:00:00Z".to_owned();
    let updated = health.last_updated.map_or_else(never, |at| at.wall.to_string());
    let current = now.wall.to_string();
    let mut body = Map::new();
    body.insert("lastUpdated".into(), json!(if well { &current } else { &updated }));
    body.insert("currentTime".into(), json!(current));
    if let Some(eligible) = eligible {
        body.insert("nodeEligible".into(), json!(eligible));
    }
    body.insert("healthy".into(), json!(live));
    if health.last_updated.is_some() {
        let one = || json!({ "lastUpdated": updated, "healthy": live });
        let status: Map<String, Value> = families.iter().map(|family| (label(*family).to_owned(), one())).collect();
        body.insert("status".into(), Value::Object(status));
    }
    (if well { 200 } else { 503 }, Value::Object(body))
}

/// The answer of a Service's health-check port.
pub(super) fn check_answer(name: &NamespacedName, check: Option<&HealthCheck>, live: bool) -> (u16, usize, String) {
    let count = check.map_or(0, |check| check.local_endpoints);
    let (namespace, service) = (&name.namespace, &name.name);
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {service:?}\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {live}\n}}"
    );
    (if count > 0 && live { 200 } else { 503 }, count, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const PERIOD: Duration = Duration::from_secs(30);

    fn health(queued: Option<Now>, updated: Option<Now>) -> Health {
        Health { queued_since: queued, last_updated: updated, ..Health::default() }
    }

    #[test]
    fn health_is_told_as_kube_proxy_tells_it() {
        // B2.1
        let start = Clock.now();
        let later = |seconds| start.plus(Duration::from_secs(seconds));
        let tell =
            |health: &Health, eligible, now| answer(health, &[Family::Ipv4, Family::Ipv6], PERIOD, eligible, now);

        let (code, body) = tell(&health(Some(start), None), Some(true), later(600));
        assert_eq!((code, &body["healthy"], body.get("status")), (200, &json!(true), None), "while it starts");

        let waiting = health(Some(later(10)), Some(start));
        let (code, body) = tell(&waiting, Some(true), later(69));
        assert_eq!((code, &body["healthy"]), (200, &json!(true)), "not late yet");
        assert_eq!(body["lastUpdated"], body["currentTime"], "a healthy one says now");
        let (code, body) = tell(&waiting, Some(true), later(70));
        assert_eq!((code, &body["healthy"]), (503, &json!(false)));
        assert_eq!(body["lastUpdated"], json!(start.wall.to_string()));
        assert_eq!(body["status"]["IPv6"], json!({ "lastUpdated": start.wall.to_string(), "healthy": false }));
        assert_eq!(tell(&waiting, None, later(70)).0, 503, "/livez says so too");

        let idle = health(None, Some(start));
        let (code, body) = tell(&idle, Some(false), later(600));
        assert_eq!((code, &body["healthy"], &body["nodeEligible"]), (503, &json!(true), &json!(false)));
        let (code, body) = tell(&idle, None, later(600));
        assert_eq!((code, body.get("nodeEligible")), (200, None), "/livez does not ask for the node");
    }

    #[test]
    fn load_balancers_are_told_of_local_endpoints() {
        // B1.14
        let name = NamespacedName { namespace: "default".into(), name: "web".into() };
        for (endpoints, live, code) in
            [(Some(2), true, 200), (Some(0), true, 503), (Some(2), false, 503), (None, true, 503)]
        {
            let check = endpoints.map(|local_endpoints| HealthCheck { port: 32000, local_endpoints });
            let (told, count, body) = check_answer(&name, check.as_ref(), live);
            assert_eq!((told, count), (code, endpoints.unwrap_or(0)));
            let expected = json!({
                "service": { "namespace": "default", "name": "web" },
                "localEndpoints": count,
                "serviceProxyHealthy": live,
            });
            assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON"), expected);
        }
    }
}
