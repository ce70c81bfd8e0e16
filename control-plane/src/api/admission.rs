//! Admission: what an object gets or is refused for because of other objects (C5.6, C5.7).
//!
//! Here: the order, service accounts and their token volumes, default tolerations; what a node may write is in
//! [`node_restriction`].

mod classes;
mod limits;
mod pod_security;
mod quota;
mod security_checks;

use memchr::memmem;
use serde_json::{Value, json};

use super::cluster::Core;
use super::write::Writer;
use super::{certificate_admission, codec, escalation, meta, node_restriction};
use crate::auth::identity::UserInfo;
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items, items_mut, text};
use crate::resources::{self, ResourceInfo, certificates};
use crate::storage::{Entry, Range};

pub(super) use self::quota::{Charge, refund};

const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long a pod stays on a node that is not ready or not reachable (DefaultTolerationSeconds).
const TOLERATION_SECONDS: i64 = 300;
/// So many objects are read first where one of a kind is looked for.
const FIRST_LOOK: usize = 8;
/// The default account may come a moment after its namespace (C5.7).
const ACCOUNT_TRIES: usize = 10;

fn is(info: &ResourceInfo, group: &str, plural: &str) -> bool {
    info.group == group && info.plural == plural
}

/// What a new object gets, in upstream's order.
pub(super) async fn admit_create(
    core: &Core,
    info: &'static ResourceInfo,
    object: &mut Value,
    user: &UserInfo,
) -> Result<(), StatusError> {
    limits::default(core, info, object).await?;
    let is_pod = is(info, "", "pods");
    if is_pod {
        service_account(core, info, object).await?;
    }
    node_restriction::check(core, info, "", object, None, user).await?;
    if is(info, "", "nodes") && user.groups.iter().any(|group| group == "system:nodes") {
        taint_new_node(object);
    }
    if is_pod {
        classes::priority(core, info, object).await?;
        tolerations(object);
        classes::runtime(core, info, object).await?;
    }
    if is(info, "", "persistentvolumeclaims") {
        classes::default_storage(core, object).await?;
    }
    if is(info, "networking.k8s.io", "ingresses") {
        classes::default_ingress(core, object).await?;
    }
    if certificates::is_signing_request(info) {
        certificate_admission::admit_create(info, object, user)?;
    }
    escalation::check(core, info, object, None, user).await
}

/// What a changed object is refused for before it is looked at.
pub(super) async fn admit_update(
    core: &Core,
    info: &'static ResourceInfo,
    subresource: &str,
    new: &Value,
    old: &Value,
    user: &UserInfo,
) -> Result<(), StatusError> {
    node_restriction::check(core, info, subresource, new, Some(old), user).await?;
    if certificates::is_signing_request(info) {
        certificate_admission::admit_update(core, info, subresource, new, old, user).await?;
    }
    escalation::check(core, info, new, Some(old), user).await
}

/// What an object that is otherwise right is refused for, in upstream's order; what it counts for in quotas is counted.
pub(super) async fn validate(
    core: &Core,
    info: &'static ResourceInfo,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
    writer: &Writer,
) -> Result<Charge, StatusError> {
    limits::validate(core, info, subresource, object, old.is_none()).await?;
    pod_security::validate(core, info, subresource, object, old, writer).await?;
    if subresource.is_empty() {
        classes::one_default(core, info, object).await?;
        if let Some(old) = old.filter(|_| is(info, "", "persistentvolumeclaims")) {
            classes::resize(core, info, object, old).await?;
        }
    }
    quota::charge(core, info, subresource, object, old, writer.dry_run).await
}

/// The account, its pull secrets, and its token as a volume in every container.
async fn service_account(core: &Core, info: &'static ResourceInfo, pod: &mut Value) -> Result<(), StatusError> {
    let name = text(&pod["metadata"], "name").to_owned();
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        if !text(&pod["spec"], "serviceAccountName").is_empty() {
            return Err(StatusError::forbidden(info, &name, "a mirror pod may not reference service accounts"));
        }
        let has_secret = items(&pod["spec"], "volumes").any(|volume| !volume["secret"].is_null());
        if has_secret {
            return Err(StatusError::forbidden(info, &name, "a mirror pod may not reference secrets"));
        }
        return Ok(());
    }
    let namespace = text(&pod["metadata"], "namespace").to_owned();
    if text(&pod["spec"], "serviceAccountName").is_empty() {
        pod["spec"]["serviceAccountName"] = json!("default");
    }
    let account_name = text(&pod["spec"], "serviceAccountName").to_owned();
    pod["spec"]["serviceAccount"] = json!(account_name);
    let account = find_account(core, &namespace, &account_name).await?.ok_or_else(|| {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        StatusError::forbidden(info, &name, &why)
    })?;
    if items(&pod["spec"], "imagePullSecrets").next().is_none() && !account["imagePullSecrets"].is_null() {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(pod);
    }
    Ok(())
}

async fn find_account(core: &Core, namespace: &str, name: &str) -> Result<Option<Value>, StatusError> {
    let accounts = resources::find("", "serviceaccounts").expect("`resources::core` has serviceaccounts");
    let tries = if name == "default" { ACCOUNT_TRIES } else { 1 };
    for attempt in 0..tries {
        if let Some(found) = core.find(accounts, namespace, name).await? {
            return Ok(Some(found));
        }
        if attempt + 1 < tries {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    Ok(None)
}

fn mount_token(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let existing =
        items(spec, "volumes").map(|volume| text(volume, "name")).find(|n| n.starts_with("kube-api-access-"));
    let volume = existing.map_or_else(|| format!("kube-api-access-{}", meta::random_suffix()), str::to_owned);
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            if items(container, "volumeMounts").any(|mount| mount["mountPath"] == TOKEN_MOUNT) {
                continue;
            }
            mounted = true;
            fill(container, "volumeMounts", json!([]));
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT}));
            }
        }
    }
    if !mounted || items(spec, "volumes").any(|existing| existing["name"] == volume) {
        return;
    }
    fill(spec, "volumes", json!([]));
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

fn tolerations(pod: &mut Value) {
    let spec = &mut pod["spec"];
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(spec, "tolerations").any(|toleration| {
            let (its, effect) = (text(toleration, "key"), text(toleration, "effect"));
            (its == key || its.is_empty()) && matches!(effect, "NoExecute" | "")
        });
        if tolerated {
            continue;
        }
        fill(spec, "tolerations", json!([]));
        if let Some(list) = spec["tolerations"].as_array_mut() {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS
            }));
        }
    }
}

/// A new node is not ready until it says so (TaintNodesByCondition).
fn taint_new_node(node: &mut Value) {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    fill(node, "spec", json!({}));
    let spec = &mut node["spec"];
    if items(spec, "taints").any(|taint| taint["key"] == NOT_READY) {
        return;
    }
    fill(spec, "taints", json!([]));
    if let Some(taints) = spec["taints"].as_array_mut() {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

impl Core {
    /// An object, or `None`.
    pub(super) async fn find(
        &self,
        info: &ResourceInfo,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, StatusError> {
        match super::read::get(self.store.as_ref(), info, namespace, name).await {
            Ok(entry) => codec::decode_entry(&entry).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind, of one namespace if given.
    pub(super) async fn all(&self, info: &ResourceInfo, namespace: &str) -> Result<Vec<Value>, StatusError> {
        let request = super::read::ListRequest { namespace: namespace.to_owned(), ..Default::default() };
        let listed = super::read::list(self.store.as_ref(), info, &request).await?;
        listed.entries.iter().map(codec::decode_entry).collect()
    }

    /// Whether an object of a kind in a namespace that mentions all of these names, as they stand, is such. Most often one of the first
    /// is, and the rest is not read then.
    pub(super) async fn any(
        &self,
        info: &ResourceInfo,
        namespace: &str,
        names: &[&str],
        is_such: &(dyn for<'a> Fn(&'a Value) -> bool + Sync),
    ) -> Result<bool, StatusError> {
        let names: Vec<_> = names.iter().map(|name| memmem::Finder::new(name.as_bytes())).collect();
        let mut range = Range { prefix: codec::prefix(info, namespace), limit: FIRST_LOOK, ..Range::default() };
        loop {
            let page = self.store.list(range.clone()).await.map_err(super::read::store_error)?;
            let mentions = |entry: &&Entry| names.iter().all(|name| name.find(&entry.value).is_some());
            for entry in page.entries.iter().filter(mentions) {
                if is_such(&codec::decode_entry(entry)?) {
                    return Ok(true);
                }
            }
            let Some(last) = page.entries.last().filter(|_| page.remaining > 0) else { return Ok(false) };
            range.after = Some(last.key.to_string());
            range.limit *= 8;
        }
    }
}
