//! Services and their endpoints (C3.23, C3.24). Addresses and node ports are given by an allocator, before validation.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::field::FieldError;
use super::format::PORT_RANGE;
use super::tree::{child, fill, fill_text, items, items_mut, text};

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
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
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

/// An update that leaves out what was allocated keeps it (C3.24).
pub(super) fn keep_allocations(new: &mut Value, old: &Value) {
    let (kind, was) = (text(&new["spec"], "type").to_owned(), text(&old["spec"], "type").to_owned());
    if kind == "ExternalName" || was == "ExternalName" {
        return;
    }
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let missing = spec.get(key).is_none_or(|value| value.is_null() || value == "" || value == &json!([]));
        if missing && !old["spec"][key].is_null() {
            spec[key] = old["spec"][key].clone();
        }
    }
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

pub(super) fn validate(service: &Value) -> Vec<FieldError> {
    let spec = &service["spec"];
    let mut errors = Vec::new();
    let kind = text(spec, "type");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported("spec.type", kind, &kinds));
    }
    let headless = spec["clusterIP"] == "None";
    if items(spec, "ports").next().is_none() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && text(spec, "externalName").is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
    }
    let affinity = text(spec, "sessionAffinity");
    if !matches!(affinity, "None" | "ClientIP") {
        errors.push(FieldError::not_supported("spec.sessionAffinity", affinity, &["ClientIP", "None"]));
    }
    validate_ports(spec, &mut errors);
    errors
}

fn validate_ports(spec: &Value, errors: &mut Vec<FieldError>) {
    let several = items(spec, "ports").count() > 1;
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (at, port) in items(spec, "ports").enumerate() {
        let path = format!("spec.ports[{at}]");
        let name = text(port, "name");
        if several && name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() && !names.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(format!("{path}.port"), number, PORT_RANGE));
        }
        let protocol = text(port, "protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            let supported = ["SCTP", "TCP", "UDP"];
            errors.push(FieldError::not_supported(format!("{path}.protocol"), protocol, &supported));
        }
        if !numbers.insert((number, protocol.to_owned())) {
            let value = json!({"port": number, "protocol": protocol});
            errors.push(FieldError::duplicate(path.clone(), value));
        }
        if let Some(target) = port["targetPort"].as_i64().filter(|target| !(1..=65535).contains(target)) {
            errors.push(FieldError::invalid(format!("{path}.targetPort"), target, PORT_RANGE));
        }
    }
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (kind, was) = (text(&new["spec"], "type"), text(&old["spec"], "type"));
    let (ip, was_ip) = (text(&new["spec"], "clusterIP"), text(&old["spec"], "clusterIP"));
    if kind == "ExternalName" || was == "ExternalName" || was_ip.is_empty() || ip == was_ip {
        return Vec::new();
    }
    let detail = "may not change once set";
    vec![FieldError::invalid("spec.clusterIPs[0]", ip, detail)]
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
    fn what_was_allocated_stays() {
        // C3.24
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep_allocations(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = json!("10.96.0.10");
        assert_eq!(
            validate_update(&moved, &old)[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.10\": may not change once set"
        );
    }
}
