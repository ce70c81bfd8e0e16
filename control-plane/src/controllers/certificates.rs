//! Certificate requests: those of nodes are approved if their maker may have them, approved ones are signed, and old ones
//! go (C6.3, C7.15). One queue, since each step of a request wakes the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::{Cluster, DeleteOptions};
use crate::auth::identity::{Attributes, UserInfo};
use crate::auth::{CertifyError, Pki, Terms};
use crate::clock;
use crate::resources::signing_request::{SigningRequest, check_client_usages};
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items, text};

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// What was decided stays so long.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// What nobody decided or signed stays so long.
const UNDECIDED: SignedDuration = SignedDuration::from_hours(24);

/// Who may have a node's client certificate: the node itself for its next one, whoever may make nodes for its first.
const KINDS: [(&str, &str); 2] = [
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
];

/// Why a request waits.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error(transparent)]
    Api(#[from] StatusError),
    #[error(transparent)]
    Sign(#[from] CertifyError),
}

#[derive(Clone)]
struct Requests {
    requests: Arc<Informer>,
    cluster: Cluster,
    pki: Arc<Pki>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Requests {
        requests: context.informers.of(GROUP, PLURAL),
        cluster: context.cluster.clone(),
        pki: Arc::clone(&context.config.pki),
    };
    let queue = Queue::default();
    let of_request = queue.clone();
    controller.requests.on_change(move |_, new| {
        if let Some(request) = new {
            of_request.add(Key::of(request));
        }
    });
    Box::new(move |context| {
        queue.work("certificates", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key.name).await }
        });
    })
}

impl Requests {
    async fn reconcile(&self, name: &str) -> Result<Option<Duration>, CertificateError> {
        let Some(request) = self.requests.get("", name).filter(|request| !is_being_deleted(request)) else {
            return Ok(None);
        };
        let now = clock::now();
        let end = goes_at(&request);
        if end.is_some_and(|end| end <= now) {
            let options =
                DeleteOptions { uid: Some(text(&request["metadata"], "uid").to_owned()), ..Default::default() };
            return match self.requests.objects.delete("", name, &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
                _ => Ok(None),
            };
        }
        if !is_issued(&request) {
            match (has(&request, "Approved"), has(&request, "Denied"), has(&request, "Failed")) {
                (None, None, _) => self.approve(name, &request).await?,
                (Some(_), None, None) => self.sign(name, &request, now).await?,
                _ => {}
            }
        }
        Ok(end.map(|end| Duration::try_from(end.duration_since(now)).unwrap_or_default()))
    }

    /// Approves what a node asks for as a client of the API, if whoever asks may have it.
    async fn approve(&self, name: &str, request: &Value) -> Result<(), StatusError> {
        let spec = &request["spec"];
        if text(spec, "signerName") != NODE_CLIENT {
            return Ok(());
        }
        // Validation read it before it was stored.
        let Ok(asked) = SigningRequest::read(text(spec, "request")) else { return Ok(()) };
        if asked.check_node_client(&usages(spec)).is_err() {
            return Ok(());
        }
        let user = maker(spec);
        for (kind, message) in KINDS {
            if kind == "selfnodeclient" && user.name != asked.common_name {
                continue;
            }
            let attributes = Attributes {
                user: user.clone(),
                verb: "create".to_owned(),
                group: GROUP.to_owned(),
                version: "*".to_owned(),
                resource: PLURAL.to_owned(),
                subresource: kind.to_owned(),
                ..Attributes::default()
            };
            if self.cluster.allows(&attributes).await {
                let condition =
                    json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message});
                return self.add_condition(name, "approval", &condition).await;
            }
        }
        tracing::info!(request = name, user = user.name, "a node's certificate request waits for approval");
        Ok(())
    }

    async fn sign(&self, name: &str, request: &Value, now: Timestamp) -> Result<(), CertificateError> {
        let spec = &request["spec"];
        let Ok(asked) = SigningRequest::read(text(spec, "request")) else { return Ok(()) };
        let usages = usages(spec);
        let fits = match text(spec, "signerName") {
            NODE_CLIENT => asked.check_node_client(&usages),
            NODE_SERVING => asked.check_node_serving(&usages),
            CLIENT => check_client_usages(&usages),
            // Somebody else's.
            _ => return Ok(()),
        };
        if let Err(why) = fits {
            let condition =
                json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why});
            return Ok(self.add_condition(name, "status", &condition).await?);
        }
        let terms = Terms { usages: &usages, expiration_seconds: spec["expirationSeconds"].as_i64(), now };
        let certificate = STANDARD.encode(self.pki.sign_request(&asked.der, terms)?);
        let change = |request: &mut Value| {
            let first = !is_issued(request);
            if first {
                request["status"]["certificate"] = json!(certificate);
            }
            first
        };
        let written = self.requests.objects.modify("", name, "status", change).await;
        tracing::info!(request = name, user = text(spec, "username"), signer = text(spec, "signerName"), "signed");
        Ok(ignore_gone(written)?)
    }

    async fn add_condition(&self, name: &str, subresource: &str, condition: &Value) -> Result<(), StatusError> {
        let change = |request: &mut Value| {
            if has(request, text(condition, "type")).is_some() {
                return false;
            }
            fill(request, "status", json!({}));
            fill(&mut request["status"], "conditions", json!([]));
            if let Some(list) = request["status"]["conditions"].as_array_mut() {
                list.push(condition.clone());
            }
            true
        };
        ignore_gone(self.requests.objects.modify("", name, subresource, change).await)
    }
}

fn ignore_gone(written: Result<Value, StatusError>) -> Result<(), StatusError> {
    match written {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn usages(spec: &Value) -> Vec<&str> {
    items(spec, "usages").filter_map(Value::as_str).collect()
}

/// Whom admission saw.
fn maker(spec: &Value) -> UserInfo {
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra: BTreeMap<String, Vec<String>> =
        spec["extra"].as_object().into_iter().flatten().map(|(key, list)| (key.clone(), strings(list))).collect();
    UserInfo {
        name: text(spec, "username").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: strings(&spec["groups"]),
        extra,
    }
}

fn has<'a>(request: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&request["status"], "conditions").find(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn is_issued(request: &Value) -> bool {
    !text(&request["status"], "certificate").is_empty()
}

/// When a request is of no more use.
fn goes_at(request: &Value) -> Option<Timestamp> {
    let after = |since: &str, life: SignedDuration| since.parse::<Timestamp>().ok()?.saturating_add(life).ok();
    let decided = ["Approved", "Denied", "Failed"].map(|kind| {
        let condition = has(request, kind)?;
        let life = if kind == "Approved" && !is_issued(request) { UNDECIDED } else { DECIDED };
        after(text(condition, "lastUpdateTime"), life)
    });
    let first = decided.into_iter().flatten().min();
    let none = items(&request["status"], "conditions").next().is_none();
    first.or_else(|| none.then(|| after(text(&request["metadata"], "creationTimestamp"), UNDECIDED)).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_an_hour_after_its_decision_or_a_day_without() {
        // C7.15
        let decided = |kind: &str, certificate: &str| {
            json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"certificate": certificate,
                "conditions": [{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T10:00:00Z"}]}})
        };
        for (request, expected) in [
            (json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}), "2026-01-02T00:00:00Z"),
            (decided("Approved", ""), "2026-01-02T10:00:00Z"),
            (decided("Approved", "x"), "2026-01-01T11:00:00Z"),
            (decided("Denied", ""), "2026-01-01T11:00:00Z"),
            (decided("Failed", ""), "2026-01-01T11:00:00Z"),
        ] {
            assert_eq!(goes_at(&request), Some(expected.parse().unwrap()), "{request}");
        }
    }
}
