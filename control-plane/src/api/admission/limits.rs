//! LimitRanger: what a namespace's LimitRanges fill into pods, and what they refuse (C5.11).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stoker_model::quantity::Milli;

use super::is;
use crate::api::cluster::Core;
use crate::resources::quantities::{Amounts, amounts, parse, show};
use crate::resources::status::StatusError;
use crate::resources::tree::{child, fill, items, items_mut, text};
use crate::resources::{self, ResourceInfo, pod_limits, pod_requests};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

async fn ranges(core: &Core, object: &Value) -> Result<Vec<Value>, StatusError> {
    let kind = resources::find("", "limitranges").expect("`resources::core` has limitranges");
    core.all(kind, text(&object["metadata"], "namespace")).await
}

/// Fills in the defaults of a new pod.
pub(super) async fn default(core: &Core, info: &ResourceInfo, object: &mut Value) -> Result<(), StatusError> {
    if is(info, "", "pods") {
        for range in ranges(core, object).await? {
            fill_in(&range, object);
        }
    }
    Ok(())
}

/// Refuses what is out of range: pods when they are made or resized, claims always.
pub(super) async fn validate(
    core: &Core,
    info: &ResourceInfo,
    subresource: &str,
    object: &Value,
    is_new: bool,
) -> Result<(), StatusError> {
    let is_pod = is(info, "", "pods") && (is_new || subresource == "resize");
    let is_claim = is(info, "", "persistentvolumeclaims") && subresource.is_empty();
    if !is_pod && !is_claim {
        return Ok(());
    }
    for range in ranges(core, object).await? {
        let mut faults: Vec<String> = Vec::new();
        for limit in items(&range["spec"], "limits") {
            match text(limit, "type") {
                "PersistentVolumeClaim" if is_claim => of_claim(limit, object, &mut faults),
                "Container" if is_pod => {
                    for container in
                        ["containers", "initContainers"].iter().flat_map(|list| items(&object["spec"], list))
                    {
                        let resources = &container["resources"];
                        let own = (amounts(&resources["requests"]), amounts(&resources["limits"]));
                        compare("Container", limit, &own.0, &own.1, &mut faults);
                    }
                }
                "Pod" if is_pod => {
                    let (requests, limits) = (pod_requests(&object["spec"]), pod_limits(&object["spec"]));
                    compare("Pod", limit, &requests, &limits, &mut faults);
                }
                _ => {}
            }
        }
        let why = match faults.as_slice() {
            [] => continue,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        return Err(StatusError::forbidden(info, text(&object["metadata"], "name"), &why));
    }
    Ok(())
}

fn fill_in(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for limit in items(&range["spec"], "limits").filter(|limit| limit["type"] == "Container") {
        for (key, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            to.extend(limit[key].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    let mut told = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in items_mut(&mut pod["spec"], list) {
            let name = text(container, "name").to_owned();
            let resources = child(container, "resources");
            for (part, defaults, word) in [("limits", &limits, "limit"), ("requests", &requests, "request")] {
                let missing: Vec<(&String, &Value)> =
                    defaults.iter().filter(|(name, _)| resources[part][name.as_str()].is_null()).collect();
                if missing.is_empty() {
                    continue;
                }
                let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
                told.push((word, format!("{} {word} for {what} {name}", names.join(", "))));
                let amounts = child(resources, part);
                for (name, value) in missing {
                    amounts[name] = value.clone();
                }
            }
            // Upstream tells of a container's requests before its limits.
            if let [.., (before, _), (last, _)] = told.as_slice()
                && *before == "limit"
                && *last == "request"
            {
                let end = told.len();
                told.swap(end - 2, end - 1);
            }
        }
    }
    if told.is_empty() {
        return;
    }
    let texts: Vec<String> = told.into_iter().map(|(_, text)| text).collect();
    fill(&mut pod["metadata"], "annotations", json!({}));
    pod["metadata"]["annotations"][ANNOTATION] = json!(format!("LimitRanger plugin set: {}", texts.join("; ")));
}

fn of_claim(limit: &Value, claim: &Value, faults: &mut Vec<String>) {
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let kind = "PersistentVolumeClaim";
    for (name, bound) in bounds(limit, "min") {
        faults.extend(too_little(kind, &bound, requests.get(&name).copied(), None));
    }
    for (name, bound) in bounds(limit, "max") {
        let Bound { amount, shown, .. } = &bound;
        match requests.get(&name) {
            None => faults.push(format!("maximum {name} usage per {kind} is {shown}.  No request is specified")),
            Some(request) if request > amount => {
                let request = bound.show(*request);
                faults.push(format!("maximum {name} usage per {kind} is {shown}, but request is {request}"));
            }
            Some(_) => {}
        }
    }
}

/// An amount of a resource that a LimitRange names.
struct Bound {
    name: String,
    amount: Milli,
    shown: String,
}

impl Bound {
    fn show(&self, amount: Milli) -> String {
        show(amount, self.shown.ends_with('i') || self.name.contains("memory") || self.name.contains("storage"))
    }
}

fn bounds(limit: &Value, key: &str) -> Vec<(String, Bound)> {
    let given = limit[key].as_object().into_iter().flatten();
    given
        .filter_map(|(name, value)| {
            let shown = value.as_str().unwrap_or_default().to_owned();
            Some((name.clone(), Bound { name: name.clone(), amount: parse(value)?, shown }))
        })
        .collect()
}

fn compare(kind: &str, limit: &Value, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    for (name, bound) in bounds(limit, "min") {
        faults.extend(too_little(kind, &bound, requests.get(&name).copied(), limits.get(&name).copied()));
    }
    for (name, bound) in bounds(limit, "max") {
        faults.extend(too_much(kind, &bound, requests.get(&name).copied(), limits.get(&name).copied()));
    }
    for (name, bound) in bounds(limit, "maxLimitRequestRatio") {
        faults.extend(too_far_apart(kind, &bound, requests.get(&name).copied(), limits.get(&name).copied()));
    }
}

fn too_little(kind: &str, bound: &Bound, request: Option<Milli>, limit: Option<Milli>) -> Option<String> {
    let Bound { name, amount, shown } = bound;
    let what = format!("minimum {name} usage per {kind} is {shown}");
    match (request, limit) {
        (None, _) => Some(format!("{what}.  No request is specified")),
        (Some(request), _) if request < *amount => Some(format!("{what}, but request is {}", bound.show(request))),
        (_, Some(limit)) if limit < *amount => Some(format!("{what}, but limit is {}", bound.show(limit))),
        _ => None,
    }
}

fn too_much(kind: &str, bound: &Bound, request: Option<Milli>, limit: Option<Milli>) -> Option<String> {
    let Bound { name, amount, shown } = bound;
    let what = format!("maximum {name} usage per {kind} is {shown}");
    match (limit, request) {
        (None, _) => Some(format!("{what}.  No limit is specified")),
        (Some(limit), _) if limit > *amount => Some(format!("{what}, but limit is {}", bound.show(limit))),
        (_, Some(request)) if request > *amount => Some(format!("{what}, but request is {}", bound.show(request))),
        _ => None,
    }
}

fn too_far_apart(kind: &str, bound: &Bound, request: Option<Milli>, limit: Option<Milli>) -> Option<String> {
    let Bound { name, amount, shown } = bound;
    let what = format!("{name} max limit to request ratio per {kind} is {shown}");
    let Some(request) = request.filter(|request| !request.is_zero()) else {
        return Some(format!("{what}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else {
        return Some(format!("{what}, but no limit is specified or limit is 0"));
    };
    if limit.milli() * 1000 <= amount.milli() * request.milli() {
        return None;
    }
    #[allow(clippy::cast_precision_loss, reason = "the ratio is only shown")]
    let ratio = limit.milli() as f64 / request.milli() as f64;
    Some(format!("{what}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in_and_told() {
        // C5.11
        let range = json!({"spec": {"limits": [{"type": "Container",
            "default": {"cpu": "200m", "memory": "256Mi"}, "defaultRequest": {"cpu": "100m"}}]}});
        let mut pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": {}}, {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"memory": "1Gi", "cpu": "1"}}}]}});
        fill_in(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "200m", "memory": "256Mi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for container b; cpu request for init container i"
        );
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        // C5.11
        let limit = json!({"min": {"cpu": "50m"}, "max": {"memory": "1Gi"}, "maxLimitRequestRatio": {"cpu": "2"}});
        let check = |requests: Value, limits: Value| {
            let mut faults = Vec::new();
            compare("Container", &limit, &amounts(&requests), &amounts(&limits), &mut faults);
            faults
        };
        assert_eq!(
            check(json!({"cpu": "10m"}), json!({"cpu": "30m", "memory": "2Gi"})),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum memory usage per Container is 1Gi, but limit is 2Gi",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ]
        );
        assert_eq!(
            check(json!({}), json!({})),
            [
                "minimum cpu usage per Container is 50m.  No request is specified",
                "maximum memory usage per Container is 1Gi.  No limit is specified",
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ]
        );
        assert!(check(json!({"cpu": "100m"}), json!({"cpu": "200m", "memory": "1Gi"})).is_empty());
    }
}
