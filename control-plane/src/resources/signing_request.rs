//! A PKCS #10 request as the API carries it, and what the signers of `kubernetes.io` ask of one.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

/// A request whose signature fits its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    /// As it was signed.
    pub der: Vec<u8>,
    /// CN of the subject; empty also where there are several, so that nobody takes one and checks another.
    pub common_name: String,
    /// O of the subject.
    pub organizations: Vec<String>,
    /// Names for servers.
    pub dns_names: usize,
    /// Addresses.
    pub ip_addresses: usize,
    /// Mail addresses.
    pub emails: usize,
    /// URIs.
    pub uris: usize,
}

impl SigningRequest {
    /// Reads `spec.request`: base64 of one PEM block.
    pub fn read(encoded: &str) -> Result<Self, String> {
        let pem = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
        }
        Self::parse(block.contents)
    }

    fn parse(der: Vec<u8>) -> Result<Self, String> {
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|error| format!("asn1: {error}"))?;
        if !rest.is_empty() {
            return Err("asn1: trailing data".to_owned());
        }
        request.verify_signature().map_err(|error| format!("the request's signature does not fit: {error}"))?;
        let subject = &request.certification_request_info.subject;
        let names: Vec<&str> = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
        let mut read = Self {
            common_name: if let [one] = names.as_slice() { (*one).to_owned() } else { String::new() },
            organizations: subject
                .iter_organization()
                .filter_map(|name| name.as_str().ok())
                .map(str::to_owned)
                .collect(),
            dns_names: 0,
            ip_addresses: 0,
            emails: 0,
            uris: 0,
            der: Vec::new(),
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => read.dns_names += 1,
                    GeneralName::IPAddress(_) => read.ip_addresses += 1,
                    GeneralName::RFC822Name(_) => read.emails += 1,
                    GeneralName::URI(_) => read.uris += 1,
                    _ => {}
                }
            }
        }
        read.der = der;
        Ok(read)
    }

    /// Whether `kubernetes.io/kube-apiserver-client-kubelet` signs it with these usages (A17.1).
    pub fn check_node_client(&self, usages: &[&str]) -> Result<(), String> {
        self.check_nodes_group()?;
        for (found, what) in
            [(self.dns_names, "DNS"), (self.emails, "Email"), (self.ip_addresses, "IP"), (self.uris, "URI")]
        {
            if found > 0 {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        self.check_node_name()?;
        check_usages(usages, "client auth")
    }

    /// Whether `kubernetes.io/kubelet-serving` signs it with these usages (A17.3).
    pub fn check_node_serving(&self, usages: &[&str]) -> Result<(), String> {
        self.check_nodes_group()?;
        if self.dns_names == 0 && self.ip_addresses == 0 {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        for (found, what) in [(self.emails, "Email"), (self.uris, "URI")] {
            if found > 0 {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        check_usages(usages, "server auth")?;
        self.check_node_name()
    }

    fn check_nodes_group(&self) -> Result<(), String> {
        if self.organizations == ["system:nodes"] {
            return Ok(());
        }
        Err("subject organization is not system:nodes".to_owned())
    }

    fn check_node_name(&self) -> Result<(), String> {
        if self.common_name.starts_with("system:node:") {
            return Ok(());
        }
        Err("subject common name does not begin with system:node:".to_owned())
    }
}

/// Whether `kubernetes.io/kube-apiserver-client` signs a request with these usages.
pub fn check_client_usages(usages: &[&str]) -> Result<(), String> {
    if let Some(other) =
        usages.iter().find(|u| !matches!(**u, "digital signature" | "key encipherment" | "client auth"))
    {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.contains(&"client auth") {
        return Ok(());
    }
    Err("missing required usage for client certificate: client auth".to_owned())
}

fn check_usages(usages: &[&str], purpose: &str) -> Result<(), String> {
    let mut found: BTreeSet<&str> = usages.iter().copied().collect();
    // Only RSA keys encipher.
    found.remove("key encipherment");
    if found == BTreeSet::from(["digital signature", purpose]) {
        return Ok(());
    }
    let mut wanted = ["digital signature", "key encipherment", purpose];
    wanted.sort_unstable();
    Err(format!("usages did not match [{}]", wanted.join(" ")))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn request(name: &str, organization: &str, alternatives: &[&str]) -> String {
        let names: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
    }

    #[test]
    fn signers_of_nodes_take_only_what_a_node_asks_for() {
        // A17.1, A17.3
        const CLIENT: &[&str] = &["digital signature", "client auth"];
        const RSA: &[&str] = &["key encipherment", "digital signature", "client auth"];
        const SERVING: &[&str] = &["digital signature", "server auth"];
        let node = ("system:node:n1", "system:nodes");
        for ((name, organization), alternatives, usages, client, serving) in [
            (node, vec![], CLIENT, "", "DNS or IP subjectAltName is required"),
            (node, vec![], RSA, "", "DNS or IP subjectAltName is required"),
            (node, vec![], SERVING, "usages did not match", "DNS or IP subjectAltName is required"),
            (node, vec!["n1", "192.0.2.1"], SERVING, "DNS subjectAltNames are not allowed", ""),
            (node, vec!["192.0.2.1"], SERVING, "IP subjectAltNames are not allowed", ""),
            (
                node,
                vec!["n1"],
                CLIENT,
                "DNS subject",
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (("n1", "system:nodes"), vec![], CLIENT, "subject common name does not begin", "DNS or IP"),
            (
                ("system:node:n1", "system:masters"),
                vec![],
                CLIENT,
                "subject organization is not",
                "subject organization",
            ),
        ] {
            let read = SigningRequest::read(&request(name, organization, &alternatives)).unwrap();
            for (result, expected) in
                [(read.check_node_client(usages), client), (read.check_node_serving(usages), serving)]
            {
                let told = result.err().unwrap_or_default();
                assert!(
                    told.starts_with(expected) && told.is_empty() == expected.is_empty(),
                    "{name} {alternatives:?} {usages:?}: {told}"
                );
            }
        }
        assert!(check_client_usages(CLIENT).is_ok());
        assert!(check_client_usages(SERVING).is_err());
        assert!(check_client_usages(&["digital signature"]).is_err());
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        assert!(SigningRequest::read("bm8=").unwrap_err().contains("PEM block type"));
        let mut read = SigningRequest::read(&request("system:node:n1", "system:nodes", &[])).unwrap().der;
        let at = read.windows(2).position(|pair| pair == b"n1").unwrap();
        read[at + 1] = b'2';
        assert!(SigningRequest::parse(read).unwrap_err().contains("signature"));
    }
}
