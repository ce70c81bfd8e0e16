//! The Pod Security Standards: what the levels baseline and restricted refuse in a pod, by version (C5.16). Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::resources::tree::{items, text};

/// How strict a policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// What is refused, and where.
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) detail: String,
}

const NEWEST: u32 = 36;
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Allowed sysctls, and since which version.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// A pod as the checks see it.
struct Pod<'p> {
    annotations: &'p Value,
    spec: &'p Value,
}

impl<'p> Pod<'p> {
    fn containers(&self) -> impl Iterator<Item = &'p Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| items(spec, list))
    }

    /// The names of containers of which something is true.
    fn named(&self, is: impl Fn(&Value) -> bool) -> Vec<&'p str> {
        self.containers().filter(|container| is(container)).map(|container| text(container, "name")).collect()
    }

    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false
    }
}

fn quoted<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| format!("\"{text}\"")).collect();
    texts.join(", ")
}

fn plural<'w>(one: &'w str, many: &'w str, count: usize) -> &'w str {
    if count == 1 { one } else { many }
}

fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names.iter().copied()))
}

fn fault(reason: &str, detail: String) -> Option<Fault> {
    Some(Fault { reason: reason.to_owned(), detail })
}

/// The pod itself and its containers, of which something is true.
fn setters(pod_does: bool, names: &[&str]) -> Option<String> {
    let mut who = Vec::new();
    if pod_does {
        who.push("pod".to_owned());
    }
    if !names.is_empty() {
        who.push(containers(names));
    }
    (!who.is_empty()).then(|| who.join(" and "))
}

/// What a level of a version (`None`: the newest) refuses, in upstream's order: baseline first.
pub(super) fn check(level: Level, minor: Option<u32>, metadata: &Value, spec: &Value) -> Vec<Fault> {
    let pod = Pod { annotations: &metadata["annotations"], spec };
    let minor = minor.unwrap_or(NEWEST).min(NEWEST);
    let strict = level == Level::Restricted;
    if level == Level::Privileged {
        return Vec::new();
    }
    let mut faults = vec![app_armor(&pod)];
    if !strict || minor < 22 {
        faults.push(capabilities(&pod));
    }
    faults.push(host_namespaces(&pod));
    if !strict {
        faults.push(host_paths(&pod));
    }
    faults.push(host_ports(&pod));
    if minor >= 34 {
        faults.push(probe_hosts(&pod));
    }
    faults.push(privileged(&pod));
    if !(minor >= 35 && (strict || pod.has_own_users())) {
        faults.push(proc_mount(&pod));
    }
    faults.push(selinux(&pod, minor));
    if minor < 19 {
        faults.push(seccomp_annotations(&pod));
    } else if !strict {
        faults.push(seccomp(&pod, false));
    }
    faults.extend([sysctls(&pod, minor), host_process(&pod)]);
    if strict {
        let linux = minor < 25 || !pod.is_windows();
        let relaxed = minor >= 35 && pod.has_own_users();
        if minor >= 8 && linux {
            faults.push(escalation(&pod));
        }
        if minor >= 22 && linux {
            faults.push(dropped_capabilities(&pod));
        }
        if minor >= 35 {
            faults.push(proc_mount(&pod));
        }
        faults.push(volumes(&pod));
        if !relaxed {
            faults.push(not_root(&pod));
        }
        if minor >= 23 && !relaxed {
            faults.push(root_user(&pod));
        }
        if minor >= 19 && linux {
            faults.push(seccomp(&pod, true));
        }
    }
    faults.into_iter().flatten().collect()
}

fn app_armor(pod: &Pod<'_>) -> Option<Fault> {
    let bad = |context: &Value| {
        let profile = &context["appArmorProfile"];
        (!profile.is_null() && !matches!(text(profile, "type"), "RuntimeDefault" | "Localhost"))
            .then(|| text(profile, "type").to_owned())
    };
    let of_pod = bad(&pod.spec["securityContext"]);
    let names = pod.named(|container| bad(&container["securityContext"]).is_some());
    let kinds: BTreeSet<String> =
        of_pod.iter().cloned().chain(pod.containers().filter_map(|c| bad(&c["securityContext"]))).collect();
    let annotations: BTreeSet<String> = pod
        .annotations
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key, value.as_str().unwrap_or_default()))
        .filter(|(key, value)| {
            key.starts_with(APP_ARMOR) && !matches!(*value, "" | "runtime/default") && !value.starts_with("localhost/")
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who: Vec<String> = setters(of_pod.is_some(), &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    let values: Vec<&str> = kinds.iter().chain(&annotations).map(String::as_str).collect();
    if who.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let detail = format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values));
    fault(reason, detail)
}

fn added(container: &Value, allowed: impl Fn(&str) -> bool) -> Vec<&str> {
    let all = items(&container["securityContext"]["capabilities"], "add").filter_map(Value::as_str);
    all.filter(|capability| !allowed(capability)).collect()
}

fn capabilities(pod: &Pod<'_>) -> Option<Fault> {
    fn bad(container: &Value) -> Vec<&str> {
        added(container, |capability| CAPABILITIES.contains(&capability))
    }
    let names = pod.named(|container| !bad(container).is_empty());
    let given: BTreeSet<&str> = pod.containers().flat_map(bad).collect();
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(given));
    fault("non-default capabilities", detail)
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Fault> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|key| pod.spec[*key] == true)
        .map(|key| format!("{key}=true"))
        .collect();
    if used.is_empty() { None } else { fault("host namespaces", used.join(", ")) }
}

fn host_paths(pod: &Pod<'_>) -> Option<Fault> {
    let names: Vec<&str> = items(pod.spec, "volumes")
        .filter(|volume| !volume["hostPath"].is_null())
        .map(|volume| text(volume, "name"))
        .collect();
    if names.is_empty() {
        return None;
    }
    fault("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names)))
}

fn host_ports(pod: &Pod<'_>) -> Option<Fault> {
    let of = |container: &Value| -> Vec<String> {
        let numbers = items(container, "ports").filter_map(|port| port["hostPort"].as_i64());
        numbers.filter(|number| *number != 0).map(|number| number.to_string()).collect()
    };
    let names = pod.named(|container| !of(container).is_empty());
    let ports: BTreeSet<String> = pod.containers().flat_map(of).collect();
    if names.is_empty() {
        return None;
    }
    let (uses, what) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    fault("hostPort", format!("{} {uses} {what} {}", containers(&names), ports.join(", ")))
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Fault> {
    fn hosts(container: &Value) -> Vec<&str> {
        let lifecycle = &container["lifecycle"];
        ["livenessProbe", "readinessProbe", "startupProbe"]
            .into_iter()
            .map(|probe| &container[probe])
            .chain([&lifecycle["postStart"], &lifecycle["preStop"]])
            .flat_map(|handler| ["httpGet", "tcpSocket"].map(|kind| text(&handler[kind], "host")))
            .filter(|host| !host.is_empty())
            .collect()
    }
    let names: BTreeSet<&str> = pod.named(|container| !hosts(container).is_empty()).into_iter().collect();
    let all: BTreeSet<&str> = pod.containers().flat_map(hosts).collect();
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", all.len());
    let detail = format!("{} {} {what} {}", containers(&names), plural("uses", "use", names.len()), quoted(all));
    fault("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Fault> {
    let names = pod.named(|container| container["securityContext"]["privileged"] == true);
    if names.is_empty() {
        return None;
    }
    fault("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount(pod: &Pod<'_>) -> Option<Fault> {
    fn kind(container: &Value) -> Option<&str> {
        container["securityContext"]["procMount"].as_str().filter(|kind| *kind != "Default")
    }
    let names = pod.named(|container| kind(container).is_some());
    let kinds: BTreeSet<&str> = pod.containers().filter_map(kind).collect();
    if names.is_empty() {
        return None;
    }
    fault("procMount", format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(kinds)))
}

fn selinux(pod: &Pod<'_>, minor: u32) -> Option<Fault> {
    let known = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (minor >= 31 && kind == "container_engine_t")
    };
    let options = |holder: &Value| holder["securityContext"]["seLinuxOptions"].clone();
    let bad = |options: &Value| {
        !known(text(options, "type")) || !text(options, "user").is_empty() || !text(options, "role").is_empty()
    };
    let of_pod = bad(&options(pod.spec));
    let names = pod.named(|container| bad(&options(container)));
    let who = setters(of_pod, &names)?;
    let all: Vec<Value> = std::iter::once(pod.spec).chain(pod.containers()).map(options).collect();
    let kinds: BTreeSet<&str> = all.iter().map(|options| text(options, "type")).filter(|kind| !known(kind)).collect();
    let mut what = Vec::new();
    if !kinds.is_empty() {
        what.push(format!("{} {}", plural("type", "types", kinds.len()), quoted(kinds)));
    }
    for key in ["user", "role"] {
        if all.iter().any(|options| !text(options, key).is_empty()) {
            what.push(format!("{key} may not be set"));
        }
    }
    fault("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

fn seccomp_annotations(pod: &Pod<'_>) -> Option<Fault> {
    let keys =
        std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned())
            .chain(pod.containers().map(|container| {
                format!("container.seccomp.security.alpha.kubernetes.io/{}", text(container, "name"))
            }));
    let bad: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.annotations[&key].as_str()?;
            let fine = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let what = plural("annotation", "annotations", bad.len());
    fault("seccompProfile", format!("forbidden {what} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

fn seccomp(pod: &Pod<'_>, must_be_set: bool) -> Option<Fault> {
    fn kind(holder: &Value) -> Option<&str> {
        let profile = &holder["securityContext"]["seccompProfile"];
        (!profile.is_null()).then(|| text(profile, "type"))
    }
    let bad = |holder: &Value| kind(holder).is_some_and(|kind| !matches!(kind, "Localhost" | "RuntimeDefault"));
    let names = pod.named(bad);
    if let Some(who) = setters(bad(pod.spec), &names) {
        let holders = std::iter::once(pod.spec).chain(pod.containers());
        let kinds: BTreeSet<&str> = holders.filter(|holder| bad(holder)).filter_map(kind).collect();
        let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(kinds));
        return fault("seccompProfile", detail);
    }
    let without = pod.named(|container| kind(container).is_none());
    if !must_be_set || kind(pod.spec).is_some() || without.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&without)
    );
    fault("seccompProfile", detail)
}

fn sysctls(pod: &Pod<'_>, minor: u32) -> Option<Fault> {
    let known = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && *since <= minor);
    let bad: Vec<&str> = items(&pod.spec["securityContext"], "sysctls")
        .map(|sysctl| text(sysctl, "name"))
        .filter(|name| !known(name))
        .collect();
    if bad.is_empty() { None } else { fault("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &Pod<'_>) -> Option<Fault> {
    let is = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let who = setters(is(pod.spec), &pod.named(is))?;
    fault("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn escalation(pod: &Pod<'_>) -> Option<Fault> {
    let names = pod.named(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    fault("allowPrivilegeEscalation != false", detail)
}

fn dropped_capabilities(pod: &Pod<'_>) -> Option<Fault> {
    let drops_all = |container: &Value| {
        items(&container["securityContext"]["capabilities"], "drop").any(|capability| capability == "ALL")
    };
    fn bad(container: &Value) -> Vec<&str> {
        added(container, |capability| capability == "NET_BIND_SERVICE")
    }
    let mut details = Vec::new();
    let names = pod.named(|container| !drops_all(container));
    if !names.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&names)));
    }
    let names = pod.named(|container| !bad(container).is_empty());
    if !names.is_empty() {
        let given: BTreeSet<&str> = pod.containers().flat_map(bad).collect();
        let what = quoted(given);
        details.push(format!("{} must not include {what} in securityContext.capabilities.add", containers(&names)));
    }
    if details.is_empty() { None } else { fault("unrestricted capabilities", details.join("; ")) }
}

fn volumes(pod: &Pod<'_>) -> Option<Fault> {
    let kind = |volume: &Value| -> Option<String> {
        let keys = volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        let kinds: Vec<&str> = keys.filter(|key| *key != "name").collect();
        let fine = kinds.iter().any(|kind| VOLUMES.contains(kind));
        (!fine).then(|| kinds.first().copied().unwrap_or("unknown").to_owned())
    };
    let bad: Vec<(&str, String)> =
        items(pod.spec, "volumes").filter_map(|volume| Some((text(volume, "name"), kind(volume)?))).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = bad.iter().map(|(_, kind)| kind.as_str()).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(bad.iter().map(|(name, _)| *name)),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(kinds)
    );
    fault("restricted volume types", detail)
}

fn not_root(pod: &Pod<'_>) -> Option<Fault> {
    const REASON: &str = "runAsNonRoot != true";
    let says = |holder: &Value| holder["securityContext"]["runAsNonRoot"].as_bool();
    let names = pod.named(|container| says(container) == Some(false));
    if let Some(who) = setters(says(pod.spec) == Some(false), &names) {
        return fault(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let without = pod.named(|container| says(container).is_none());
    if says(pod.spec) == Some(true) || without.is_empty() {
        return None;
    }
    fault(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&without)))
}

fn root_user(pod: &Pod<'_>) -> Option<Fault> {
    let is = |holder: &Value| holder["securityContext"]["runAsUser"] == 0;
    let who = setters(is(pod.spec), &pod.named(is))?;
    fault("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests;
