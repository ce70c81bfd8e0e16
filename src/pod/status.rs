//! What to report of one pod: computed, never patched together from what was reported before, except where the runtime
//! has forgotten and the API remembers.

mod conditions;
mod containers;
mod phase;
mod whole;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stoker_model::resources::qos_class;

use super::observed::{Cause, DesiredPod, Observed, Stage};
use super::plan::Waiting;
use crate::clock::Now;
use conditions::Conditions;

/// What the status of a pod follows from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) desired: &'a DesiredPod,
    pub(super) seen: &'a Observed,
    /// Why containers that do not run wait: from the newest plan.
    pub(super) waiting: &'a BTreeMap<String, Waiting>,
    /// The node's addresses, primary family first.
    pub(super) node_ips: &'a [IpAddr],
    /// What was reported last, by this agent or the one before it.
    pub(super) previous: &'a PodStatus,
}

/// Computes `status`. Conditions of others are not part of it (A2.8).
pub(super) fn status(facts: Facts<'_>, now: Now) -> PodStatus {
    let Facts { desired, seen, previous, .. } = facts;
    if let Some(Cause::Rejected { reason, message }) = seen.memory.stage.cause() {
        return rejected(facts, reason, message, now);
    }
    let ended = matches!(seen.memory.stage, Stage::CleaningUp { .. } | Stage::Finished { .. });
    let mut init = containers::init_statuses(facts);
    let mut regular = containers::regular_statuses(facts);
    let mut ephemeral = containers::ephemeral_statuses(facts);
    if ended {
        containers::settle(desired, &mut init, &mut regular);
    }
    containers::bound_messages([&mut init, &mut regular, &mut ephemeral]);
    let phase = phase::phase(facts, &init, &regular, ended);
    let killed = match seen.memory.stage.cause() {
        // As long as containers run the pod has not failed: whoever replaces it would have two.
        Some(Cause::Killed { reason, message, disruption, .. }) if ended => Some((reason, message, *disruption)),
        _ => None,
    };
    let conditions = Conditions { facts, phase, init: &init, regular: &regular, now }.all(killed);
    let (pod_ips, host_ips) = (pod_ips(facts), addresses(facts.node_ips));
    let terminal = matches!(phase, "Failed" | "Succeeded");
    let keeps = |field: &Option<String>| field.clone().filter(|_| terminal);
    let (whole, actual) = whole::resources(desired, &seen.memory.resize.allocation, phase == "Running");
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: killed.map(|k| k.0.clone()).or_else(|| keeps(&previous.reason)),
        message: killed.map(|k| k.1.clone()).or_else(|| keeps(&previous.message)),
        conditions: Some(conditions),
        container_statuses: non_empty(regular),
        init_container_statuses: non_empty(init),
        ephemeral_container_statuses: non_empty(ephemeral),
        host_ip: host_ips.first().cloned(),
        host_ips: non_empty(host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: non_empty(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: desired.pod.spec.as_ref().map(|spec| qos_class(spec).as_str().to_owned()),
        start_time: seen.memory.started_at.map(stamp).or_else(|| previous.start_time.clone()),
        observed_generation: desired.pod.metadata.generation,
        allocated_resources: whole.as_ref().and_then(|whole| whole.requests.clone()),
        resources: actual,
        ..PodStatus::default()
    }
}

/// Whether the API server shows something else than was reported to it, in what others act on: the phase, the conditions that the node
/// owns, the containers. A report may have been refused; and while the node is away others mark its pods as not ready (A2.10).
pub(super) fn differs(shown: Option<&PodStatus>, reported: &PodStatus) -> bool {
    fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a str> {
        status.conditions.iter().flatten().find(|c| c.type_ == kind).map(|c| c.status.as_str())
    }
    fn containers(status: &PodStatus) -> impl Iterator<Item = (&str, bool, i32, Option<&str>)> {
        let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
        let all = lists.into_iter().flatten().flatten();
        all.map(|c| (c.name.as_str(), c.ready, c.restart_count, c.container_id.as_deref()))
    }
    shown.is_none_or(|shown| {
        let same = |kind: &str| condition(shown, kind) == condition(reported, kind);
        shown.phase != reported.phase
            || !containers(shown).eq(containers(reported))
            || !reported.conditions.iter().flatten().all(|c| same(&c.type_))
    })
}

/// A pod that was never admitted: Failed, and nothing else is known of it (A6.1).
fn rejected(facts: Facts<'_>, reason: &str, message: &str, now: Now) -> PodStatus {
    let started = facts.seen.memory.started_at.or(Some(now.wall)).map(stamp);
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        start_time: facts.previous.start_time.clone().or(started),
        qos_class: facts.desired.pod.spec.as_ref().map(|spec| qos_class(spec).as_str().to_owned()),
        observed_generation: facts.desired.pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// The pod's addresses; those last reported stay when the sandbox is gone (A2.21).
fn pod_ips(facts: Facts<'_>) -> Vec<String> {
    let Facts { desired, seen, previous, node_ips, .. } = facts;
    if desired.host_network() {
        return if seen.sandbox().is_some() || previous.pod_ip.is_some() { addresses(node_ips) } else { Vec::new() };
    }
    let current = seen.sandboxes.iter().find(|s| s.ready && !s.ips.is_empty());
    let current = current.or_else(|| seen.sandbox().filter(|s| !s.ips.is_empty()));
    match current {
        Some(sandbox) => {
            let primary_is_v6 = node_ips.first().is_some_and(IpAddr::is_ipv6);
            let mut ips = sandbox.ips.clone();
            ips.sort_by_key(|ip| ip.contains(':') != primary_is_v6);
            ips
        }
        None => previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    }
}

/// At most one address of each family.
fn addresses(ips: &[IpAddr]) -> Vec<String> {
    let first = |v6: bool| ips.iter().position(|ip| ip.is_ipv6() == v6);
    let mut places: Vec<usize> = [first(false), first(true)].into_iter().flatten().collect();
    places.sort_unstable();
    places.into_iter().map(|place| ips[place].to_string()).collect()
}

/// A time as the API keeps it: in whole seconds. Anything finer would differ from what the next agent reads back (A2.23).
fn stamp(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The status of one container that was reported last.
fn reported<'a>(list: Option<&'a Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    list?.iter().find(|status| status.name == name)
}

#[cfg(test)]
#[path = "status/tests.rs"]
mod tests;
