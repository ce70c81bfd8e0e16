//! `--node-labels`: what a node may say about itself (A16.2).

use std::collections::BTreeMap;

/// Labels of Kubernetes' own domains that a node may set on itself.
const ALLOWED: [&str; 13] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
];

/// Domains under which every label is allowed.
const ALLOWED_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Why a label is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LabelError {
    /// No `key=value`.
    #[error("--node-labels: {0:?} is not of the form key=value")]
    Syntax(String),
    /// Key or value break the rules for labels.
    #[error(
        "--node-labels: {0:?} is not a valid label: at most 63 letters, digits, '-', '_' or '.', which begin and end with a letter or digit"
    )]
    Malformed(String),
    /// The node restriction would refuse it.
    #[error(
        "--node-labels: unknown 'kubernetes.io' or 'k8s.io' label {0:?}: labels in these domains must begin with kubelet.kubernetes.io or node.kubernetes.io, or be one of {ALLOWED:?}"
    )]
    NotAllowed(String),
}

/// Reads `a=b,c=d`.
///
/// # Errors
/// For the first label that is malformed or that a node may not give itself.
pub fn parse_node_labels(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| LabelError::Syntax(pair.to_owned()))?;
        let (domain, name) = key.rsplit_once('/').unwrap_or(("", key));
        if name.is_empty() || !is_name(name) || !is_name(value) || !is_domain(domain) {
            return Err(LabelError::Malformed(pair.to_owned()));
        }
        if !is_allowed(key, domain) {
            return Err(LabelError::NotAllowed(key.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

fn within(domain: &str, parent: &str) -> bool {
    domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn is_allowed(key: &str, domain: &str) -> bool {
    let kubernetes = within(domain, "kubernetes.io") || within(domain, "k8s.io");
    !kubernetes || ALLOWED.contains(&key) || ALLOWED_DOMAINS.iter().any(|allowed| within(domain, allowed))
}

fn is_name(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends.into_iter().flatten().all(|b| b.is_ascii_alphanumeric())
}

fn is_domain(text: &str) -> bool {
    text.len() <= 253
        && (text.is_empty()
            || text.split('.').all(|part| {
                !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !part.starts_with('-')
                    && !part.ends_with('-')
            }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_node_may_give_itself() {
        // A16.2
        for text in [
            "a=b",
            "example.com/role=web,disk=",
            "node.kubernetes.io/x=1",
            "sub.kubelet.kubernetes.io/x=1",
            "topology.kubernetes.io/zone=z1",
            "failure-domain.beta.kubernetes.io/region=r",
            "mykubernetes.io/x=1",
        ] {
            assert!(parse_node_labels(text).is_ok(), "{text}");
        }
        for text in ["node-role.kubernetes.io/worker=", "kubernetes.io/x=1", "x.k8s.io/y=1", "k8s.io/y=1"] {
            assert!(matches!(parse_node_labels(text), Err(LabelError::NotAllowed(_))), "{text}");
        }
    }

    #[test]
    fn malformed_labels_are_refused() {
        assert!(matches!(parse_node_labels("a"), Err(LabelError::Syntax(_))));
        for text in ["=b", "a=b c", "-a=b", "a/=b", "UP.example/x=1", "a=-"] {
            assert!(matches!(parse_node_labels(text), Err(LabelError::Malformed(_))), "{text}");
        }
        assert_eq!(parse_node_labels("a=b,,c=d").expect("labels").len(), 2);
    }
}
