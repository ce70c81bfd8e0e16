//! Network policies: what upstream fills in, and what is wrong with them (C3.23, C3.24).

use std::net::IpAddr;

use serde_json::{Value, json};
use stoker_model::selector::Selector;

use super::field::FieldError;
use super::format::PORT_RANGE;
use super::tree::{child, fill, items, items_mut, text};

const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

pub(super) fn default_policy(policy: &mut Value) {
    let spec = child(policy, "spec");
    let has = |key: &str| items(spec, key).next().is_some();
    if !has("policyTypes") {
        let types = if has("egress") { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec["policyTypes"] = types;
    }
    for (rules, _) in DIRECTIONS {
        for rule in items_mut(spec, rules) {
            items_mut(rule, "ports").for_each(|port| fill(port, "protocol", "TCP"));
        }
    }
}

pub(super) fn validate(policy: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &policy["spec"];
    validate_selector(&spec["podSelector"], "spec.podSelector", &mut errors);
    for (rules, peers) in DIRECTIONS {
        for (at, rule) in items(spec, rules).enumerate() {
            for (port_at, port) in items(rule, "ports").enumerate() {
                validate_port(port, &format!("spec.{rules}[{at}].ports[{port_at}]"), &mut errors);
            }
            for (peer_at, peer) in items(rule, peers).enumerate() {
                validate_peer(peer, &format!("spec.{rules}[{at}].{peers}[{peer_at}]"), &mut errors);
            }
        }
    }
    let types: Vec<&Value> = items(spec, "policyTypes").collect();
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid("spec.policyTypes", spec["policyTypes"].clone(), detail));
        return errors;
    }
    for (at, kind) in types.iter().enumerate().filter(|(_, kind)| !matches!(kind.as_str(), Some("Ingress" | "Egress")))
    {
        errors.push(FieldError::not_supported(
            format!("spec.policyTypes[{at}]"),
            (*kind).clone(),
            &["Egress", "Ingress"],
        ));
    }
    errors
}

fn validate_selector(selector: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if selector.is_null() {
        return;
    }
    if let Some(Err(error)) = serde_json::from_value(selector.clone()).ok().map(|selector| Selector::of(&selector)) {
        errors.push(FieldError::invalid(path, selector.clone(), error.to_string()));
    }
}

fn validate_port(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let protocol = text(port, "protocol");
    if !["TCP", "UDP", "SCTP"].contains(&protocol) {
        errors.push(FieldError::not_supported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
    }
    let in_range = |number: i64| (1..=65535).contains(&number);
    let end = port["endPort"].as_i64();
    let end_path = format!("{path}.endPort");
    match (&port["port"], end) {
        (Value::Null, Some(end)) => {
            errors.push(FieldError::invalid(end_path, end, "may not be specified when `port` is not specified"));
        }
        (Value::String(name), end) => {
            if let Some(end) = end {
                errors.push(FieldError::invalid(end_path, end, "may not be specified when `port` is non-numeric"));
            }
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty()
                || name.len() > 15
                || !name.chars().all(legal)
                || !name.contains(|c: char| c.is_ascii_lowercase())
            {
                let detail = "must be a port name: 1 to 15 of a-z, 0-9 and '-', with at least one letter";
                errors.push(FieldError::invalid(format!("{path}.port"), name.as_str(), detail));
            }
        }
        (first, end) => {
            let first = first.as_i64();
            if let Some(first) = first.filter(|first| !in_range(*first)) {
                errors.push(FieldError::invalid(format!("{path}.port"), first, PORT_RANGE));
            }
            if let (Some(first), Some(end)) = (first, end) {
                if end < first {
                    let detail = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&*end_path, first, detail));
                }
                if !in_range(end) {
                    errors.push(FieldError::invalid(end_path, end, PORT_RANGE));
                }
            }
        }
    }
}

fn validate_peer(peer: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let has = |key: &str| !peer[key].is_null();
    validate_selector(&peer["podSelector"], &format!("{path}.podSelector"), errors);
    validate_selector(&peer["namespaceSelector"], &format!("{path}.namespaceSelector"), errors);
    let selects = has("podSelector") || has("namespaceSelector");
    if has("ipBlock") {
        validate_block(&peer["ipBlock"], &format!("{path}.ipBlock"), errors);
        if selects {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
    } else if !selects {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}

fn validate_block(block: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const NOT_A_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let whole = text(block, "cidr");
    if whole.is_empty() {
        errors.push(FieldError::required(format!("{path}.cidr"), ""));
        return;
    }
    let Some((network, prefix)) = parse(whole) else {
        errors.push(FieldError::invalid(format!("{path}.cidr"), whole, NOT_A_RANGE));
        return;
    };
    for (at, except) in items(block, "except").enumerate() {
        let except = except.as_str().unwrap_or_default();
        let except_path = format!("{path}.except[{at}]");
        match parse(except) {
            None => errors.push(FieldError::invalid(except_path, except, NOT_A_RANGE)),
            Some((inner, longer)) if longer > prefix && masked(inner, prefix) == masked(network, prefix) => {}
            Some(_) => {
                errors.push(FieldError::invalid(except_path, except, "must be a strict subset of `cidr`"));
            }
        }
    }
}

fn parse(range: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = range.split_once('/')?;
    let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// Family and leading bits.
fn masked(address: IpAddr, prefix: u32) -> (bool, u128) {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    (address.is_ipv4(), bits.checked_shr(width - prefix).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_gets_what_upstream_writes() {
        // C3.23
        for (spec, types) in [
            (json!({}), json!(["Ingress"])),
            (json!({"egress": []}), json!(["Ingress"])),
            (json!({"egress": [{}]}), json!(["Ingress", "Egress"])),
            (json!({"egress": [{}], "policyTypes": ["Egress"]}), json!(["Egress"])),
        ] {
            let mut policy = json!({ "spec": spec });
            default_policy(&mut policy);
            assert_eq!(policy["spec"]["policyTypes"], types, "{policy}");
        }
        let mut policy = json!({"spec": {"ingress": [{"ports": [{"port": 80}, {"protocol": "UDP"}]}]}});
        default_policy(&mut policy);
        assert_eq!(
            policy["spec"]["ingress"][0]["ports"],
            json!([{"port": 80, "protocol": "TCP"}, {"protocol": "UDP"}])
        );
    }

    #[test]
    fn wrong_policies_are_refused_with_the_field() {
        let rule = |rule: Value| json!({"podSelector": {}, "ingress": [rule]});
        for (spec, place, words) in [
            (rule(json!({"from": [{}]})), "ingress[0].from[0]", "must specify a peer"),
            (
                rule(json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]})),
                "from[0]",
                "both ipBlock",
            ),
            (rule(json!({"from": [{"ipBlock": {"cidr": "ten"}}]})), "ipBlock.cidr", "valid CIDR"),
            (rule(json!({"from": [{"ipBlock": {}}]})), "ipBlock.cidr", ""),
            (
                rule(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]})),
                "except[0]",
                "strict subset",
            ),
            (
                rule(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]})),
                "except[0]",
                "strict subset",
            ),
            (
                rule(json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["::/1"]}}]})),
                "except[0]",
                "strict subset",
            ),
            (rule(json!({"ports": [{"port": 0}]})), "ports[0].port", "between 1 and 65535"),
            (rule(json!({"ports": [{"port": 80, "endPort": 79}]})), "ports[0].endPort", "greater than or equal"),
            (rule(json!({"ports": [{"port": "web", "endPort": 79}]})), "ports[0].endPort", "non-numeric"),
            (rule(json!({"ports": [{"endPort": 79}]})), "ports[0].endPort", "not specified"),
            (rule(json!({"ports": [{"port": "80"}]})), "ports[0].port", "port name"),
            (rule(json!({"ports": [{"protocol": "ICMP"}]})), "ports[0].protocol", "TCP"),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}),
                "spec.podSelector",
                "operator",
            ),
            (json!({"podSelector": {}, "policyTypes": ["Both"]}), "policyTypes[0]", "Egress"),
            (
                json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress", "Egress"]}),
                "policyTypes",
                "more than two",
            ),
        ] {
            let mut policy = json!({ "spec": spec });
            default_policy(&mut policy);
            let errors = validate(&policy);
            assert_eq!(errors.len(), 1, "{policy}: {errors:?}");
            assert!(errors[0].path.ends_with(place) && errors[0].detail.contains(words), "{errors:?}");
        }
        let mut fine = json!({"spec": {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}}, {"namespaceSelector": {}}],
            "ports": [{"port": 1, "endPort": 65535}, {"port": "http-alt"}, {}]}]}});
        default_policy(&mut fine);
        assert!(validate(&fine).is_empty());
    }
}
