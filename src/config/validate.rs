//! What makes no sense although it can be read.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use stoker_model::quantity::Milli;

use super::kubelet::KubeletConfig;

/// A field whose value cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {value:?} {must}")]
pub struct Invalid {
    field: &'static str,
    value: String,
    must: String,
}

pub(super) fn invalid(field: &'static str, value: impl ToString, must: impl Into<String>) -> Invalid {
    Invalid { field, value: value.to_string(), must: must.into() }
}

/// Logs are not looked at more often.
const LEAST_LOG_INTERVAL: Duration = Duration::from_secs(3);

/// The first field that makes no sense.
pub(super) fn validate(config: &KubeletConfig) -> Result<(), Invalid> {
    choices(config)?;
    numbers(config)?;
    quantities(config)?;
    shutdown(config)?;
    super::feature_gates::check(&config.feature_gates)?;
    super::without_effect::refuse_promises(config)?;
    for address in &config.cluster_dns {
        address.parse::<IpAddr>().map_err(|_| invalid("clusterDNS", address, "is not an IP address"))?;
    }
    Ok(())
}

fn choices(config: &KubeletConfig) -> Result<(), Invalid> {
    if !config.system_cgroups.is_empty() && config.cgroup_root.is_empty() {
        return Err(invalid("systemCgroups", &config.system_cgroups, "needs cgroupRoot"));
    }
    if config.memory_reservation_policy == "TieredReservation" {
        let text = "requires the MemoryQoS feature gate, an alpha feature which this agent does not have";
        return Err(invalid("memoryReservationPolicy", &config.memory_reservation_policy, text));
    }
    let fields: [(&str, &String, &[&str]); 11] = [
        ("memoryReservationPolicy", &config.memory_reservation_policy, &["None"]),
        ("cgroupDriver", &config.cgroup_driver, &["cgroupfs", "systemd"]),
        ("authorization.mode", &config.authorization.mode, &["Webhook", "AlwaysAllow"]),
        ("cpuManagerPolicy", &config.cpu_manager_policy, &["none", "static"]),
        ("memoryManagerPolicy", &config.memory_manager_policy, &["None", "Static"]),
        (
            "topologyManagerPolicy",
            &config.topology_manager_policy,
            &["none", "best-effort", "restricted", "single-numa-node"],
        ),
        ("topologyManagerScope", &config.topology_manager_scope, &["container", "pod"]),
        ("hairpinMode", &config.hairpin_mode, &["promiscuous-bridge", "hairpin-veth", "none"]),
        ("memorySwap.swapBehavior", &config.memory_swap.swap_behavior, &["", "NoSwap", "LimitedSwap"]),
        ("logging.format", &config.logging.format, &["text", "json"]),
        ("configMapAndSecretChangeDetectionStrategy", &config.change_detection_strategy, &["Watch", "Cache", "Get"]),
    ];
    for (field, value, allowed) in fields {
        if !allowed.contains(&value.as_str()) {
            let list: Vec<_> = allowed.iter().filter(|choice| !choice.is_empty()).copied().collect();
            return Err(invalid(field, value, format!("must be one of {}", list.join(", "))));
        }
    }
    managers(config)?;
    let enforced = |what: &str| config.enforce_node_allocatable.iter().any(|e| e == what);
    for (what, group, field) in [
        ("kube-reserved", &config.kube_reserved_cgroup, "kubeReservedCgroup"),
        ("system-reserved", &config.system_reserved_cgroup, "systemReservedCgroup"),
    ] {
        let compressible = format!("{what}-compressible");
        if enforced(what) && enforced(&compressible) {
            return Err(invalid("enforceNodeAllocatable", what, format!("and {compressible} exclude each other")));
        }
        if (enforced(what) || enforced(&compressible)) && group.is_empty() {
            return Err(invalid("enforceNodeAllocatable", what, format!("needs {field}")));
        }
    }
    if enforced("none") && config.enforce_node_allocatable.len() > 1 {
        return Err(invalid("enforceNodeAllocatable", "none", "must stand alone"));
    }
    for what in &config.enforce_node_allocatable {
        let known = ["none", "pods", "system-reserved", "kube-reserved"];
        if !known.contains(&what.trim_end_matches("-compressible")) {
            return Err(invalid("enforceNodeAllocatable", what, format!("must be one of {}", known.join(", "))));
        }
    }
    Ok(())
}

/// A truth value as Go reads it.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `cpuManagerPolicyOptions`: those that are on by default upstream.
fn cpu_options(config: &KubeletConfig) -> Result<(), Invalid> {
    const FIELD: &str = "cpuManagerPolicyOptions";
    let options = &config.cpu_manager_policy_options;
    if !options.is_empty() && config.cpu_manager_policy != "static" {
        return Err(invalid(
            FIELD,
            options.keys().cloned().collect::<Vec<_>>().join(", "),
            "needs cpuManagerPolicy: static",
        ));
    }
    for (name, value) in options {
        match name.as_str() {
            "full-pcpus-only"
            | "strict-cpu-reservation"
            | "prefer-align-cpus-by-uncorecache"
            | "distribute-cpus-across-numa" => {}
            "align-by-socket" | "distribute-cpus-across-cores" => {
                let text =
                    "is of alpha level, which is not enabled: CPU Manager Policy Alpha-level Options not enabled";
                return Err(invalid(FIELD, name, text));
            }
            _ => return Err(invalid(FIELD, name, "is an unknown CPU Manager Policy option")),
        }
        if parse_bool(value).is_none() {
            return Err(invalid(FIELD, value, format!("is a bad value for option \"{name}\": write true or false")));
        }
    }
    let on = |name: &str| options.get(name).and_then(|value| parse_bool(value)) == Some(true);
    let (cache, numa) = ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa");
    if on(cache) && on(numa) {
        return Err(invalid(FIELD, cache, format!("and {numa} can not be used at the same time")));
    }
    Ok(())
}

/// `reservedMemory`.
fn reserved_memory(config: &KubeletConfig) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for reservation in &config.reserved_memory {
        let node = reservation.numa_node;
        let wrong = |resource: &String, what: String| Err(invalid("reservedMemory", resource, what));
        for (resource, amount) in &reservation.limits {
            if resource != "memory" && !resource.starts_with("hugepages-") {
                return wrong(
                    resource,
                    format!("for NUMA node {node} is not supported: only memory and hugepages-<size> are"),
                );
            }
            if Milli::parse(amount).map_or(true, |amount| amount <= Milli::ZERO) {
                return wrong(resource, format!("for NUMA node {node} needs an amount, which may not be zero"));
            }
            if !seen.insert((node, resource)) {
                return wrong(resource, format!("has a duplicate value for NUMA node {node}"));
            }
        }
    }
    Ok(())
}

/// Policies that give containers CPUs and memory of certain places, with upstream's conditions.
fn managers(config: &KubeletConfig) -> Result<(), Invalid> {
    cpu_options(config)?;
    reserved_memory(config)?;
    if let Some(name) = config.qos_reserved.keys().next() {
        return Err(invalid(
            "qosReserved",
            name,
            "needs the alpha feature QOSReserved, which this agent does not have",
        ));
    }
    let list = &config.reserved_system_cpus;
    let names_a_group = !config.system_reserved_cgroup.is_empty() || !config.kube_reserved_cgroup.is_empty();
    if names_a_group && !list.is_empty() {
        return Err(invalid(
            "reservedSystemCPUs",
            list,
            "cannot be used with systemReservedCgroup or kubeReservedCgroup",
        ));
    }
    const OPTIONS: &str = "topologyManagerPolicyOptions";
    for (name, value) in &config.topology_manager_policy_options {
        match name.as_str() {
            "prefer-closest-numa-nodes" if parse_bool(value).is_none() => {
                return Err(invalid(
                    OPTIONS,
                    value,
                    format!("is a bad value for option \"{name}\": write true or false"),
                ));
            }
            "max-allowable-numa-nodes" if value.parse::<u16>().is_ok_and(|nodes| nodes >= 8) => {}
            "max-allowable-numa-nodes" => {
                return Err(invalid(
                    OPTIONS,
                    value,
                    format!("is too little: the minimum value of \"{name}\" should not be less than 8"),
                ));
            }
            "prefer-closest-numa-nodes" => {}
            _ => return Err(invalid(OPTIONS, name, "is an unknown Topology Manager Policy option")),
        }
    }
    Ok(())
}

fn numbers(config: &KubeletConfig) -> Result<(), Invalid> {
    for (field, value, least, most) in [
        ("port", config.port, 1, 65535),
        ("readOnlyPort", config.read_only_port, 0, 65535),
        ("healthzPort", config.healthz_port, 0, 65535),
        ("imageGCHighThresholdPercent", config.image_gc_high_threshold_percent, 0, 100),
        ("imageGCLowThresholdPercent", config.image_gc_low_threshold_percent, 0, 100),
        ("maxPods", config.max_pods, 0, i32::MAX),
        ("tracing.samplingRatePerMillion", config.tracing.sampling_rate_per_million, 0, 1_000_000),
        ("podsPerCore", config.pods_per_core, 0, i32::MAX),
        ("nodeLeaseDurationSeconds", config.node_lease_duration_seconds, 1, i32::MAX),
        ("nodeStatusMaxImages", config.node_status_max_images, -1, i32::MAX),
        ("oomScoreAdj", config.oom_score_adj, -1000, 1000),
        ("registryPullQPS", config.registry_pull_qps, 0, i32::MAX),
        ("registryBurst", config.registry_burst, 0, i32::MAX),
        ("containerLogMaxFiles", config.container_log_max_files, 2, i32::MAX),
        ("containerLogMaxWorkers", config.container_log_max_workers, 1, i32::MAX),
        ("maxParallelImagePulls", config.max_parallel_image_pulls, 0, i32::MAX),
        ("eventRecordQPS", config.event_record_qps, 0, i32::MAX),
        ("eventBurst", config.event_burst, 0, i32::MAX),
        ("kubeAPIQPS", config.kube_api_qps, 0, i32::MAX),
        ("kubeAPIBurst", config.kube_api_burst, 0, i32::MAX),
        ("iptablesDropBit", config.iptables_drop_bit, 0, 31),
        ("iptablesMasqueradeBit", config.iptables_masquerade_bit, 0, 31),
    ] {
        if !(least..=most).contains(&value) {
            return Err(invalid(field, value, format!("must be {least} to {most}")));
        }
    }
    if config.serialize_image_pulls && config.max_parallel_image_pulls > 1 {
        let most = config.max_parallel_image_pulls;
        return Err(invalid("maxParallelImagePulls", most, "is larger than 1, which needs serializeImagePulls: false"));
    }
    let period = config.cpu_cfs_quota_period;
    if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period.0) {
        return Err(invalid("cpuCFSQuotaPeriod", period, "must be 1ms to 1s"));
    }
    if config.max_open_files < 0 {
        return Err(invalid("maxOpenFiles", config.max_open_files, "must not be negative"));
    }
    if !(config.memory_throttling_factor > 0.0 && config.memory_throttling_factor <= 1.0) {
        let factor = config.memory_throttling_factor;
        return Err(invalid("memoryThrottlingFactor", factor, "must be greater than 0, and at most 1"));
    }
    let restart = config.crash_loop_back_off.max_container_restart_period;
    if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&restart.0) {
        return Err(invalid("crashLoopBackOff.maxContainerRestartPeriod", restart, "must be 1s to 300s"));
    }
    let (most, least) = (config.image_maximum_gc_age, config.image_minimum_gc_age);
    if !most.0.is_zero() && most.0 <= least.0 {
        return Err(invalid("imageMaximumGCAge", most, "must be greater than imageMinimumGCAge"));
    }
    if config.container_log_monitor_interval.0 < LEAST_LOG_INTERVAL {
        let interval = config.container_log_monitor_interval;
        return Err(invalid("containerLogMonitorInterval", interval, "must be at least 3s"));
    }
    let logs = Path::new(&config.pod_logs_dir);
    let is_clean = logs.components().collect::<PathBuf>().as_os_str() == logs.as_os_str()
        && !logs.components().any(|part| part == Component::ParentDir);
    if !logs.is_absolute() || !is_clean || !config.pod_logs_dir.is_ascii() {
        return Err(invalid(
            "podLogsDir",
            &config.pod_logs_dir,
            "must be an absolute path of ASCII characters without . or ..",
        ));
    }
    if config.image_gc_low_threshold_percent >= config.image_gc_high_threshold_percent {
        let low = config.image_gc_low_threshold_percent;
        return Err(invalid("imageGCLowThresholdPercent", low, "must be less than imageGCHighThresholdPercent"));
    }
    Ok(())
}

/// Fields of A15.10.
fn shutdown(config: &KubeletConfig) -> Result<(), Invalid> {
    let (total, critical) = (config.shutdown_grace_period, config.shutdown_grace_period_critical_pods);
    for (field, value) in [("shutdownGracePeriod", total), ("shutdownGracePeriodCriticalPods", critical)] {
        if !value.0.is_zero() && value.0 < Duration::from_secs(1) {
            return Err(invalid(field, value, "must be 0s, or at least 1s"));
        }
    }
    if critical.0 > total.0 {
        let must = "must be at most shutdownGracePeriod, of which it is a part";
        return Err(invalid("shutdownGracePeriodCriticalPods", critical, must));
    }
    for period in &config.shutdown_grace_period_by_pod_priority {
        const FIELD: &str = "shutdownGracePeriodByPodPriority";
        if !total.0.is_zero() {
            return Err(invalid(FIELD, period.priority, "and shutdownGracePeriod exclude each other: remove one"));
        }
        if period.shutdown_grace_period_seconds < 0 {
            let seconds = period.shutdown_grace_period_seconds;
            return Err(invalid(FIELD, seconds, "has no negative shutdownGracePeriodSeconds"));
        }
    }
    Ok(())
}

fn quantities(config: &KubeletConfig) -> Result<(), Invalid> {
    for (field, map) in [("systemReserved", &config.system_reserved), ("kubeReserved", &config.kube_reserved)] {
        for (name, amount) in map {
            Milli::parse(amount).map_err(|e| invalid(field, name, format!("has no amount: {e}")))?;
        }
    }
    for (field, map) in [
        ("evictionHard", &config.eviction_hard),
        ("evictionSoft", &config.eviction_soft),
        ("evictionMinimumReclaim", &config.eviction_minimum_reclaim),
    ] {
        for (signal, threshold) in map {
            let readable = match threshold.strip_suffix('%') {
                Some(percent) => percent.parse::<f64>().is_ok_and(|p| (0.0..=100.0).contains(&p)),
                None => Milli::parse(threshold).is_ok(),
            };
            if !readable {
                return Err(invalid(field, threshold, format!("is no threshold for {signal}: write 100Mi or 10%")));
            }
        }
    }
    for signal in config.eviction_soft.keys() {
        if !config.eviction_soft_grace_period.contains_key(signal) {
            return Err(invalid("evictionSoft", signal, "needs a period in evictionSoftGracePeriod"));
        }
    }
    Milli::parse(&config.container_log_max_size)
        .map_err(|e| invalid("containerLogMaxSize", &config.container_log_max_size, e.to_string()))?;
    Ok(())
}
