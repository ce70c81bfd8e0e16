//! What follows from what was found: a grade, and how to put it right. Decides only.

use serde::Serialize;

use super::facts::Facts;
use crate::cli::preflight::KERNEL_DEFAULTS;
use crate::config::{KubeletConfig, PodNetwork, ServiceMode, StokerConfig};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    Ok,
    /// It works, not as well as it could.
    Warning,
    /// The agent does not start, or pods do not run.
    Error,
}

/// One line of the answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) subject: &'static str,
    pub(super) grade: Grade,
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

/// A clock that is further off makes certificates and tokens invalid.
const SKEW_SECONDS: i64 = 60;
/// Before it this program did not exist: 2025-01-01.
const EARLIEST: i64 = 1_735_689_600;
const NEEDED_CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];
const USEFUL_CONTROLLERS: &[&str] = &["cpuset", "io", "hugetlb"];

fn ok(subject: &'static str, message: impl Into<String>) -> Finding {
    Finding { subject, grade: Grade::Ok, message: message.into(), fix: None }
}

fn warning(subject: &'static str, message: impl Into<String>, fix: &str) -> Finding {
    Finding { subject, grade: Grade::Warning, message: message.into(), fix: Some(fix.to_owned()) }
}

fn error(subject: &'static str, message: impl Into<String>, fix: &str) -> Finding {
    Finding { subject, grade: Grade::Error, message: message.into(), fix: Some(fix.to_owned()) }
}

/// All of it, in the order of printing.
pub(super) fn findings(facts: &Facts, kubelet: &KubeletConfig, stoker: &StokerConfig) -> Vec<Finding> {
    let mut found = vec![if facts.root {
        ok("user", "root")
    } else {
        error("user", "not root: the agent makes cgroups, mounts and rules", "sudo stoker check")
    }];
    found.extend(runtime(facts, kubelet));
    found.extend(cgroups(facts, kubelet));
    found.push(swap(facts, kubelet));
    found.extend(sysctls(kubelet, facts));
    found.extend(ports(facts));
    found.extend(kernel(facts, stoker));
    found.extend(clock(facts));
    found.extend(machine(facts, stoker));
    found
}

fn runtime(facts: &Facts, kubelet: &KubeletConfig) -> Vec<Finding> {
    const SUBJECT: &str = "runtime";
    let answer = match &facts.runtime {
        None => return Vec::new(),
        Some(Err(reason)) => {
            let message = format!("{} does not answer: {reason}", kubelet.container_runtime_endpoint);
            return vec![error(
                SUBJECT,
                message,
                "apt-get install containerd && systemctl enable --now containerd, or set containerRuntimeEndpoint",
            )];
        }
        Some(Ok(answer)) => answer,
    };
    let mut found = vec![ok(SUBJECT, answer.version.clone())];
    for (kind, message) in &answer.troubles {
        let (message, fix) = (
            format!("{kind} is false: {message}"),
            match kind.as_str() {
                "NetworkReady" => {
                    "install a CNI plugin, or set podNetwork: routed in stoker.yaml; a plugin that runs as a DaemonSet comes with the first pods"
                }
                _ => "look at the runtime's log: journalctl -u containerd",
            },
        );
        found.push(if kind == "NetworkReady" { warning(SUBJECT, message, fix) } else { error(SUBJECT, message, fix) });
    }
    if let Some(driver) = answer.cgroup_driver.filter(|driver| *driver != kubelet.cgroup_driver) {
        let message =
            format!("the runtime wants the cgroup driver {driver}, cgroupDriver is {}", kubelet.cgroup_driver);
        found.push(warning(
            SUBJECT,
            message,
            "make them the same: SystemdCgroup in containerd's config.toml, or cgroupDriver in kubelet.yaml",
        ));
    }
    found
}

fn cgroups(facts: &Facts, kubelet: &KubeletConfig) -> Vec<Finding> {
    const SUBJECT: &str = "cgroups";
    const BOOT: &str = "boot with cgroup v2: remove systemd.unified_cgroup_hierarchy=0 and cgroup_disable= from the kernel's command line";
    let has = |name: &str| match &facts.unified {
        Some(controllers) => controllers.iter().any(|is| is == name),
        None => facts.legacy.iter().any(|is| is == name || (name == "io" && is == "blkio")),
    };
    let missing =
        |wanted: &[&str]| -> String { wanted.iter().copied().filter(|name| !has(name)).collect::<Vec<_>>().join(", ") };
    let mut found = vec![match &facts.unified {
        Some(_) => ok(SUBJECT, "version 2"),
        None if kubelet.fail_cgroup_v1 => error(
            SUBJECT,
            "version 1, and failCgroupV1 is true, as it is by default",
            &format!("{BOOT}; or set failCgroupV1: false"),
        ),
        None => warning(SUBJECT, "version 1: no memory.high, no pressure of pods, no swap for pods", BOOT),
    }];
    for (wanted, grade) in [(NEEDED_CONTROLLERS, Grade::Error), (USEFUL_CONTROLLERS, Grade::Warning)] {
        let missing = missing(wanted);
        if !missing.is_empty() {
            let fix =
                Some("enable them: cgroup.subtree_control of the root group, or the kernel's command line".to_owned());
            found.push(Finding {
                subject: SUBJECT,
                grade,
                message: format!("controllers are missing: {missing}"),
                fix,
            });
        }
    }
    found
}

fn swap(facts: &Facts, kubelet: &KubeletConfig) -> Finding {
    const SUBJECT: &str = "swap";
    if facts.swaps.is_empty() {
        return ok(SUBJECT, "none");
    }
    let message = format!("on: {}", facts.swaps.join(", "));
    if kubelet.fail_swap_on {
        return error(
            SUBJECT,
            format!("{message}; and failSwapOn is true"),
            "swapoff -a and remove it from /etc/fstab; or set failSwapOn: false",
        );
    }
    ok(
        SUBJECT,
        format!(
            "{message}; pods get {}",
            match kubelet.memory_swap.swap_behavior.as_str() {
                "LimitedSwap" => "a share",
                _ => "none of it",
            }
        ),
    )
}

fn sysctls(kubelet: &KubeletConfig, facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "sysctl";
    let value = |name: &str| facts.sysctls.get(name).map(String::as_str).unwrap_or_default();
    let fix = |name: &str, value: &str| format!("sysctl -w {name}={value}, and a line in /etc/sysctl.d");
    let mut found = Vec::new();
    if value("net.ipv4.ip_forward") != "1" {
        found.push(error(
            SUBJECT,
            "net.ipv4.ip_forward is off: no packet reaches a pod",
            &fix("net.ipv4.ip_forward", "1"),
        ));
    }
    // Empty: br_netfilter is not loaded, and so no bridge's packets need it.
    if value("net.bridge.bridge-nf-call-iptables") == "0" {
        let message = "net.bridge.bridge-nf-call-iptables is 0: services fail between pods of one bridge";
        found.push(warning(SUBJECT, message, &fix("net.bridge.bridge-nf-call-iptables", "1")));
    }
    // Otherwise the agent sets them when it starts.
    for (name, wanted) in KERNEL_DEFAULTS.iter().copied().filter(|_| kubelet.protect_kernel_defaults) {
        if value(name) != wanted {
            let message = format!("{name} is {}, not {wanted}, and protectKernelDefaults is true", value(name));
            found.push(error(SUBJECT, message, &fix(name, wanted)));
        }
    }
    if found.is_empty() {
        found.push(ok(SUBJECT, "as they must be"));
    }
    found
}

fn ports(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "ports";
    if facts.agent_runs {
        return vec![ok(SUBJECT, "an agent runs here, and has them")];
    }
    if facts.taken.is_empty() {
        return vec![ok(SUBJECT, "free")];
    }
    let finding = |(port, reason): &(u16, String)| {
        let message = format!("{port} cannot be used: {reason}");
        error(SUBJECT, message, &format!("stop what listens there (ss -ltnp 'sport = :{port}'): kubelet, perhaps"))
    };
    facts.taken.iter().map(finding).collect()
}

fn kernel(facts: &Facts, stoker: &StokerConfig) -> Vec<Finding> {
    const SUBJECT: &str = "kernel";
    let mut found = vec![ok(SUBJECT, facts.kernel.clone())];
    if let Some(Err(reason)) = &facts.nftables {
        let message = format!("nftables cannot be used: {reason}");
        let fix = "apt-get install nftables, and a kernel with nf_tables; or serviceProxy.mode: none in stoker.yaml";
        let needed = stoker.service_proxy.mode == ServiceMode::Nftables || stoker.pod_network != PodNetwork::None;
        found.push(if needed { error(SUBJECT, message, fix) } else { warning(SUBJECT, message, fix) });
    }
    if !facts.conntrack {
        found.push(error(
            SUBJECT,
            "no connection tracking, which services need",
            "modprobe nf_conntrack, or a kernel that has it",
        ));
    }
    if !facts.filesystems.iter().any(|name| name == "overlay") {
        found.push(warning(SUBJECT, "no overlay file system: images are copied", "modprobe overlay"));
    }
    if !facts.ip_vs {
        found.push(warning(
            SUBJECT,
            "no ip_vs: mode ipvs of KubeProxyConfiguration cannot be used",
            "modprobe ip_vs, or leave the mode at nftables",
        ));
    }
    if !facts.pressure {
        found.push(warning(SUBJECT, "no pressure stall information: statistics lack it", "boot with psi=1"));
    }
    found
}

fn clock(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "clock";
    const FIX: &str = "apt-get install systemd-timesyncd, or chrony; timedatectl set-ntp true";
    if facts.now.as_second() < EARLIEST {
        return vec![error(SUBJECT, format!("it says {}: every certificate would be of the future", facts.now), FIX)];
    }
    if let Some(ahead) = facts.ahead.filter(|ahead| ahead.abs() > SKEW_SECONDS) {
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        return vec![error(SUBJECT, format!("{} seconds {side} the API server's", ahead.abs()), FIX)];
    }
    match (facts.synchronized, facts.ahead) {
        (Some(false), _) => vec![warning(SUBJECT, "not kept by a time server", FIX)],
        (_, Some(_)) => vec![ok(SUBJECT, "as the API server's")],
        (Some(true), None) => vec![ok(SUBJECT, "kept by a time server")],
        (None, None) => vec![ok(SUBJECT, "plausible; nothing here tells whether a time server keeps it")],
    }
}

fn machine(facts: &Facts, stoker: &StokerConfig) -> Vec<Finding> {
    const SUBJECT: &str = "machine";
    let mut found = Vec::new();
    let name = facts.hostname.to_lowercase();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        !bytes.is_empty()
            && bytes.len() <= 63
            && bytes.iter().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        found.push(error(
            SUBJECT,
            format!("{name:?} can be no node's name"),
            "hostnamectl set-hostname NAME, or --hostname-override",
        ));
    }
    if !facts.machine_id {
        found.push(warning(SUBJECT, "there is no /etc/machine-id", "systemd-machine-id-setup"));
    }
    if !facts.cni && stoker.pod_network == PodNetwork::None {
        let fix = "install a CNI plugin, or set podNetwork: routed in stoker.yaml";
        found.push(warning(SUBJECT, format!("no network for pods in {}", stoker.cni.conf_dir.display()), fix));
    }
    match facts.disk {
        Some((free, whole)) if whole > 0 && free * 10 < whole => {
            let message =
                format!("{} MiB are free where pods live, less than a tenth: pods will be evicted", free >> 20);
            found.push(warning(SUBJECT, message, "make room, or set evictionHard"));
        }
        _ => {}
    }
    if found.is_empty() {
        found.push(ok(SUBJECT, name));
    }
    found
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::facts::RuntimeFacts;
    use super::*;

    fn good() -> Facts {
        Facts {
            root: true,
            kernel: "6.1".into(),
            runtime: Some(Ok(RuntimeFacts {
                version: "containerd 1.7".into(),
                cgroup_driver: Some("cgroupfs"),
                ..Default::default()
            })),
            unified: Some(["cpu", "memory", "pids", "cpuset", "io", "hugetlb"].map(str::to_owned).to_vec()),
            sysctls: [("net.ipv4.ip_forward", "1"), ("net.bridge.bridge-nf-call-iptables", "")]
                .into_iter()
                .chain(KERNEL_DEFAULTS.iter().copied())
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
            nftables: Some(Ok(())),
            ip_vs: true,
            filesystems: vec!["overlay".into()],
            conntrack: true,
            pressure: true,
            now: Timestamp::from_second(EARLIEST + 1).expect("a moment"),
            synchronized: Some(true),
            hostname: "node-1.example".into(),
            machine_id: true,
            cni: true,
            disk: Some((50, 100)),
            ..Facts::default()
        }
    }

    #[test]
    fn a_good_machine_has_no_finding() {
        let found = findings(&good(), &KubeletConfig::default(), &StokerConfig::default());
        assert!(found.iter().all(|finding| finding.grade == Grade::Ok), "{found:?}");
    }

    /// What spoils a machine, the grade, and what the message says.
    type Case = (fn(&mut Facts), Grade, &'static str);

    #[test]
    fn each_trouble_is_found_graded_and_has_a_fix() {
        let cases: [Case; 21] = [
            (|facts| facts.root = false, Grade::Error, "not root"),
            (|facts| facts.runtime = Some(Err("no such file".into())), Grade::Error, "no such file"),
            (|facts| trouble(facts, "NetworkReady"), Grade::Warning, "NetworkReady is false"),
            (|facts| trouble(facts, "RuntimeReady"), Grade::Error, "RuntimeReady is false"),
            (|facts| driver(facts, "systemd"), Grade::Warning, "cgroup driver systemd"),
            (|facts| facts.unified = None, Grade::Error, "version 1"),
            (|facts| facts.unified = Some(vec!["cpu".into(), "memory".into()]), Grade::Error, "pids"),
            (|facts| _ = facts.unified.as_mut().map(Vec::pop), Grade::Warning, "hugetlb"),
            (|facts| facts.swaps = vec!["/dev/sda2".into()], Grade::Error, "/dev/sda2"),
            (|facts| _ = facts.sysctls.remove("net.ipv4.ip_forward"), Grade::Error, "ip_forward"),
            (
                |facts| _ = facts.sysctls.insert("net.bridge.bridge-nf-call-iptables", "0".into()),
                Grade::Warning,
                "bridge",
            ),
            (|facts| facts.taken = vec![(10250, "in use".into())], Grade::Error, "10250"),
            (|facts| facts.nftables = Some(Err("no nft".into())), Grade::Error, "no nft"),
            (|facts| facts.conntrack = false, Grade::Error, "tracking"),
            (|facts| facts.ip_vs = false, Grade::Warning, "ip_vs"),
            (|facts| facts.filesystems.clear(), Grade::Warning, "overlay"),
            (|facts| facts.pressure = false, Grade::Warning, "pressure"),
            (|facts| facts.now = Timestamp::UNIX_EPOCH, Grade::Error, "1970"),
            (|facts| facts.ahead = Some(-61), Grade::Error, "61 seconds behind"),
            (|facts| facts.hostname = "under_score".into(), Grade::Error, "under_score"),
            (|facts| facts.disk = Some((9, 100)), Grade::Warning, "tenth"),
        ];
        for (spoil, grade, text) in cases {
            let mut facts = good();
            spoil(&mut facts);
            let found = findings(&facts, &KubeletConfig::default(), &StokerConfig::default());
            let finding = found
                .iter()
                .find(|finding| finding.message.contains(text))
                .unwrap_or_else(|| panic!("{text} in {found:?}"));
            assert_eq!(finding.grade, grade, "{finding:?}");
            assert!(finding.fix.is_some(), "{finding:?}");
        }
    }

    fn trouble(facts: &mut Facts, kind: &str) {
        if let Some(Ok(runtime)) = &mut facts.runtime {
            runtime.troubles = vec![(kind.to_owned(), "why".into())];
        }
    }

    fn driver(facts: &mut Facts, driver: &'static str) {
        if let Some(Ok(runtime)) = &mut facts.runtime {
            runtime.cgroup_driver = Some(driver);
        }
    }

    #[test]
    fn what_the_agent_sets_itself_is_no_finding() {
        // A22.1l
        let mut facts = good();
        facts.sysctls.insert("kernel.panic", "0".to_owned());
        let mut kubelet = KubeletConfig::default();
        assert!(sysctls(&kubelet, &facts).iter().all(|finding| finding.grade == Grade::Ok));
        kubelet.protect_kernel_defaults = true;
        let found = sysctls(&kubelet, &facts);
        assert_eq!((found.len(), found[0].grade), (1, Grade::Error));
        assert!(found[0].message.contains("kernel.panic is 0, not 10"), "{found:?}");
    }

    #[test]
    fn what_the_operator_accepts_is_no_error() {
        let mut facts = good();
        (facts.unified, facts.legacy) = (None, ["cpu", "memory", "pids"].map(str::to_owned).to_vec());
        facts.swaps = vec!["/dev/sda2".into()];
        (facts.agent_runs, facts.synchronized, facts.ahead) = (true, None, Some(3));
        let kubelet = KubeletConfig { fail_cgroup_v1: false, fail_swap_on: false, ..KubeletConfig::default() };
        let found = findings(&facts, &kubelet, &StokerConfig::default());
        assert!(found.iter().all(|finding| finding.grade != Grade::Error), "{found:?}");
    }
}
