//! What the operator keeps back from pods, and where that is enforced (A13.1, A13.2).

use std::collections::BTreeMap;

use stoker_model::quantity::Milli;
use stoker_model::resources::Amounts;

use super::wiring::WiringError;
use crate::config::KubeletConfig;
use crate::node::{Enforcement, Reservation};
use crate::resources::CpuSet;

/// What is reserved for Kubernetes' daemons, and for the system. CPUs that are reserved by number count for the system (A13.1).
fn reservations(config: &KubeletConfig) -> Result<[Amounts; 2], WiringError> {
    let read = |map: &BTreeMap<String, String>| {
        map.iter()
            .map(|(name, amount)| Ok((name.clone(), Milli::parse(amount)?)))
            .collect::<Result<Amounts, WiringError>>()
    };
    let (mut kube, mut system) = (read(&config.kube_reserved)?, read(&config.system_reserved)?);
    if !config.reserved_system_cpus.is_empty() {
        let cpus: CpuSet = config.reserved_system_cpus.parse()?;
        kube.remove("cpu");
        system.insert("cpu".to_owned(), Milli::from_units(i64::try_from(cpus.len()).unwrap_or(i64::MAX)));
    }
    Ok([kube, system])
}

/// What is reserved in all.
pub(super) fn reserved(config: &KubeletConfig) -> Result<Amounts, WiringError> {
    let mut all = Amounts::new();
    for (resource, amount) in reservations(config)?.into_iter().flatten() {
        *all.entry(resource).or_default() += amount;
    }
    Ok(all)
}

/// What `enforceNodeAllocatable` asks for (A13.2).
pub(super) fn enforcement(config: &KubeletConfig) -> Result<Enforcement, WiringError> {
    let [kube, system] = reservations(config)?;
    let mut groups = Vec::new();
    for what in &config.enforce_node_allocatable {
        let compressible = what.ends_with("-compressible");
        let (whose, group, amounts) = match what.trim_end_matches("-compressible") {
            "kube-reserved" => ("kube", &config.kube_reserved_cgroup, &kube),
            "system-reserved" => ("system", &config.system_reserved_cgroup, &system),
            _ => continue,
        };
        groups.push(Reservation { whose, group: group.clone(), amounts: amounts.clone(), compressible });
    }
    let pods = config.enforce_node_allocatable.iter().any(|what| what == "pods");
    Ok(Enforcement { pods, reserved: reserved(config)?, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_becomes_limits() {
        // A13.1, A13.2
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = KubeletConfig {
            kube_reserved: map(&[("cpu", "500m"), ("memory", "1Gi")]),
            system_reserved: map(&[("cpu", "500m"), ("memory", "1Gi")]),
            reserved_system_cpus: "0-1".into(),
            enforce_node_allocatable: vec!["pods".into(), "kube-reserved-compressible".into()],
            kube_reserved_cgroup: "/kube".into(),
            ..KubeletConfig::default()
        };
        let found = enforcement(&config).unwrap();
        assert_eq!((found.reserved["cpu"].milli(), found.reserved["memory"].units()), (2000, 2 << 30));
        assert!(found.pods && found.groups.len() == 1 && found.groups[0].compressible);
        assert_eq!((found.groups[0].whose, found.groups[0].group.as_str()), ("kube", "/kube"));
        assert!(!found.groups[0].amounts.contains_key("cpu"), "the CPUs are the system's");
        let of = |list: &[&str]| {
            let enforced = list.iter().map(|what| (*what).to_owned()).collect();
            let found = enforcement(&KubeletConfig {
                enforce_node_allocatable: enforced,
                system_reserved_cgroup: "/system".into(),
                reserved_system_cpus: String::new(),
                ..config.clone()
            });
            let found = found.unwrap();
            let group =
                |g: &Reservation| format!("{} {} {} {}", g.whose, g.group, g.compressible, g.amounts["cpu"].milli());
            (found.pods, found.groups.iter().map(group).collect::<Vec<_>>())
        };
        assert_eq!(of(&["none"]), (false, vec![]));
        assert_eq!(of(&["pods"]), (true, vec![]));
        let both = vec!["kube /kube false 500".to_owned(), "system /system true 500".to_owned()];
        assert_eq!(of(&["kube-reserved", "system-reserved-compressible"]), (false, both));
        assert_eq!(KubeletConfig::default().enforce_node_allocatable, ["pods"]);
    }
}
