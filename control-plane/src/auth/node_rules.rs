//! What a node's agent may do (C5.3): read what is for every node, and of secrets, configmaps, claims and accounts only
//! what a pod bound to it refers to; write only its own objects. `NoOpinion` leaves the last word to RBAC.

use serde_json::Value;

use super::identity::{Attributes, Decision};
use super::{Lookup, LookupError};

/// `(group, resource, sub-resource, verbs)` that every node may use without a look at the object; `*` is any name.
const STATIC: &[(&str, &str, &str, &[&str])] = &[
    ("authentication.k8s.io", "tokenreviews", "", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", "", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", "", &["create"]),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "", &["create"]),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "", &["create"]),
    ("authentication.k8s.io", "selfsubjectreviews", "", &["create"]),
    ("", "services", "", &["get", "list", "watch"]),
    ("", "endpoints", "", &["get", "list", "watch"]),
    ("discovery.k8s.io", "endpointslices", "", &["get", "list", "watch"]),
    ("", "namespaces", "", &["get", "list", "watch"]),
    ("networking.k8s.io", "networkpolicies", "", &["get", "list", "watch"]),
    ("networking.k8s.io", "servicecidrs", "", &["list", "watch"]),
    ("storage.k8s.io", "csidrivers", "", &["get", "list", "watch"]),
    ("storage.k8s.io", "storageclasses", "", &["get"]),
    ("node.k8s.io", "runtimeclasses", "", &["get", "list", "watch"]),
    ("", "events", "", &["create", "patch", "update"]),
    ("events.k8s.io", "events", "", &["create", "patch", "update"]),
    ("certificates.k8s.io", "certificatesigningrequests", "", &["create", "get", "list", "watch"]),
];

/// Decides for the agent of `node`.
pub(super) async fn decide(node: &str, asked: &Attributes, lookup: &dyn Lookup) -> Result<Decision, LookupError> {
    if !asked.is_resource() {
        return Ok(Decision::NoOpinion(String::new()));
    }
    let is_static = STATIC.iter().any(|(group, resource, subresource, verbs)| {
        asked.group == *group
            && asked.resource == *resource
            && asked.subresource == *subresource
            && verbs.contains(&asked.verb.as_str())
    });
    if is_static || own_object(node, asked) {
        return Ok(Decision::Allow(String::new()));
    }
    let reading = ["get", "list", "watch"].contains(&asked.verb.as_str());
    match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        ("", "secrets", "") if reading => match referenced(node, asked, lookup).await? {
            Decision::NoOpinion(_) if asked.verb == "get" => of_driver(node, asked, lookup).await,
            decision => Ok(decision),
        },
        ("", "configmaps" | "persistentvolumeclaims", "") if reading => referenced(node, asked, lookup).await,
        ("", "persistentvolumes", "") if asked.verb == "get" => {
            let volume = lookup.get("", "persistentvolumes", None, &asked.name).await?.unwrap_or_default();
            claimed(node, &volume, lookup).await
        }
        ("", "serviceaccounts", "") if asked.verb == "get" => referenced(node, asked, lookup).await,
        ("", "serviceaccounts", "token") if asked.verb == "create" => referenced(node, asked, lookup).await,
        ("", "persistentvolumeclaims", "status") => referenced(node, asked, lookup).await,
        ("", "pods", _) => pods(node, asked, lookup).await,
        ("storage.k8s.io", "volumeattachments", "") if asked.verb == "get" => {
            let stored = lookup.get("storage.k8s.io", "volumeattachments", None, &asked.name).await?;
            Ok(match stored.is_some_and(|stored| stored["spec"]["nodeName"] == node) {
                true => Decision::Allow(String::new()),
                false => Decision::NoOpinion(no_relationship(node)),
            })
        }
        _ => Ok(Decision::NoOpinion(String::new())),
    }
}

/// Its own Node, Lease, CSINode and resource slices, by name.
fn own_object(node: &str, asked: &Attributes) -> bool {
    let verb = asked.verb.as_str();
    let by_name = asked.name == node || selects(&asked.field_selector, "metadata.name", node);
    match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        ("", "nodes", "") => {
            // A creation's URL has no name; admission looks at the body.
            verb == "create" || (by_name && ["get", "list", "watch", "update", "patch"].contains(&verb))
        }
        ("", "nodes", "status") => asked.name == node && ["get", "update", "patch"].contains(&verb),
        ("coordination.k8s.io", "leases", "") => {
            asked.namespace == "kube-node-lease"
                && (verb == "create" || (asked.name == node && ["get", "update", "patch", "delete"].contains(&verb)))
        }
        ("storage.k8s.io", "csinodes", "") => {
            verb == "create" || (asked.name == node && ["get", "update", "patch", "delete"].contains(&verb))
        }
        ("resource.k8s.io", "resourceslices", "") => {
            ["create", "get", "update", "patch", "delete"].contains(&verb)
                || selects(&asked.field_selector, "spec.nodeName", node)
        }
        _ => false,
    }
}

async fn pods(node: &str, asked: &Attributes, lookup: &dyn Lookup) -> Result<Decision, LookupError> {
    let refused = |reason: &str| Ok(Decision::NoOpinion(reason.to_owned()));
    match (asked.subresource.as_str(), asked.verb.as_str()) {
        ("", "list" | "watch") if selects(&asked.field_selector, "spec.nodeName", node) => {
            return Ok(Decision::Allow(String::new()));
        }
        ("", "list" | "watch" | "deletecollection") => {
            return refused("can only list/watch pods with spec.nodeName field selector");
        }
        // A mirror pod: admission looks at the body.
        ("", "create") => return Ok(Decision::Allow(String::new())),
        ("", "get" | "delete") | ("status", "get" | "update" | "patch") | ("eviction", "create") => {}
        _ => return refused(""),
    }
    let pod = lookup.part("", "pods", Some(&asked.namespace), &asked.name, &["spec.nodeName"]).await?;
    match pod {
        Some(pod) if pod["spec"]["nodeName"] == node => Ok(Decision::Allow(String::new())),
        // So that the agent hears 404 of its own pod that is gone, and does not take it for a lack of rights.
        None if asked.verb == "get" || asked.verb == "delete" || asked.subresource == "status" => {
            Ok(Decision::Allow(String::new()))
        }
        _ => refused(&no_relationship(node)),
    }
}

/// Whether a pod bound to the node refers to the object.
async fn referenced(node: &str, asked: &Attributes, lookup: &dyn Lookup) -> Result<Decision, LookupError> {
    let name = if asked.name.is_empty() {
        selected(&asked.field_selector, "metadata.name").unwrap_or_default()
    } else {
        asked.name.as_str()
    };
    if name.is_empty() || asked.namespace.is_empty() {
        return Ok(Decision::NoOpinion("can only read a namespaced object of this type by its name".to_owned()));
    }
    // A node makes its mirror pods itself: what they mention gives it no right.
    let is_its = |pod: &Value| {
        pod["spec"]["nodeName"] == node && pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null()
    };
    let refers = |pod: &Value| {
        is_its(pod) && references(pod).into_iter().any(|(kind, its)| kind == asked.resource && its == name)
    };
    // The claim of an ephemeral volume stands in no pod as a whole: it is made of the names of both.
    let names = if asked.resource == "persistentvolumeclaims" { vec![node] } else { vec![node, name] };
    let found = lookup.any("", "pods", &asked.namespace, &names, &refers).await?;
    Ok(if found { Decision::Allow(String::new()) } else { Decision::NoOpinion(no_relationship(node)) })
}

/// Whether the PersistentVolume is bound to a claim that a pod bound to the node refers to.
async fn claimed(node: &str, volume: &Value, lookup: &dyn Lookup) -> Result<Decision, LookupError> {
    let of_claim = |field: &str| volume["spec"]["claimRef"][field].as_str().unwrap_or_default().to_owned();
    let claim = Attributes {
        resource: "persistentvolumeclaims".to_owned(),
        namespace: of_claim("namespace"),
        name: of_claim("name"),
        ..Attributes::default()
    };
    referenced(node, &claim, lookup).await
}

/// Whether the Secret is what a CSI driver needs on the node for a volume of one of its pods.
async fn of_driver(node: &str, asked: &Attributes, lookup: &dyn Lookup) -> Result<Decision, LookupError> {
    let is_it = |reference: &Value| reference["name"] == asked.name && reference["namespace"] == asked.namespace;
    for volume in lookup.list("", "persistentvolumes", None).await? {
        let csi = &volume["spec"]["csi"];
        let names_it =
            ["nodeStageSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"].iter().any(|r| is_it(&csi[*r]));
        if names_it && let Decision::Allow(reason) = claimed(node, &volume, lookup).await? {
            return Ok(Decision::Allow(reason));
        }
    }
    Ok(Decision::NoOpinion(no_relationship(node)))
}

fn no_relationship(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// The objects that `pod` mentions anywhere that a node follows, as plural and name.
pub fn references(pod: &Value) -> Vec<(&'static str, String)> {
    let spec = &pod["spec"];
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    let mut add = |kind: &'static str, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            all.push((kind, name.to_owned()));
        }
    };
    add("serviceaccounts", &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        add("secrets", &secret["name"]);
    }
    for volume in items(&spec["volumes"]) {
        add("secrets", &volume["secret"]["secretName"]);
        add("configmaps", &volume["configMap"]["name"]);
        for source in items(&volume["projected"]["sources"]) {
            add("secrets", &source["secret"]["name"]);
            add("configmaps", &source["configMap"]["name"]);
        }
        add("persistentvolumeclaims", &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let claim = format!("{}-{}", part(&pod["metadata"]["name"]), part(&volume["name"]));
            add("persistentvolumeclaims", &claim.into());
        }
        // Secrets that volume drivers name with a reference.
        for driver in ["flexVolume", "cephfs", "rbd", "scaleIO", "iscsi", "storageos"] {
            add("secrets", &volume[driver]["secretRef"]["name"]);
        }
        add("secrets", &volume["csi"]["nodePublishSecretRef"]["name"]);
        add("secrets", &volume["azureFile"]["secretName"]);
    }
    for container in ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|key| items(&spec[*key])) {
        for variable in items(&container["env"]) {
            add("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
            add("configmaps", &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for source in items(&container["envFrom"]) {
            add("secrets", &source["secretRef"]["name"]);
            add("configmaps", &source["configMapRef"]["name"]);
        }
    }
    all
}

fn selected<'a>(selector: &'a str, field: &str) -> Option<&'a str> {
    selector.split(',').find_map(|part| {
        let (key, value) = part.split_once("==").or_else(|| part.split_once('='))?;
        (key.trim() == field && !key.ends_with('!')).then_some(value.trim())
    })
}

fn selects(selector: &str, field: &str, value: &str) -> bool {
    selected(selector, field) == Some(value)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::super::tests::Stored;
    use super::*;

    fn cluster() -> Stored {
        let pod = |name: &str, node: &str, secret: &str| {
            json!({
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {
                    "nodeName": node, "serviceAccountName": "web",
                    "volumes": [
                        {"name": "a", "secret": {"secretName": secret}},
                        {"name": "b", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
                        {"name": "c", "persistentVolumeClaim": {"claimName": "disk"}},
                    ],
                    "containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "env-secret"}}}],
                                    "envFrom": [{"configMapRef": {"name": "env-map"}}]}],
                },
            })
        };
        let volume = |name: &str, namespace: &str| {
            let secret = json!({"name": format!("key-of-{name}"), "namespace": "storage"});
            json!({"metadata": {"name": name}, "spec": {
                "claimRef": {"namespace": namespace, "name": "disk"}, "csi": {"nodePublishSecretRef": secret}
            }})
        };
        let attachment = |name: &str, node: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node}});
        Stored(vec![
            ("pods", pod("mine", "n1", "mine-secret")),
            ("pods", pod("other", "n2", "other-secret")),
            ("persistentvolumes", volume("mine", "shop")),
            ("persistentvolumes", volume("other", "bank")),
            ("volumeattachments", attachment("to-mine", "n1")),
            ("volumeattachments", attachment("to-other", "n2")),
        ])
    }

    #[track_caller]
    fn check(verb: &str, resource: &str, namespace: &str, name: &str, selector: &str, allowed: bool) {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let asked = Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            field_selector: selector.into(),
            ..Attributes::default()
        };
        let decision = decide("n1", &asked, &cluster()).now_or_never().unwrap().unwrap();
        assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{asked:?}: {decision:?}");
    }

    #[test]
    fn a_node_reads_only_what_its_pods_refer_to() {
        // C5.3
        for (resource, name) in [
            ("secrets", "mine-secret"),
            ("secrets", "env-secret"),
            ("configmaps", "kube-root-ca.crt"),
            ("configmaps", "env-map"),
            ("persistentvolumeclaims", "disk"),
            ("serviceaccounts", "web"),
        ] {
            check("get", resource, "shop", name, "", true);
            check("get", resource, "bank", name, "", false);
        }
        for (name, allowed) in [("mine", true), ("other", false), ("absent", false)] {
            check("get", "persistentvolumes", "", name, "", allowed);
            check("get", "secrets", "storage", &format!("key-of-{name}"), "", allowed);
        }
        check("list", "persistentvolumes", "", "", "", false);
        check("get", "secrets", "shop", "other-secret", "", false);
        check("get", "volumeattachments.storage.k8s.io", "", "to-mine", "", true);
        check("get", "volumeattachments.storage.k8s.io", "", "to-other", "", false);
        check("list", "volumeattachments.storage.k8s.io", "", "", "", false);
        check("get", "serviceaccounts", "shop", "default", "", false);
        check("list", "secrets", "shop", "", "", false);
        check("watch", "secrets", "shop", "", "metadata.name=mine-secret", true);
        check("watch", "secrets", "shop", "", "metadata.name=other-secret", false);
        check("create", "serviceaccounts/token", "shop", "web", "", true);
        check("create", "serviceaccounts/token", "shop", "admin", "", false);
        check("update", "secrets", "shop", "mine-secret", "", false);
    }

    #[test]
    fn a_node_writes_only_its_own_objects() {
        // C5.3
        check("patch", "nodes/status", "", "n1", "", true);
        check("patch", "nodes/status", "", "n2", "", false);
        check("create", "nodes", "", "", "", true);
        check("delete", "nodes", "", "n1", "", false);
        check("get", "nodes", "", "n2", "", false);
        check("watch", "nodes", "", "", "metadata.name=n1", true);
        check("watch", "nodes", "", "", "", false);
        check("update", "leases.coordination.k8s.io", "kube-node-lease", "n1", "", true);
        check("update", "leases.coordination.k8s.io", "kube-node-lease", "n2", "", false);
        check("update", "leases.coordination.k8s.io", "kube-system", "n1", "", false);
        check("patch", "pods/status", "shop", "mine", "", true);
        check("patch", "pods/status", "shop", "other", "", false);
        check("delete", "pods", "shop", "other", "", false);
        check("patch", "pods", "shop", "mine", "", false);
        check("list", "pods", "", "", "spec.nodeName=n1", true);
        check("list", "pods", "", "", "spec.nodeName=n2", false);
        check("list", "pods", "", "", "spec.nodeName!=n1", false);
        check("create", "events", "shop", "", "", true);
        check("create", "tokenreviews.authentication.k8s.io", "", "", "", true);
        check("list", "services", "", "", "", true);
        check("create", "pods/exec", "shop", "mine", "", false);
    }
}
