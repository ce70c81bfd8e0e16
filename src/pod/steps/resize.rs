//! Writes new limits while the containers run: the pod's group grows before them and shrinks after them (A15.1).

use stoker_model::pod::spec_of;
use stoker_model::quantity::Milli;
use stoker_model::resources::{amounts, qos_class};

use super::{Effect, Hand, Outcome};
use crate::cgroup::{Cgroups, PodLimits};
use crate::pod::observed::DesiredPod;
use crate::pod::resize::{Part, Phase, phases};
use crate::pod::resources::{self, NodeResources, Swap};
use crate::runtime::{RuntimeError, cri};

/// A container to change: name and ID.
pub(in crate::pod) type Running = (String, String);

impl Hand {
    pub(super) async fn resize(&mut self, running: Vec<Running>) -> Outcome {
        match self.try_resize(&running).await {
            Ok(()) => Outcome::Done,
            Err(message) => {
                self.effects.push(Effect::ResizeFailed { message });
                Outcome::Stop
            }
        }
    }

    async fn try_resize(&mut self, running: &[Running]) -> Result<(), String> {
        self.refuse_too_little(running)?;
        let spec = spec_of(&self.pod);
        let (qos, uid) = (qos_class(spec), self.reference.uid.as_str().to_owned());
        let mut wanted = PodLimits::of(spec);
        if self.shared.assignments.has_own_cpus(&self.reference.uid) {
            wanted.milli_cpu = None;
        }
        // What cannot be read is written in any case.
        let unknown = PodLimits { shares: 0, milli_cpu: Some(0), memory_bytes: Some(0), ..wanted.clone() };
        let mut current = self.shared.cgroups.pod_limits(qos, &uid).unwrap_or(unknown);
        for phase in phases(&current, &wanted) {
            match phase {
                Phase::Group(limits) => {
                    self.limit_group(&uid, &current, &limits).await?;
                    current = limits;
                }
                Phase::Containers(part) => {
                    for (name, id) in running {
                        let update = self.update_of(name, id, part);
                        let updated = self.shared.runtime.update_container_resources(update).await;
                        updated.map_err(|error| error.to_string())?;
                    }
                }
            }
        }
        self.effects.extend(running.iter().map(|(name, _)| Effect::Resized { name: name.clone() }));
        self.effects.push(Effect::PodResized);
        Ok(())
    }

    /// The runtime hears of it first, and may say no; when it cannot be done after all, it hears of that, too.
    async fn limit_group(&mut self, uid: &str, current: &PodLimits, limits: &PodLimits) -> Result<(), String> {
        let told = self.tell_runtime(limits).await;
        told.map_err(|error| {
            format!("failed to notify runtime for UpdatePodSandboxResources; resize rejected: {error}")
        })?;
        if let Err(error) = self.shared.cgroups.limit_pod(uid, limits) {
            if let Err(error) = self.tell_runtime(current).await {
                tracing::warn!(pod = %self.reference, error, "the runtime does not know that a resize failed");
            }
            return Err(error.to_string());
        }
        Ok(())
    }

    pub(super) fn node_resources(&self) -> NodeResources {
        let shared = &self.shared;
        NodeResources {
            memory_bytes: shared.node().capacity.get("memory").map_or(0, |memory| Milli::of(memory).units()),
            cgroup_v2: shared.cgroups.is_v2(),
            swap: Swap::of(&self.pod, shared.config.limited_swap, shared.cgroups.counts_swap(), Cgroups::swap_bytes),
            cpu_period: shared.cgroups.cpu_quota_period(),
            single_process_oom_kill: shared.config.single_process_oom_kill,
        }
    }

    fn update_of(&self, name: &str, id: &str, part: Part) -> cri::UpdateContainerResourcesRequest {
        let desired = DesiredPod { pod: self.pod.clone(), gone: false, ended: None, released: false };
        let spec = spec_of(&self.pod);
        let container = desired.container(name).map(|(_, container)| container.into_owned()).unwrap_or_default();
        let all = resources::of_container(spec, &container, self.node_resources());
        let owns = self.shared.assignments.owns_cpus(&self.reference.uid, name);
        // What is not named stays as it is.
        let linux = match part {
            Part::Memory => cri::LinuxContainerResources {
                memory_limit_in_bytes: all.memory_limit_in_bytes,
                memory_swap_limit_in_bytes: all.memory_swap_limit_in_bytes,
                unified: all.unified.into_iter().filter(|(name, _)| name == "memory.swap.max").collect(),
                ..Default::default()
            },
            Part::Cpu => cri::LinuxContainerResources {
                cpu_period: all.cpu_period,
                cpu_quota: if owns && all.cpu_quota > 0 { -1 } else { all.cpu_quota },
                cpu_shares: all.cpu_shares,
                ..Default::default()
            },
        };
        cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux), ..Default::default() }
    }

    /// Memory limits below what is in use would only end the containers.
    fn refuse_too_little(&self, running: &[Running]) -> Result<(), String> {
        let desired = DesiredPod { pod: self.pod.clone(), gone: false, ended: None, released: false };
        let spec = spec_of(&self.pod);
        let (qos, uid) = (qos_class(spec), self.reference.uid.as_str());
        let cgroups = &self.shared.cgroups;
        let mut problems = Vec::new();
        let below = |limit: i64, used: u64| u64::try_from(limit).is_ok_and(|limit| limit > 0 && used >= limit);
        if let (Some(limit), Some(used)) = (PodLimits::of(spec).memory_bytes, cgroups.memory_in_use(qos, uid, None))
            && below(limit, used)
        {
            problems.push(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"));
        }
        for (name, id) in running {
            let resources = desired.container(name).and_then(|(_, c)| c.resources.clone()).unwrap_or_default();
            let limit = amounts(resources.limits.as_ref()).get("memory").map_or(0, |memory| memory.units());
            if let Some(used) = cgroups.memory_in_use(qos, uid, Some(id)).filter(|used| below(limit, *used)) {
                problems.push(format!(
                    "attempting to set container \"{name}\" memory limit ({limit}) below current usage ({used})"
                ));
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(format!("cannot decrease memory limits: {one}")),
            several => Err(format!("cannot decrease memory limits: [{}]", several.join(", "))),
        }
    }

    /// Runtimes that keep an account of the pod as a whole are told; others do not know the call.
    async fn tell_runtime(&mut self, limits: &PodLimits) -> Result<(), String> {
        let Some(sandbox) = &self.sandbox else { return Ok(()) };
        let resources = cri::LinuxContainerResources {
            cpu_shares: i64::try_from(limits.shares).unwrap_or(i64::MAX),
            memory_limit_in_bytes: limits.memory_bytes.unwrap_or_default(),
            ..Default::default()
        };
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: sandbox.id.clone(),
            resources: Some(resources),
            ..Default::default()
        };
        match self.shared.runtime.update_pod_sandbox_resources(request).await {
            Err(RuntimeError::Unsupported { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
