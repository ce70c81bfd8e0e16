//! The conditions that the node owns (A2.4 to A2.7).

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::{Facts, stamp};
use crate::clock::Now;
use crate::pod::observed::VolumesState;
use crate::pod::policy::may_restart_all;

/// The condition of a pod that starts over as a whole (A3.12).
pub(super) const RESTARTING_ALL: &str = "AllContainersRestarting";

pub(super) struct Conditions<'a> {
    pub(super) facts: Facts<'a>,
    pub(super) phase: &'static str,
    pub(super) init: &'a [ContainerStatus],
    pub(super) regular: &'a [ContainerStatus],
    pub(super) now: Now,
}

/// Status, reason and message.
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    const YES: Self = Self { holds: true, reason: None, message: None };

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { holds: false, reason: Some(reason), message }
    }
}

impl Conditions<'_> {
    /// All of them; `killed`: reason, message and whether the pod was disrupted.
    pub(super) fn all(&self, killed: Option<(&String, &String, bool)>) -> Vec<PodCondition> {
        let containers_ready = self.containers_ready();
        let ready = self.ready(&containers_ready);
        let has_network = Verdict { holds: self.has_network(), reason: None, message: None };
        let mut all = vec![
            self.condition("PodReadyToStartContainers", has_network),
            self.condition("Initialized", self.initialized()),
            self.condition("Ready", ready),
            self.condition("ContainersReady", containers_ready),
            self.condition("PodScheduled", Verdict::YES),
        ];
        all.extend(self.resize());
        all.extend(self.restarting_all());
        if let Some((reason, message, true)) = killed {
            let message = match reason.as_str() {
                "Preempting" => "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned(),
                _ => message.clone(),
            };
            let message = Some(message);
            let disrupted = Verdict { holds: true, reason: Some("TerminationByKubelet"), message };
            all.push(self.condition("DisruptionTarget", disrupted));
        }
        all
    }

    /// Only pods that have such a rule (A3.12).
    fn restarting_all(&self) -> Option<PodCondition> {
        let desired = self.facts.desired;
        let mut all = desired.containers().iter().chain(desired.init_containers());
        if !all.any(may_restart_all) {
            return None;
        }
        let verdict = match (self.phase, self.facts.seen.memory.restarting_all) {
            ("Succeeded", _) => Verdict::no("PodCompleted", None),
            ("Failed", _) => Verdict::no("PodFailed", None),
            (_, true) => {
                let message = Some("container exited with restart policy rule".to_owned());
                Verdict { holds: true, reason: Some("RestartAllContainersStarted"), message }
            }
            (_, false) => Verdict { holds: false, reason: None, message: None },
        };
        Some(self.condition(RESTARTING_ALL, verdict))
    }

    /// A resize that waits, and one under way (A15.1).
    fn resize(&self) -> Vec<PodCondition> {
        let resize = &self.facts.seen.memory.resize;
        if matches!(self.phase, "Succeeded" | "Failed") {
            return Vec::new();
        }
        let pending = resize.pending.as_ref().map(|pending| PodCondition {
            observed_generation: pending.generation,
            ..self.condition(
                "PodResizePending",
                Verdict { holds: true, reason: Some(pending.reason), message: Some(pending.message.clone()) },
            )
        });
        let under_way = resize.under_way.then(|| {
            let error = resize.error.as_ref();
            let verdict = Verdict {
                holds: true,
                reason: error.map(|_| "Error"),
                message: error.map(|failed| failed.message.clone()),
            };
            PodCondition { observed_generation: resize.generation, ..self.condition("PodResizeInProgress", verdict) }
        });
        pending.into_iter().chain(under_way).collect()
    }

    fn condition(&self, kind: &str, verdict: Verdict) -> PodCondition {
        let status = if verdict.holds { "True" } else { "False" };
        let before = self.facts.previous.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone());
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.map(str::to_owned),
            message: verdict.message,
            last_transition_time: Some(since.unwrap_or(stamp(self.now.wall))),
            observed_generation: self.facts.desired.pod.metadata.generation,
            ..PodCondition::default()
        }
    }

    /// A sandbox with its network, and no volume missing (A2.20).
    fn has_network(&self) -> bool {
        let seen = self.facts.seen;
        let mounted = !matches!(seen.memory.volumes, VolumesState::Failed { .. });
        mounted && seen.sandbox().is_some_and(|s| s.ready && (s.host_network || !s.ips.is_empty()))
    }

    fn initialized(&self) -> Verdict {
        if self.phase == "Succeeded" {
            return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
        }
        let exited_well = |c: &ContainerStatus| {
            c.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
        };
        let done = |c: &&ContainerStatus| {
            if self.facts.desired.is_sidecar(&c.name) { c.started == Some(true) } else { exited_well(c) }
        };
        let incomplete: Vec<&str> = self.init.iter().filter(|c| !done(c)).map(|c| c.name.as_str()).collect();
        let any_started = self.regular.iter().any(|c| {
            let begun = |s: &k8s_openapi::api::core::v1::ContainerState| s.running.is_some() || s.terminated.is_some();
            c.state.as_ref().is_some_and(begun) && c.container_id.is_some() || c.last_state.as_ref().is_some_and(begun)
        });
        if incomplete.is_empty() || any_started {
            return Verdict::YES;
        }
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Verdict::no("ContainersNotInitialized", Some(message))
    }

    fn containers_ready(&self) -> Verdict {
        match self.phase {
            "Succeeded" => return Verdict::no("PodCompleted", None),
            "Failed" => return Verdict::no("PodFailed", None),
            _ => {}
        }
        let sidecars = self.init.iter().filter(|c| self.facts.desired.is_sidecar(&c.name));
        let unready = sidecars.chain(self.regular).filter(|c| !c.ready);
        let unready: Vec<&str> = unready.map(|c| c.name.as_str()).collect();
        if unready.is_empty() {
            return Verdict::YES;
        }
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        Verdict::no("ContainersNotReady", Some(message))
    }

    fn ready(&self, containers_ready: &Verdict) -> Verdict {
        if !containers_ready.holds {
            return Verdict {
                holds: false,
                reason: containers_ready.reason,
                message: containers_ready.message.clone(),
            };
        }
        let pod = &self.facts.desired.pod;
        let gates = pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let problems: Vec<String> = gates
            .filter_map(|gate| {
                let gate = &gate.condition_type;
                match conditions.iter().find(|c| c.type_ == *gate) {
                    None => Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")),
                    Some(c) if c.status != "True" => {
                        Some(format!("the status of pod readiness gate \"{gate}\" is not \"True\", but {}", c.status))
                    }
                    Some(_) => None,
                }
            })
            .collect();
        if problems.is_empty() {
            Verdict::YES
        } else {
            Verdict::no("ReadinessGatesNotReady", Some(problems.join(", ")))
        }
    }
}
