//! What a node's agent may write, beyond what the authorizer sees in the path: itself, its lease, pods that mirror its
//! static ones, the status of its pods, and tokens bound to them (C5.4).

use std::collections::BTreeSet;

use serde_json::Value;

use super::cluster::Core;
use crate::auth::identity::UserInfo;
use crate::auth::references;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::{self, ResourceInfo};

const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels of the project's domains that a node may set on itself.
const NODE_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// The node whose agent this is.
fn node_of(user: &UserInfo) -> Option<&str> {
    let node = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|group| group == "system:nodes").then_some(node)
}

/// Looks at what a node wants to write; `old` is `None` for a new object.
pub(super) async fn check(
    core: &Core,
    info: &ResourceInfo,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
    user: &UserInfo,
) -> Result<(), StatusError> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let name = text(&object["metadata"], "name");
    let checked = match (info.group, info.plural, old) {
        ("", "nodes", _) => itself(node, object, old),
        ("", "pods", None) => {
            let nodes = resources::find("", "nodes").expect("`resources::core` has nodes");
            let stored = core.find(nodes, "", node).await?;
            mirror_pod(node, object, stored.as_ref().map_or("", |stored| text(&stored["metadata"], "uid")))
        }
        ("", "pods", Some(old)) if subresource == "status" => pod_status(node, object, old),
        ("coordination.k8s.io", "leases", _) if name != node => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        ("storage.k8s.io", "csinodes", _) if name != node => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    };
    checked.map_err(|why| StatusError::forbidden(info, name, &why))
}

fn itself(node: &str, object: &Value, old: Option<&Value>) -> Result<(), String> {
    let name = text(&object["metadata"], "name");
    if name != node {
        let verb = if old.is_some() { "modify" } else { "create" };
        return Err(format!("node {node:?} is not allowed to {verb} node {name:?}"));
    }
    let before = old.map_or(&Value::Null, |old| &old["metadata"]["labels"]);
    let labels: Vec<&str> =
        changed(&object["metadata"]["labels"], before).into_iter().filter(|key| !may_set(key)).collect();
    if !labels.is_empty() {
        let what = if old.is_some() { "modify labels" } else { "set the following labels" };
        return Err(format!("node {node:?} is not allowed to {what}: {}", labels.join(", ")));
    }
    let Some(old) = old else { return Ok(()) };
    if old["spec"]["taints"] != object["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if old["metadata"]["ownerReferences"] != object["metadata"]["ownerReferences"] {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    Ok(())
}

/// The labels that are not the same in both.
fn changed<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let keys = |labels: &'a Value| labels.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys(new).chain(keys(old)).filter(|key| new[*key] != old[*key]).collect()
}

fn may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    let reserved = below("kubernetes.io") || below("k8s.io");
    !reserved || below("kubelet.kubernetes.io") || below("node.kubernetes.io") || NODE_LABELS.contains(&label)
}

/// A pod that a node makes gives it no right to anything.
fn mirror_pod(node: &str, pod: &Value, node_uid: &str) -> Result<(), String> {
    let metadata = &pod["metadata"];
    if metadata["annotations"][MIRROR].is_null() {
        return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if text(&pod["spec"], "nodeName") != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners: Vec<&Value> = items(metadata, "ownerReferences").collect();
    let owned = matches!(owners.as_slice(), [owner] if owner["apiVersion"] == "v1" && owner["kind"] == "Node"
        && owner["name"] == node && owner["uid"] == node_uid && owner["controller"] == true);
    if !owned {
        return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owners.iter().any(|owner| owner["blockOwnerDeletion"] == true) {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    if let Some((kind, _)) = references(pod).first() {
        let kind = if *kind == "serviceaccounts" { "a service account" } else { kind };
        return Err(format!("node {node:?} can not create pods that reference {kind}"));
    }
    if items(&pod["spec"], "resourceClaims").next().is_some() {
        return Err(format!("node {node:?} can not create pods that reference resourceclaims"));
    }
    Ok(())
}

fn pod_status(node: &str, pod: &Value, old: &Value) -> Result<(), String> {
    if text(&old["spec"], "nodeName") != node {
        return Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if !changed(&pod["metadata"]["labels"], &old["metadata"]["labels"]).is_empty() {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    Ok(())
}

/// A node gets tokens only for its pods, to die with them, and only for whom the pod wants them.
pub(super) async fn check_token(
    core: &Core,
    namespace: &str,
    account: &str,
    request: &Value,
    user: &UserInfo,
) -> Result<(), StatusError> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let accounts = resources::find("", "serviceaccounts").expect("`resources::core` has serviceaccounts");
    let refuse = |why: &str| Err(StatusError::forbidden(accounts, account, why));
    let reference = &request["spec"]["boundObjectRef"];
    let (kind, name, uid) = (text(reference, "kind"), text(reference, "name"), text(reference, "uid"));
    if kind != "Pod" || text(reference, "apiVersion") != "v1" || name.is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let pods = resources::find("", "pods").expect("`resources::core` has pods");
    let pod = core.find(pods, namespace, name).await?.ok_or_else(|| StatusError::not_found(pods, name))?;
    if text(&pod["metadata"], "uid") != uid {
        return refuse("node requested token with a pod binding of another uid");
    }
    if text(&pod["spec"], "nodeName") != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let audiences: Vec<&str> = items(&request["spec"], "audiences").filter_map(Value::as_str).collect();
    let audience = match audiences.as_slice() {
        [] => "",
        [one] => one,
        _ => return refuse("node may only request 0 or 1 audiences"),
    };
    let wanted = items(&pod["spec"], "volumes")
        .flat_map(|volume| items(&volume["projected"], "sources"))
        .any(|s| s["serviceAccountToken"].is_object() && text(&s["serviceAccountToken"], "audience") == audience);
    if wanted || driver_wants(core, audience).await? {
        return Ok(());
    }
    refuse(&format!("audience {audience:?} not found in pod spec volume"))
}

/// Whether a volume driver is to be given tokens for that audience.
async fn driver_wants(core: &Core, audience: &str) -> Result<bool, StatusError> {
    let Some(drivers) = resources::find("storage.k8s.io", "csidrivers") else { return Ok(false) };
    let drivers = core.all(drivers, "").await?;
    let mut requests = drivers.iter().flat_map(|driver| items(&driver["spec"], "tokenRequests"));
    Ok(requests.any(|request| text(request, "audience") == audience))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_sets_only_its_own_labels_on_itself() {
        // C5.4
        let node = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}});
        for (label, allowed) in [
            ("disk", true),
            ("example.org/disk", true),
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/anything", true),
            ("sub.kubelet.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", false),
            ("a.node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("x.k8s.io/y", false),
            ("notk8s.io/y", true),
        ] {
            let labelled = node(json!({label: "v"}));
            assert_eq!(itself("n1", &labelled, None).is_ok(), allowed, "set {label}");
            assert_eq!(itself("n1", &labelled, Some(&node(json!({})))).is_ok(), allowed, "add {label}");
            assert_eq!(itself("n1", &node(json!({})), Some(&labelled)).is_ok(), allowed, "remove {label}");
            assert_eq!(itself("n1", &labelled, Some(&labelled)), Ok(()), "keep {label}");
        }
        assert_eq!(
            itself("n1", &node(json!({"k8s.io/a": "v"})), None),
            Err("node \"n1\" is not allowed to set the following labels: k8s.io/a".to_owned())
        );
    }

    #[test]
    fn a_mirror_pod_refers_to_nothing() {
        // C5.4
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true});
        let pod = |owner: &Value, spec: Value| {
            let mut pod = json!({
                "metadata": {"name": "p", "annotations": {MIRROR: "x"}, "ownerReferences": [owner]}, "spec": spec,
            });
            pod["spec"]["nodeName"] = json!("n1");
            pod
        };
        assert_eq!(mirror_pod("n1", &pod(&owner, json!({})), "u"), Ok(()));
        assert!(mirror_pod("n1", &pod(&owner, json!({})), "other").is_err());
        for spec in [
            json!({"serviceAccountName": "x"}),
            json!({"containers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]}),
            json!({"initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "x"}}}]}]}),
            json!({"imagePullSecrets": [{"name": "x"}]}),
            json!({"volumes": [{"projected": {"sources": [{"secret": {"name": "x"}}]}}]}),
            json!({"volumes": [{"persistentVolumeClaim": {"claimName": "x"}}]}),
            json!({"volumes": [{"csi": {"nodePublishSecretRef": {"name": "x"}}}]}),
            json!({"resourceClaims": [{"name": "x"}]}),
        ] {
            assert!(mirror_pod("n1", &pod(&owner, spec.clone()), "u").is_err(), "{spec}");
        }
        let blocking = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true,
            "blockOwnerDeletion": true});
        assert!(mirror_pod("n1", &pod(&blocking, json!({})), "u").is_err());
    }
}
