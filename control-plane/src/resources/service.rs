//! Services and their endpoints (C3.23, C3.24). Addresses and node ports are given by an allocator, before validation.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::field::{Errors, FieldError, Path};
use super::selector_rules::labels;
use super::tree::{child, fill, fill_text, is_set, items, items_mut, text};
use super::{format, ip_families};

pub(super) fn default_service(service: &mut Value) {
    let spec = child(service, "spec");
    fill_text(spec, "type", "ClusterIP");
    fill_text(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        let config = child(child(spec, "sessionAffinityConfig"), "clientIP");
        fill(config, "timeoutSeconds", 10_800);
    } else if let Some(fields) = spec.as_object_mut() {
        fields.remove("sessionAffinityConfig");
    }
    let kind = text(spec, "type").to_owned();
    for port in items_mut(spec, "ports") {
        fill_text(port, "protocol", "TCP");
        if port["targetPort"].is_null() || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = port["port"].clone();
        }
        if kind == "ClusterIP"
            && let Some(fields) = port.as_object_mut()
        {
            fields.remove("nodePort");
        }
    }
    if is_reachable(spec) {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if kind != "ExternalName" {
        fill_text(spec, "internalTrafficPolicy", "Cluster");
    }
    for ingress in service.get_mut("status").and_then(|status| status.get_mut("loadBalancer")).into_iter() {
        for entry in items_mut(ingress, "ingress").filter(|entry| !text(entry, "ip").is_empty()) {
            fill_text(entry, "ipMode", "VIP");
        }
    }
}

/// Whether it can be reached from outside of the cluster.
fn is_reachable(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => items(spec, "externalIPs").next().is_some(),
        _ => false,
    }
}

/// What belonged to the old type, and that the client has left as it was, goes with it.
fn drop_dependent(new: &mut Value, old: &Value) {
    let (Some(spec), was) = (new.get_mut("spec").filter(|spec| spec.is_object()), &old["spec"]) else { return };
    let is = |spec: &Value, kind: &str| spec["type"] == kind;
    let checked = |spec: &Value| is(spec, "LoadBalancer") && spec["externalTrafficPolicy"] == "Local";
    let mut gone: Vec<&str> = Vec::new();
    if !is(was, "ExternalName") && is(spec, "ExternalName") {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    }
    if checked(was) && !checked(spec) {
        gone.push("healthCheckNodePort");
    }
    if is(was, "LoadBalancer") && !is(spec, "LoadBalancer") {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_reachable(was) && !is_reachable(spec) {
        gone.push("externalTrafficPolicy");
    }
    for key in gone {
        if spec[key] == was[key]
            && let Some(fields) = spec.as_object_mut()
        {
            fields.remove(key);
        }
    }
}

/// An update that leaves out what was allocated keeps it (C3.24).
pub(super) fn keep_allocations(new: &mut Value, old: &Value) {
    drop_dependent(new, old);
    if let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) {
        ip_families::link(spec, Some(&old["spec"]));
    }
    let (kind, was) = (text(&new["spec"], "type").to_owned(), text(&old["spec"], "type").to_owned());
    if kind == "ExternalName" || was == "ExternalName" {
        return;
    }
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if kind == "ClusterIP" {
        return;
    }
    let known: Vec<Value> = items(&old["spec"], "ports").cloned().collect();
    let taken: HashSet<i64> = items(spec, "ports").filter_map(|port| port["nodePort"].as_i64()).collect();
    for port in items_mut(spec, "ports").filter(|port| port["nodePort"].as_i64().unwrap_or(0) == 0) {
        let same = known.iter().find(|known| known["port"] == port["port"] && known["protocol"] == port["protocol"]);
        if let Some(number) = same.and_then(|known| known["nodePort"].as_i64()).filter(|number| !taken.contains(number))
        {
            port["nodePort"] = json!(number);
        }
    }
}

/// What a client is told of a Service that is right, and may not do what they think (B1.5).
pub(crate) fn warnings(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let kind = text(spec, "type");
    let headless = kind == "ClusterIP" && spec["clusterIP"] == "None";
    let has_external_ips = items(spec, "externalIPs").next().is_some();
    let mut warnings: Vec<String> = Vec::new();
    if headless {
        let ignored = [
            ("loadBalancerIP", !text(spec, "loadBalancerIP").is_empty()),
            ("externalIPs", has_external_ips),
            ("SessionAffinity", spec["sessionAffinity"] == "ClientIP"),
        ];
        let ignored = ignored.into_iter().filter(|(_, is_set)| *is_set);
        warnings.extend(ignored.map(|(field, _)| format!("spec.{field} is ignored for headless services")));
    } else if has_external_ips && kind == "ExternalName" {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    } else if has_external_ips {
        warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    if kind != "ExternalName" && !text(spec, "externalName").is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        warnings.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
    warnings
}

pub(super) fn validate(service: &Value) -> Vec<FieldError> {
    const KINDS: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    let kind = text(spec, "type");
    let headless = spec["clusterIP"] == "None";
    if items(spec, "ports").next().is_none() && !headless && kind != "ExternalName" {
        errors.required(path.field("ports"), "");
    }
    match kind {
        "NodePort" | "LoadBalancer" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.invalid(path.field("clusterIPs").index(0), "None", detail);
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if is_set(spec, key) && spec[key] != json!([]) {
                    errors.forbidden(path.field(key), "may not be set for ExternalName services");
                }
            }
            let name = text(spec, "externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errors.required(path.field("externalName"), ""),
                name => errors.faults(&path.field("externalName"), name, format::subdomain(name)),
            }
        }
        _ => {}
    }
    if kind != "ExternalName" {
        errors.0.extend(ip_families::validate(spec));
    }
    validate_ports(spec, &mut errors);
    labels(&spec["selector"], &path.field("selector"), &mut errors);
    validate_affinity(spec, &path, &mut errors);
    for (at, address) in items(spec, "externalIPs").enumerate() {
        let address = address.as_str().unwrap_or_default();
        errors.faults(&path.field("externalIPs").index(at), address, format::address(address));
    }
    if !KINDS.contains(&kind) {
        errors.not_supported(path.field("type"), kind, &KINDS);
    }
    validate_balancer(spec, &path, &mut errors);
    validate_policies(spec, &path, &mut errors);
    errors.0
}

fn validate_affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    const LONGEST: i64 = 86_400;
    let affinity = text(spec, "sessionAffinity");
    if !matches!(affinity, "None" | "ClientIP") {
        errors.not_supported(path.field("sessionAffinity"), affinity, &["ClientIP", "None"]);
    }
    let seconds = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if let Some(seconds) = seconds.as_i64().filter(|seconds| affinity == "ClientIP" && !(1..=LONGEST).contains(seconds))
    {
        let place = path.field("sessionAffinityConfig").field("clientIP").field("timeoutSeconds");
        errors.invalid(place, seconds, format!("must be greater than 0 and less than {LONGEST}"));
    }
}

/// What only makes sense for load balancers.
fn validate_balancer(spec: &Value, path: &Path, errors: &mut Errors) {
    let is_balancer = spec["type"] == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let place = path.field("LoadBalancerSourceRanges");
    if !is_balancer && items(spec, "loadBalancerSourceRanges").next().is_some() {
        errors.forbidden(place.clone(), only);
    }
    for (at, range) in items(spec, "loadBalancerSourceRanges").enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        if !is_range(range) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(place.index(at), range, detail);
        }
    }
    if !is_balancer && is_set(spec, "allocateLoadBalancerNodePorts") {
        errors.forbidden(path.field("allocateLoadBalancerNodePorts"), only);
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let place = path.field("loadBalancerClass");
        if !is_balancer {
            errors.forbidden(place.clone(), "may only be used when `type` is 'LoadBalancer'");
        }
        errors.faults(&place, class, format::qualified_name(class));
    }
}

fn is_range(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    length.parse::<u8>().is_ok_and(|length| length <= if address.is_ipv4() { 32 } else { 128 })
}

/// Where traffic may go.
fn validate_policies(spec: &Value, path: &Path, errors: &mut Errors) {
    let (kind, outside) = (text(spec, "type"), text(spec, "externalTrafficPolicy"));
    let is_reachable = is_reachable(spec);
    let place = path.field("externalTrafficPolicy");
    match outside {
        "" if is_reachable => errors.required(place, ""),
        "" => {}
        policy if !is_reachable => {
            errors.invalid(place, policy, "may only be set for externally-accessible services");
        }
        "Cluster" | "Local" => {}
        policy => errors.not_supported(place, policy, &["Cluster", "Local"]),
    }
    let port = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if port != 0 && !(kind == "LoadBalancer" && outside == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(path.field("healthCheckNodePort"), port, detail);
    }
    for (key, supported) in [
        ("internalTrafficPolicy", &["Cluster", "Local"][..]),
        ("trafficDistribution", &["PreferClose", "PreferSameZone", "PreferSameNode"][..]),
    ] {
        if let Some(value) = spec[key].as_str().filter(|value| !supported.contains(value)) {
            errors.not_supported(path.field(key), value, supported);
        }
    }
}

fn validate_ports(spec: &Value, errors: &mut Errors) {
    let several = items(spec, "ports").count() > 1;
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (at, port) in items(spec, "ports").enumerate() {
        let path = Path::new("spec.ports").index(at);
        let name = text(port, "name");
        if several && name.is_empty() {
            errors.required(path.field("name"), "");
        } else if !name.is_empty() {
            errors.faults(&path.field("name"), name, format::label(name));
            if !names.insert(name) {
                errors.duplicate(path.field("name"), name);
            }
        }
        let number = port["port"].as_i64().unwrap_or(0);
        for fault in format::port_number(number) {
            errors.invalid(path.field("port"), number, fault);
        }
        let protocol = text(port, "protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.not_supported(path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
        match &port["targetPort"] {
            Value::String(name) => errors.faults(&path.field("targetPort"), name, format::port_name(name)),
            target => {
                let target = target.as_i64().unwrap_or(0);
                for fault in format::port_number(target) {
                    errors.invalid(path.field("targetPort"), target, fault);
                }
            }
        }
        if let Some(protocol) = port["appProtocol"].as_str() {
            errors.faults(&path.field("appProtocol"), protocol, format::qualified_name(protocol));
        }
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 && spec["type"] == "ClusterIP" {
            errors.forbidden(path.field("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
        if node_port != 0 && !node_ports.insert((node_port, protocol)) {
            errors.duplicate(path.field("nodePort"), node_port);
        }
        if !numbers.insert((number, protocol)) {
            errors.duplicate(path, json!({"port": number, "protocol": protocol}));
        }
    }
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    ip_families::validate_update(&new["spec"], &old["spec"])
}

pub(super) fn default_endpoint_slice(slice: &mut Value) {
    for port in items_mut(slice, "ports") {
        fill(port, "name", "");
        fill_text(port, "protocol", "TCP");
    }
}

pub(super) fn default_endpoints(endpoints: &mut Value) {
    for subset in items_mut(endpoints, "subsets") {
        for port in items_mut(subset, "ports") {
            fill_text(port, "protocol", "TCP");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_what_upstream_writes() {
        // C3.23
        let mut service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        default_service(&mut service);
        assert_eq!(
            service["spec"],
            json!({
                "type": "NodePort", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
                "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            })
        );
        assert_eq!(validate(&service), []);
    }

    #[test]
    fn services_are_refused_with_the_field() {
        // C3.24
        let check = |spec: Value, expected: &[&str]| {
            let mut service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
            json_patch::merge(&mut service["spec"], &spec);
            default_service(&mut service);
            let found: Vec<String> = validate(&service).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        };
        check(json!({}), &[]);
        check(json!({"ports": null}), &["spec.ports: Required value"]);
        check(
            json!({"ports": [{"port": 80}, {"port": 80, "name": "b", "targetPort": "-"}]}),
            &[
                "spec.ports[0].name: Required value",
                "spec.ports[1].targetPort: Invalid value: \"-\": must contain at least one letter (a-z)",
                "spec.ports[1].targetPort: Invalid value: \"-\": must not begin or end with a hyphen",
                "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            ],
        );
        check(
            json!({"type": "ExternalName", "clusterIPs": ["10.0.0.1"], "externalName": "A"}),
            &[
                "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
                "spec.externalName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ],
        );
        check(
            json!({"loadBalancerSourceRanges": ["x"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Near", "externalIPs": []}),
            &[
                "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.LoadBalancerSourceRanges[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                "spec.internalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"",
            ],
        );
        check(
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            &[
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
            ],
        );
    }

    #[test]
    fn what_has_no_future_or_effect_is_told() {
        // B1.5
        for (spec, expected) in [
            (json!({"type": "ClusterIP"}), &[][..]),
            (
                json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferClose"}),
                &[
                    "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                    "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
                ],
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP"}),
                &[
                    "spec.externalIPs is ignored for headless services",
                    "spec.SessionAffinity is ignored for headless services",
                ],
            ),
            (
                json!({"type": "ExternalName", "externalName": "a.example", "externalIPs": ["192.0.2.1"]}),
                &["spec.externalIPs is ignored when spec.type is \"ExternalName\""],
            ),
            (
                json!({"type": "NodePort", "externalName": "a.example"}),
                &["spec.externalName is ignored when spec.type is not \"ExternalName\""],
            ),
        ] {
            assert_eq!(warnings(&json!({ "spec": spec })), expected, "{spec}");
        }
    }

    #[test]
    fn what_was_allocated_stays() {
        // C3.24
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep_allocations(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        let mut inside = old.clone();
        inside["spec"]["externalTrafficPolicy"] = json!("Cluster");
        let reachable = inside.clone();
        inside["spec"]["type"] = json!("ClusterIP");
        keep_allocations(&mut inside, &reachable);
        assert_eq!(inside["spec"].get("externalTrafficPolicy"), None);
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = json!("10.96.0.10");
        keep_allocations(&mut moved, &old);
        assert_eq!(
            validate_update(&moved, &old)[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.10\"]: may not change once set"
        );
    }
}
