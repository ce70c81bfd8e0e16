//! Has containers probed, and runs what they want after their start.

use std::collections::BTreeMap;

use tracing::Instrument;

use super::{Report, Worker};
use crate::pod::observed::{DesiredPod, InstanceState, Kind, Observed, ProbeVerdict, Stage};
use crate::pod::steps::run_post_start;
use crate::probe::{Target, View};

impl Worker {
    /// Has the containers that run probed, and asks what their probes say.
    pub(super) fn probe(&self, desired: &DesiredPod, seen: &Observed) -> BTreeMap<String, ProbeVerdict> {
        let address = self.address(desired);
        let ending = seen.memory.stage != Stage::Running || desired.gone || desired.deleted();
        let sidecars = desired.init_containers().iter().filter(|c| desired.is_sidecar(&c.name));
        let probed = desired.containers().iter().map(|c| (Kind::Regular, c)).chain(sidecars.map(|c| (Kind::Init, c)));
        let running = probed.filter_map(|(kind, spec)| {
            let instance = seen.newest(&spec.name).filter(|i| i.state == InstanceState::Running)?;
            // Until its hook has returned it has not started (A4.1).
            let hooked = seen.memory.post_start.contains_key(&spec.name);
            (!hooked).then(|| (kind.field_path(&spec.name), spec, instance))
        });
        let running: Vec<_> = running.collect();
        let targets: Vec<Target<'_>> = running
            .iter()
            .map(|(field_path, spec, instance)| Target {
                id: &instance.id,
                spec,
                field_path,
                running_since: instance.started_at.unwrap_or(instance.created_at),
                reported: self.adopted.reported.get(&instance.id).copied(),
            })
            .collect();
        let view = View { pod: &self.reference, address: &address, ending, containers: &targets };
        self.shared.prober.keep(view, &self.wakes.plan)
    }

    /// The pod's primary address.
    pub(super) fn address(&self, desired: &DesiredPod) -> String {
        let ips = &self.shared.node().ips;
        if desired.host_network() {
            return ips.first().map(ToString::to_string).unwrap_or_default();
        }
        let primary_is_v6 = ips.first().is_some_and(std::net::IpAddr::is_ipv6);
        let of_sandbox = self.sandbox.iter().flat_map(|s| &s.ips);
        of_sandbox.min_by_key(|ip| ip.contains(':') != primary_is_v6).cloned().unwrap_or_default()
    }

    /// Runs the postStart hook of a container that was just started, if it has one.
    pub(super) fn run_post_start(&mut self, name: String, id: String) {
        let desired = self.desired.borrow().clone();
        let Some((kind, container)) = desired.container(&name) else { return };
        if container.lifecycle.as_ref().is_none_or(|l| l.post_start.is_none()) {
            return;
        }
        self.memory.post_start.insert(name, id.clone());
        let address = self.address(&desired);
        let hook = run_post_start(
            self.shared.clone(),
            self.reference.clone(),
            (kind, container.into_owned(), id),
            address,
            self.desired.clone(),
        );
        let work = async move { Report::of(vec![hook.await]) };
        self.tasks.spawn(work.in_current_span());
    }
}
