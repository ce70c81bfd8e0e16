//! One request for a certificate, from the key to the signed answer.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData, SanType};
use stoker_model::handle::ApiError;

use super::rules::{Answer, NODES, Names, Purpose, common_name, resumable_name};
use super::store::{CertificateStore, StoreError};
use crate::upstream::client::ApiServer;

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How often an undecided request is looked at: at first often, since approval is mostly automatic.
const LOOK_AGAIN: [u64; 6] = [100, 200, 400, 1000, 2000, 5000];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the API server does not take the request for a certificate: {0}")]
    Api(#[from] ApiError),
    #[error("request {name} was refused: {reason}")]
    Refused { name: String, reason: String },
    #[error("nobody has approved {name} within {waited:?}: look at kubectl get csr")]
    Unanswered { name: String, waited: Duration },
    #[error("cannot make a key or a request: {0}")]
    Make(#[from] rcgen::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: String,
}

/// Whose certificate, what for, and where its key is kept meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) purpose: Purpose,
    pub(super) node: String,
    pub(super) store: CertificateStore,
}

impl Asker {
    /// Asks with a new key under a new name, and waits so long for the answer.
    pub(super) async fn ask(&self, api: &ApiServer, names: &Names, patience: Duration) -> Result<Issued, RequestError> {
        let key = KeyPair::generate()?;
        let metadata = ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() };
        let made: CertificateSigningRequest = api.create(PATH, &self.object(metadata, &key, names)?).await?;
        let name = made.metadata.name.unwrap_or_default();
        let chain = wait(api, &name, patience).await?;
        Ok(Issued { chain, key: key.serialize_pem() })
    }

    /// Asks so that an agent that is started anew goes on with the same request (A17.1).
    pub(super) async fn ask_resumably(&self, api: &ApiServer, patience: Duration) -> Result<Issued, RequestError> {
        let key = match self.store.pending_key().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            Some(key) => key,
            None => {
                let key = KeyPair::generate()?;
                self.store.keep_pending_key(&key.serialize_pem())?;
                key
            }
        };
        let name = resumable_name(self.purpose, &self.node, &key.subject_public_key_info());
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let object = self.object(metadata, &key, &Names::default())?;
        match api.create::<CertificateSigningRequest>(PATH, &object).await {
            Ok(_) => {}
            Err(ApiError::Conflict(_)) => tracing::info!(name, "going on with the request of an earlier start"),
            Err(error) => return Err(error.into()),
        }
        match wait(api, &name, patience).await {
            Ok(chain) => {
                self.store.forget_pending_key();
                Ok(Issued { chain, key: key.serialize_pem() })
            }
            Err(error) => {
                // The answer to this key is final: the next request needs another.
                if matches!(error, RequestError::Refused { .. }) {
                    self.store.forget_pending_key();
                }
                Err(error)
            }
        }
    }

    fn object(
        &self,
        metadata: ObjectMeta,
        key: &KeyPair,
        names: &Names,
    ) -> Result<CertificateSigningRequest, RequestError> {
        let spec = CertificateSigningRequestSpec {
            request: ByteString(pem(&self.node, key, names)?.into_bytes()),
            signer_name: self.purpose.signer().to_owned(),
            usages: Some(self.purpose.usages().map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        };
        Ok(CertificateSigningRequest { metadata, spec, status: None })
    }
}

/// The request in PEM: CN and O say which node, the names where it is reached (A17.1, A17.3).
fn pem(node: &str, key: &KeyPair, names: &Names) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, common_name(node));
    for name in &names.dns {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.subject_alt_names.extend(names.addresses.iter().copied().map(SanType::IpAddress));
    params.serialize_request(key)?.pem()
}

async fn wait(api: &ApiServer, name: &str, patience: Duration) -> Result<String, RequestError> {
    let path = format!("{PATH}/{name}");
    let whole = async {
        for turn in 0_usize.. {
            match api.get::<CertificateSigningRequest>(&path).await {
                Ok(request) => match Answer::of(&request) {
                    Answer::Issued(chain) => return Ok(chain),
                    Answer::Refused(reason) => return Err(RequestError::Refused { name: name.to_owned(), reason }),
                    Answer::Waiting => {}
                },
                Err(error @ (ApiError::NotFound(_) | ApiError::Rejected(_))) => return Err(error.into()),
                // It may come back before our patience ends.
                Err(error) => tracing::debug!(%error, name, "cannot look at the request"),
            }
            let pause = LOOK_AGAIN[turn.min(LOOK_AGAIN.len() - 1)];
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        unreachable!("a usize has no end here")
    };
    tokio::time::timeout(patience, whole)
        .await
        .unwrap_or_else(|_| Err(RequestError::Unanswered { name: name.to_owned(), waited: patience }))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

    use super::*;

    fn asker(purpose: Purpose, directory: &std::path::Path) -> Asker {
        Asker { purpose, node: "a.example".into(), store: CertificateStore::client(directory) }
    }

    #[test]
    fn a_request_says_which_node_it_is_and_where() {
        // A17.1, A17.3, A17.4
        let directory = tempfile::tempdir().expect("a directory");
        let names = Names {
            dns: ["a".to_owned()].into(),
            addresses: [IpAddr::from([10, 0, 0, 1]), "fd00::1".parse().unwrap()].into(),
        };
        for (purpose, names, signer, usage) in [
            (Purpose::Client, Names::default(), "kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
            (Purpose::Serving, names, "kubernetes.io/kubelet-serving", "server auth"),
        ] {
            let key = KeyPair::generate().expect("a key");
            let object = asker(purpose, directory.path()).object(ObjectMeta::default(), &key, &names).expect("made");
            assert_eq!(object.spec.signer_name, signer);
            assert_eq!(object.spec.usages, Some(vec!["digital signature".to_owned(), usage.to_owned()]));
            let (_, pem) = x509_parser::pem::parse_x509_pem(&object.spec.request.0).expect("PEM");
            assert_eq!(pem.label, "CERTIFICATE REQUEST");
            let (_, request) = X509CertificationRequest::from_der(&pem.contents).expect("a request");
            request.verify_signature().expect("signed with its key");
            let info = &request.certification_request_info;
            assert_eq!(info.subject.to_string(), "O=system:nodes, CN=system:node:a.example");
            let curve = info.subject_pki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            assert_eq!(curve.expect("a curve").to_id_string(), "1.2.840.10045.3.1.7", "ECDSA P-256");
            let mut found = Names::default();
            for extension in request.requested_extensions().into_iter().flatten() {
                let ParsedExtension::SubjectAlternativeName(alternatives) = extension else { panic!("{extension:?}") };
                for name in &alternatives.general_names {
                    match name {
                        GeneralName::DNSName(name) => _ = found.dns.insert((*name).to_owned()),
                        GeneralName::IPAddress(bytes) if bytes.len() == 4 => {
                            found.addresses.insert(IpAddr::from(<[u8; 4]>::try_from(*bytes).expect("four")));
                        }
                        GeneralName::IPAddress(bytes) => {
                            found.addresses.insert(IpAddr::from(<[u8; 16]>::try_from(*bytes).expect("sixteen")));
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!(found, names);
        }
    }
}
