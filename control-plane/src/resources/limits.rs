//! LimitRanges, ResourceQuotas, PriorityClasses and RuntimeClasses: what is filled in, and what is wrong with them
//! (C3.23, C3.24).

use std::collections::{BTreeSet, HashSet};

use serde_json::{Value, json};
use stoker_model::quantity::Milli;

use super::field::{Errors, FieldError, Path};
use super::format;
use super::pod_rules::{container_name, quantity, quota_name, resource_name, validate_overhead, validate_tolerations};
use super::quantities::{canonicalise_list, parse};
use super::selector_rules::labels;
use super::tree::{child, fill, is_set, items, items_mut, text};

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

/// A container's default limit is the most, its default request that limit, or the least.
pub(super) fn default_range(range: &mut Value) {
    for limit in items_mut(child(range, "spec"), "limits") {
        for list in LISTS {
            if let Some(list) = limit.get_mut(list) {
                canonicalise_list(list);
            }
        }
        if limit["type"] != "Container" {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let given = limit[from].clone();
            let target = child(limit, to);
            for (name, amount) in given.as_object().into_iter().flatten() {
                fill(target, name, amount.clone());
            }
        }
        for key in ["default", "defaultRequest"] {
            if limit[key] == json!({})
                && let Some(fields) = limit.as_object_mut()
            {
                fields.remove(key);
            }
        }
    }
}

pub(super) fn validate_range(range: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut kinds = HashSet::new();
    for (at, limit) in items(&range["spec"], "limits").enumerate() {
        let (path, kind) = (Path::new("spec.limits").index(at), text(limit, "type"));
        let faults = format::qualified_name(kind);
        if faults.is_empty() && !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            errors.invalid(path.field("type"), kind, "must be a standard limit type or fully qualified");
        }
        errors.faults(&path.field("type"), kind, faults);
        if !kinds.insert(kind) {
            errors.duplicate(path.field("type"), kind);
        }
        let mut names = BTreeSet::new();
        for list in LISTS {
            if kind == "Pod" && matches!(list, "default" | "defaultRequest") {
                if limit[list].as_object().is_some_and(|amounts| !amounts.is_empty()) {
                    errors.forbidden(path.field(list), "may not be specified when `type` is 'Pod'");
                }
                continue;
            }
            for (name, _) in limit[list].as_object().into_iter().flatten() {
                let place = path.field(list).entry(name);
                if matches!(kind, "Pod" | "Container") {
                    container_name(name, &place, &mut errors);
                } else {
                    resource_name(name, &place, &mut errors);
                }
                names.insert(name.as_str());
            }
        }
        let storage = |list: &str| is_set(&limit[list], "storage");
        if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.required(path.field("limits"), detail);
        }
        for name in names {
            compare(limit, name, &path, &mut errors);
        }
    }
    errors.0
}

/// The amounts of one resource against each other.
fn compare(limit: &Value, name: &str, path: &Path, errors: &mut Errors) {
    let of = |list: &str| limit[list][name].as_str().and_then(|shown| Some((parse(&limit[list][name])?, shown)));
    let (min, max, most, asked) = (of("min"), of("max"), of("default"), of("defaultRequest"));
    let mut check = |list: &str,
                     shown: Option<(Milli, &str)>,
                     low: Option<(Milli, &str)>,
                     high: Option<(Milli, &str)>,
                     words: (&str, &str)| {
        if let (Some(low), Some(high), Some((_, shown))) = (low, high, shown)
            && low.0 > high.0
        {
            let detail = format!("{} value {} is greater than {} value {}", words.0, low.1, words.1, high.1);
            errors.invalid(path.field(list).entry(name), shown, detail);
        }
    };
    check("min", min, min, max, ("min", "max"));
    check("defaultRequest", asked, min, asked, ("min", "default request"));
    check("defaultRequest", asked, asked, max, ("default request", "max"));
    check("defaultRequest", asked, asked, most, ("default request", "default limit"));
    check("default", min, min, most, ("min", "default"));
    check("default", max, most, max, ("default", "max"));
    let Some((ratio, shown)) = of("maxLimitRequestRatio") else { return };
    let place = path.field("maxLimitRequestRatio").entry(name);
    if ratio < Milli::from_units(1) {
        errors.invalid(place.clone(), shown, format!("ratio {shown} is less than 1"));
    }
    if let (Some((min, _)), Some((max, _))) = (min, max)
        && ratio.milli() * min.milli() > max.milli() * 1000
    {
        #[allow(clippy::cast_precision_loss, reason = "the ratio is only shown")]
        let possible = max.milli() as f64 / min.milli() as f64;
        errors.invalid(place, shown, format!("ratio {shown} is greater than max/min = {possible:.6}"));
    }
}

pub(super) fn default_quota(quota: &mut Value) {
    if let Some(hard) = child(quota, "spec").get_mut("hard") {
        canonicalise_list(hard);
    }
}

/// Scopes that look at how much a pod asks for choose among pods only by number.
fn fits(scope: &str, resource: &str) -> bool {
    let rest = resource.strip_prefix("requests.").or_else(|| resource.strip_prefix("limits.")).unwrap_or(resource);
    let computed = matches!(rest, "cpu" | "memory" | "ephemeral-storage") || rest.starts_with("hugepages-");
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || computed
        }
        _ => true,
    }
}

fn is_counted_by_name(resource: &str) -> bool {
    !resource.contains('/')
}

pub(super) fn validate_quota(quota: &Value) -> Vec<FieldError> {
    const SCOPES: [&str; 7] = [
        "Terminating",
        "NotTerminating",
        "BestEffort",
        "NotBestEffort",
        "PriorityClass",
        "CrossNamespacePodAffinity",
        "VolumeAttributesClass",
    ];
    let (spec, path) = (&quota["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    let hard = &spec["hard"];
    for (name, amount) in hard.as_object().into_iter().flatten() {
        let place = path.field("hard").entry(name);
        quota_name(name, &place, &mut errors);
        quantity(name, amount, &place, &mut errors);
    }
    let names = || hard.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let mut chosen: Vec<&str> = Vec::new();
    let place = path.field("scopes");
    for scope in items(spec, "scopes").filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            errors.invalid(place.clone(), spec["scopes"].clone(), "unsupported scope");
        }
        for _ in names().filter(|name| is_counted_by_name(name) && !fits(scope, name)) {
            errors.invalid(place.clone(), spec["scopes"].clone(), "unsupported scope applied to resource");
        }
        chosen.push(scope);
    }
    conflicts(&chosen, &place, spec, &mut errors);
    let mut chosen: Vec<&str> = Vec::new();
    let place = path.field("scopeSelector").field("matchExpressions");
    for requirement in items(&spec["scopeSelector"], "matchExpressions") {
        let (scope, operator) = (text(requirement, "scopeName"), text(requirement, "operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(place.field("scopeName"), scope, "unsupported scope");
        }
        for _ in names().filter(|name| is_counted_by_name(name) && !fits(scope, name)) {
            let detail = "unsupported scope applied to resource";
            errors.invalid(place.clone(), spec["scopeSelector"].clone(), detail);
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid(place.field("operator"), operator, detail);
        }
        let some = items(requirement, "values").next().is_some();
        match operator {
            "In" | "NotIn" if !some => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.required(place.field("values"), detail);
            }
            "Exists" | "DoesNotExist" if some => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.invalid(place.field("values"), requirement["values"].clone(), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(place.field("operator"), operator, "not a valid selector operator"),
        }
        chosen.push(scope);
    }
    conflicts(&chosen, &place, spec, &mut errors);
    errors.0
}

fn conflicts(chosen: &[&str], path: &Path, spec: &Value, errors: &mut Errors) {
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| chosen.contains(scope)) {
            errors.invalid(path.clone(), spec["scopes"].clone(), "conflicting scopes");
        }
    }
}

pub(super) fn validate_quota_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let set = |quota: &Value| -> BTreeSet<String> {
        items(&quota["spec"], "scopes").filter_map(Value::as_str).map(str::to_owned).collect()
    };
    if set(new) == set(old) {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.scopes", new["spec"]["scopes"].clone(), "field is immutable")]
}

pub(super) fn validate_priority(class: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (name, value) = (text(&class["metadata"], "name"), class["value"].as_i64().unwrap_or(0));
    let known = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    if name.starts_with("system-") {
        let why = match known.iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, wanted)) if value != *wanted => Some(format!("value of {name} PriorityClass must be {wanted}")),
            Some(_) if class["globalDefault"] == true => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            let detail =
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}");
            errors.forbidden(Path::new("metadata.name"), detail);
        }
    } else if value > HIGHEST_PRIORITY {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}");
        errors.forbidden(Path::new("value"), detail);
    }
    let policy = text(class, "preemptionPolicy");
    if !matches!(policy, "PreemptLowerPriority" | "Never") {
        errors.not_supported(Path::new("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
    errors.0
}

pub(super) fn validate_priority_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if new["value"].as_i64().unwrap_or(0) != old["value"].as_i64().unwrap_or(0) {
        errors.forbidden(Path::new("value"), "may not be changed in an update.");
    }
    immutable(new, old, &["preemptionPolicy"], &mut errors);
    errors.0
}

/// Fields at the top that stay.
pub(super) fn immutable(new: &Value, old: &Value, keys: &[&str], errors: &mut Errors) {
    for key in keys.iter().filter(|key| new[**key] != old[**key]) {
        errors.invalid(Path::new(key), new[*key].clone(), "field is immutable");
    }
}

pub(super) fn validate_runtime(class: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match text(class, "handler") {
        "" => errors.required(Path::new("handler"), ""),
        handler => errors.faults(&Path::new("handler"), handler, format::label(handler)),
    }
    validate_overhead(&class["overhead"]["podFixed"], &Path::new("overhead"), &mut errors);
    let (scheduling, path) = (&class["scheduling"], Path::new("scheduling"));
    labels(&scheduling["nodeSelector"], &path.field("nodeSelector"), &mut errors);
    validate_tolerations(scheduling, &path.field("tolerations"), &mut errors);
    let key = |toleration: &Value| ["key", "operator", "value", "effect"].map(|key| toleration[key].clone());
    let mut seen: Vec<[Value; 4]> = Vec::new();
    for (at, toleration) in items(scheduling, "tolerations").enumerate() {
        if seen.contains(&key(toleration)) {
            errors.duplicate(path.field("tolerations").index(at), toleration.clone());
        }
        seen.push(key(toleration));
    }
    errors.0
}

pub(super) fn validate_runtime_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    immutable(new, old, &["handler"], &mut errors);
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_get_defaults_from_their_bounds() {
        // C3.23
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1000m", "memory": "1Gi"}, "min": {"cpu": "100m"}, "default": {"memory": "512Mi"}}]}});
        default_range(&mut range);
        assert_eq!(
            range["spec"]["limits"][0],
            json!({"type": "Container", "max": {"cpu": "1", "memory": "1Gi"}, "min": {"cpu": "100m"},
                "default": {"cpu": "1", "memory": "512Mi"}, "defaultRequest": {"cpu": "1", "memory": "512Mi"}})
        );
        assert_eq!(texts(validate_range(&range)), [""; 0]);
    }

    #[test]
    fn ranges_must_fit_together() {
        // C3.24
        let check = |limits: Value, expected: &[&str]| {
            assert_eq!(texts(validate_range(&json!({"spec": {"limits": limits}}))), expected);
        };
        check(
            json!([{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "500m"}}]),
            &[
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
            ],
        );
        check(
            json!([{"type": "Pod", "default": {"cpu": "1"}}, {"type": "Pod"}, {"type": "PersistentVolumeClaim"}, {"type": "Box"}]),
            &[
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[1].type: Duplicate value: \"Pod\"",
                "spec.limits[2].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
                "spec.limits[3].type: Invalid value: \"Box\": must be a standard limit type or fully qualified",
            ],
        );
    }

    #[test]
    fn quotas_name_what_can_be_counted() {
        // C3.24
        let check = |spec: Value, expected: &[&str]| {
            assert_eq!(texts(validate_quota(&json!({ "spec": spec }))), expected);
        };
        check(json!({"hard": {"pods": "1", "count/jobs.batch": "2", "requests.example.com/gpu": "1"}}), &[]);
        check(
            json!({"hard": {"pods": "1500m", "storage": "1", "nodes": "1"}}),
            &[
                "spec.hard[nodes]: Invalid value: \"nodes\": must be a standard resource type or fully qualified",
                "spec.hard[nodes]: Invalid value: \"nodes\": must be a standard resource for quota",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota",
            ],
        );
        check(
            json!({"hard": {"requests.cpu": "1"}, "scopes": ["BestEffort", "Unknown"]}),
            &[
                "spec.scopes: Invalid value: [\"BestEffort\",\"Unknown\"]: unsupported scope applied to resource",
                "spec.scopes: Invalid value: [\"BestEffort\",\"Unknown\"]: unsupported scope",
            ],
        );
        check(
            json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}, {"scopeName": "Terminating", "operator": "In", "values": ["x"]}]}}),
            &[
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                "spec.scopeSelector.matchExpressions.operator: Invalid value: \"In\": must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            ],
        );
    }

    #[test]
    fn classes_keep_what_they_are() {
        // C3.24
        let class =
            |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": "Never"});
        assert_eq!(texts(validate_priority(&class("a", HIGHEST_PRIORITY))), [""; 0]);
        assert_eq!(
            texts(validate_priority(&class("system-x", 1))),
            [
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"
            ]
        );
        assert_eq!(
            texts(validate_priority_update(&class("a", 2), &class("a", 1))),
            ["value: Forbidden: may not be changed in an update."]
        );
        assert_eq!(texts(validate_runtime(&json!({}))), ["handler: Required value"]);
        assert_eq!(
            texts(validate_runtime_update(&json!({"handler": "b"}), &json!({"handler": "a"}))),
            ["handler: Invalid value: \"b\": field is immutable"]
        );
    }
}
