//! Who asks for a certificate, who may approve it and who may sign it (CertificateApproval, CertificateSigning and
//! CertificateSubjectRestriction of C5.6).

use serde_json::{Value, json};

use super::cluster::Core;
use crate::auth::identity::{Attributes, UserInfo};
use crate::resources::ResourceInfo;
use crate::resources::signing_request::SigningRequest;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// The only signer whose certificates can make an administrator.
const CLIENTS: &str = "kubernetes.io/kube-apiserver-client";

/// Notes who asks: that is never the client's to say.
pub(super) fn admit_create(info: &ResourceInfo, object: &mut Value, user: &UserInfo) -> Result<(), StatusError> {
    if let Some(spec) = object["spec"].as_object_mut() {
        for key in ["username", "uid", "groups", "extra"] {
            spec.remove(key);
        }
        spec.insert("username".to_owned(), json!(user.name));
        spec.insert("groups".to_owned(), json!(user.groups));
        if !user.uid.is_empty() {
            spec.insert("uid".to_owned(), json!(user.uid));
        }
        if !user.extra.is_empty() {
            spec.insert("extra".to_owned(), json!(user.extra));
        }
    }
    if text(&object["spec"], "signerName") != CLIENTS {
        return Ok(());
    }
    // One that cannot be read is refused by validation.
    let Ok(request) = SigningRequest::read(text(&object["spec"], "request")) else { return Ok(()) };
    if request.organizations.iter().any(|organization| organization == "system:masters") {
        let why = format!("use of {CLIENTS} signer with system:masters group is not allowed");
        return Err(StatusError::forbidden(info, text(&object["metadata"], "name"), &why));
    }
    Ok(())
}

/// Approving and signing need a right for the signer.
pub(super) async fn admit_update(
    core: &Core,
    info: &ResourceInfo,
    subresource: &str,
    new: &Value,
    old: &Value,
    user: &UserInfo,
) -> Result<(), StatusError> {
    let (was, is) = (&old["status"], &new["status"]);
    let verb = match subresource {
        "approval" => "approve",
        "status" if was["certificate"] != is["certificate"] || was["conditions"] != is["conditions"] => "sign",
        _ => return Ok(()),
    };
    let signer = text(&old["spec"], "signerName");
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let asked = Attributes {
            user: user.clone(),
            verb: verb.to_owned(),
            group: "certificates.k8s.io".to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        if core.allows(&asked).await {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(StatusError::forbidden(info, text(&old["metadata"], "name"), &why))
}
