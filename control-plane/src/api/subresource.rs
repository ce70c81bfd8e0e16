//! Sub-resources that are actions: binding, eviction, scale, token (C3.18, C3.19).

use serde_json::{Value, json};
use stoker_model::selector::{Labels, Selector};

use super::cluster::{Core, DeleteOptions};
use super::write::{Target, Writer};
use crate::auth::identity::{BoundObject, TokenIssuer, TokenSpec};
use crate::clock;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items, text};
use crate::resources::{self, ResourceInfo};

const DEFAULT_TOKEN_SECONDS: i64 = 3600;
const MIN_TOKEN_SECONDS: i64 = 600;
const MAX_TOKEN_SECONDS: i64 = 1 << 32;

fn pods() -> &'static ResourceInfo {
    resources::find("", "pods").expect("`resources::core` has pods")
}

impl Core {
    /// Sets the node of a pod, once.
    pub(super) async fn bind(
        &self,
        namespace: &str,
        name: &str,
        binding: &Value,
        writer: &Writer,
    ) -> Result<(), StatusError> {
        let info = pods();
        let node = text(&binding["target"], "name").to_owned();
        if node.is_empty() {
            let error = FieldError::required("target.name", "");
            return Err(StatusError::invalid_kind("", "Binding", name, &[error]));
        }
        let edit = |pod: &Value| {
            let uid = text(&binding["metadata"], "uid");
            let stored = text(&pod["metadata"], "uid");
            if !uid.is_empty() && uid != stored {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}");
                return Err(StatusError::conflict(info, name, &why));
            }
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                return Err(StatusError::conflict(
                    info,
                    name,
                    &format!("pod {name} is being deleted, cannot be assigned to a host"),
                ));
            }
            if items(&pod["spec"], "schedulingGates").next().is_some() {
                let why = format!("pod {name} has non-empty .spec.schedulingGates");
                return Err(StatusError::conflict(info, name, &why));
            }
            let assigned = text(&pod["spec"], "nodeName");
            if !assigned.is_empty() {
                let why = format!("pod {name} is already assigned to node {assigned:?}");
                return Err(StatusError::conflict(info, name, &why));
            }
            let mut pod = pod.clone();
            pod["spec"]["nodeName"] = json!(node);
            for key in ["annotations", "labels"] {
                for (name, value) in binding["metadata"][key].as_object().into_iter().flatten() {
                    fill(&mut pod["metadata"], key, json!({}));
                    pod["metadata"][key][name] = value.clone();
                }
            }
            if let Some(status) = pod["status"].as_object_mut() {
                status.remove("nominatedNodeName");
            }
            let generation = pod["metadata"]["generation"].clone();
            set_condition(
                &mut pod["status"],
                json!({"type": "PodScheduled", "status": "True", "observedGeneration": generation}),
            );
            Ok(pod)
        };
        let target = Target { info, namespace, name, subresource: "binding" };
        self.update(target, &edit, writer).await.map(drop)
    }

    /// Deletes a pod if its disruption budgets allow it.
    pub(super) async fn evict(
        &self,
        namespace: &str,
        name: &str,
        eviction: &Value,
        writer: &Writer,
    ) -> Result<(), StatusError> {
        let info = pods();
        let asked = text(&eviction["metadata"], "name");
        if !asked.is_empty() && asked != name {
            return Err(StatusError::bad_request(format!(
                "name in URL does not match name in Eviction object: {asked}"
            )));
        }
        let options = DeleteOptions {
            dry_run: writer.dry_run || super::options::is_dry_run(&eviction["deleteOptions"]),
            ..super::options::delete_options(&eviction["deleteOptions"])?
        };
        // The budget and the pod are left alone, whichever of both said so.
        let writer = &Writer { dry_run: options.dry_run, ..writer.clone() };
        let pod = self.find(info, namespace, name).await?.ok_or_else(|| StatusError::not_found(info, name))?;
        let phase = text(&pod["status"], "phase");
        let free =
            matches!(phase, "Pending" | "Succeeded" | "Failed" | "") || !pod["metadata"]["deletionTimestamp"].is_null();
        if !free {
            self.spend_budget(namespace, &pod, writer).await?;
        }
        if !options.dry_run && !text(&pod["spec"], "nodeName").is_empty() {
            let edit = |pod: &Value| {
                let mut pod = pod.clone();
                set_condition(
                    &mut pod["status"],
                    json!({
                        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                        "message": "Eviction API: evicting",
                    }),
                );
                Ok(pod)
            };
            self.update(Target { info, namespace, name, subresource: "status" }, &edit, writer).await?;
        }
        self.delete(Target { info, namespace, name, subresource: "" }, &options, writer).await.map(drop)
    }

    async fn spend_budget(&self, namespace: &str, pod: &Value, writer: &Writer) -> Result<(), StatusError> {
        let info = resources::find("policy", "poddisruptionbudgets").expect("`resources::policy` has it");
        let labels: Labels = serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap_or_default();
        let mut budgets = Vec::new();
        for budget in self.all(info, namespace).await? {
            let selector = serde_json::from_value(budget["spec"]["selector"].clone()).ok();
            if selector
                .and_then(|selector| Selector::of(&selector).ok())
                .is_some_and(|selector| selector.matches(&labels))
            {
                budgets.push(budget);
            }
        }
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                return Err(StatusError::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let name = text(&budget["metadata"], "name").to_owned();
        let pod_name = text(&pod["metadata"], "name").to_owned();
        let edit = |budget: &Value| {
            let status = &budget["status"];
            let refuse = |message: String, retry: u32| {
                let why = "Cannot evict pod as it would violate the pod's disruption budget.";
                Err(StatusError::new(429, "TooManyRequests", why)
                    .cause("DisruptionBudget", &message, "")
                    .retry_after(retry))
            };
            if status["observedGeneration"].as_i64().unwrap_or(0)
                < budget["metadata"]["generation"].as_i64().unwrap_or(0)
            {
                return refuse(format!("The disruption budget {name} is still being processed by the server."), 10);
            }
            let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
            if allowed <= 0 {
                let (needs, has) = (status["desiredHealthy"].as_i64(), status["currentHealthy"].as_i64());
                return refuse(
                    format!(
                        "The disruption budget {name} needs {} healthy pods and has {} currently",
                        needs.unwrap_or(0),
                        has.unwrap_or(0)
                    ),
                    0,
                );
            }
            let mut budget = budget.clone();
            budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
            fill(&mut budget["status"], "disruptedPods", json!({}));
            budget["status"]["disruptedPods"][&pod_name] = json!(clock::seconds_text(clock::now()));
            Ok(budget)
        };
        self.update(Target { info, namespace, name: &name, subresource: "status" }, &edit, writer).await.map(drop)
    }

    /// A service account's token.
    pub(super) async fn token(
        &self,
        namespace: &str,
        name: &str,
        request: Value,
        issuer: &dyn TokenIssuer,
    ) -> Result<Value, StatusError> {
        let accounts = resources::find("", "serviceaccounts").expect("`resources::core` has it");
        let account =
            self.find(accounts, namespace, name).await?.ok_or_else(|| StatusError::not_found(accounts, name))?;
        let spec = &request["spec"];
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_TOKEN_SECONDS);
        if !(MIN_TOKEN_SECONDS..=MAX_TOKEN_SECONDS).contains(&seconds) {
            let detail = if seconds < MIN_TOKEN_SECONDS {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            let error = FieldError::invalid("spec.expirationSeconds", seconds, detail);
            return Err(StatusError::invalid_kind("authentication.k8s.io", "TokenRequest", "", &[error]));
        }
        let (bound, node) = self.bound_object(namespace, name, &spec["boundObjectRef"]).await?;
        let token = issuer
            .issue(&TokenSpec {
                namespace: namespace.to_owned(),
                service_account: name.to_owned(),
                service_account_uid: text(&account["metadata"], "uid").to_owned(),
                audiences: items(spec, "audiences").filter_map(Value::as_str).map(str::to_owned).collect(),
                expiration_seconds: seconds,
                bound,
                node,
            })
            .map_err(StatusError::internal)?;
        let mut answer = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {
                "name": name, "namespace": namespace, "creationTimestamp": clock::seconds_text(clock::now()),
            },
            "spec": {"audiences": token.audiences, "expirationSeconds": seconds},
            "status": {"token": token.token, "expirationTimestamp": clock::seconds_text(token.expires)},
        });
        if spec["boundObjectRef"].is_object() {
            answer["spec"]["boundObjectRef"] = spec["boundObjectRef"].clone();
        }
        Ok(answer)
    }

    async fn bound_object(
        &self,
        namespace: &str,
        account: &str,
        reference: &Value,
    ) -> Result<(Option<BoundObject>, Option<(String, String)>), StatusError> {
        if !reference.is_object() {
            return Ok((None, None));
        }
        let (kind, name, uid) = (text(reference, "kind"), text(reference, "name"), text(reference, "uid"));
        let (plural, space) = match kind {
            "Pod" => ("pods", namespace),
            "Secret" => ("secrets", namespace),
            "Node" => ("nodes", ""),
            _ => {
                return Err(StatusError::bad_request(format!(
                    "cannot bind token for a serviceaccount to kind {kind:?}: use Pod, Secret or Node"
                )));
            }
        };
        let info = resources::find("", plural).expect("`resources::core` has pods, secrets and nodes");
        let found = self.find(info, space, name).await?.ok_or_else(|| StatusError::not_found(info, name))?;
        let stored = text(&found["metadata"], "uid");
        if !uid.is_empty() && uid != stored {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(StatusError::conflict(info, name, &why));
        }
        let mut node = None;
        if kind == "Pod" {
            let its = text(&found["spec"], "serviceAccountName");
            if its != account {
                return Err(StatusError::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let on = text(&found["spec"], "nodeName");
            let nodes = resources::find("", "nodes").expect("`resources::core` has nodes");
            if !on.is_empty()
                && let Some(found) = self.find(nodes, "", on).await?
            {
                node = Some((on.to_owned(), text(&found["metadata"], "uid").to_owned()));
            }
        }
        let bound = BoundObject { kind: kind.to_owned(), name: name.to_owned(), uid: stored.to_owned() };
        Ok((Some(bound), node))
    }
}

/// Adds or replaces a condition; its `lastTransitionTime` moves only with its status.
pub(super) fn set_condition(status: &mut Value, mut condition: Value) {
    if !status.is_object() {
        *status = json!({});
    }
    if condition["observedGeneration"].is_null()
        && let Some(fields) = condition.as_object_mut()
    {
        fields.remove("observedGeneration");
    }
    fill(status, "conditions", json!([]));
    let Some(list) = status["conditions"].as_array_mut() else { return };
    let old = list.iter().position(|old| old["type"] == condition["type"]);
    let same = old.filter(|at| list[*at]["status"] == condition["status"]);
    condition["lastTransitionTime"] = match same {
        Some(at) => list[at]["lastTransitionTime"].clone(),
        None => json!(clock::seconds_text(clock::now())),
    };
    match old {
        Some(at) => list[at] = condition,
        None => list.push(condition),
    }
}

/// The `Scale` of a workload.
pub(super) fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {},
        "spec": {},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[key].is_null() {
            scale["metadata"][key] = metadata[key].clone();
        }
    }
    if let Some(replicas) = object["spec"]["replicas"].as_i64().filter(|replicas| *replicas != 0) {
        scale["spec"]["replicas"] = json!(replicas);
    }
    let selector = &object["spec"]["selector"];
    if !selector.is_null() {
        scale["status"]["selector"] = json!(selector_text(selector));
    }
    scale
}

/// A selector object, or a map, as text.
fn selector_text(selector: &Value) -> String {
    let structured = selector["matchLabels"].is_object() || selector["matchExpressions"].is_array();
    let map = if structured { &selector["matchLabels"] } else { selector };
    let mut terms: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in items(selector, "matchExpressions") {
        let key = text(expression, "key");
        let values: Vec<&str> = items(expression, "values").filter_map(Value::as_str).collect();
        terms.push(match text(expression, "operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.join(",")
}

/// What a written `Scale` makes of its workload.
pub(super) fn scaled(object: &Value, scale: &Value) -> Result<Value, StatusError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(StatusError::invalid_kind("autoscaling", "Scale", text(&object["metadata"], "name"), &[error]));
    }
    let mut object = object.clone();
    object["spec"]["replicas"] = json!(replicas);
    // Whoever names a version means it; nobody else is held to one.
    object["metadata"]["resourceVersion"] = scale["metadata"]["resourceVersion"].clone();
    Ok(object)
}
