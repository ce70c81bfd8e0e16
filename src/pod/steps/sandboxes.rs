//! Makes, stops and removes sandboxes.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{EventSubject, EventType, RuntimeHandler};
use stoker_model::metrics;
use stoker_model::pod::spec_of;
use stoker_model::resources::qos_class;

use super::{Effect, Hand, Outcome};
use crate::pod::dns::{self, ClusterDns, Problem};
use crate::pod::hosts;
use crate::pod::plan::pod_text_of;
use crate::pod::sandbox::{self, SandboxParts};
use crate::pod::shared::Shared;
use crate::pod::turns::Launch;
use crate::runtime::{RuntimeError, cri};

/// kubelet's back-off after a sync that failed (A1.5).
const RETRY: Duration = Duration::from_secs(10);
/// The network may come up any moment (A1.5).
const NETWORK_RETRY: Duration = Duration::from_secs(1);

impl Hand {
    pub(super) fn report_network_not_ready(&mut self) -> Outcome {
        let message = "network is not ready: container runtime network not ready";
        self.shared.tell(&self.reference, EventType::Warning, "NetworkNotReady", message);
        self.effects.push(Effect::SandboxFailed {
            reason: "NetworkNotReady",
            message: message.to_owned(),
            retry: NETWORK_RETRY,
        });
        Outcome::Stop
    }

    pub(super) async fn run_sandbox(&mut self, attempt: u32, changed: bool) -> Outcome {
        match Box::pin(self.prepare_sandbox(attempt, changed)).await {
            Ok((config, handler)) => {
                let shared = &self.shared;
                let made =
                    shared.turns.take(Launch::Sandbox, || shared.runtime.run_pod_sandbox(config, &handler)).await;
                self.sandbox_made(made)
            }
            Err(outcome) => outcome,
        }
    }

    /// What the runtime is asked for, and which handler; the log directory is made.
    pub(super) async fn prepare_sandbox(
        &mut self,
        attempt: u32,
        changed: bool,
    ) -> Result<(cri::PodSandboxConfig, String), Outcome> {
        if changed {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.shared.tell(&self.reference, EventType::Normal, "SandboxChanged", message);
        }
        if let Err(error) = self.shared.assignments.prepare_claims(&self.pod).await {
            let message = format!("Failed to prepare dynamic resources: prepare dynamic resources: {error}");
            self.shared.tell(&self.reference, EventType::Warning, "FailedPrepareDynamicResources", message.clone());
            self.effects.push(Effect::SandboxFailed { reason: "CreatePodSandboxError", message, retry: RETRY });
            return Err(Outcome::Stop);
        }
        let handler = match runtime_handler(&self.shared, &self.pod).await {
            Ok(handler) => handler,
            Err(message) => return Err(self.sandbox_failed(message)),
        };
        if self.has_own_users()
            && let Err(message) = supports_users(&self.shared.node().handlers, &handler)
        {
            // Without its own users the pod would be root on the node, which it must not be.
            return Err(self.sandbox_failed(message));
        }
        let config = self.sandbox_config(attempt, true).map_err(|message| self.sandbox_failed(message))?;
        match std::fs::create_dir_all(&config.log_directory) {
            Ok(()) => Ok((config, handler)),
            Err(error) => {
                let message = format!("cannot make the log directory {}: {error}", config.log_directory);
                Err(self.sandbox_failed(message))
            }
        }
    }

    pub(super) fn sandbox_made(&mut self, made: Result<String, RuntimeError>) -> Outcome {
        metrics::STARTED_PODS.inc(&[]);
        match made {
            Ok(id) => {
                self.effects.push(Effect::SandboxMade { id });
                Outcome::Done
            }
            Err(error) => self.sandbox_failed(error.to_string()),
        }
    }

    fn sandbox_failed(&mut self, message: String) -> Outcome {
        metrics::STARTED_PODS_ERRORS.inc(&[]);
        let text = format!("Failed to create pod sandbox: {message}");
        self.shared.tell(&self.reference, EventType::Warning, "FailedCreatePodSandBox", text);
        self.effects.push(Effect::SandboxFailed { reason: "CreatePodSandboxError", message, retry: RETRY });
        Outcome::Stop
    }

    /// The configuration of the pod's sandbox. The runtime wants it again for each container.
    pub(super) fn sandbox_config(&self, attempt: u32, first: bool) -> Result<cri::PodSandboxConfig, String> {
        let shared = &self.shared;
        let spec = spec_of(&self.pod);
        let names = hosts::names(&self.pod, &shared.config.cluster_domain)?;
        let of_node = match &shared.config.resolv_conf {
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.map_err(|error| format!("cannot read {}: {error}", path.display()))?)
            }
            None => None,
        };
        let node = shared.node();
        let cluster = ClusterDns {
            servers: &shared.config.cluster_dns,
            domain: &shared.config.cluster_domain,
            of_node: of_node.as_deref(),
            node_ips: &node.ips,
        };
        let (dns, problems) = dns::config(spec, &self.reference.namespace, cluster);
        if first {
            for problem in problems {
                match problem {
                    Problem::Limits(text) => {
                        shared.tell(&self.reference, EventType::Warning, "DNSConfigForming", text);
                    }
                    Problem::NoClusterDns => {
                        let (kind, reason, text) = (EventType::Warning, "MissingClusterDNS", Problem::NO_CLUSTER_DNS);
                        shared.sink.publish(EventSubject::Node, kind, reason, text.to_owned());
                        let pod = pod_text_of(&self.pod);
                        shared.tell(&self.reference, kind, reason, format!("pod: \"{pod}\". {text}"));
                    }
                }
            }
        }
        let parts = SandboxParts {
            attempt,
            hostname: names.hostname,
            dns,
            cgroup_parent: shared.cgroups.pod_parent(qos_class(spec), self.reference.uid.as_str()),
            log_directory: shared.log_dir(&self.reference),
            users: self.users()?,
            groups: shared.volumes.groups(&self.reference.uid),
        };
        Ok(sandbox::config(&self.pod, &parts))
    }

    fn has_own_users(&self) -> bool {
        self.pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false)
    }

    /// The users of the pod's processes: those of the node, or a range that is the pod's alone (A11.2).
    pub(super) fn users(&self) -> Result<cri::UserNamespace, String> {
        if !self.has_own_users() {
            return Ok(cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..Default::default() });
        }
        let Some(users) = &self.shared.config.users else {
            return Err("create user namespace: this node has no IDs for pods".to_owned());
        };
        let dirs = self.shared.volumes.dirs(&self.reference.uid);
        users.of(dirs.root(), &self.reference.uid).map_err(|error| format!("create user namespace: {error}"))
    }

    pub(super) async fn stop_sandbox(&mut self, id: &str) -> Outcome {
        // The worker looks when this has returned.
        let awaited = self.shared.runtime.without_events_of(id);
        match self.shared.runtime.stop_pod_sandbox(id).await {
            Ok(()) => {
                self.effects.push(Effect::SandboxStopped { id: id.to_owned(), awaited });
                Outcome::Done
            }
            Err(error) if error.is_not_found() => {
                self.effects.push(Effect::SandboxRemoved { id: id.to_owned() });
                Outcome::Done
            }
            Err(error) => {
                let message =
                    format!("error killing pod: failed to \"KillPodSandbox\" for \"{}\": {error}", self.reference.uid);
                self.shared.tell(&self.reference, EventType::Warning, "FailedKillPod", message);
                self.effects.push(Effect::Stuck);
                Outcome::Stop
            }
        }
    }

    pub(super) async fn remove_sandbox(&mut self, id: &str) -> Outcome {
        match self.shared.runtime.remove_pod_sandbox(id).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(pod = %self.reference, %error, "cannot remove a dead sandbox; it is tried again");
                self.effects.push(Effect::Stuck);
                Outcome::Stop
            }
            _ => {
                self.effects.push(Effect::SandboxRemoved { id: id.to_owned() });
                Outcome::Done
            }
        }
    }
}

/// Whether the runtime can give a pod users of its own, and upstream's words when not.
fn supports_users(handlers: &BTreeMap<String, RuntimeHandler>, handler: &str) -> Result<(), String> {
    let refused = match handler {
        "" => "can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned(),
        _ => format!(
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"{handler}\" does not support user namespaces"
        ),
    };
    match handlers.get(handler) {
        Some(found) if found.user_namespaces => Ok(()),
        None if !handlers.is_empty() => Err(format!("{refused}: the handler \"{handler}\" is not known")),
        _ => Err(refused),
    }
}

/// What the pod's RuntimeClass calls for (A15.11).
pub(super) async fn runtime_handler(shared: &Shared, pod: &Pod) -> Result<String, String> {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default();
    if class.is_empty() {
        return Ok(shared.config.runtime_handler.clone());
    }
    let failed = |text: String| format!("failed to lookup RuntimeClass {class}: {text}");
    match shared.objects.runtime_handler(class).await {
        Ok(Some(handler)) => Ok(handler),
        Ok(None) => Err(failed(format!("runtimeclass.node.k8s.io \"{class}\" not found"))),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_users_take_a_runtime_that_can() {
        // A11.2
        let can = |user_namespaces| RuntimeHandler { user_namespaces, ..RuntimeHandler::default() };
        let handlers = |list: &[(&str, bool)]| -> BTreeMap<String, RuntimeHandler> {
            list.iter().map(|(name, yes)| ((*name).to_owned(), can(*yes))).collect()
        };
        let plain = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
        let named = "can't set `spec.hostUsers: false`, RuntimeClass handler \"kata\" does not support user namespaces";
        for (list, handler, expected) in [
            (&[][..], "", Err(plain.to_owned())),
            (&[], "kata", Err(named.to_owned())),
            (&[("", true), ("kata", false)], "", Ok(())),
            (&[("", true), ("kata", false)], "kata", Err(named.to_owned())),
            (&[("", false)], "", Err(plain.to_owned())),
            (&[("", true)], "kata", Err(format!("{named}: the handler \"kata\" is not known"))),
        ] {
            assert_eq!(supports_users(&handlers(list), handler), expected, "{list:?} {handler}");
        }
    }
}
