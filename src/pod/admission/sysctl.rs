//! Which kernel settings a pod may change: the safe ones, and what the operator allows (A10.9). Pure.

use k8s_openapi::api::core::v1::PodSpec;

use super::Rejection;

/// Settings that each pod may change: they touch nobody else.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The kernels from which on some of them belong to a namespace.
const SINCE: [(&str, (u32, u32)); 7] = [
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// The namespace that a setting belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Namespace {
    Net,
    Ipc,
}

/// Why a pattern cannot be allowed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SysctlError {
    /// It is no name.
    #[error("allowedUnsafeSysctls: {0:?} is no name of a sysctl; write net.core.somaxconn or net.core.*")]
    Name(String),
    /// It would change the whole node.
    #[error(
        "allowedUnsafeSysctls: the sysctls {0:?} are not known to be namespaced: a pod that sets them sets them for the node"
    )]
    NotNamespaced(String),
}

/// What pods may set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SysctlRules {
    names: Vec<(String, Namespace)>,
    prefixes: Vec<(String, Namespace)>,
}

impl Default for SysctlRules {
    fn default() -> Self {
        let names = SAFE.iter().filter_map(|name| Some(((*name).to_owned(), namespace(name)?))).collect();
        Self { names, prefixes: Vec::new() }
    }
}

impl SysctlRules {
    /// The safe ones, and these patterns: names, or prefixes that end with `*`.
    ///
    /// # Errors
    ///
    /// A pattern is malformed, or matches what no namespace contains.
    pub fn new(allowed: &[String]) -> Result<Self, SysctlError> {
        let mut rules = Self::default();
        for pattern in allowed {
            let name = normal(pattern);
            let (name, prefixed) = match name.strip_suffix('*') {
                Some(prefix) => (prefix.to_owned(), true),
                None => (name, false),
            };
            let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
            if name.is_empty() || name.len() > 253 || !name.chars().all(part) {
                return Err(SysctlError::Name(pattern.clone()));
            }
            let of = namespace(&name).ok_or_else(|| SysctlError::NotNamespaced(name.clone()))?;
            if prefixed { rules.prefixes.push((name, of)) } else { rules.names.push((name, of)) }
        }
        Ok(rules)
    }

    /// Without those that a kernel, of a release such as `6.1.0-20-amd64`, does not keep in namespaces yet. What the operator allowed stays.
    #[must_use]
    pub fn on_kernel(mut self, release: &str) -> Self {
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        if let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) {
            let too_new = |name: &str| SINCE.iter().any(|(of, since)| *of == name && (major, minor) < *since);
            let own = self.names.split_off(SAFE.len().min(self.names.len()));
            self.names.retain(|(name, _)| !too_new(name));
            self.names.extend(own);
        }
        self
    }

    pub(super) fn check(&self, spec: &PodSpec) -> Result<(), Rejection> {
        let on = |field: Option<bool>| field.unwrap_or_default();
        for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
            let name = normal(&sysctl.name);
            let exact = self.names.iter().find(|(allowed, _)| *allowed == name);
            let found = exact.or_else(|| self.prefixes.iter().find(|(prefix, _)| name.starts_with(prefix)));
            let problem = match found {
                None => "not allowlisted",
                Some((_, Namespace::Net)) if on(spec.host_network) => "not allowed with host Net enabled",
                Some((_, Namespace::Ipc)) if on(spec.host_ipc) => "not allowed with host IPC enabled",
                Some(_) => continue,
            };
            return Err(Rejection::new("SysctlForbidden", format!("forbidden sysctl: \"{name}\" {problem}")));
        }
        Ok(())
    }
}

/// With dots between its parts, where the first separator is a slash.
pub(crate) fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn namespace(name: &str) -> Option<Namespace> {
    const IPC: [&str; 10] = [
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.msg",
    ];
    if IPC.contains(&name) || name.starts_with("fs.mqueue") {
        Some(Namespace::Ipc)
    } else if name.starts_with("net") {
        Some(Namespace::Net)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSecurityContext, Sysctl};

    use super::*;

    fn told(rules: &SysctlRules, name: &str, change: impl FnOnce(&mut PodSpec)) -> String {
        let sysctls = Some(vec![Sysctl { name: name.into(), value: "1".into() }]);
        let context = PodSecurityContext { sysctls, ..PodSecurityContext::default() };
        let mut spec = PodSpec { security_context: Some(context), ..PodSpec::default() };
        change(&mut spec);
        rules.check(&spec).map_err(|r| format!("{}: {}", r.reason, r.text)).err().unwrap_or_default()
    }

    #[test]
    fn safe_ones_are_allowed_and_others_by_pattern() {
        // A6.4, A10.9
        let rules = SysctlRules::new(&["net.core.*".to_owned(), "kernel.msgmax".to_owned()]).unwrap();
        for (name, expected) in [
            ("kernel.shm_rmid_forced", ""),
            ("net/ipv4/tcp_syncookies", ""),
            ("net.core.somaxconn", ""),
            ("kernel.msgmax", ""),
            ("kernel.msgmnb", "SysctlForbidden: forbidden sysctl: \"kernel.msgmnb\" not allowlisted"),
            ("vm.swappiness", "SysctlForbidden: forbidden sysctl: \"vm.swappiness\" not allowlisted"),
            ("net.ipv4.ip_local_port_range", ""),
            ("net.ipv4.ping_group_range", ""),
            ("net.ipv4.ip_unprivileged_port_start", ""),
            ("net.ipv4.ip_local_reserved_ports", ""),
            ("net.ipv4.tcp_keepalive_time", ""),
            ("net.ipv4.tcp_fin_timeout", ""),
            ("net.ipv4.tcp_keepalive_intvl", ""),
            ("net.ipv4.tcp_keepalive_probes", ""),
            ("net.ipv4.tcp_rmem", ""),
            ("net.ipv4.tcp_wmem", ""),
            ("net.ipv4.tcp_mem", "SysctlForbidden: forbidden sysctl: \"net.ipv4.tcp_mem\" not allowlisted"),
        ] {
            assert_eq!(told(&rules, name, |_| {}), expected, "{name}");
        }
        assert_eq!(
            told(&rules, "net.core.somaxconn", |s| s.host_network = Some(true)),
            "SysctlForbidden: forbidden sysctl: \"net.core.somaxconn\" not allowed with host Net enabled"
        );
        assert_eq!(
            told(&rules, "kernel.msgmax", |s| s.host_ipc = Some(true)),
            "SysctlForbidden: forbidden sysctl: \"kernel.msgmax\" not allowed with host IPC enabled"
        );
    }

    #[test]
    fn old_kernels_know_fewer() {
        // A10.9
        let at = |release: &str, name: &str| {
            told(&SysctlRules::new(&["net.ipv4.tcp_rmem".to_owned()]).unwrap().on_kernel(release), name, |_| {})
        };
        let wmem = "net.ipv4.tcp_wmem";
        let refused = format!("SysctlForbidden: forbidden sysctl: \"{wmem}\" not allowlisted");
        for (release, expected) in [("4.14.9", refused.as_str()), ("4.15.0-1-amd64", ""), ("6.1", ""), ("odd", "")] {
            assert_eq!(at(release, wmem), expected, "{release}");
        }
        assert_eq!(at("3.10.0", "net.ipv4.tcp_rmem"), "", "the operator knows better");
        assert!(at("3.10.0", "net.ipv4.ip_local_reserved_ports").contains("not allowlisted"));
        assert_eq!(at("3.10.0", "kernel.shm_rmid_forced"), "");
    }

    #[test]
    fn what_is_in_no_namespace_cannot_be_allowed() {
        // A10.9
        for pattern in ["vm.*", "kernel.panic", "kernel.*"] {
            assert!(matches!(SysctlRules::new(&[pattern.into()]), Err(SysctlError::NotNamespaced(_))), "{pattern}");
        }
        for pattern in ["*", "net core", ""] {
            assert!(matches!(SysctlRules::new(&[pattern.into()]), Err(SysctlError::Name(_))), "{pattern}");
        }
    }
}
