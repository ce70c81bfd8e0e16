//! kubelet's flags, by name and meaning: those that stand for a field of the configuration override it, those that are
//! gone are accepted and named in a warning (A22.2b).

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Map, Value, json};

/// How a flag's text becomes a field's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Text,
    Bool,
    Number,
    /// `a,b`
    List,
    /// `k=v,k2=v2`
    Pairs,
    /// `k<v,k2<v2`
    Thresholds,
    /// `Gate=true,Other=false`
    Switches,
    /// `key=value:Effect,key:Effect`
    Taints,
    /// `name:value,name:value`
    Headers,
}

/// Flags that override a field of KubeletConfiguration.
const FIELDS: &[(&str, &str, Shape)] = {
    use Shape::{Bool, Headers, List, Number, Pairs, Switches, Taints, Text, Thresholds};
    &[
        ("address", "address", Text),
        ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
        ("anonymous-auth", "authentication.anonymous.enabled", Bool),
        ("authentication-token-webhook", "authentication.webhook.enabled", Bool),
        ("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Text),
        ("authorization-mode", "authorization.mode", Text),
        ("authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL", Text),
        ("authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL", Text),
        ("cgroup-driver", "cgroupDriver", Text),
        ("cgroup-root", "cgroupRoot", Text),
        ("cgroups-per-qos", "cgroupsPerQOS", Bool),
        ("client-ca-file", "authentication.x509.clientCAFile", Text),
        ("cluster-dns", "clusterDNS", List),
        ("cluster-domain", "clusterDomain", Text),
        ("container-log-max-files", "containerLogMaxFiles", Number),
        ("container-log-max-size", "containerLogMaxSize", Text),
        ("container-runtime-endpoint", "containerRuntimeEndpoint", Text),
        ("contention-profiling", "enableContentionProfiling", Bool),
        ("cpu-cfs-quota", "cpuCFSQuota", Bool),
        ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Text),
        ("cpu-manager-policy", "cpuManagerPolicy", Text),
        ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Pairs),
        ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Text),
        ("enable-controller-attach-detach", "enableControllerAttachDetach", Bool),
        ("enable-debugging-handlers", "enableDebuggingHandlers", Bool),
        ("enable-server", "enableServer", Bool),
        ("enforce-node-allocatable", "enforceNodeAllocatable", List),
        ("event-burst", "eventBurst", Number),
        ("event-qps", "eventRecordQPS", Number),
        ("eviction-hard", "evictionHard", Thresholds),
        ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Number),
        ("eviction-minimum-reclaim", "evictionMinimumReclaim", Pairs),
        ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Text),
        ("eviction-soft", "evictionSoft", Thresholds),
        ("eviction-soft-grace-period", "evictionSoftGracePeriod", Pairs),
        ("fail-cgroupv1", "failCgroupV1", Bool),
        ("fail-swap-on", "failSwapOn", Bool),
        ("feature-gates", "featureGates", Switches),
        ("file-check-frequency", "fileCheckFrequency", Text),
        ("hairpin-mode", "hairpinMode", Text),
        ("healthz-bind-address", "healthzBindAddress", Text),
        ("healthz-port", "healthzPort", Number),
        ("http-check-frequency", "httpCheckFrequency", Text),
        ("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
        ("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
        ("image-service-endpoint", "imageServiceEndpoint", Text),
        ("iptables-drop-bit", "iptablesDropBit", Number),
        ("iptables-masquerade-bit", "iptablesMasqueradeBit", Number),
        ("kernel-memcg-notification", "kernelMemcgNotification", Bool),
        ("kube-api-burst", "kubeAPIBurst", Number),
        ("kube-api-content-type", "contentType", Text),
        ("kube-api-qps", "kubeAPIQPS", Number),
        ("kube-reserved", "kubeReserved", Pairs),
        ("kube-reserved-cgroup", "kubeReservedCgroup", Text),
        ("kubelet-cgroups", "kubeletCgroups", Text),
        ("local-storage-capacity-isolation", "localStorageCapacityIsolation", Bool),
        ("logging-format", "logging.format", Text),
        ("make-iptables-util-chains", "makeIPTablesUtilChains", Bool),
        ("manifest-url", "staticPodURL", Text),
        ("manifest-url-header", "staticPodURLHeader", Headers),
        ("max-open-files", "maxOpenFiles", Number),
        ("max-pods", "maxPods", Number),
        ("memory-manager-policy", "memoryManagerPolicy", Text),
        ("minimum-image-ttl-duration", "imageMinimumGCAge", Text),
        ("node-status-max-images", "nodeStatusMaxImages", Number),
        ("node-status-update-frequency", "nodeStatusUpdateFrequency", Text),
        ("oom-score-adj", "oomScoreAdj", Number),
        ("pod-cidr", "podCIDR", Text),
        ("pod-manifest-path", "staticPodPath", Text),
        ("pod-max-pids", "podPidsLimit", Number),
        ("pods-per-core", "podsPerCore", Number),
        ("port", "port", Number),
        ("protect-kernel-defaults", "protectKernelDefaults", Bool),
        ("provider-id", "providerID", Text),
        ("qos-reserved", "qosReserved", Pairs),
        ("read-only-port", "readOnlyPort", Number),
        ("register-node", "registerNode", Bool),
        ("register-with-taints", "registerWithTaints", Taints),
        ("registry-burst", "registryBurst", Number),
        ("registry-qps", "registryPullQPS", Number),
        ("reserved-cpus", "reservedSystemCPUs", Text),
        ("resolv-conf", "resolvConf", Text),
        ("rotate-certificates", "rotateCertificates", Bool),
        ("rotate-server-certificates", "serverTLSBootstrap", Bool),
        ("runonce", "runOnce", Bool),
        ("runtime-request-timeout", "runtimeRequestTimeout", Text),
        ("seccomp-default", "seccompDefault", Bool),
        ("serialize-image-pulls", "serializeImagePulls", Bool),
        ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Text),
        ("sync-frequency", "syncFrequency", Text),
        ("system-cgroups", "systemCgroups", Text),
        ("system-reserved", "systemReserved", Pairs),
        ("system-reserved-cgroup", "systemReservedCgroup", Text),
        ("tls-cert-file", "tlsCertFile", Text),
        ("tls-cipher-suites", "tlsCipherSuites", List),
        ("tls-min-version", "tlsMinVersion", Text),
        ("tls-private-key-file", "tlsPrivateKeyFile", Text),
        ("topology-manager-policy", "topologyManagerPolicy", Text),
        ("topology-manager-policy-options", "topologyManagerPolicyOptions", Pairs),
        ("topology-manager-scope", "topologyManagerScope", Text),
        ("volume-plugin-dir", "volumePluginDir", Text),
        ("volume-stats-agg-period", "volumeStatsAggPeriod", Text),
    ]
};

/// Flags that are no field of the configuration, with their help.
const OWN: &[(&str, Shape, &str)] = &[
    ("config", Shape::Text, "KubeletConfiguration v1beta1 file"),
    ("config-dir", Shape::Text, "Directory of drop-ins *.conf that override --config in the order of their names"),
    ("kubeconfig", Shape::Text, "How to reach the API server; without it only static pods run"),
    ("bootstrap-kubeconfig", Shape::Text, "Used to get a kubeconfig when --kubeconfig does not exist"),
    ("hostname-override", Shape::Text, "Name of the node [default: the host's name in lower case]"),
    ("node-ip", Shape::Text, "Addresses of the node, at most one of each family"),
    ("node-labels", Shape::Text, "Labels of the node: key=value,…"),
    ("root-dir", Shape::Text, "Where pods live [default: /var/lib/kubelet]"),
    ("cert-dir", Shape::Text, "Where certificates live [default: pki in --root-dir]"),
    ("cloud-provider", Shape::Text, "external, or empty"),
    ("image-credential-provider-config", Shape::Text, "Configuration of credential providers"),
    ("image-credential-provider-bin-dir", Shape::Text, "Programs of credential providers"),
    (
        "lock-file",
        Shape::Text,
        "Only one agent holds it, the next waits [default: stoker.lock in --root-dir, and nobody waits]",
    ),
    ("exit-on-lock-contention", Shape::Bool, "End when anybody else opens --lock-file"),
    ("stoker-config", Shape::Text, "StokerConfiguration file [default: /etc/stoker/stoker.yaml]"),
    ("proxy-config", Shape::Text, "KubeProxyConfiguration v1alpha1 file: how Services are served"),
    ("v", Shape::Number, "How much to log: 0 to 10"),
    ("vmodule", Shape::Text, "Accepted for compatibility"),
    ("log-flush-frequency", Shape::Text, "Accepted for compatibility"),
    ("reserved-memory", Shape::Text, "Memory reserved by NUMA node: 0:memory=1Gi"),
];

/// Flags that kubelet had once and scripts still pass.
const REMOVED: &[(&str, Shape)] = &[
    ("add-dir-header", Shape::Bool),
    ("allow-privileged", Shape::Bool),
    ("alsologtostderr", Shape::Bool),
    ("application-metrics-count-limit", Shape::Text),
    ("azure-container-registry-config", Shape::Text),
    ("boot-id-file", Shape::Text),
    ("cadvisor-port", Shape::Text),
    ("chaos-chance", Shape::Text),
    ("cloud-config", Shape::Text),
    ("cni-bin-dir", Shape::Text),
    ("cni-cache-dir", Shape::Text),
    ("cni-conf-dir", Shape::Text),
    ("container-hints", Shape::Text),
    ("container-runtime", Shape::Text),
    ("containerd", Shape::Text),
    ("containerd-namespace", Shape::Text),
    ("docker", Shape::Text),
    ("docker-endpoint", Shape::Text),
    ("docker-only", Shape::Bool),
    ("docker-root", Shape::Text),
    ("dynamic-config-dir", Shape::Text),
    ("enable-cadvisor-json-endpoints", Shape::Bool),
    ("enable-load-reader", Shape::Bool),
    ("event-storage-age-limit", Shape::Text),
    ("event-storage-event-limit", Shape::Text),
    ("experimental-allocatable-ignore-eviction", Shape::Bool),
    ("experimental-bootstrap-kubeconfig", Shape::Text),
    ("experimental-check-node-capabilities-before-mount", Shape::Bool),
    ("experimental-kernel-memcg-notification", Shape::Bool),
    ("experimental-mounter-path", Shape::Text),
    ("global-housekeeping-interval", Shape::Text),
    ("housekeeping-interval", Shape::Text),
    ("image-pull-progress-deadline", Shape::Text),
    ("keep-terminated-pod-volumes", Shape::Bool),
    ("log-backtrace-at", Shape::Text),
    ("log-cadvisor-usage", Shape::Bool),
    ("log-dir", Shape::Text),
    ("log-file", Shape::Text),
    ("log-file-max-size", Shape::Text),
    ("log-json-info-buffer-size", Shape::Text),
    ("log-json-split-stream", Shape::Bool),
    ("log-text-info-buffer-size", Shape::Text),
    ("log-text-split-stream", Shape::Bool),
    ("logtostderr", Shape::Bool),
    ("machine-id-file", Shape::Text),
    ("master-service-namespace", Shape::Text),
    ("maximum-dead-containers", Shape::Text),
    ("maximum-dead-containers-per-container", Shape::Text),
    ("minimum-container-ttl-duration", Shape::Text),
    ("network-plugin", Shape::Text),
    ("network-plugin-mtu", Shape::Text),
    ("non-masquerade-cidr", Shape::Text),
    ("one-output", Shape::Bool),
    ("pod-infra-container-image", Shape::Text),
    ("really-crash-for-testing", Shape::Bool),
    ("redirect-container-streaming", Shape::Bool),
    ("register-schedulable", Shape::Bool),
    ("runtime-cgroups", Shape::Text),
    ("seccomp-profile-root", Shape::Text),
    ("skip-headers", Shape::Bool),
    ("skip-log-headers", Shape::Bool),
    ("stderrthreshold", Shape::Text),
    ("storage-driver-buffer-duration", Shape::Text),
    ("storage-driver-db", Shape::Text),
    ("storage-driver-host", Shape::Text),
    ("storage-driver-password", Shape::Text),
    ("storage-driver-secure", Shape::Bool),
    ("storage-driver-table", Shape::Text),
    ("storage-driver-user", Shape::Text),
    ("update-machine-info-interval", Shape::Text),
    ("volume-plugin-probe", Shape::Bool),
];

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--config-dir`
    pub config_dir: Option<PathBuf>,
    /// `--kubeconfig`
    pub kubeconfig: Option<PathBuf>,
    /// `--bootstrap-kubeconfig`
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--hostname-override`
    pub hostname_override: Option<String>,
    /// `--node-ip`
    pub node_ip: Option<String>,
    /// `--node-labels`
    pub node_labels: String,
    /// `--root-dir`
    pub root_dir: PathBuf,
    /// `--cert-dir`
    pub cert_dir: PathBuf,
    /// `--cloud-provider=external`
    pub external_cloud: bool,
    /// `--lock-file`
    pub lock_file: PathBuf,
    /// It was named: who finds it taken waits, as kubelet does.
    pub waits_for_lock: bool,
    /// `--exit-on-lock-contention`
    pub exit_on_contention: bool,
    /// `--image-credential-provider-config`
    pub credential_providers: Option<PathBuf>,
    /// `--image-credential-provider-bin-dir`
    pub credential_provider_programs: Option<PathBuf>,
    /// `--stoker-config`
    pub stoker_config: Option<PathBuf>,
    /// `--proxy-config`
    pub proxy_config: Option<PathBuf>,
    /// `--v`
    pub verbosity: i64,
    /// Fields of KubeletConfiguration that flags set.
    pub overrides: Value,
    /// Flags that do nothing any more.
    pub warnings: Vec<String>,
}

/// Why a flag cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--{flag}: {value:?} {must}")]
pub struct FlagError {
    flag: String,
    value: String,
    must: &'static str,
}

/// All flags for clap: what is in use with its help, what is deprecated or gone hidden.
pub fn arguments() -> Vec<Arg> {
    let own = OWN.iter().map(|(name, shape, help)| {
        let arg = argument(name, *shape).help(*help);
        if *name == "v" { arg.short('v') } else { arg }
    });
    let fields = FIELDS
        .iter()
        .map(|(name, path, shape)| argument(name, *shape).help(format!("Overrides {path}")).hide_short_help(true));
    let removed = REMOVED.iter().map(|(name, shape)| argument(name, *shape).hide(true));
    own.chain(fields).chain(removed).collect()
}

fn argument(name: &'static str, shape: Shape) -> Arg {
    let arg = Arg::new(name).long(name).action(ArgAction::Append).allow_hyphen_values(true);
    match shape {
        Shape::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
        _ => arg.value_name("VALUE"),
    }
}

/// pflag takes `_` for `-` in names; so do we, since scripts that are old enough write it.
pub fn with_pflag_names(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let rename = |argument: String| match argument.strip_prefix("--") {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            format!("--{}{value}", name.replace('_', "-"))
        }
        None => argument,
    };
    arguments.into_iter().map(rename).collect()
}

/// Reads what clap matched.
///
/// # Errors
/// Names the flag whose value does not fit.
pub fn read_flags(matches: &ArgMatches) -> Result<Flags, FlagError> {
    let all = |name: &str| -> Vec<String> { matches.get_many::<String>(name).into_iter().flatten().cloned().collect() };
    let last = |name: &str| all(name).pop();
    let path = |name: &str| last(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    let mut overrides = json!({});
    for (name, field, shape) in FIELDS {
        let values = all(name);
        if !values.is_empty() {
            put(&mut overrides, field, value(name, *shape, &values)?);
        }
    }
    if let Some(reserved) = last("reserved-memory") {
        put(&mut overrides, "reservedMemory", reserved_memory(&reserved)?);
    }
    let verbosity = match last("v") {
        Some(text) => number("v", &text)?,
        None => 0,
    };
    let root_dir = path("root-dir").unwrap_or_else(|| PathBuf::from("/var/lib/kubelet"));
    let gone = REMOVED.iter().filter(|(name, _)| matches.contains_id(name));
    Ok(Flags {
        config: path("config"),
        config_dir: path("config-dir"),
        kubeconfig: path("kubeconfig"),
        bootstrap_kubeconfig: path("bootstrap-kubeconfig"),
        hostname_override: last("hostname-override").filter(|name| !name.is_empty()),
        node_ip: last("node-ip").filter(|ip| !ip.is_empty()),
        node_labels: all("node-labels").join(","),
        cert_dir: path("cert-dir").unwrap_or_else(|| root_dir.join("pki")),
        external_cloud: last("cloud-provider").is_some_and(|provider| provider == "external"),
        waits_for_lock: path("lock-file").is_some(),
        exit_on_contention: last("exit-on-lock-contention")
            .map(|text| boolean("exit-on-lock-contention", &text))
            .transpose()?
            .unwrap_or_default(),
        lock_file: path("lock-file").unwrap_or_else(|| root_dir.join("stoker.lock")),
        root_dir,
        credential_providers: path("image-credential-provider-config"),
        credential_provider_programs: path("image-credential-provider-bin-dir"),
        stoker_config: path("stoker-config"),
        proxy_config: path("proxy-config"),
        verbosity,
        overrides,
        warnings: gone.map(|(name, _)| format!("--{name} does nothing any more and is ignored")).collect(),
    })
}

fn value(flag: &str, shape: Shape, given: &[String]) -> Result<Value, FlagError> {
    let last = given.last().map(String::as_str).unwrap_or_default();
    let parts = || given.iter().flat_map(|text| text.split(',')).filter(|part| !part.is_empty());
    let pairs = |separator: char, must: &'static str| -> Result<Vec<(String, String)>, FlagError> {
        let split = |part: &str| {
            let (key, value) = part.split_once(separator).ok_or_else(|| error(flag, part, must))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        };
        parts().map(split).collect()
    };
    Ok(match shape {
        Shape::Text => json!(last),
        Shape::Bool => json!(boolean(flag, last)?),
        Shape::Number => json!(number(flag, last)?),
        Shape::List => json!(parts().collect::<Vec<_>>()),
        Shape::Pairs => json!(pairs('=', "is not of the form key=value")?.into_iter().collect::<BTreeMap<_, _>>()),
        Shape::Thresholds => {
            json!(pairs('<', "is not of the form signal<threshold")?.into_iter().collect::<BTreeMap<_, _>>())
        }
        Shape::Switches => {
            let mut switches = Map::new();
            for (gate, on) in pairs('=', "is not of the form Gate=true")? {
                switches.insert(gate, json!(boolean(flag, &on)?));
            }
            Value::Object(switches)
        }
        Shape::Taints => parts().map(|part| taint(flag, part)).collect::<Result<Vec<_>, _>>()?.into(),
        Shape::Headers => {
            let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (name, text) in pairs(':', "is not of the form name:value")? {
                headers.entry(name).or_default().push(text);
            }
            json!(headers)
        }
    })
}

fn error(flag: &str, value: &str, must: &'static str) -> FlagError {
    FlagError { flag: flag.to_owned(), value: value.to_owned(), must }
}

/// As Go's `strconv.ParseBool`.
fn boolean(flag: &str, text: &str) -> Result<bool, FlagError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(error(flag, text, "must be true or false")),
    }
}

fn number(flag: &str, text: &str) -> Result<i64, FlagError> {
    text.parse().map_err(|_| error(flag, text, "must be a whole number"))
}

fn taint(flag: &str, text: &str) -> Result<Value, FlagError> {
    let must = "is not of the form key=value:Effect with NoSchedule, PreferNoSchedule or NoExecute";
    let (key, effect) = text.rsplit_once(':').ok_or_else(|| error(flag, text, must))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) || key.is_empty() {
        return Err(error(flag, text, must));
    }
    Ok(match key.split_once('=') {
        Some((key, value)) => json!({ "key": key, "value": value, "effect": effect }),
        None => json!({ "key": key, "effect": effect }),
    })
}

/// `0:memory=1Gi,hugepages-1M=2Gi;1:memory=2Gi`
fn reserved_memory(text: &str) -> Result<Value, FlagError> {
    let flag = "reserved-memory";
    let must = "is not of the form node:memory=amount;…";
    let node = |part: &str| {
        let (node, limits) = part.split_once(':').ok_or_else(|| error(flag, part, must))?;
        let limits = value(flag, Shape::Pairs, &[limits.to_owned()])?;
        Ok(json!({ "numaNode": number(flag, node)?, "limits": limits }))
    };
    text.split(';').filter(|part| !part.is_empty()).map(node).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// Sets the field at a dotted path.
fn put(object: &mut Value, path: &str, value: Value) {
    let mut at = object;
    for name in path.split('.') {
        at = &mut at[name];
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Flags, String> {
        let words = with_pflag_names(std::iter::once("kubelet".to_owned()).chain(line.split(' ').map(str::to_owned)));
        let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let matches = clap::Command::new("kubelet").args(arguments()).try_get_matches_from(words);
        read_flags(&matches.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    #[test]
    fn what_kubeadm_writes_is_taken() {
        // A22.2b: nothing, what it writes now, and what it wrote before.
        assert_eq!(read("").expect("read").overrides, json!({}));
        let now = "--register-with-taints=node-role.kubernetes.io/control-plane:NoSchedule --hostname-override=n \
                   --node-ip=192.0.2.1,fd00::1";
        let flags = read(now).expect("read");
        assert_eq!(flags.hostname_override.as_deref(), Some("n"));
        assert_eq!((flags.node_ip.as_deref(), flags.warnings.len()), (Some("192.0.2.1,fd00::1"), 0));
        let taint = json!([{ "key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule" }]);
        assert_eq!(flags.overrides, json!({ "registerWithTaints": taint }));
        let before = "--container-runtime-endpoint=unix:///c.sock --pod-infra-container-image=pause --container-runtime=remote \
                      --network-plugin=cni --hostname-override= --node-ip=";
        let flags = read(before).expect("read");
        assert_eq!(flags.overrides, json!({ "containerRuntimeEndpoint": "unix:///c.sock" }));
        assert_eq!((flags.hostname_override, flags.node_ip, flags.warnings.len()), (None, None, 3));
        // Whatever is gone is taken, and named.
        for (name, shape) in REMOVED {
            let value = if *shape == Shape::Bool { "" } else { "=x" };
            let warnings = read(&format!("--{name}{value}")).expect(name).warnings;
            assert!(matches!(&warnings[..], [one] if one.contains(&format!("--{name} "))), "{name}: {warnings:?}");
        }
        assert!(read("--no-such-flag=1").is_err());
    }

    #[test]
    fn flags_in_use_reach_what_they_configure() {
        // A22.2d
        let line = "-v 3 --node-labels=a=b --node-ip=192.0.2.1 --cert-dir=/p --root-dir=/r --cloud-provider=external \
                    --image-credential-provider-config=/i --image-credential-provider-bin-dir=/b --lock-file=/l \
                    --exit-on-lock-contention";
        let flags = read(line).expect("read");
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(
            (flags.verbosity, flags.node_labels.as_str(), flags.node_ip.as_deref()),
            (3, "a=b", Some("192.0.2.1"))
        );
        assert_eq!((path("/p"), path("/r")), (Some(flags.cert_dir), Some(flags.root_dir)));
        assert_eq!((flags.credential_providers, flags.credential_provider_programs), (path("/i"), path("/b")));
        assert!(flags.external_cloud && flags.waits_for_lock && flags.exit_on_contention);
        assert_eq!((Some(flags.lock_file), flags.overrides), (path("/l"), json!({})));
        let plain = read("").expect("read");
        assert!(!plain.waits_for_lock && !plain.exit_on_contention && !plain.external_cloud);
        for (flag, field, expected) in [
            ("--feature-gates=A=true", "/featureGates/A", json!(true)),
            ("--cgroup-driver=systemd", "/cgroupDriver", json!("systemd")),
            ("--max-pods=7", "/maxPods", json!(7)),
            ("--eviction-hard=memory.available<7Mi,nodefs.available<5%", "/evictionHard/nodefs.available", json!("5%")),
            ("--system-reserved=cpu=1", "/systemReserved/cpu", json!("1")),
            ("--kube-reserved=memory=1Gi", "/kubeReserved/memory", json!("1Gi")),
            ("--read-only-port=7", "/readOnlyPort", json!(7)),
            ("--fail-swap-on=false", "/failSwapOn", json!(false)),
            ("--container-log-max-size=7Mi", "/containerLogMaxSize", json!("7Mi")),
            ("--container-log-max-files=7", "/containerLogMaxFiles", json!(7)),
            ("--seccomp-default", "/seccompDefault", json!(true)),
            ("--pod-manifest-path=/m", "/staticPodPath", json!("/m")),
            ("--manifest-url=http://m", "/staticPodURL", json!("http://m")),
            ("--cluster-dns=192.0.2.53", "/clusterDNS/0", json!("192.0.2.53")),
            ("--cluster-domain=x", "/clusterDomain", json!("x")),
            ("--resolv-conf=/x", "/resolvConf", json!("/x")),
            ("--pod-max-pids=7", "/podPidsLimit", json!(7)),
            ("--reserved-cpus=0-1", "/reservedSystemCPUs", json!("0-1")),
            ("--enforce-node-allocatable=pods,kube-reserved", "/enforceNodeAllocatable/1", json!("kube-reserved")),
            ("--rotate-server-certificates", "/serverTLSBootstrap", json!(true)),
            ("--tls-cert-file=/c", "/tlsCertFile", json!("/c")),
            ("--tls-private-key-file=/k", "/tlsPrivateKeyFile", json!("/k")),
            ("--tls-min-version=VersionTLS13", "/tlsMinVersion", json!("VersionTLS13")),
            ("--tls-cipher-suites=a,b", "/tlsCipherSuites/1", json!("b")),
            ("--allowed-unsafe-sysctls=a.b,c.*", "/allowedUnsafeSysctls/1", json!("c.*")),
            ("--register-node=false", "/registerNode", json!(false)),
        ] {
            let flags = read(flag).expect(flag);
            assert_eq!(flags.overrides.pointer(field), Some(&expected), "{flag}: {}", flags.overrides);
            assert_eq!(flags.warnings, [""; 0], "{flag}");
        }
    }
}
