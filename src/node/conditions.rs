//! The node's conditions: what they are called, and when they hold (A13.11). Pure.

use std::time::Duration;

use stoker_model::quantity::Milli;

use super::capacity::threshold_amount;
use super::machine::{Filesystem, Machine};
use super::settings::NodeSettings;

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
pub(super) fn ready(runtime: &RuntimeHealth, missing: &[&str]) -> Verdict {
    let mut problems = match runtime {
        RuntimeHealth::Unknown => vec!["container runtime status check may not have completed yet".to_owned()],
        RuntimeHealth::Down => vec!["container runtime is down".to_owned()],
        RuntimeHealth::Up { problems, .. } => problems.clone(),
    };
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

/// The pressures, each with the moment when it was last seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Pressures {
    memory: Option<Duration>,
    disk: Option<Duration>,
    pids: Option<Duration>,
}

impl Pressures {
    /// Notes what the machine shows at `now` (monotonic).
    pub(super) fn note(
        &mut self,
        settings: &NodeSettings,
        machine: &Machine,
        imagefs: Option<Filesystem>,
        now: Duration,
    ) {
        let below = |signal: &str, available: i64, whole: i64| {
            let thresholds = [&settings.eviction_hard, &settings.eviction_soft].map(|map| map.get(signal));
            // What cannot be measured (a file system without inodes) is never short.
            whole > 0
                && thresholds.into_iter().flatten().any(|threshold| {
                    Milli::from_units(available) < threshold_amount(threshold, Milli::from_units(whole))
                })
        };
        let short = |signal: &str, fs: Filesystem| {
            below(&format!("{signal}.available"), fs.available_bytes, fs.bytes)
                || below(&format!("{signal}.inodesFree"), fs.free_inodes, fs.inodes)
        };
        let disk = short("nodefs", machine.nodefs) || imagefs.is_some_and(|fs| short("imagefs", fs));
        for (held, seen) in [
            (below("memory.available", machine.memory_available_bytes, machine.memory_bytes), &mut self.memory),
            (disk, &mut self.disk),
            (below("pid.available", machine.pids_available, machine.pids), &mut self.pids),
        ] {
            if held {
                *seen = Some(now);
            }
        }
    }

    /// The three conditions; each stays for the transition period after it was last seen (A13.5).
    pub(super) fn verdicts(&self, transition: Duration, now: Duration) -> [Verdict; 3] {
        let holds =
            |seen: Option<Duration>| seen.is_some_and(|seen| now.saturating_sub(seen) < transition || seen == now);
        let verdict = |kind, seen, yes: (&'static str, &str), no: (&'static str, &str)| {
            let holds = holds(seen);
            let (reason, message) = if holds { yes } else { no };
            Verdict { kind, holds, reason, message: message.to_owned() }
        };
        [
            verdict(
                "MemoryPressure",
                self.memory,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
            verdict(
                "DiskPressure",
                self.disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
            verdict(
                "PIDPressure",
                self.pids,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ]
    }
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
    use super::super::settings::tests_support;
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
            let verdict = ready(&runtime, missing);
            assert_eq!((verdict.reason, verdict.message), (reason, message));
            assert_eq!(verdict.holds, reason == "KubeletReady");
        }
    }

    #[test]
    fn pressure_stays_for_the_transition_period() {
        // A13.5, A13.11
        let mut settings = tests_support();
        settings.eviction_hard.insert("memory.available".into(), "100Mi".into());
        settings.eviction_hard.insert("nodefs.inodesFree".into(), "5%".into());
        let machine = |available: i64| Machine {
            memory_bytes: 1 << 30,
            memory_available_bytes: available,
            nodefs: Filesystem { bytes: 100, available_bytes: 1, inodes: 0, free_inodes: 0 },
            ..Machine::default()
        };
        let mut pressures = Pressures::default();
        let at = Duration::from_secs;
        let memory = |p: &Pressures, now| p.verdicts(settings.pressure_transition, now)[0].clone();
        pressures.note(&settings, &machine(100 << 20), None, at(10));
        assert!(!memory(&pressures, at(10)).holds, "exactly at the threshold");
        pressures.note(&settings, &machine((100 << 20) - 1), None, at(20));
        assert_eq!(memory(&pressures, at(20)).reason, "KubeletHasInsufficientMemory");
        pressures.note(&settings, &machine(500 << 20), None, at(30));
        assert!(memory(&pressures, at(319)).holds);
        assert_eq!(memory(&pressures, at(320)).reason, "KubeletHasSufficientMemory");
        assert!(!pressures.verdicts(at(300), at(320))[1].holds, "a file system without inodes is not short of them");
    }

    #[test]
    fn disk_pressure_looks_at_both_file_systems() {
        // A13.11
        let mut settings = tests_support();
        settings.eviction_hard.insert("nodefs.available".into(), "10%".into());
        settings.eviction_hard.insert("imagefs.available".into(), "15%".into());
        let fs = |available_bytes| Filesystem { bytes: 100, available_bytes, inodes: 0, free_inodes: 0 };
        for (nodefs, imagefs, holds) in [(10, 15, false), (9, 15, true), (10, 14, true)] {
            let mut pressures = Pressures::default();
            let machine = Machine { nodefs: fs(nodefs), ..Machine::default() };
            pressures.note(&settings, &machine, Some(fs(imagefs)), Duration::ZERO);
            let verdict = &pressures.verdicts(Duration::from_secs(1), Duration::ZERO)[1];
            assert_eq!(verdict.holds, holds, "{nodefs} {imagefs}");
        }
    }
}
