//! What the machine has, and what of it pods may use (A13.1). Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker_model::quantity::Milli;

use super::machine::Machine;
use super::settings::NodeSettings;

pub(super) type Resources = BTreeMap<String, Milli>;

/// Capacity of the machine.
pub(super) fn capacity(machine: &Machine, settings: &NodeSettings) -> Resources {
    let mut pods = settings.max_pods;
    if settings.pods_per_core > 0 {
        pods = pods.min(machine.cpus.saturating_mul(settings.pods_per_core));
    }
    let mut all = Resources::from([
        ("cpu".to_owned(), Milli::from_units(machine.cpus)),
        ("memory".to_owned(), Milli::from_units(machine.memory_bytes)),
        ("ephemeral-storage".to_owned(), Milli::from_units(machine.nodefs.bytes)),
        ("pods".to_owned(), Milli::from_units(pods)),
    ]);
    if !settings.local_storage {
        all.remove("ephemeral-storage");
    }
    for (size, bytes) in &machine.hugepages {
        all.insert(format!("hugepages-{size}"), Milli::from_units(*bytes));
    }
    all
}

/// Capacity without what is reserved, without the hard eviction threshold, without hugepages where it is memory.
pub(super) fn allocatable(capacity: &Resources, settings: &NodeSettings) -> Resources {
    let mut all = capacity.clone();
    for (name, amount) in &mut all {
        let mut taken = settings.reserved.get(name).copied().unwrap_or_default();
        let signal = match name.as_str() {
            "memory" => Some("memory.available"),
            "ephemeral-storage" => Some("nodefs.available"),
            _ => None,
        };
        if let Some(threshold) = signal.and_then(|signal| settings.eviction_hard.get(signal)) {
            taken += threshold_amount(threshold, *amount);
        }
        if name == "memory" {
            taken += capacity.iter().filter(|(n, _)| n.starts_with("hugepages-")).map(|(_, bytes)| *bytes).sum();
        }
        *amount = (*amount - taken).max(Milli::ZERO);
    }
    all
}

/// `100Mi`, or `10%` of `whole`; what cannot be read was refused when the configuration was loaded.
pub(super) fn threshold_amount(threshold: &str, whole: Milli) -> Milli {
    match threshold.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().unwrap_or_default();
            #[expect(clippy::cast_possible_truncation, reason = "a share of an i64, and upstream's is a float too")]
            let share = (whole.units() as f64 * percent / 100.0) as i64;
            Milli::from_units(share)
        }
        None => Milli::parse(threshold).unwrap_or_default(),
    }
}

/// As the API has them: binary suffixes for bytes where nothing is lost, cores with `m` where needed.
pub(super) fn quantities(resources: &Resources) -> BTreeMap<String, Quantity> {
    let text = |name: &str, amount: Milli| match name {
        "memory" | "ephemeral-storage" => binary(amount.units()),
        _ if name.starts_with("hugepages-") => binary(amount.units()),
        _ => amount.to_string(),
    };
    resources.iter().map(|(name, amount)| (name.clone(), Quantity(text(name, *amount)))).collect()
}

pub(super) fn binary(bytes: i64) -> String {
    let mut amount = bytes;
    let mut suffix = "";
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi"] {
        if amount == 0 || amount % 1024 != 0 {
            break;
        }
        amount /= 1024;
        suffix = next;
    }
    format!("{amount}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::super::machine::Filesystem;
    use super::*;

    const MIB: i64 = 1 << 20;

    fn machine() -> Machine {
        Machine {
            cpus: 4,
            memory_bytes: 8192 * MIB,
            nodefs: Filesystem { bytes: 1000 * MIB, ..Filesystem::default() },
            hugepages: BTreeMap::from([("2Mi".to_owned(), 64 * MIB)]),
        }
    }

    fn settings() -> NodeSettings {
        let amounts = [("cpu", "500m"), ("memory", "1Gi")];
        NodeSettings {
            max_pods: 110,
            reserved: amounts.into_iter().map(|(k, v)| (k.into(), Milli::parse(v).expect("an amount"))).collect(),
            eviction_hard: BTreeMap::from([
                ("memory.available".into(), "100Mi".into()),
                ("nodefs.available".into(), "10%".into()),
            ]),
            ..super::super::settings::tests_support()
        }
    }

    #[test]
    fn allocatable_is_what_is_left() {
        // A13.1
        let settings = settings();
        let capacity = capacity(&machine(), &settings);
        let left = quantities(&allocatable(&capacity, &settings));
        for (name, expected) in [
            ("cpu", "3500m".to_owned()),
            ("memory", format!("{}Mi", 8192 - 1024 - 100 - 64)),
            ("ephemeral-storage", "900Mi".to_owned()),
            ("pods", "110".to_owned()),
            ("hugepages-2Mi", "64Mi".to_owned()),
        ] {
            assert_eq!(left[name].0, expected, "{name}");
        }
    }

    #[test]
    fn allocatable_is_never_negative() {
        // A13.1
        let mut settings = settings();
        settings.reserved.insert("memory".into(), Milli::from_units(1 << 40));
        let left = allocatable(&capacity(&machine(), &settings), &settings);
        assert!(left["memory"].is_zero());
    }

    #[test]
    fn the_disk_counts_where_it_is_isolated() {
        // A22.1h
        let settings = NodeSettings { local_storage: false, ..settings() };
        assert!(!capacity(&machine(), &settings).contains_key("ephemeral-storage"));
    }

    #[test]
    fn pods_per_core_only_lowers() {
        // A13.1
        for (per_core, pods) in [(0, 110), (10, 40), (100, 110)] {
            let settings = NodeSettings { pods_per_core: per_core, ..settings() };
            assert_eq!(capacity(&machine(), &settings)["pods"], Milli::from_units(pods), "{per_core}");
        }
    }
}
