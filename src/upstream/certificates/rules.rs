//! When a certificate is replaced, what is asked for, and what an answer means. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The organization of every node, which RBAC and the Node authorizer go by.
pub(super) const NODES: &str = "system:nodes";
/// Before it a node's name stands in its certificates' CN.
const NODE_PREFIX: &str = "system:node:";

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// The node asks the API server.
    Client,
    /// The API server asks the node.
    Serving,
}

impl Purpose {
    /// Who signs it (A17.1, A17.3).
    pub(super) const fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// Key usages; `key encipherment` is for RSA keys, and ours are ECDSA (A17.4).
    pub(super) const fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }
}

/// CN of a node's certificates.
pub(super) fn common_name(node: &str) -> String {
    format!("{NODE_PREFIX}{node}")
}

/// From when to when a certificate is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

impl Life {
    /// Of a certificate in DER.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let moment = |seconds: i64| Timestamp::from_second(seconds).ok();
        Some(Self { from: moment(validity.not_before.timestamp())?, to: moment(validity.not_after.timestamp())? })
    }

    /// Whether it is good at `now`.
    pub(super) fn holds(self, now: Timestamp) -> bool {
        self.from <= now && now < self.to
    }

    /// When it is replaced: at 70 to 90 % of its life, where `fraction` (0 to 1) says between them (A17.2).
    pub(super) fn rotate_at(self, fraction: f64) -> Timestamp {
        let whole = Duration::try_from(self.to.duration_since(self.from)).unwrap_or_default();
        self.from.checked_add(whole.mul_f64(0.7 + 0.2 * fraction.clamp(0.0, 1.0))).unwrap_or(self.to)
    }
}

/// The names and addresses that a serving certificate must have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Names {
    pub(super) dns: BTreeSet<String>,
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Names {
    /// From `status.addresses` of the Node, as pairs of type and address.
    pub(super) fn of_node<'a>(addresses: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut names = Self::default();
        for (kind, address) in addresses {
            match (kind, address.parse::<IpAddr>()) {
                ("InternalIP" | "ExternalIP" | "Hostname", Ok(address)) => _ = names.addresses.insert(address),
                ("Hostname" | "InternalDNS" | "ExternalDNS", Err(_)) => _ = names.dns.insert(address.to_owned()),
                _ => {}
            }
        }
        names
    }

    /// Without an address nobody could verify it, so none is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.addresses.is_empty()
    }

    /// The names that a certificate in DER has.
    pub(super) fn of_certificate(certificate: &[u8]) -> Self {
        let mut names = Self::default();
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return names };
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return names };
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => _ = names.dns.insert((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                    names.addresses.extend(v4.or(v6).ok());
                }
                _ => {}
            }
        }
        names
    }

    /// Whether `self` names all of `wanted`; more does no harm.
    pub(super) fn cover(&self, wanted: &Self) -> bool {
        self.dns.is_superset(&wanted.dns) && self.addresses.is_superset(&wanted.addresses)
    }
}

/// The same key, subject and usages always lead to this name, so that an agent that starts anew goes on with the request that it
/// has made before (A17.1).
pub(super) fn resumable_name(purpose: Purpose, node: &str, public_key: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [public_key, common_name(node).as_bytes(), NODES.as_bytes(), purpose.signer().as_bytes()] {
        // Lengths keep two different requests from looking alike.
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    for usage in purpose.usages() {
        hash.update(usage.as_bytes());
        hash.update([0]);
    }
    format!("node-csr-{}", hex::encode(hash.finalize()))
}

/// What has become of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Nobody has decided yet, or the signer has not come to it.
    Waiting,
    /// The chain in PEM.
    Issued(String),
    /// It will never be signed; why.
    Refused(String),
}

impl Answer {
    pub(super) fn of(request: &CertificateSigningRequest) -> Self {
        let Some(status) = &request.status else { return Self::Waiting };
        for condition in status.conditions.iter().flatten() {
            if condition.type_ == "Denied" || condition.type_ == "Failed" {
                let told = [condition.reason.as_deref(), condition.message.as_deref()];
                let told: Vec<_> = told.into_iter().flatten().filter(|text| !text.is_empty()).collect();
                return Self::Refused(format!("{}: {}", condition.type_, told.join(", ")));
            }
        }
        let approved = status.conditions.iter().flatten().any(|condition| condition.type_ == "Approved");
        match &status.certificate {
            Some(chain) if approved && !chain.0.is_empty() => {
                Self::Issued(String::from_utf8_lossy(&chain.0).into_owned())
            }
            _ => Self::Waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a moment")
    }

    #[test]
    fn a_certificate_is_replaced_at_70_to_90_percent_of_its_life() {
        // A17.2
        let life = Life { from: at(1000), to: at(2000) };
        for (fraction, expected) in [(0.0, 1700), (0.5, 1800), (1.0, 1900), (7.0, 1900), (-1.0, 1700)] {
            assert_eq!(life.rotate_at(fraction), at(expected), "{fraction}");
        }
        for (now, holds) in [(999, false), (1000, true), (1999, true), (2000, false)] {
            assert_eq!(life.holds(at(now)), holds, "{now}");
        }
        let backwards = Life { from: at(2000), to: at(1000) };
        assert_eq!(backwards.rotate_at(0.5), at(2000));
    }

    #[test]
    fn names_are_those_of_the_node() {
        let names = Names::of_node([
            ("InternalIP", "10.0.0.1"),
            ("InternalIP", "fd00::1"),
            ("ExternalIP", "nonsense"),
            ("Hostname", "a"),
            ("ExternalDNS", "a.example"),
            ("Other", "10.0.0.9"),
        ]);
        assert_eq!(names.dns, ["a", "a.example"].map(str::to_owned).into());
        let addresses = ["10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().expect("an address"));
        assert_eq!(names.addresses, addresses.into());
        assert!(!names.is_empty());
        assert!(Names::of_node([("Hostname", "10.0.0.7")]).dns.is_empty(), "a host's name may be an address");
        assert!(Names::of_node([("Other", "x")]).is_empty());
        let fewer = Names::of_node([("InternalIP", "10.0.0.1")]);
        assert!(names.cover(&fewer) && !fewer.cover(&names));
    }

    #[test]
    fn the_name_of_a_request_depends_on_key_node_and_purpose() {
        // A17.1
        let name = resumable_name(Purpose::Client, "a", b"key");
        assert_eq!(name, resumable_name(Purpose::Client, "a", b"key"));
        assert!(name.starts_with("node-csr-"));
        for other in [
            resumable_name(Purpose::Client, "b", b"key"),
            resumable_name(Purpose::Client, "a", b"yek"),
            resumable_name(Purpose::Serving, "a", b"key"),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn answers_are_understood() {
        let request = |status: Value| -> CertificateSigningRequest {
            let spec = json!({ "request": "", "signerName": "x" });
            serde_json::from_value(json!({ "metadata": {}, "spec": spec, "status": status })).expect("a request")
        };
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": "R", "message": "m" });
        let approved = condition("Approved");
        for (status, expected) in [
            (json!({}), Answer::Waiting),
            (json!({ "conditions": [approved] }), Answer::Waiting),
            (json!({ "conditions": [approved], "certificate": "UEVN" }), Answer::Issued("PEM".into())),
            // Whoever may write the status, but not approve, shall not choose our certificate.
            (json!({ "certificate": "UEVN" }), Answer::Waiting),
            (json!({ "conditions": [condition("Denied")] }), Answer::Refused("Denied: R, m".into())),
            (json!({ "conditions": [approved, condition("Failed")] }), Answer::Refused("Failed: R, m".into())),
        ] {
            assert_eq!(Answer::of(&request(status.clone())), expected, "{status}");
        }
    }
}
