//! The node's conditions: what they are called, and when they hold (A13.11). Pure.

use std::time::Duration;

use super::eviction::{Pressure, Pressures};

/// A runtime that lists nothing for so long is no good.
const SILENCE: Duration = Duration::from_secs(180);

/// One condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What the runtime said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuntimeHealth {
    /// Nothing yet.
    Unknown,
    /// It does not answer.
    Down,
    /// What it reports as not ready, in upstream's words; whether its network is ready.
    Up { problems: Vec<String>, network_ready: bool },
}

impl RuntimeHealth {
    pub(super) const fn network_ready(&self) -> bool {
        matches!(self, Self::Up { network_ready: true, .. })
    }
}

/// `Ready`.
/// `silent`: for so long nothing could be listed (A1.7). `storage`: volumes of drivers can be had.
pub(super) fn ready(
    runtime: &RuntimeHealth,
    silent: Duration,
    storage: bool,
    going_down: bool,
    missing: &[&str],
) -> Verdict {
    let mut problems = match runtime {
        RuntimeHealth::Unknown => vec!["container runtime status check may not have completed yet".to_owned()],
        RuntimeHealth::Down => vec!["container runtime is down".to_owned()],
        RuntimeHealth::Up { problems, .. } => problems.clone(),
    };
    if silent >= SILENCE {
        let (minutes, seconds) = (silent.as_secs() / 60, silent.as_secs() % 60);
        problems.push(format!(
            "PLEG is not healthy: pleg was last seen active {minutes}m{seconds}s ago; threshold is 3m0s"
        ));
    }
    if !storage {
        problems.push("CSINode is not yet initialized".to_owned());
    }
    if going_down {
        problems.push("node is shutting down".to_owned());
    }
    if !missing.is_empty() {
        problems.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    let message = match problems.as_slice() {
        [] => "kubelet is posting ready status".to_owned(),
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let reason = if problems.is_empty() { "KubeletReady" } else { "KubeletNotReady" };
    Verdict { kind: "Ready", holds: problems.is_empty(), reason, message }
}

/// The three conditions of pressure.
pub(super) fn pressures(holding: &Pressures) -> [Verdict; 3] {
    let verdict = |kind, pressure, yes: (&'static str, &str), no: (&'static str, &str)| {
        let holds = holding.contains(&pressure);
        let (reason, message) = if holds { yes } else { no };
        Verdict { kind, holds, reason, message: message.to_owned() }
    };
    [
        verdict(
            "MemoryPressure",
            Pressure::Memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        verdict(
            "DiskPressure",
            Pressure::Disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        verdict(
            "PIDPressure",
            Pressure::Pids,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
    ]
}

/// The event that tells of a condition that changed (A13.11).
pub(super) fn transition_event(verdict: &Verdict) -> &'static str {
    match (verdict.kind, verdict.holds) {
        ("MemoryPressure", true) => "NodeHasInsufficientMemory",
        ("MemoryPressure", false) => "NodeHasSufficientMemory",
        ("DiskPressure", true) => "NodeHasDiskPressure",
        ("DiskPressure", false) => "NodeHasNoDiskPressure",
        ("PIDPressure", true) => "NodeHasInsufficientPID",
        ("PIDPressure", false) => "NodeHasSufficientPID",
        (_, true) => "NodeReady",
        (_, false) => "NodeNotReady",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_joins_what_is_wrong() {
        // A13.11
        let up = |problems: &[&str]| RuntimeHealth::Up {
            problems: problems.iter().map(|p| (*p).to_owned()).collect(),
            network_ready: false,
        };
        let network = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:x";
        for (runtime, missing, reason, message) in [
            (up(&[]), &[] as &[&str], "KubeletReady", "kubelet is posting ready status".to_owned()),
            (RuntimeHealth::Down, &[], "KubeletNotReady", "container runtime is down".to_owned()),
            (
                RuntimeHealth::Unknown,
                &[],
                "KubeletNotReady",
                "container runtime status check may not have completed yet".to_owned(),
            ),
            (up(&[network]), &[], "KubeletNotReady", network.to_owned()),
            (
                up(&[network]),
                &["cpu"],
                "KubeletNotReady",
                format!("[{network}, missing node capacity for resources: cpu]"),
            ),
        ] {
            let verdict = ready(&runtime, Duration::ZERO, true, false, missing);
            assert_eq!((verdict.reason, verdict.message), (reason, message));
            assert_eq!(verdict.holds, reason == "KubeletReady");
        }
        // A15.10
        let message =
            |problems: &[&str], missing: &[&str]| ready(&up(problems), Duration::ZERO, true, true, missing).message;
        assert_eq!(message(&[], &[]), "node is shutting down");
        let all = format!("[{network}, node is shutting down, missing node capacity for resources: cpu, pods]");
        assert_eq!(message(&[network], &["cpu", "pods"]), all);
        let without_storage = |down| ready(&up(&[network]), Duration::ZERO, false, down, &[]).message;
        assert_eq!(without_storage(false), format!("[{network}, CSINode is not yet initialized]"));
        assert_eq!(
            without_storage(true),
            format!("[{network}, CSINode is not yet initialized, node is shutting down]")
        );
        // A1.7
        let silent = |seconds| ready(&up(&[]), Duration::from_secs(seconds), true, false, &[]);
        assert!(silent(179).holds);
        let text = "PLEG is not healthy: pleg was last seen active 3m12s ago; threshold is 3m0s";
        assert_eq!((silent(192).holds, silent(192).message.as_str()), (false, text));
    }

    #[test]
    fn each_pressure_has_its_words() {
        // A13.11
        let none = pressures(&Pressures::new());
        assert!(none.iter().all(|verdict| !verdict.holds));
        let told = |pressure| {
            let all = pressures(&Pressures::from([pressure]));
            let held: Vec<_> =
                all.iter().filter(|v| v.holds).map(|v| (v.kind, v.reason, transition_event(v))).collect();
            held
        };
        for (pressure, kind, reason, event) in [
            (Pressure::Memory, "MemoryPressure", "KubeletHasInsufficientMemory", "NodeHasInsufficientMemory"),
            (Pressure::Disk, "DiskPressure", "KubeletHasDiskPressure", "NodeHasDiskPressure"),
            (Pressure::Pids, "PIDPressure", "KubeletHasInsufficientPID", "NodeHasInsufficientPID"),
        ] {
            assert_eq!(told(pressure), [(kind, reason, event)]);
        }
        let reasons: Vec<_> = none.iter().map(|v| (v.reason, transition_event(v))).collect();
        assert_eq!(
            reasons,
            [
                ("KubeletHasSufficientMemory", "NodeHasSufficientMemory"),
                ("KubeletHasNoDiskPressure", "NodeHasNoDiskPressure"),
                ("KubeletHasSufficientPID", "NodeHasSufficientPID"),
            ]
        );
    }
}
