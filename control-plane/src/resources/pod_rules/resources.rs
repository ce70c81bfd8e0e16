//! Resources of containers and of the pod as a whole, claims, overhead.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;
use stoker_model::quantity::Milli;

use super::super::field::{Errors, FieldError, FieldErrorKind, Path};
use super::super::format;
use super::super::quantities::{self, Amounts, amounts, parse};
use super::super::tree::{is_set, items, text};
use super::Whole;

const STANDARD: [&str; 19] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
];
const HUGE: &str = "hugepages-";

/// Whether a resource is the project's own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    let qualified = || format::qualified_name(&format!("requests.{name}")).is_empty();
    !is_native(name) && !name.starts_with("requests.") && qualified()
}

/// What a resource's name must be where it stands.
type NameRule = fn(&str, &Path, &mut Errors);

/// The name of a resource, wherever it stands.
pub(in super::super) fn resource_name(name: &str, path: &Path, errors: &mut Errors) {
    any_name(name, path, errors);
}

/// The name of a resource that a quota can limit.
pub(in super::super) fn quota_name(name: &str, path: &Path, errors: &mut Errors) {
    any_name(name, path, errors);
    let is_huge = name.starts_with(HUGE) || name.starts_with("requests.hugepages-");
    let known = name != "storage" && (STANDARD.contains(&name) || name == "services.loadbalancers" || is_huge);
    if !name.contains('/') && !known {
        errors.invalid(path.clone(), name, "must be a standard resource for quota");
    }
}

fn any_name(name: &str, path: &Path, errors: &mut Errors) -> bool {
    let faults = format::qualified_name(name);
    if !faults.is_empty() {
        errors.faults(path, name, faults);
        return false;
    }
    let quota = |name: &str| name.starts_with(HUGE) || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !STANDARD.contains(&name) && name != "services.loadbalancers" && !quota(name) {
        errors.invalid(path.clone(), name, "must be a standard resource type or fully qualified");
    }
    true
}

/// A resource that containers have.
pub(in super::super) fn container_name(name: &str, path: &Path, errors: &mut Errors) {
    any_name(name, path, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with(HUGE) {
            errors.invalid(path.clone(), name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path.clone(), name, "doesn't follow extended resource name standard");
    }
}

fn pod_name(name: &str, path: &Path, errors: &mut Errors) {
    let before = errors.0.len();
    any_name(name, path, errors);
    if errors.0.len() == before && !matches!(name, "cpu" | "memory") && !name.starts_with(HUGE) {
        errors.not_supported(path.clone(), name, &["cpu", HUGE, "memory"]);
    }
}

pub(super) fn validate_container(container: &Value, claims: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    requirements(&container["resources"], container_name, path, errors);
    used_claims(&container["resources"], claims, &path.field("claims"), errors);
}

/// What a runtime class adds to each pod.
pub(in super::super) fn validate_overhead(overhead: &Value, path: &Path, errors: &mut Errors) {
    let resources = serde_json::json!({ "limits": overhead });
    requirements(&resources, container_name, path, errors);
}

fn requirements(resources: &Value, name_rule: NameRule, path: &Path, errors: &mut Errors) {
    let (limits, requests) = (path.field("limits"), path.field("requests"));
    let (mut huge, mut computes) = (false, false);
    for list in ["limits", "requests"] {
        for (name, given) in resources[list].as_object().into_iter().flatten() {
            let place = path.field(list).entry(name);
            name_rule(name, &place, errors);
            let Some(amount) = quantity(name, given, &place, errors) else { continue };
            let shown = given.as_str().unwrap_or_default();
            if list == "requests" {
                let limit = &resources["limits"][name];
                let overcommits = is_native(name) && !name.starts_with(HUGE);
                match parse(limit) {
                    Some(most) if amount != most && !overcommits => {
                        let detail = format!("must be equal to {name} limit of {}", text_of(limit));
                        errors.invalid(requests.clone(), shown, detail);
                    }
                    Some(most) if amount > most => {
                        let detail = format!("must be less than or equal to {name} limit of {}", text_of(limit));
                        errors.invalid(requests.clone(), shown, detail);
                    }
                    None if !overcommits => {
                        errors.required(limits.clone(), "Limit must be set for non overcommitable resources");
                    }
                    _ => {}
                }
            }
            if let Some(size) = name.strip_prefix(HUGE) {
                huge = true;
                let size = Milli::parse(size).unwrap_or(Milli::ZERO);
                if size <= Milli::ZERO || amount.milli() % size.milli() != 0 {
                    errors.invalid(place, shown, format!("{shown} is not positive integer multiple of {name}"));
                }
            }
            computes |= matches!(name.as_str(), "cpu" | "memory");
        }
    }
    if huge && !computes {
        errors.forbidden(path.clone(), "HugePages require cpu or memory");
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An amount that is none, negative, or not whole where it must be.
pub(in super::super) fn quantity(name: &str, given: &Value, path: &Path, errors: &mut Errors) -> Option<Milli> {
    let shown = text_of(given);
    let Some(amount) = parse(given) else {
        errors.invalid(path.clone(), shown, quantities::FORMAT);
        return None;
    };
    if amount < Milli::ZERO {
        errors.invalid(path.clone(), shown, "must be greater than or equal to 0");
    }
    let counted = matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    );
    if (counted || is_extended(name)) && amount.milli() % 1000 != 0 {
        errors.invalid(path.clone(), shown, "must be an integer");
    }
    Some(amount)
}

/// Answers with the names of the pod's claims.
pub(super) fn validate_claims<'s>(
    spec: &'s Value,
    metadata: Option<&Value>,
    list: &Path,
    errors: &mut Errors,
) -> BTreeSet<&'s str> {
    let mirror = metadata.is_some_and(|metadata| is_set(&metadata["annotations"], super::annotations::MIRROR));
    let mut seen = HashSet::new();
    for (at, claim) in items(spec, "resourceClaims").enumerate() {
        let path = list.index(at);
        if mirror {
            errors.forbidden(Path::new("[]"), "static pods do not support resource claims");
            continue;
        }
        match text(claim, "name") {
            "" => errors.required(path.field("name"), ""),
            name if !seen.insert(name) => errors.duplicate(path.field("name"), name),
            name => errors.faults(&path.field("name"), name, format::label(name)),
        }
        let keys = ["resourceClaimName", "resourceClaimTemplateName"];
        match keys.iter().filter(|key| is_set(claim, key)).count() {
            0 => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.invalid(path.clone(), claim.clone(), detail);
            }
            1 => {}
            _ => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.invalid(path.clone(), claim.clone(), detail);
            }
        }
        for key in keys {
            if let Some(name) = claim[key].as_str() {
                errors.faults(&path.field(key), name, format::subdomain(name));
            }
        }
    }
    items(spec, "resourceClaims").map(|claim| text(claim, "name")).filter(|name| !name.is_empty()).collect()
}

fn used_claims(resources: &Value, claims: &BTreeSet<&str>, list: &Path, errors: &mut Errors) {
    let mut seen: HashSet<String> = HashSet::new();
    for (at, claim) in items(resources, "claims").enumerate() {
        let (name, path) = (text(claim, "name"), list.index(at));
        if name.is_empty() {
            errors.required(path, "");
            continue;
        }
        let request = text(claim, "request");
        let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        if !request.is_empty() {
            errors.faults(&path.field("request"), request, format::label(request));
        }
        let part = request.is_empty() && seen.iter().any(|key| key.starts_with(&format!("{name}/")));
        if seen.contains(name) || part {
            errors.duplicate(path.clone(), name);
        } else if !seen.insert(key.clone()) {
            errors.duplicate(path.clone(), key);
        }
        if !claims.contains(name) {
            let names: Vec<&str> = claims.iter().copied().collect();
            let what = if names.is_empty() { " which is empty".to_owned() } else { format!(": {}", names.join(", ")) };
            errors.0.push(FieldError {
                path: path.into(),
                kind: FieldErrorKind::NotFound(name.into()),
                detail: format!("must be one of the names in pod.spec.resourceClaims{what}"),
            });
        }
    }
}

/// What the pod as a whole asks for must hold what its containers do.
pub(super) fn validate_pod_level(whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    let (spec, own) = (whole.spec, &whole.spec["resources"]);
    let path = path.field("resources");
    if own.is_null() {
        return;
    }
    if spec["os"]["name"] == "windows" {
        errors.forbidden(path, "may not be set for a windows pod");
        return;
    }
    if is_set(own, "claims") {
        errors.forbidden(path.field("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(own, pod_name, &path, errors);
    for (list, sums, what) in
        [("requests", aggregate(spec, "requests"), "requests"), ("limits", aggregate(spec, "limits"), "limits")]
    {
        for (name, sum) in sums.iter().filter(|(name, _)| list == "requests" || name.starts_with(HUGE)) {
            let given = &own[list][name];
            if parse(given).is_some_and(|amount| *sum > amount) {
                let sum = quantities::show(*sum, name != "cpu");
                let detail = format!("must be greater than or equal to aggregate container {what} of {sum}");
                errors.invalid(path.field(list).entry(name), text_of(given), detail);
            }
        }
    }
    for (at, container) in items(spec, "containers").enumerate() {
        for (name, limit) in container["resources"]["limits"].as_object().into_iter().flatten() {
            let most = &own["limits"][name];
            if let (Some(limit_amount), Some(most_amount)) = (parse(limit), parse(most))
                && limit_amount > most_amount
            {
                let path = path.field("containers").index(at).entry(name).field("limits");
                let detail = format!("must be less than or equal to pod limits of {}", text_of(most));
                errors.invalid(path, text_of(limit), detail);
            }
        }
    }
}

/// What the containers ask for together: the greater of all that run on and of each init container with the sidecars
/// before it (A3.6).
pub(in super::super) fn aggregate(spec: &Value, list: &str) -> Amounts {
    let of = |container: &Value| amounts(&container["resources"][list]);
    let mut all = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut all, &of(container));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let own = of(container);
        let mut at_once = sidecars.clone();
        add(&mut at_once, &own);
        if container["restartPolicy"] == "Always" {
            add(&mut all, &own);
            add(&mut sidecars, &own);
        }
        raise(&mut most, &at_once);
    }
    raise(&mut all, &most);
    all
}

pub(in super::super) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let held = to.entry(name.clone()).or_default();
        *held = (*held).max(*amount);
    }
}

/// What a pod asks for, with what is asked for it as a whole in place of the sum, and its overhead.
pub(crate) fn pod_requests(spec: &Value) -> Amounts {
    let mut all = aggregate(spec, "requests");
    all.extend(amounts(&spec["resources"]["requests"]));
    add(&mut all, &amounts(&spec["overhead"]));
    all
}

/// What a pod is limited to, by the same rule.
pub(crate) fn pod_limits(spec: &Value) -> Amounts {
    let mut all = aggregate(spec, "limits");
    all.extend(amounts(&spec["resources"]["limits"]));
    let overhead = amounts(&spec["overhead"]);
    for (name, amount) in &mut all {
        *amount += overhead.get(name).copied().unwrap_or_default();
    }
    all
}
