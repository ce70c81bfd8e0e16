//! What a pod costs in calls to the runtime and to the API server: they are counted, since times say little on a busy machine.

use std::collections::BTreeMap;

use crate::lab::manifest::pod;
use crate::lab::{Lab, NODE};

/// What one page of metrics counts.
struct Counts {
    /// Calls to the runtime, by kubelet's name for them.
    runtime: BTreeMap<String, u32>,
    /// Requests to the API server, by method.
    api: BTreeMap<String, u32>,
}

impl Counts {
    fn of(lab: &Lab) -> Self {
        let metrics = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/metrics"));
        let all = |metric: &str, label: &str| {
            let mut counts = BTreeMap::new();
            for line in metrics.lines() {
                let Some((labels, value)) = line.strip_prefix(metric).and_then(|line| line.split_once("} ")) else {
                    continue;
                };
                let name = labels.split_once(&format!("{label}=\"")).and_then(|(_, rest)| rest.split_once('"'));
                if let (Some((name, _)), Ok(value)) = (name, value.parse::<u32>()) {
                    *counts.entry(name.to_owned()).or_default() += value;
                }
            }
            counts
        };
        Self {
            runtime: all("kubelet_runtime_operations_total{", "operation_type"),
            api: all("rest_client_requests_total{", "method"),
        }
    }
}

/// How much more.
fn since(before: &BTreeMap<String, u32>, after: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let more = after.iter().map(|(name, count)| (name.clone(), count - before.get(name).copied().unwrap_or_default()));
    more.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_pod_is_looked_at_only_when_something_may_have_changed() {
    const PODS: u32 = 4;
    // A1.7, A2.10, A23.3
    let lab = Lab::start();
    let one = |name: &str| {
        lab.apply(&pod(name).script("trap 'exit 0' TERM; sleep 1000 & wait").build());
        lab.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=90s"));
        lab.kubectl(&format!("delete pod {name} --timeout=90s"));
    };
    one("first");
    let before = Counts::of(&lab);
    (0..PODS).for_each(|number| one(&format!("p{number}")));
    let after = Counts::of(&lab);
    let (runtime, api) = (since(&before.runtime, &after.runtime), since(&before.api, &after.api));
    println!("{PODS} pods: {runtime:?} {api:?}");
    let made = |name: &str| runtime.get(name).copied().unwrap_or_default();
    let once = ["run_podsandbox", "create_container", "start_container", "stop_container"];
    for name in once.into_iter().chain(["stop_podsandbox", "remove_podsandbox"]) {
        assert_eq!(made(name), PODS, "{name}: {runtime:?}");
    }
    // A container is asked for when it was started and when it has ended, a sandbox when it was made. An event that comes late asks once
    // more; and the slow round, which comes once a minute, may fall into the test.
    let looks = [("container_status", PODS * 2 + 4), ("podsandbox_status", PODS + 4), ("image_status", PODS + 2)];
    for (name, rest) in looks.into_iter().chain([("list_podsandbox", 3), ("list_containers", 3)]) {
        assert!(made(name) <= rest, "{name}: {runtime:?}");
    }
    // A token and four events; what it shows when it starts, when it runs, when it is deleted, and at last.
    let asked = |method: &str| api.get(method).copied().unwrap_or_default();
    assert_eq!(asked("DELETE"), PODS, "{api:?}");
    for (method, rest) in [("POST", PODS * 5 + 2), ("PATCH", PODS * 4 + 4), ("GET", 4)] {
        assert!(asked(method) <= rest, "{method}: {api:?}");
    }
    lab.finish();
}
