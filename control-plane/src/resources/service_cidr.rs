//! Rules of ServiceCIDR and IPAddress: ranges of Service addresses, and who holds an address (C1.6, C5.12).

use std::net::IpAddr;

use serde_json::Value;

use super::field::FieldError;
use super::tree::{items, text};

const IMMUTABLE: &str = "field is immutable";

/// The network of `10.96.0.0/12`, if it is written as upstream asks: no bits behind the prefix, no leading zeros.
fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, bits): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let rest = match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let canonical = bits <= longest && rest.checked_shl(bits.into()).unwrap_or(0) == 0 && prefix == bits.to_string();
    canonical.then_some((address, bits))
}

pub(super) fn validate_range(object: &Value) -> Vec<FieldError> {
    let ranges: Vec<&str> = items(&object["spec"], "cidrs").filter_map(Value::as_str).collect();
    let path = "spec.cidrs";
    match ranges.len() {
        0 => return vec![FieldError::required(path, "at least one CIDR required")],
        1 | 2 => {}
        _ => return vec![FieldError::invalid(path, object["spec"].clone(), "may only hold up to 2 values")],
    }
    let parsed: Vec<_> = ranges.iter().map(|text| range(text)).collect();
    let mut errors = Vec::new();
    for (at, (text, parsed)) in ranges.iter().zip(&parsed).enumerate() {
        if parsed.is_none() {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(format!("{path}[{at}]"), *text, detail));
        }
    }
    if let [Some((one, _)), Some((other, _))] = parsed[..]
        && one.is_ipv4() == other.is_ipv4()
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(path, object["spec"]["cidrs"].clone(), detail));
    }
    errors
}

/// A second family may come; nothing else may change.
pub(super) fn validate_range_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let list = |object: &Value| object["spec"]["cidrs"].as_array().cloned().unwrap_or_default();
    let (new, old) = (list(new), list(old));
    if old.len() == 1 && new.len() == 2 && new[0] == old[0] || new == old {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.cidrs", new, IMMUTABLE)]
}

pub(super) fn validate_address(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(&object["metadata"], "name");
    if name.parse::<IpAddr>().is_ok_and(|address| address.to_string() != name) || name.parse::<IpAddr>().is_err() {
        let detail = "must be a valid IP address in canonical form";
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
    let parent = &object["spec"]["parentRef"];
    if !parent.is_object() {
        errors.push(FieldError::required("spec.parentRef", ""));
        return errors;
    }
    for key in ["resource", "name"] {
        if text(parent, key).is_empty() {
            errors.push(FieldError::required(format!("spec.parentRef.{key}"), ""));
        }
    }
    for key in ["resource", "name", "namespace"] {
        let value = text(parent, key);
        if value.contains(['/', '%']) || matches!(value, "." | "..") {
            errors.push(FieldError::invalid(format!("spec.parentRef.{key}"), value, "must be a path segment"));
        }
    }
    errors
}

pub(super) fn validate_address_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let parent = |object: &Value| object["spec"]["parentRef"].clone();
    if parent(new) == parent(old) {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.parentRef", parent(new), IMMUTABLE)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(|error| error.path.clone()).collect()
    }

    #[test]
    fn ranges_are_one_of_each_family() {
        // C1.6
        let of = |cidrs: Value| json!({ "spec": { "cidrs": cidrs } });
        for (cidrs, wrong) in [
            (json!(["10.96.0.0/12"]), &[][..]),
            (json!(["10.96.0.0/12", "fd00::/108"]), &[]),
            (json!([]), &["spec.cidrs"]),
            (json!(["10.96.0.0/12", "10.0.0.0/16"]), &["spec.cidrs"]),
            (json!(["a", "b", "c"]), &["spec.cidrs"]),
            (json!(["10.96.0.1/12"]), &["spec.cidrs[0]"]),
            (json!(["10.96.0.0/012"]), &["spec.cidrs[0]"]),
            (json!(["fd00::/64", "10.0.0.0/33"]), &["spec.cidrs[1]"]),
        ] {
            assert_eq!(paths(&validate_range(&of(cidrs.clone()))), wrong, "{cidrs}");
        }
        let (one, two) = (of(json!(["10.96.0.0/12"])), of(json!(["10.96.0.0/12", "fd00::/108"])));
        assert!(validate_range_update(&two, &one).is_empty(), "a second family comes");
        assert_eq!(paths(&validate_range_update(&one, &two)), ["spec.cidrs"]);
    }

    #[test]
    fn an_address_names_who_holds_it() {
        // C1.6
        let of = |name: &str, parent: Value| json!({ "metadata": { "name": name }, "spec": { "parentRef": parent } });
        let parent = json!({ "resource": "services", "name": "a", "namespace": "b" });
        for (object, wrong) in [
            (of("10.0.0.1", parent.clone()), &[][..]),
            (of("fe80::42:1dff:fe84:f9e2", parent.clone()), &[]),
            (of("fe80:0::1", parent.clone()), &["metadata.name"]),
            (of("a", parent.clone()), &["metadata.name"]),
            (of("10.0.0.1", Value::Null), &["spec.parentRef"]),
            (of("10.0.0.1", json!({ "name": "a/b" })), &["spec.parentRef.resource", "spec.parentRef.name"]),
        ] {
            assert_eq!(paths(&validate_address(&object)), wrong, "{object}");
        }
        let (one, other) = (of("10.0.0.1", parent), of("10.0.0.1", json!({ "resource": "services", "name": "c" })));
        assert_eq!(paths(&validate_address_update(&other, &one)), ["spec.parentRef"]);
    }
}
