//! Writes what became of a pod.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use stoker_model::handle::{ApiError, MirrorApi, PodApi};
use stoker_model::names::CONFIG_MIRROR;
use stoker_model::pod::PodRef;

use super::client::{ApiServer, PatchKind};

/// Conditions of the node that a pod does not always have (A15.1).
const PASSING_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The API server's side of [`PodApi`].
#[derive(Clone, Debug)]
pub struct PodWriter {
    api: ApiServer,
}

impl PodWriter {
    /// Writes through this connection.
    pub const fn new(api: ApiServer) -> Self {
        Self { api }
    }
}

fn path(pod: &PodRef) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

#[async_trait]
impl PodApi for PodWriter {
    async fn patch_status(&self, pod: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
        let body = status_patch(pod, status)?;
        self.api
            .patch::<serde::de::IgnoredAny>(&format!("{}/status", path(pod)), PatchKind::Strategic, body)
            .await
            .map(|_| ())
    }

    async fn delete_finished(&self, pod: &PodRef) -> Result<(), ApiError> {
        match self.api.delete(&path(pod), &at_once(pod)).await {
            // A conflict is a pod of that name with another UID: ours is gone.
            Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
            other => other,
        }
    }
}

/// How a pod is deleted that has nothing left to wait for, and no other of its name.
fn at_once(pod: &PodRef) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "preconditions": { "uid": pod.uid.as_str() },
    })
}

#[async_trait]
impl MirrorApi for PodWriter {
    async fn create_mirror(&self, pod: &Pod) -> Result<(), ApiError> {
        let reference = PodRef::of(pod);
        let hash = |pod: &Pod| pod.metadata.annotations.as_ref().and_then(|a| a.get(CONFIG_MIRROR)).cloned();
        let body = serde_json::to_value(pod).map_err(|e| ApiError::Rejected(format!("mirror pod: {e}")))?;
        let collection = format!("/api/v1/namespaces/{}/pods", reference.namespace);
        match self.api.create::<serde::de::IgnoredAny>(&collection, &body).await {
            Ok(_) => Ok(()),
            Err(ApiError::Conflict(message)) => {
                let there: Pod = self.api.get(&path(&reference)).await?;
                if hash(&there) == hash(pod) { Ok(()) } else { Err(ApiError::Conflict(message)) }
            }
            Err(error) => Err(error),
        }
    }
}

/// The UID in the patch makes it fail with a conflict on a successor of the same name (A2.10).
///
/// A patch only takes away what it names with `null`, and lists with a merge key only grow; so the fields that may
/// have gone are named, and the addresses are replaced as a whole.
fn status_patch(pod: &PodRef, status: &PodStatus) -> Result<Value, ApiError> {
    let mut status = serde_json::to_value(status).map_err(|e| ApiError::Rejected(format!("pod status: {e}")))?;
    if let Some(fields) = status.as_object_mut() {
        for name in ["reason", "message"] {
            fields.entry(name).or_insert(Value::Null);
        }
        // Conditions are merged by type, so a reason that no longer holds has to be taken away by name.
        for condition in fields.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                for name in ["reason", "message"] {
                    condition.entry(name).or_insert(Value::Null);
                }
            }
        }
        // And a condition that is only there at times goes by name.
        if let Some(conditions) = fields.get_mut("conditions").and_then(Value::as_array_mut) {
            for kind in PASSING_CONDITIONS {
                if !conditions.iter().any(|condition| condition["type"] == kind) {
                    conditions.push(json!({ "type": kind, "$patch": "delete" }));
                }
            }
        }
        for name in ["podIPs", "hostIPs"] {
            if let Some(Value::Array(addresses)) = fields.get_mut(name) {
                addresses.push(json!({ "$patch": "replace" }));
            }
        }
    }
    Ok(json!({ "metadata": { "uid": pod.uid.as_str() }, "status": status }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP, PodStatus};
    use stoker_model::pod::PodUid;

    use super::*;

    #[test]
    fn only_the_very_pod_is_deleted() {
        // A1.11, A7.3
        let pod = PodRef { namespace: "a".into(), name: "b".into(), uid: PodUid::new("u-1") };
        let options = at_once(&pod);
        assert_eq!((&options["gracePeriodSeconds"], &options["preconditions"]["uid"]), (&json!(0), &json!("u-1")));
    }

    #[test]
    fn the_patch_names_the_uid_and_what_may_have_gone() {
        // A2.8, A2.10
        let pod = PodRef { namespace: "a".into(), name: "b".into(), uid: PodUid::new("u-1") };
        let status = PodStatus {
            phase: Some("Running".into()),
            pod_ips: Some(vec![PodIP { ip: "10.1.0.2".into() }]),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        };
        let patch = status_patch(&pod, &status).expect("a patch");
        assert_eq!(patch["metadata"]["uid"], "u-1");
        assert_eq!(patch["status"]["phase"], "Running");
        assert!(patch["status"]["reason"].is_null() && patch["status"].get("reason").is_some());
        let ready = &patch["status"]["conditions"][0];
        for name in ["reason", "message"] {
            assert_eq!(ready.get(name), Some(&Value::Null), "why it was not ready must go when it is");
        }
        assert_eq!(patch["status"]["podIPs"], json!([{ "ip": "10.1.0.2" }, { "$patch": "replace" }]));

        // Conditions are merged by their type, and of those that others set none is named.
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        let named = conditions.iter().map(|c| (c["type"].as_str().unwrap(), c.get("$patch").is_some()));
        let expected = [("Ready", false), ("PodResizePending", true), ("PodResizeInProgress", true)];
        assert_eq!(named.collect::<Vec<_>>(), expected);
        assert!(conditions.iter().all(|c| c["$patch"] != "replace"));
    }
}
