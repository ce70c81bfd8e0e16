//! Which address families a Service has, decided before it gets its addresses (C5.12, B1.18): what `clusterIP`, `clusterIPs`,
//! `ipFamilies` and `ipFamilyPolicy` mean together, and which of them may change.

use serde_json::{Value, json};

use super::field::{Errors, FieldError, Path};
use super::format;
use super::tree::{is_set, items, text};

const V4: &str = "IPv4";
const V6: &str = "IPv6";
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";
const NONE: &str = "None";

/// The family of an address that was written as text.
pub fn family_of(address: &str) -> &'static str {
    if address.contains(':') { V6 } else { V4 }
}

/// The texts of a list.
pub fn texts(spec: &Value, key: &str) -> Vec<String> {
    items(spec, key).map(|value| value.as_str().unwrap_or_default().to_owned()).collect()
}

fn set(spec: &mut Value, key: &str, all: Vec<String>) {
    if !all.is_empty() {
        spec[key] = json!(all);
    } else if let Some(fields) = spec.as_object_mut() {
        fields.remove(key);
    }
}

fn is_headless(spec: &Value) -> bool {
    texts(spec, "clusterIPs") == [NONE]
}

fn has_selector(spec: &Value) -> bool {
    spec["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

/// Clients of one address know only `clusterIP`: the list follows it. An update that leaves addresses or the policy out keeps them.
pub(super) fn link(new: &mut Value, old: Option<&Value>) {
    let spec = new;
    let (ip, ips) = (text(spec, "clusterIP").to_owned(), texts(spec, "clusterIPs"));
    let Some(old) = old else {
        if !ip.is_empty() && ips.is_empty() {
            set(spec, "clusterIPs", vec![ip]);
        }
        return;
    };
    let (was_ip, was) = (text(old, "clusterIP"), texts(old, "clusterIPs"));
    let linked = if ip == was_ip {
        if ips.is_empty() { was.clone() } else { ips }
    } else if ips != was {
        ips
    } else if ip.is_empty() {
        Vec::new()
    } else {
        vec![ip.clone()]
    };
    let has_none = |spec: &Value| spec["type"] == "ExternalName";
    if has_none(spec) || has_none(old) {
        set(spec, "clusterIPs", linked);
        return;
    }
    if ip.is_empty() && !was_ip.is_empty() {
        spec["clusterIP"] = json!(was_ip);
    }
    set(spec, "clusterIPs", if linked.is_empty() { was } else { linked });
    if !is_set(spec, "ipFamilyPolicy") && is_set(old, "ipFamilyPolicy") {
        spec["ipFamilyPolicy"] = old["ipFamilyPolicy"].clone();
    }
}

/// Fills in families and policy of a Service that is not an ExternalName; `configured` are the cluster's families, its own
/// first. Addresses that are missing are to be given afterwards, one for each family.
pub fn settle(spec: &mut Value, old: Option<&Value>, configured: &[&str]) -> Result<(), Vec<FieldError>> {
    link(spec, old);
    let path = Path::new("spec");
    // A Service that prefers both and that nobody touched stays as it is, whatever became of the cluster.
    if old.is_some_and(|old| is_same_preference(spec, old)) {
        return Ok(());
    }
    let headless = spec["clusterIP"] == NONE;
    if !is_set(spec, "ipFamilyPolicy") {
        let inherited = old.map(|old| text(old, "ipFamilyPolicy")).filter(|policy| !policy.is_empty());
        let policy = inherited.unwrap_or(if headless && !has_selector(spec) { REQUIRE } else { SINGLE });
        spec["ipFamilyPolicy"] = json!(policy);
    }
    let errors = validate(spec);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut errors = Errors::default();
    let policy = text(spec, "ipFamilyPolicy").to_owned();
    let (mut ips, mut families) = (texts(spec, "clusterIPs"), texts(spec, "ipFamilies"));
    if let Some(old) = old {
        let (was, had) = (texts(old, "clusterIPs"), texts(old, "ipFamilies"));
        if policy == SINGLE {
            // To ask for one is enough, where the lists are as they were.
            if ips == was {
                ips.truncate(1);
            }
            if families == had {
                families.truncate(1);
            }
        } else {
            let mut refuse = |what: &str| {
                let detail = format!("must be 'SingleStack' to release the secondary {what}");
                errors.invalid(path.field("ipFamilyPolicy"), policy.as_str(), detail);
            };
            if !ips.is_empty() && ips.len() < was.len() {
                refuse("cluster IP");
            }
            if !families.is_empty() && families.len() < had.len() {
                refuse("IP family");
            }
        }
    }
    if policy == SINGLE {
        for (list, what) in [(&ips, "cluster IPs"), (&families, "IP families")] {
            if list.len() == 2 {
                let detail =
                    format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.invalid(path.field("ipFamilyPolicy"), policy.as_str(), detail);
            }
        }
    }
    for (at, ip) in ips.iter().enumerate().skip(families.len()).filter(|(_, ip)| *ip != NONE) {
        let family = family_of(ip);
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            errors.invalid(path.field("clusterIPs").index(at), json!(ips), detail);
        }
    }
    if !errors.is_empty() {
        return Err(errors.0);
    }
    // Whoever makes the endpoints of such a one decides, also in a cluster of one family.
    let is_free = headless && !has_selector(spec);
    if !is_free {
        if policy == REQUIRE && configured.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            errors.invalid(path.field("ipFamilyPolicy"), policy.as_str(), detail);
        }
        for (at, family) in families.iter().enumerate().filter(|(_, family)| !configured.contains(&family.as_str())) {
            errors.invalid(path.field("ipFamilies").index(at), family.as_str(), "not configured on this cluster");
        }
        if !errors.is_empty() {
            return Err(errors.0);
        }
    }
    if families.is_empty() {
        families.extend(configured.first().map(|family| (*family).to_owned()));
    }
    if policy != SINGLE && families.len() == 1 && (is_free || configured.len() == 2) {
        families.push(if families[0] == V4 { V6 } else { V4 }.to_owned());
    }
    set(spec, "clusterIPs", ips);
    set(spec, "ipFamilies", families);
    Ok(())
}

fn is_same_preference(spec: &Value, old: &Value) -> bool {
    let kept = |key: &str| texts(spec, key) == texts(old, key);
    spec["type"] == old["type"]
        && spec["type"] != "ExternalName"
        && spec["ipFamilyPolicy"] == PREFER
        && (old["ipFamilyPolicy"] == PREFER || !is_set(old, "ipFamilyPolicy"))
        && kept("clusterIPs")
        && kept("ipFamilies")
}

/// Whether the four fields fit each other, in a Service that is not an ExternalName.
pub(super) fn validate(spec: &Value) -> Vec<FieldError> {
    let (path, mut errors) = (Path::new("spec"), Errors::default());
    let place = path.field("clusterIPs");
    let (ip, ips, families) = (text(spec, "clusterIP"), texts(spec, "clusterIPs"), texts(spec, "ipFamilies"));
    match ips.first() {
        None if !ip.is_empty() => errors.required(place.clone(), ""),
        Some(_) if ip.is_empty() => {
            errors.invalid(place.clone(), json!(ips), "must be empty when `clusterIP` is not specified");
        }
        Some(first) if first != ip => errors.invalid(place.clone(), json!(ips), "first value must match `clusterIP`"),
        _ => {}
    }
    for (at, family) in families.iter().enumerate() {
        if family != V4 && family != V6 {
            errors.not_supported(path.field("ipFamilies").index(at), family.as_str(), &[V4, V6]);
        }
        if families[..at].contains(family) {
            errors.duplicate(path.field("ipFamilies").index(at), family.as_str());
        }
    }
    let policy = text(spec, "ipFamilyPolicy");
    if !matches!(policy, "" | SINGLE | PREFER | REQUIRE) {
        errors.not_supported(path.field("ipFamilyPolicy"), policy, &[PREFER, REQUIRE, SINGLE]);
    }
    let mut broken = false;
    for (at, ip) in ips.iter().enumerate() {
        if at == 0 && ip == NONE {
            if ips.len() > 1 {
                errors.invalid(place.clone(), json!(ips), "'None' must be the first and only value");
                broken = true;
            }
            continue;
        }
        let faults = format::address(ip);
        broken |= !faults.is_empty();
        errors.faults(&place.index(at), ip, faults);
    }
    if ips.len() > 2 {
        errors.invalid(place.clone(), json!(ips), "may only hold up to 2 values");
    }
    if broken {
        return errors.0;
    }
    if ips.len() > 1 && (ips.len() > 2 || family_of(&ips[0]) == family_of(&ips[1])) {
        errors.invalid(place.clone(), json!(ips), "may specify no more than one IP for each IP family");
    }
    if !is_headless(spec) {
        for (at, (ip, family)) in ips.iter().zip(&families).enumerate() {
            if family_of(ip) != family && (family == V4 || family == V6) {
                let detail = format!("expected an {family} value as indicated by `ipFamilies[{at}]`");
                errors.invalid(place.index(at), ip.as_str(), detail);
            }
        }
    }
    errors.0
}

/// Addresses and families may come and go behind the first; none may become another.
pub(super) fn validate_update(spec: &Value, old: &Value) -> Vec<FieldError> {
    const DETAIL: &str = "may not change once set";
    let mut errors = Errors::default();
    if spec["type"] == "ExternalName" || old["type"] == "ExternalName" || (is_headless(spec) && is_headless(old)) {
        return errors.0;
    }
    let path = Path::new("spec");
    let changed = |key: &str| -> Vec<usize> {
        let (new, old) = (texts(spec, key), texts(old, key));
        let compared = if new.len() == old.len() { new.len() } else { 1 };
        (0..compared.min(new.len()).min(old.len())).filter(|at| new[*at] != old[*at]).collect()
    };
    for at in changed("clusterIPs") {
        errors.invalid(path.field("clusterIPs").index(at), json!(texts(spec, "clusterIPs")), DETAIL);
    }
    if !is_headless(spec) && !is_headless(old) && !changed("ipFamilies").is_empty() {
        errors.invalid(path.field("ipFamilies").index(0), json!(texts(spec, "ipFamilies")), DETAIL);
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an update or creation arrives, and what becomes of it: families and policy, or errors.
    fn settled(
        mut spec: Value,
        old: Option<&Value>,
        configured: &[&str],
    ) -> Result<(Vec<String>, String, usize), String> {
        link(&mut spec, old);
        let errors = old.map(|old| validate_update(&spec, old)).unwrap_or_default();
        let result = if errors.is_empty() { settle(&mut spec, old, configured) } else { Err(errors) };
        let all = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        result.map_err(all)?;
        Ok((texts(&spec, "ipFamilies"), text(&spec, "ipFamilyPolicy").to_owned(), texts(&spec, "clusterIPs").len()))
    }

    #[test]
    fn a_new_service_gets_families_by_policy_addresses_and_cluster() {
        // C5.12 B1.18
        fn ok<'a>(families: &'a [&'a str], policy: &str) -> Result<(&'a [&'a str], String), &'static str> {
            Ok((families, policy.to_owned()))
        }
        let (two, one) = ([V4, V6], [V4]);
        for (spec, cluster, expected) in [
            (json!({}), &two[..], ok(&[V4], SINGLE)),
            (json!({}), &[V6, V4], ok(&[V6], SINGLE)),
            (json!({"ipFamilyPolicy": PREFER}), &two, ok(&two, PREFER)),
            (json!({"ipFamilyPolicy": PREFER}), &one, ok(&one, PREFER)),
            (json!({"ipFamilyPolicy": PREFER, "ipFamilies": [V6]}), &two, ok(&[V6, V4], PREFER)),
            (json!({"ipFamilyPolicy": REQUIRE}), &two, ok(&two, REQUIRE)),
            (
                json!({"ipFamilyPolicy": REQUIRE}),
                &one,
                Err(
                    "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
                ),
            ),
            (json!({"ipFamilies": [V6]}), &two, ok(&[V6], SINGLE)),
            (
                json!({"ipFamilies": [V6]}),
                &one,
                Err("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
            ),
            (
                json!({"ipFamilies": [V6, V4]}),
                &two,
                Err(
                    "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
                ),
            ),
            (json!({"clusterIP": "fd00::9"}), &two, ok(&[V6], SINGLE)),
            (
                json!({"clusterIP": "fd00::9"}),
                &one,
                Err("spec.clusterIPs[0]: Invalid value: [\"fd00::9\"]: IPv6 is not configured on this cluster"),
            ),
            (json!({"clusterIP": "fd00::9", "ipFamilyPolicy": PREFER}), &two, ok(&[V6, V4], PREFER)),
            (
                json!({"clusterIP": "fd00::9", "clusterIPs": ["fd00::9", "10.0.0.9"], "ipFamilyPolicy": REQUIRE}),
                &two,
                ok(&[V6, V4], REQUIRE),
            ),
            (
                json!({"clusterIP": "10.0.0.9", "ipFamilies": [V6]}),
                &two,
                Err(
                    "spec.clusterIPs[0]: Invalid value: \"10.0.0.9\": expected an IPv6 value as indicated by `ipFamilies[0]`",
                ),
            ),
            (
                json!({"clusterIPs": ["10.0.0.9"]}),
                &two,
                Err("spec.clusterIPs: Invalid value: [\"10.0.0.9\"]: must be empty when `clusterIP` is not specified"),
            ),
            (
                json!({"clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9", "10.0.0.8"], "ipFamilyPolicy": PREFER}),
                &two,
                Err(
                    "spec.clusterIPs: Invalid value: [\"10.0.0.9\",\"10.0.0.8\"]: may specify no more than one IP for each IP family",
                ),
            ),
            (
                json!({"ipFamilyPolicy": "Both", "ipFamilies": ["IPv5", V4, V4]}),
                &two,
                Err(
                    "spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"; spec.ipFamilies[2]: Duplicate value: \"IPv4\"; spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
                ),
            ),
            // Headless ones have families too; without a selector nobody but their owner knows which.
            (json!({"clusterIP": NONE, "selector": {"a": "b"}}), &two, ok(&[V4], SINGLE)),
            (json!({"clusterIP": NONE, "selector": {"a": "b"}, "ipFamilyPolicy": PREFER}), &two, ok(&two, PREFER)),
            (json!({"clusterIP": NONE}), &one, ok(&two, REQUIRE)),
            (json!({"clusterIP": NONE, "ipFamilies": [V6]}), &one, ok(&[V6, V4], REQUIRE)),
            (json!({"clusterIP": NONE, "ipFamilyPolicy": SINGLE}), &two, ok(&[V4], SINGLE)),
            (
                json!({"clusterIP": NONE, "clusterIPs": [NONE, "10.0.0.9"]}),
                &two,
                Err("spec.clusterIPs: Invalid value: [\"None\",\"10.0.0.9\"]: 'None' must be the first and only value"),
            ),
        ] {
            let found = settled(spec.clone(), None, cluster);
            let found = found
                .as_ref()
                .map(|(families, policy, _)| (families.iter().map(String::as_str).collect::<Vec<_>>(), policy.clone()));
            let expected = expected.map(|(families, policy): (&[&str], String)| (families.to_vec(), policy));
            assert_eq!(found.map_err(String::as_str), expected, "{spec} in {cluster:?}");
        }
    }

    #[test]
    fn a_family_comes_and_goes_behind_the_first() {
        // C5.12 B1.18
        let one = json!({"type": "ClusterIP", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"], "ipFamilies": [V4],
            "ipFamilyPolicy": SINGLE});
        let both = json!({"type": "ClusterIP", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9", "fd00::9"],
            "ipFamilies": [V4, V6], "ipFamilyPolicy": PREFER});
        let with = |base: &Value, patch: Value| {
            let mut spec = base.clone();
            json_patch::merge(&mut spec, &patch);
            spec
        };
        let cluster = [V4, V6];
        let ok = |families: &[&str], policy: &str, ips: usize| {
            Ok((families.iter().map(|&family| family.to_owned()).collect::<Vec<_>>(), policy.to_owned(), ips))
        };
        for (spec, old, expected) in [
            // Up, with the missing address to be given.
            (with(&one, json!({"ipFamilyPolicy": PREFER})), &one, ok(&cluster, PREFER, 1)),
            (with(&one, json!({"ipFamilyPolicy": REQUIRE, "clusterIPs": ["10.0.0.9", "fd00::7"]})), &one, ok(&cluster, REQUIRE, 2)),
            // Down, by the policy alone or with shorter lists.
            (with(&both, json!({"ipFamilyPolicy": SINGLE})), &both, ok(&[V4], SINGLE, 1)),
            (json!({"type": "ClusterIP", "ipFamilyPolicy": SINGLE}), &both, ok(&[V4], SINGLE, 1)),
            (
                with(&both, json!({"ipFamilyPolicy": SINGLE, "clusterIPs": ["10.0.0.9"], "ipFamilies": [V4]})),
                &both,
                ok(&[V4], SINGLE, 1),
            ),
            (
                with(&both, json!({"clusterIPs": ["10.0.0.9"], "ipFamilies": [V4]})),
                &both,
                Err("spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP; spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family".to_owned()),
            ),
            // What is left out stays.
            (json!({"type": "ClusterIP"}), &both, ok(&cluster, PREFER, 2)),
            (with(&both, json!({"clusterIPs": null})), &both, ok(&cluster, PREFER, 2)),
            // Nothing becomes something else.
            (
                with(&one, json!({"clusterIP": "10.0.0.8"})),
                &one,
                Err("spec.clusterIPs[0]: Invalid value: [\"10.0.0.8\"]: may not change once set".to_owned()),
            ),
            (
                with(&both, json!({"clusterIPs": ["10.0.0.9", "fd00::8"]})),
                &both,
                Err("spec.clusterIPs[1]: Invalid value: [\"10.0.0.9\",\"fd00::8\"]: may not change once set".to_owned()),
            ),
            (
                with(&one, json!({"ipFamilies": [V6]})),
                &one,
                Err("spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set".to_owned()),
            ),
        ] {
            assert_eq!(settled(spec.clone(), Some(old), &cluster), expected, "{spec}");
        }
        // The cluster's becoming dual stack changes nobody who did not ask.
        let prefers = with(&one, json!({"ipFamilyPolicy": PREFER}));
        assert_eq!(settled(prefers.clone(), Some(&prefers), &cluster), ok(&[V4], PREFER, 1));
    }
}
