//! What a pod costs the runtime: calls are counted, since times say little on a busy machine.

use std::collections::BTreeMap;

use crate::lab::manifest::pod;
use crate::lab::{Lab, NODE};

/// Calls to the runtime so far, by kubelet's name for them.
fn calls(lab: &Lab) -> BTreeMap<String, u32> {
    let metrics = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/metrics"));
    let of_line = |line: &str| {
        let (name, value) =
            line.strip_prefix("kubelet_runtime_operations_total{operation_type=\"")?.split_once("\"} ")?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(of_line).collect()
}

#[test]
fn a_pod_is_looked_at_only_when_something_may_have_changed() {
    const PODS: u32 = 4;
    // A1.7, A23.3
    let lab = Lab::start();
    let one = |name: &str| {
        lab.apply(&pod(name).script("trap 'exit 0' TERM; sleep 1000 & wait").build());
        lab.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=90s"));
        lab.kubectl(&format!("delete pod {name} --timeout=90s"));
    };
    one("first");
    let before = calls(&lab);
    (0..PODS).for_each(|number| one(&format!("p{number}")));
    let after = calls(&lab);
    let made =
        |name: &str| after.get(name).copied().unwrap_or_default() - before.get(name).copied().unwrap_or_default();
    for once in ["run_podsandbox", "create_container", "start_container", "stop_container", "remove_podsandbox"] {
        assert_eq!(made(once), PODS, "{once}: {before:?} {after:?}");
    }
    // Of a new pod, of its sandbox, of its container, of that one's end, of the sandbox's end, and what is removed at last; the
    // slow round, which comes once a minute, may fall into the test.
    for (often, times) in
        [("list_podsandbox", 6), ("list_containers", 5), ("container_status", 2), ("podsandbox_status", 1)]
    {
        let made = made(often);
        assert!((PODS..=PODS * times + 4).contains(&made), "{often}: {made} times, {before:?} {after:?}");
    }
    lab.finish();
}
