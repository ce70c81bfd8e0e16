//! Limits what all pods together may use, and where the operator wants it what the system and its daemons may (A13.2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stoker_model::handle::{EventSink, EventSubject, EventType, NodeFeed};
use stoker_model::quantity::Milli;

use crate::cgroup::{CgroupError, Cgroups, cpu_shares};

/// Pods may use more than they are to be limited to: it is tried again until enough of them have ended.
const RETRY: Duration = Duration::from_secs(60);

/// A group that the operator has made, and what is reserved for it.
#[derive(Clone, PartialEq, Debug)]
pub struct Reservation {
    /// Whose it is, as events name it: `system` or `kube`.
    pub whose: &'static str,
    /// The group.
    pub group: String,
    /// What it may use.
    pub amounts: BTreeMap<String, Milli>,
    /// Only the CPU is limited.
    pub compressible: bool,
}

/// What kubelet's `enforceNodeAllocatable` asks for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Enforcement {
    /// Pods together get no more than the node has without what is reserved.
    pub pods: bool,
    /// Reserved for the system and for Kubernetes' daemons, together.
    pub reserved: BTreeMap<String, Milli>,
    /// Groups to limit.
    pub groups: Vec<Reservation>,
}

/// Amounts as control groups take them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct GroupLimits {
    shares: u64,
    memory_bytes: Option<i64>,
    pids: Option<u64>,
}

/// The limits of all pods together; without enforcement only their share of the CPU, since the kernel gives little by itself.
fn limits_of_pods(
    enforcement: &Enforcement,
    capacity: &BTreeMap<String, Milli>,
    most_pids: Option<i64>,
) -> GroupLimits {
    let rest = |name: &str| {
        let reserved = enforcement.reserved.get(name).copied().filter(|_| enforcement.pods).unwrap_or_default();
        capacity.get(name).map(|amount| (*amount - reserved).max(Milli::ZERO))
    };
    let reserved_pids = enforcement.reserved.get("pid").map_or(0, |pids| pids.units());
    let pids = most_pids.filter(|_| enforcement.pods && reserved_pids > 0);
    GroupLimits {
        shares: cpu_shares(rest("cpu").map_or(0, |cpu| cpu.milli())),
        memory_bytes: rest("memory").map(|memory| memory.units()),
        pids: pids.and_then(|pids| u64::try_from(pids - reserved_pids).ok()),
    }
}

/// Enforces when the machine is known, and again until it succeeds.
pub async fn enforce_allocatable(
    enforcement: Enforcement,
    cgroups: Arc<Cgroups>,
    mut node: NodeFeed,
    sink: Arc<dyn EventSink>,
) {
    let tell = |kind: EventType, reason: &str, text: String| sink.publish(EventSubject::Node, kind, reason, text);
    let most_pids = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    loop {
        let Ok(seen) = node.wait_for(|node| !node.capacity.is_empty()).await.map(|node| node.clone()) else { return };
        let capacity = seen.capacity.iter().map(|(name, amount)| (name.clone(), Milli::of(amount))).collect();
        let limits = limits_of_pods(&enforcement, &capacity, most_pids);
        match cgroups.limit_pods(limits.shares, limits.memory_bytes, limits.pids) {
            Ok(()) => break,
            Err(error) => {
                tracing::warn!(%error, "pods together are not limited yet; it is tried again");
                let text = format!("Failed to update Node Allocatable Limits \"kubepods\": {error}");
                tell(EventType::Warning, "FailedNodeAllocatableEnforcement", text);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    let text = "Updated Node Allocatable limit across pods";
    tell(EventType::Normal, "NodeAllocatableEnforced", text.to_owned());
    for reservation in &enforcement.groups {
        let Reservation { whose, group, .. } = reservation;
        match limit_reservation(&cgroups, reservation) {
            Ok(()) => {
                let text = format!("Updated limits on {whose} reserved cgroup {group}");
                tell(EventType::Normal, "NodeAllocatableEnforced", text);
            }
            Err(error) => {
                tracing::error!(%error, group, "what is reserved is not enforced");
                let name = if *whose == "kube" { "Kube" } else { "System" };
                let text = format!("Failed to enforce {name} Reserved Cgroup Limits on \"{group}\": {error}");
                tell(EventType::Warning, "FailedNodeAllocatableEnforcement", text);
            }
        }
    }
    std::future::pending().await
}

/// Limits a group that the operator has made.
fn limit_reservation(cgroups: &Cgroups, reservation: &Reservation) -> Result<(), CgroupError> {
    let (shares, memory_bytes, pids) = limits_of_reservation(reservation);
    cgroups.limit_existing(&reservation.group, shares, memory_bytes, pids)
}

/// CPU shares, bytes of memory, processes.
fn limits_of_reservation(reservation: &Reservation) -> (Option<u64>, Option<i64>, Option<u64>) {
    let amount = |name: &str| reservation.amounts.get(name).copied();
    let other = |name: &str| amount(name).filter(|_| !reservation.compressible);
    (
        amount("cpu").map(|cpu| cpu_shares(cpu.milli())),
        other("memory").map(|memory| memory.units()),
        other("pid").and_then(|pids| u64::try_from(pids.units()).ok()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(pairs: &[(&str, &str)]) -> BTreeMap<String, Milli> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), Milli::parse(text).unwrap())).collect()
    }

    #[test]
    fn pods_get_what_is_not_reserved() {
        // A13.2
        let capacity = amounts(&[("cpu", "4"), ("memory", "8Gi")]);
        let reserved = amounts(&[("cpu", "1"), ("memory", "1Gi"), ("pid", "1000")]);
        let enforced = Enforcement { pods: true, reserved: reserved.clone(), groups: Vec::new() };
        assert_eq!(
            limits_of_pods(&enforced, &capacity, Some(32_768)),
            GroupLimits { shares: 3072, memory_bytes: Some(7 << 30), pids: Some(31_768) }
        );
        let not = Enforcement { pods: false, reserved, groups: Vec::new() };
        assert_eq!(
            limits_of_pods(&not, &capacity, Some(32_768)),
            GroupLimits { shares: 4096, memory_bytes: Some(8 << 30), pids: None }
        );
    }

    #[test]
    fn groups_get_what_is_reserved_for_them() {
        // A13.2
        let amounts = amounts(&[("cpu", "500m"), ("memory", "1Gi"), ("pid", "1000")]);
        let of = |compressible| {
            let group = "/kube".to_owned();
            limits_of_reservation(&Reservation { whose: "kube", group, amounts: amounts.clone(), compressible })
        };
        assert_eq!(of(false), (Some(512), Some(1 << 30), Some(1000)));
        assert_eq!(of(true), (Some(512), None, None), "only what can be taken back");
    }
}
