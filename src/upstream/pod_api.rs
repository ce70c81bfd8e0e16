//! Writes what became of a pod.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ContainerStatus, HostIP, NodeAllocatableResourceClaimStatus, Pod, PodCondition, PodExtendedResourceClaimStatus,
    PodIP, PodResourceClaimStatus, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Value, json};
use stoker_model::handle::{ApiError, MirrorApi, PodApi};
use stoker_model::names::CONFIG_MIRROR;
use stoker_model::pod::PodRef;

use super::client::ApiServer;

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
        let patch = StatusPatch::new(pod, status);
        self.api.patch_unread(&format!("{}/status", path(pod)), patch).await.map(|_| ())
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
        match self.api.create_unread(&collection, &body).await {
            Ok(_) => Ok(()),
            Err(ApiError::Conflict(message)) => {
                let there: Pod = self.api.get(&path(&reference)).await?;
                if hash(&there) == hash(pod) { Ok(()) } else { Err(ApiError::Conflict(message)) }
            }
            Err(error) => Err(error),
        }
    }
}

/// What is written of a pod's status. The UID makes it fail with a conflict on a successor of the same name (A2.10).
///
/// A patch only takes away what it names with `null`, and lists with a merge key only grow; so the fields that may
/// have gone are named, and the addresses are replaced as a whole.
#[derive(Serialize)]
struct StatusPatch<'a> {
    metadata: Metadata<'a>,
    status: Fields<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    uid: &'a str,
}

/// A status, sent as it is but for what [`StatusPatch`] tells of.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    reason: Option<&'a str>,
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conditions: Option<Vec<OneOf<Condition<'a>>>>,
    #[serde(rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pod_ips: Option<Vec<OneOf<&'a PodIP>>>,
    #[serde(rename = "hostIPs", skip_serializing_if = "Option::is_none")]
    host_ips: Option<Vec<OneOf<&'a HostIP>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_resources: Option<&'a BTreeMap<String, Quantity>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_statuses: Option<&'a Vec<ContainerStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral_container_statuses: Option<&'a Vec<ContainerStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extended_resource_claim_status: Option<&'a PodExtendedResourceClaimStatus>,
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    host_ip: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init_container_statuses: Option<&'a Vec<ContainerStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_allocatable_resource_claim_statuses: Option<&'a Vec<NodeAllocatableResourceClaimStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nominated_node_name: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_generation: Option<&'a i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'a String>,
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pod_ip: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qos_class: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resize: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_claim_statuses: Option<&'a Vec<PodResourceClaimStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<&'a ResourceRequirements>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<&'a Time>,
}

/// An element of a list, or what to do with the list.
#[derive(Serialize)]
#[serde(untagged)]
enum OneOf<T> {
    It(T),
    Directive {
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<&'static str>,
        #[serde(rename = "$patch")]
        patch: &'static str,
    },
}

/// Conditions are merged by type, so a reason that no longer holds has to be taken away by name.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    status: &'a str,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_probe_time: Option<&'a Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_transition_time: Option<&'a Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_generation: Option<i64>,
}

impl<'a> StatusPatch<'a> {
    fn new(pod: &'a PodRef, status: &'a PodStatus) -> Self {
        // One by one, so that a new field is not forgotten.
        let PodStatus {
            allocated_resources,
            container_statuses,
            ephemeral_container_statuses,
            extended_resource_claim_status,
            host_ip,
            init_container_statuses,
            node_allocatable_resource_claim_statuses,
            nominated_node_name,
            observed_generation,
            phase,
            pod_ip,
            qos_class,
            resize,
            resource_claim_statuses,
            resources,
            start_time,
            conditions,
            host_ips,
            message,
            pod_ips,
            reason,
        } = status;
        let status = Fields {
            reason: reason.as_deref(),
            message: message.as_deref(),
            conditions: conditions.as_deref().map(patched_conditions),
            pod_ips: pod_ips.as_deref().map(replaced),
            host_ips: host_ips.as_deref().map(replaced),
            allocated_resources: allocated_resources.as_ref(),
            container_statuses: container_statuses.as_ref(),
            ephemeral_container_statuses: ephemeral_container_statuses.as_ref(),
            extended_resource_claim_status: extended_resource_claim_status.as_ref(),
            host_ip: host_ip.as_ref(),
            init_container_statuses: init_container_statuses.as_ref(),
            node_allocatable_resource_claim_statuses: node_allocatable_resource_claim_statuses.as_ref(),
            nominated_node_name: nominated_node_name.as_ref(),
            observed_generation: observed_generation.as_ref(),
            phase: phase.as_ref(),
            pod_ip: pod_ip.as_ref(),
            qos_class: qos_class.as_ref(),
            resize: resize.as_ref(),
            resource_claim_statuses: resource_claim_statuses.as_ref(),
            resources: resources.as_ref(),
            start_time: start_time.as_ref(),
        };
        Self { metadata: Metadata { uid: pod.uid.as_str() }, status }
    }
}

fn patched_conditions(conditions: &[PodCondition]) -> Vec<OneOf<Condition<'_>>> {
    let own = conditions.iter().map(|condition| {
        OneOf::It(Condition {
            kind: &condition.type_,
            status: &condition.status,
            reason: condition.reason.as_deref(),
            message: condition.message.as_deref(),
            last_probe_time: condition.last_probe_time.as_ref(),
            last_transition_time: condition.last_transition_time.as_ref(),
            observed_generation: condition.observed_generation,
        })
    });
    // A condition that is only there at times goes by name.
    let gone = PASSING_CONDITIONS.iter().filter(|kind| !conditions.iter().any(|condition| condition.type_ == **kind));
    own.chain(gone.map(|kind| OneOf::Directive { kind: Some(kind), patch: "delete" })).collect()
}

fn replaced<T>(addresses: &[T]) -> Vec<OneOf<&T>> {
    let directive = OneOf::Directive { kind: None, patch: "replace" };
    addresses.iter().map(OneOf::It).chain([directive]).collect()
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
    fn every_field_is_sent_by_its_name() {
        let whole = json!({
            "allocatedResources": { "cpu": "1" },
            "containerStatuses": [{ "name": "a", "ready": true, "restartCount": 1, "image": "i", "imageID": "i@1" }],
            "ephemeralContainerStatuses": [],
            "extendedResourceClaimStatus": { "resourceClaimName": "r", "requestMappings": [] },
            "hostIP": "192.0.2.1",
            "initContainerStatuses": [],
            "message": "m",
            "nodeAllocatableResourceClaimStatuses": [],
            "nominatedNodeName": "n",
            "observedGeneration": 3,
            "phase": "Running",
            "podIP": "10.1.0.2",
            "qosClass": "Burstable",
            "reason": "r",
            "resize": "Proposed",
            "resourceClaimStatuses": [{ "name": "c" }],
            "resources": { "limits": { "cpu": "1" } },
            "startTime": "2026-01-01T00:00:00Z",
        });
        let status: PodStatus = serde_json::from_value(whole.clone()).expect("a status");
        let pod = PodRef { namespace: "a".into(), name: "b".into(), uid: PodUid::new("u-1") };
        let patch = serde_json::to_value(StatusPatch::new(&pod, &status)).expect("a patch");
        assert_eq!(patch["status"], whole);
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
        let patch = serde_json::to_value(StatusPatch::new(&pod, &status)).expect("a patch");
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
