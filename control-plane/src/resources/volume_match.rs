//! Which persistent volume a claim gets, and on which nodes it can be used, as pure decisions (C7.11).

use serde_json::Value;
use stoker_model::quantity::Milli;
use stoker_model::selector::{Labels, Selector};

use super::tree::{items, text};

/// The class of a claim or volume; `None`: a claim that does not say.
pub fn class_of(object: &Value) -> Option<&str> {
    let beta = object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    beta.or_else(|| object["spec"]["storageClassName"].as_str())
}

fn is_being_deleted(object: &Value) -> bool {
    !text(&object["metadata"], "deletionTimestamp").is_empty()
}

fn labels_of(object: &Value) -> Labels {
    let labels = object["metadata"]["labels"].as_object();
    labels.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn amount(value: &Value) -> Milli {
    let text = value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()));
    text.and_then(|text| Milli::parse(&text).ok()).unwrap_or_default()
}

/// Whether a volume's `claimRef` names the claim.
pub fn is_for(volume: &Value, claim: &Value) -> bool {
    let (reference, metadata) = (&volume["spec"]["claimRef"], &claim["metadata"]);
    let uid = text(reference, "uid");
    reference.is_object()
        && reference["name"] == metadata["name"]
        && reference["namespace"] == metadata["namespace"]
        && (uid.is_empty() || metadata["uid"] == uid)
}

/// Why a claim cannot have the volume that it names.
pub fn mismatch(volume: &Value, claim: &Value) -> Option<&'static str> {
    let mode = |object: &Value| object["spec"]["volumeMode"].as_str().unwrap_or("Filesystem").to_owned();
    if is_being_deleted(volume) {
        Some("the volume is marked for deletion")
    } else if amount(&volume["spec"]["capacity"]["storage"])
        < amount(&claim["spec"]["resources"]["requests"]["storage"])
    {
        Some("requested PV is too small")
    } else if class_of(volume).unwrap_or_default() != class_of(claim).unwrap_or_default() {
        Some("storageClassName does not match")
    } else if mode(volume) != mode(claim) {
        Some("incompatible volumeMode")
    } else if !has_modes(volume, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

fn has_modes(volume: &Value, claim: &Value) -> bool {
    items(&claim["spec"], "accessModes").all(|wanted| items(&volume["spec"], "accessModes").any(|mode| mode == wanted))
}

/// The smallest volume that the claim may have; one that was reserved for it comes first. `node`: it must be usable there.
pub fn best<'a>(
    claim: &Value,
    volumes: impl Iterator<Item = &'a Value>,
    usable: impl Fn(&Value) -> bool,
) -> Option<&'a Value> {
    let selector = match &claim["spec"]["selector"] {
        Value::Null => None,
        selector => match serde_json::from_value(selector.clone()).ok().and_then(|s| Selector::of(&s).ok()) {
            Some(selector) => Some(selector),
            None => return None,
        },
    };
    let mut best: Option<&Value> = None;
    for volume in volumes {
        if is_for(volume, claim) {
            if mismatch(volume, claim).is_none() {
                return Some(volume);
            }
            continue;
        }
        let free = volume["spec"]["claimRef"].is_null() && text(&volume["status"], "phase") == "Available";
        let selected = selector.as_ref().is_none_or(|selector| selector.matches(&labels_of(volume)));
        if !free || !selected || mismatch(volume, claim).is_some() || !usable(volume) {
            continue;
        }
        let size = |volume: &Value| amount(&volume["spec"]["capacity"]["storage"]);
        if best.is_none_or(|known| size(volume) < size(known)) {
            best = Some(volume);
        }
    }
    best
}

/// Whether a volume may be used on a node of that name, with those labels.
pub fn usable_on(volume: &Value, node: &str, labels: &Labels) -> bool {
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    let Some(terms) = terms.as_array() else { return true };
    let holds = |requirement: &Value, value: Option<&str>| {
        let mut values = items(requirement, "values").filter_map(Value::as_str);
        match text(requirement, "operator") {
            "In" => value.is_some_and(|value| values.any(|v| v == value)),
            "NotIn" => value.is_none_or(|value| values.all(|v| v != value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    terms.iter().any(|term| {
        let empty = items(term, "matchExpressions").next().is_none() && items(term, "matchFields").next().is_none();
        !empty
            && items(term, "matchExpressions").all(|r| holds(r, labels.get(text(r, "key")).map(String::as_str)))
            && items(term, "matchFields").all(|r| holds(r, (text(r, "key") == "metadata.name").then_some(node)))
    })
}

/// The claims that a pod's volumes name.
pub fn claims_of(pod: &Value) -> Vec<String> {
    let of_volume = |volume: &Value| match volume["persistentVolumeClaim"]["claimName"].as_str() {
        Some(name) => Some(name.to_owned()),
        None if volume["ephemeral"].is_object() => {
            Some(format!("{}-{}", text(&pod["metadata"], "name"), text(volume, "name")))
        }
        None => None,
    };
    items(&pod["spec"], "volumes").filter_map(of_volume).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(name: &str, size: &str, changes: Value) -> Value {
        let mut volume = json!({
            "metadata": {"name": name, "labels": {"disk": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Available"},
        });
        json_patch::merge(&mut volume, &changes);
        volume
    }

    fn claim(changes: Value) -> Value {
        let mut claim = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
        });
        json_patch::merge(&mut claim, &changes);
        claim
    }

    #[track_caller]
    fn check(claim: &Value, volumes: &[Value], expected: &str) {
        let found = best(claim, volumes.iter(), |_| true).map(|v| text(&v["metadata"], "name").to_owned());
        assert_eq!(found.unwrap_or_default(), expected, "{claim}");
    }

    #[test]
    fn the_smallest_that_has_everything_is_chosen() {
        // C7.11
        let all = [
            volume("small", "1Gi", json!({})),
            volume("large", "10Gi", json!({})),
            volume("fits", "2Gi", json!({})),
            volume("taken", "2Gi", json!({"spec": {"claimRef": {"name": "x", "namespace": "n"}}})),
            volume("released", "2Gi", json!({"status": {"phase": "Released"}})),
            volume("class", "2Gi", json!({"spec": {"storageClassName": "fast"}})),
            volume("many", "3Gi", json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}})),
            volume("raw", "2Gi", json!({"spec": {"volumeMode": "Block", "storageClassName": "raw"}})),
        ];
        check(&claim(json!({})), &all, "fits");
        check(&claim(json!({"spec": {"storageClassName": "fast"}})), &all, "class");
        check(&claim(json!({"spec": {"accessModes": ["ReadWriteMany"]}})), &all, "many");
        check(&claim(json!({"spec": {"selector": {"matchLabels": {"disk": "large"}}}})), &all, "large");
        check(&claim(json!({"spec": {"storageClassName": "raw"}})), &all, "");
        check(&claim(json!({"spec": {"storageClassName": "raw", "volumeMode": "Block"}})), &all, "raw");
        check(&claim(json!({"spec": {"resources": {"requests": {"storage": "11Gi"}}}})), &all, "");
    }

    #[test]
    fn what_is_reserved_for_the_claim_comes_first() {
        // C7.11
        let reserved = |uid: &str| {
            volume("mine", "9Gi", json!({"spec": {"claimRef": {"name": "c", "namespace": "n", "uid": uid}}}))
        };
        check(&claim(json!({})), &[volume("fits", "2Gi", json!({})), reserved("")], "mine");
        check(&claim(json!({})), &[reserved("u")], "mine");
        check(&claim(json!({})), &[reserved("other")], "");
    }

    #[test]
    fn a_volume_of_one_node_is_not_used_on_another() {
        // C7.11, C8.2
        let of_node = volume(
            "v",
            "2Gi",
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}}}),
        );
        let usable = |volume: &Value, name: &str| {
            usable_on(volume, name, &[("kubernetes.io/hostname".to_owned(), name.to_owned())].into())
        };
        assert!(usable(&of_node, "a") && !usable(&of_node, "b"));
        assert!(usable(&volume("v", "2Gi", json!({})), "b"));
    }
}
