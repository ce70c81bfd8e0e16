//! In which order a resize is done: memory before CPU, the pod's group growing before its containers and shrinking after them, and limits
//! growing before requests and shrinking after them (A15.1). Pure.

use crate::cgroup::PodLimits;

/// One thing after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::pod) enum Phase {
    /// The pod's group gets these limits.
    Group(PodLimits),
    /// The containers get theirs.
    Containers(Part),
}

/// What of its resources a container gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::pod) enum Part {
    Memory,
    Cpu,
}

/// The way from what the pod's group has to what it shall have.
pub(in crate::pod) fn phases(current: &PodLimits, wanted: &PodLimits) -> Vec<Phase> {
    let mut now = PodLimits { hugepages: wanted.hugepages.clone(), ..current.clone() };
    let mut all = Vec::new();
    let mut set = |all: &mut Vec<Phase>, change: &dyn Fn(&mut PodLimits)| {
        change(&mut now);
        all.push(Phase::Group(now.clone()));
    };
    let memory = |limits: &mut PodLimits| limits.memory_bytes = wanted.memory_bytes;
    let quota = |limits: &mut PodLimits| limits.milli_cpu = wanted.milli_cpu;
    let shares = |limits: &mut PodLimits| limits.shares = wanted.shares;

    let (grows, shrinks) = compared(current.memory_bytes, wanted.memory_bytes);
    if grows {
        set(&mut all, &memory);
    }
    all.push(Phase::Containers(Part::Memory));
    if shrinks {
        set(&mut all, &memory);
    }
    let (grows, shrinks) = compared(current.milli_cpu, wanted.milli_cpu);
    if grows {
        set(&mut all, &quota);
    }
    if wanted.shares > current.shares {
        set(&mut all, &shares);
    }
    all.push(Phase::Containers(Part::Cpu));
    if wanted.shares < current.shares {
        set(&mut all, &shares);
    }
    if shrinks {
        set(&mut all, &quota);
    }
    all
}

/// Whether a limit grows, and whether it shrinks; `None`: there is none.
fn compared<T: Ord>(current: Option<T>, wanted: Option<T>) -> (bool, bool) {
    match (current, wanted) {
        (None, None) => (false, false),
        (Some(_), None) => (true, false),
        (None, Some(_)) => (false, true),
        (Some(current), Some(wanted)) => (wanted > current, wanted < current),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stoker_model::resources::QosClass;

    use super::*;

    fn limits(memory_bytes: Option<i64>, milli_cpu: Option<i128>, shares: u64) -> PodLimits {
        PodLimits { qos: QosClass::Guaranteed, shares, milli_cpu, memory_bytes, hugepages: BTreeMap::new() }
    }

    #[test]
    fn groups_grow_before_containers_and_shrink_after_them() {
        // A15.1
        let text = |phase: &Phase| match phase {
            Phase::Group(l) => format!("{:?}/{:?}/{}", l.memory_bytes, l.milli_cpu, l.shares),
            Phase::Containers(part) => format!("{part:?}"),
        };
        let small = limits(Some(64), Some(100), 102);
        let large = limits(Some(128), Some(200), 204);
        let none = limits(None, None, 102);
        for (from, to, expected) in [
            (&small, &large, "Some(128)/Some(100)/102 Memory Some(128)/Some(200)/102 Some(128)/Some(200)/204 Cpu"),
            (&large, &small, "Memory Some(64)/Some(200)/204 Cpu Some(64)/Some(200)/102 Some(64)/Some(100)/102"),
            (&small, &small, "Memory Cpu"),
            (&small, &none, "None/Some(100)/102 Memory None/None/102 Cpu"),
            (&none, &small, "Memory Some(64)/None/102 Cpu Some(64)/Some(100)/102"),
            (
                &limits(Some(64), Some(200), 204),
                &limits(Some(128), Some(100), 102),
                "Some(128)/Some(200)/204 Memory Cpu Some(128)/Some(200)/102 Some(128)/Some(100)/102",
            ),
        ] {
            let found: Vec<String> = phases(from, to).iter().map(text).collect();
            assert_eq!(found.join(" "), expected, "{from:?} {to:?}");
        }
    }
}
