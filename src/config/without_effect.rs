//! Fields of KubeletConfiguration that change nothing here, and why: whoever sets one is told.

use serde_json::Value;

use super::kubelet::KubeletConfig;
use super::validate::{Invalid, invalid};

/// Fields whose value does no harm, but no good either.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("contentType", "the API server is always asked for JSON"),
    ("enableContentionProfiling", "there is no Go runtime to profile"),
    ("enableProfilingHandler", "there is no Go runtime to profile"),
    ("hairpinMode", "the pod network decides it"),
    ("iptablesDropBit", "packets are marked by the service rules alone"),
    ("iptablesMasqueradeBit", "packets are marked by the service rules alone; set it in KubeProxyConfiguration"),
    ("kubeletCgroups", "the unit's own group is used"),
    ("logging.flushFrequency", "lines are written at once"),
    ("logging.vmodule", "set logging.verbosity"),
    ("memoryThrottlingFactor", "it needs the alpha feature MemoryQoS, which this agent does not have"),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
    ("streamingConnectionIdleTimeout", "the runtime ends idle streams; set stream_idle_timeout in its configuration"),
    ("systemCgroups", "processes of the system are left where they are"),
    ("volumePluginDir", "FlexVolume plugins are not run; use CSI"),
];

/// The field at `logging.vmodule`.
fn field<'a>(config: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(config, |object, name| object.get(name))
}

/// One line for each field that was set in vain.
pub(super) fn warnings(config: &KubeletConfig) -> Vec<String> {
    let fields = |config: &KubeletConfig| serde_json::to_value(config).unwrap_or_default();
    let (said, default) = (fields(config), fields(&KubeletConfig::default()));
    let in_vain = WITHOUT_EFFECT.iter().filter(|(name, _)| field(&said, name) != field(&default, name));
    let told = |(name, reason): &(&str, &str)| format!("KubeletConfiguration: {name} has no effect: {reason}");
    let gates = super::feature_gates::in_vain(&config.feature_gates).into_iter();
    let gates = gates
        .map(|name| format!("KubeletConfiguration: featureGates.{name} has no effect: the gate switches nothing here"));
    in_vain.map(told).chain(gates).collect()
}

/// Fields that promise something which nobody here keeps: better no agent than one that breaks the promise.
pub(super) fn refuse_promises(config: &KubeletConfig) -> Result<(), Invalid> {
    if !config.cgroups_per_qos {
        return Err(invalid(
            "cgroupsPerQOS",
            false,
            "is not supported: pods always have groups by their quality of service",
        ));
    }
    if config.run_once {
        return Err(invalid("runOnce", true, "is not supported: the agent runs until it is stopped"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sets_a_field_in_vain_is_told() {
        let default = KubeletConfig::default();
        assert_eq!(warnings(&default), [""; 0]);
        let known = serde_json::to_value(&default).expect("fields");
        for (name, _) in WITHOUT_EFFECT {
            assert!(field(&known, name).is_some(), "{name} is no field");
        }
        let set = KubeletConfig { content_type: "application/json".into(), hairpin_mode: "none".into(), ..default };
        let told = warnings(&set);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("contentType has no effect") && told[1].contains("hairpinMode"), "{told:?}");
    }

    #[test]
    fn promises_that_nobody_keeps_are_refused() {
        let default = KubeletConfig::default;
        assert!(refuse_promises(&default()).is_ok());
        for (config, field) in [
            (KubeletConfig { cgroups_per_qos: false, ..default() }, "cgroupsPerQOS"),
            (KubeletConfig { run_once: true, ..default() }, "runOnce"),
        ] {
            let error = refuse_promises(&config).expect_err(field).to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
