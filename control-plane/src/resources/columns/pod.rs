//! The row of a pod (C4.1): how ready it is, and one word for its state.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use super::access::{condition, flag, get, items, number, text, time};
use super::{AGE, Cells, HumanDuration, NAME, Printer, seconds_between, string, wide};

pub(super) static POD: Printer = Printer {
    columns: &[
        NAME,
        string("Ready"),
        string("Status"),
        string("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    row,
    completed,
};

fn completed(pod: &Value) -> Option<(&'static str, &'static str)> {
    match text(pod, &["status", "phase"]) {
        "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
        "Failed" => Some(("Failed", "The pod failed.")),
        _ => None,
    }
}

fn row(pod: &Value, now: Timestamp, cells: &mut Cells<'_>) {
    let seen = summarise(pod);
    cells.name(pod);
    cells.display(format_args!("{}/{}", seen.ready, seen.total));
    cells.text(&seen.reason);
    match seen.last_restart.filter(|_| seen.restarts > 0) {
        Some(at) => cells.display(format_args!("{} ({} ago)", seen.restarts, HumanDuration(seconds_between(at, now)))),
        None => cells.display(seen.restarts),
    }
    cells.age(pod, now);
    let address = items(pod, &["status", "podIPs"]).first().map_or("", |address| text(address, &["ip"]));
    cells.or_none(if address.is_empty() { text(pod, &["status", "podIP"]) } else { address });
    cells.or_none(text(pod, &["spec", "nodeName"]));
    cells.or_none(text(pod, &["status", "nominatedNodeName"]));
    let gates = items(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        cells.text("<none>");
    } else {
        let open = gates.iter().filter(|gate| condition(pod, text(gate, &["conditionType"])) == "True").count();
        cells.display(format_args!("{open}/{}", gates.len()));
    }
}

struct Summary<'p> {
    ready: usize,
    total: usize,
    reason: Cow<'p, str>,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary<'_> {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += number(status, &["restartCount"]);
        self.last_restart = self.last_restart.max(time(status, &["lastState", "terminated", "finishedAt"]));
    }
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    items(pod, &["spec", "initContainers"])
        .iter()
        .any(|container| text(container, &["name"]) == name && text(container, &["restartPolicy"]) == "Always")
}

fn summarise(pod: &Value) -> Summary<'_> {
    let init_specs = items(pod, &["spec", "initContainers"]);
    let sidecars = init_specs.iter().filter(|container| text(container, &["restartPolicy"]) == "Always").count();
    let mut seen = Summary {
        ready: 0,
        total: items(pod, &["spec", "containers"]).len() + sidecars,
        reason: Cow::Borrowed(match text(pod, &["status", "reason"]) {
            "" => text(pod, &["status", "phase"]),
            reason => reason,
        }),
        restarts: 0,
        last_restart: None,
    };
    let gated = |condition: &&Value| {
        text(condition, &["type"]) == "PodScheduled" && text(condition, &["reason"]) == "SchedulingGated"
    };
    if items(pod, &["status", "conditions"]).iter().any(|condition| gated(&condition)) {
        seen.reason = Cow::Borrowed("SchedulingGated");
    }
    let initializing = init_containers(pod, &mut seen);
    if !initializing || condition(pod, "Initialized") == "True" {
        containers(pod, &mut seen);
    }
    if !get(pod, &["metadata", "deletionTimestamp"]).is_null() {
        if text(pod, &["status", "reason"]) == "NodeLost" {
            seen.reason = Cow::Borrowed("Unknown");
        } else if !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
            seen.reason = Cow::Borrowed("Terminating");
        }
    }
    seen
}

/// Whether the pod still initialises; the first init container that is not done gives the reason.
fn init_containers(pod: &Value, seen: &mut Summary<'_>) -> bool {
    let total = items(pod, &["spec", "initContainers"]).len();
    for (at, status) in items(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        seen.count_restarts(status);
        let terminated = get(status, &["state", "terminated"]);
        if !terminated.is_null() && number(terminated, &["exitCode"]) == 0 {
            continue;
        }
        if is_sidecar(pod, text(status, &["name"])) && flag(status, &["started"]) {
            seen.ready += usize::from(flag(status, &["ready"]));
            continue;
        }
        let waiting = text(status, &["state", "waiting", "reason"]);
        seen.reason = Cow::Owned(if !terminated.is_null() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{at}/{total}")
        });
        return true;
    }
    false
}

fn ended(terminated: &Value) -> Cow<'_, str> {
    let reason = text(terminated, &["reason"]);
    let signal = number(terminated, &["signal"]);
    let mut word = String::new();
    // Writing into a `String` cannot fail.
    let _ = match (reason, signal) {
        ("", 0) => write!(word, "ExitCode:{}", number(terminated, &["exitCode"])),
        ("", signal) => write!(word, "Signal:{signal}"),
        _ => return Cow::Borrowed(reason),
    };
    Cow::Owned(word)
}

fn containers<'p>(pod: &'p Value, seen: &mut Summary<'p>) {
    // Once the pod is initialised, restarts of init containers that ended no longer count.
    (seen.restarts, seen.last_restart) = (0, None);
    for status in items(pod, &["status", "initContainerStatuses"]) {
        if is_sidecar(pod, text(status, &["name"])) {
            seen.count_restarts(status);
        }
    }
    let mut running = false;
    let mut failure = None;
    for status in items(pod, &["status", "containerStatuses"]).iter().rev() {
        seen.count_restarts(status);
        let terminated = get(status, &["state", "terminated"]);
        let waiting = text(status, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            seen.reason = Cow::Borrowed(waiting);
        } else if !terminated.is_null() {
            seen.reason = ended(terminated);
            if number(terminated, &["exitCode"]) != 0 {
                failure = Some(ended(terminated));
            }
        } else if flag(status, &["ready"]) && !get(status, &["state", "running"]).is_null() {
            running = true;
            seen.ready += 1;
        }
    }
    if seen.reason == "Completed" {
        if running && condition(pod, "Ready") == "True" {
            seen.reason = Cow::Borrowed("Running");
        } else if let Some(failure) = failure {
            seen.reason = failure;
        } else if running {
            seen.reason = Cow::Borrowed("NotReady");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::check;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status})
    }

    fn two() -> Value {
        json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n"})
    }

    fn with_init() -> Value {
        json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]})
    }

    #[track_caller]
    fn status(spec: Value, status: Value, ready: &str, word: &str) {
        check("", pod(spec, status), &[("Ready", json!(ready)), ("Status", json!(word))]);
    }

    #[test]
    fn ready_and_restarts() {
        // C4.1
        let running = json!({"name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}});
        check(
            "",
            pod(two(), json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [running]})),
            &[
                ("Name", json!("p")),
                ("Ready", json!("1/2")),
                ("Status", json!("Running")),
                ("Restarts", json!("3 (5m ago)")),
                ("Age", json!("10m")),
                ("IP", json!("10.0.0.1")),
                ("Node", json!("n")),
                ("Nominated Node", json!("<none>")),
                ("Readiness Gates", json!("<none>")),
            ],
        );
    }

    #[test]
    fn words_for_initialising_pods() {
        // C4.1
        let init = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}]});
        status(with_init(), init(json!({"waiting": {"reason": "PodInitializing"}})), "0/2", "Init:0/2");
        status(with_init(), init(json!({"waiting": {"reason": "CrashLoopBackOff"}})), "0/2", "Init:CrashLoopBackOff");
        status(with_init(), init(json!({"terminated": {"exitCode": 2}})), "0/2", "Init:ExitCode:2");
        status(with_init(), init(json!({"terminated": {"exitCode": 137, "signal": 9}})), "0/2", "Init:Signal:9");
        status(with_init(), init(json!({"terminated": {"exitCode": 1, "reason": "Error"}})), "0/2", "Init:Error");
        let sidecar = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}},
            {"name": "s", "started": true, "ready": true, "state": {"running": {}}}]});
        status(with_init(), sidecar, "1/2", "Pending");
    }

    #[test]
    fn words_for_started_pods() {
        // C4.1
        let containers = |states: &[Value]| -> Vec<Value> {
            states
                .iter()
                .map(|state| json!({"name": "x", "ready": state.get("running").is_some(), "state": state}))
                .collect()
        };
        let with = |phase: &str, states: &[Value]| json!({"phase": phase, "containerStatuses": containers(states)});
        let (run, done) = (json!({"running": {}}), json!({"terminated": {"exitCode": 0, "reason": "Completed"}}));
        status(
            two(),
            with("Running", &[json!({"waiting": {"reason": "CrashLoopBackOff"}}), run.clone()]),
            "1/2",
            "CrashLoopBackOff",
        );
        status(two(), with("Succeeded", &[done.clone(), done.clone()]), "0/2", "Completed");
        status(two(), with("Running", &[done.clone(), run.clone()]), "1/2", "NotReady");
        let mut ready = with("Running", &[done, run]);
        ready["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        status(two(), ready, "1/2", "Running");
        status(two(), json!({"phase": "Failed", "reason": "Evicted"}), "0/2", "Evicted");
        status(
            two(),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated", "status": "False"}]}),
            "0/2",
            "SchedulingGated",
        );
    }

    #[test]
    fn deleted_pods_terminate() {
        // C4.1
        let mut deleted = pod(two(), json!({"phase": "Running"}));
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:09:00Z");
        check("", deleted.clone(), &[("Status", json!("Terminating"))]);
        deleted["status"]["reason"] = json!("NodeLost");
        check("", deleted, &[("Status", json!("Unknown"))]);
    }
}
