//! The text of a pod's `/etc/hosts`, and its host name (A11.3, A11.8).

use std::fmt::Write;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

/// Longest host name of Linux.
const LONGEST_NAME: usize = 63;
/// Longest FQDN that may be a host name.
const LONGEST_FQDN: usize = 64;

/// A pod's names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Names {
    /// What `hostname` prints.
    pub(super) hostname: String,
    /// The name without the domain that the cluster gives it; dots of its own stay.
    pub(super) short: String,
    /// Name and domain, where it has one.
    pub(super) fqdn: Option<String>,
}

/// The pod's names, or why it cannot have them.
pub(super) fn names(pod: &Pod, cluster_domain: &str) -> Result<Names, String> {
    let spec = pod.spec.as_ref();
    let given = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    if let Some(name) = spec.and_then(|s| s.hostname_override.as_deref()).filter(|h| !h.is_empty()) {
        return Ok(Names { hostname: cut(name), short: cut(name), fqdn: None });
    }
    let short = cut(given.unwrap_or(pod.metadata.name.as_deref().unwrap_or_default()));
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let fqdn = subdomain.map(|sub| format!("{short}.{sub}.{namespace}.svc.{cluster_domain}"));
    match &fqdn {
        Some(fqdn) if spec.and_then(|s| s.set_hostname_as_fqdn).unwrap_or_default() => {
            if fqdn.len() > LONGEST_FQDN {
                return Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({LONGEST_FQDN} characters is the max, {} characters requested)",
                    fqdn.len()
                ));
            }
            Ok(Names { hostname: fqdn.clone(), short, fqdn: Some(fqdn.clone()) })
        }
        _ => Ok(Names { hostname: short.clone(), short, fqdn }),
    }
}

fn cut(name: &str) -> String {
    let cut: String = name.chars().take(LONGEST_NAME).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The file of a pod with its own network.
pub(super) fn pod_file(pod_ips: &[String], names: &Names, aliases: &[HostAlias]) -> String {
    let Names { short, fqdn, .. } = names;
    let mut text = String::from("# Kubernetes-managed hosts file.\n");
    for line in [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    for ip in pod_ips {
        let _ = match fqdn {
            Some(fqdn) => writeln!(text, "{ip}\t{fqdn}\t{short}"),
            None => writeln!(text, "{ip}\t{short}"),
        };
    }
    text + &alias_lines(aliases)
}

/// The file of a pod in the node's network.
pub(super) fn node_file(of_node: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{of_node}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&alias.ip);
        for name in alias.hostnames.iter().flatten() {
            text.push('\t');
            text.push_str(name);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn pod(name: &str, spec: PodSpec) -> Pod {
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod
    }

    #[test]
    fn names_come_from_the_spec() {
        // A11.8
        let plain = names(&pod("web", PodSpec::default()), "cluster.local").unwrap();
        assert_eq!(plain, Names { hostname: "web".into(), short: "web".into(), fqdn: None });
        let long = names(&pod(&format!("{}-.x", "a".repeat(61)), PodSpec::default()), "c").unwrap();
        assert_eq!(long.hostname, "a".repeat(61));
        let sub = PodSpec { hostname: Some("h".into()), subdomain: Some("sub".into()), ..PodSpec::default() };
        let with_sub = names(&pod("web", sub.clone()), "cluster.local").unwrap();
        let fqdn = Some("h.sub.ns.svc.cluster.local".into());
        assert_eq!(with_sub, Names { hostname: "h".into(), short: "h".into(), fqdn });
        let fqdn = PodSpec { set_hostname_as_fqdn: Some(true), ..sub.clone() };
        let whole = names(&pod("web", fqdn.clone()), "c").unwrap();
        assert_eq!((whole.hostname.as_str(), whole.short.as_str()), ("h.sub.ns.svc.c", "h"));
        let other = PodSpec { hostname_override: Some("over.example.host".into()), ..sub };
        let other = names(&pod("web", other), "c").unwrap();
        assert_eq!((other.hostname.as_str(), &other.fqdn), ("over.example.host", &None));
        assert!(pod_file(&["10.0.0.7".into()], &other, &[]).ends_with("\n10.0.0.7\tover.example.host\n"));
        let over = PodSpec { hostname_override: Some(format!("{}.b", "a".repeat(62))), ..PodSpec::default() };
        assert_eq!(names(&pod("web", over), "c").unwrap().hostname, "a".repeat(62), "it is cut, too");
        let domain = "d".repeat(60);
        let text = format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN h.sub.ns.svc.{domain} is too long \
             (64 characters is the max, 73 characters requested)"
        );
        assert_eq!(names(&pod("web", fqdn.clone()), &domain).unwrap_err(), text);
        assert_eq!(names(&pod("web", fqdn), &"d".repeat(51)).unwrap().hostname.len(), 64);
    }

    #[test]
    fn the_file_lists_addresses_and_aliases() {
        // A11.3
        let names = Names { hostname: "h".into(), short: "h".into(), fqdn: Some("h.sub.ns.svc.c".into()) };
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let text = pod_file(&["10.0.0.7".into()], &names, std::slice::from_ref(&alias));
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.7\th.sub.ns.svc.c\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let plain = Names { hostname: "h".into(), short: "h".into(), fqdn: None };
        assert_eq!(
            pod_file(&["10.0.0.7".into(), "fd00::7".into()], &plain, &[]),
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.0.0.7\th\nfd00::7\th\n"
        );
        let text = node_file("127.0.0.1 localhost\n", std::slice::from_ref(&alias));
        let aliases = "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n";
        assert_eq!(text, format!("# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n{aliases}"));
        let text = node_file("127.0.0.1 localhost\n", &[]);
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n");
    }
}
