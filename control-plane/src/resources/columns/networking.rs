//! Columns of networking and discovery (C4.11, C4.12, C4.20, C4.35).

use std::fmt;

use serde_json::Value;

use super::access::{Joined, Plain, Selector, Strings, get, items, text};
use super::core::Some3;
use super::{AGE, NAME, Printer, string};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Ingress" => &INGRESS,
        "IngressClass" => &INGRESS_CLASS,
        "NetworkPolicy" => &POLICY,
        "ServiceCIDR" => &SERVICE_CIDR,
        "IPAddress" => &ADDRESS,
        "EndpointSlice" => &SLICE,
        _ => return None,
    })
}

static INGRESS: Printer = Printer::new(
    &[NAME, string("Class"), string("Hosts"), string("Address"), string("Ports"), AGE],
    |ingress, now, cells| {
        cells.name(ingress);
        cells.or_none(text(ingress, &["spec", "ingressClassName"]));
        let hosts =
            items(ingress, &["spec", "rules"]).iter().map(|rule| text(rule, &["host"])).filter(|h| !h.is_empty());
        cells.display(Some3(hosts, "*"));
        let address = |ingress: &Value, f: &mut fmt::Formatter<'_>| {
            let ip = text(ingress, &["ip"]);
            f.write_str(if ip.is_empty() { text(ingress, &["hostname"]) } else { ip })
        };
        cells.display(Joined(items(ingress, &["status", "loadBalancer", "ingress"]), address, ","));
        cells.text(if items(ingress, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" });
        cells.age(ingress, now);
    },
);

static INGRESS_CLASS: Printer =
    Printer::new(&[NAME, string("Controller"), string("Parameters"), AGE], |class, now, cells| {
        cells.name(class);
        cells.text(text(class, &["spec", "controller"]));
        let parameters = get(class, &["spec", "parameters"]);
        let (kind, name) = (text(parameters, &["kind"]), text(parameters, &["name"]));
        match text(parameters, &["apiGroup"]) {
            _ if parameters.is_null() => cells.text("<none>"),
            "" => cells.display(format_args!("{kind}/{name}")),
            group => cells.display(format_args!("{kind}.{group}/{name}")),
        }
        cells.age(class, now);
    });

static POLICY: Printer = Printer::new(&[NAME, string("Pod-Selector"), AGE], |policy, now, cells| {
    cells.name(policy);
    cells.display(Selector(get(policy, &["spec", "podSelector"])));
    cells.age(policy, now);
});

static SERVICE_CIDR: Printer = Printer::new(&[NAME, string("CIDRs"), AGE], |cidr, now, cells| {
    cells.name(cidr);
    cells.display(Strings(items(cidr, &["spec", "cidrs"])));
    cells.age(cidr, now);
});

static ADDRESS: Printer = Printer::new(&[NAME, string("ParentRef")], |address, _, cells| {
    cells.name(address);
    let parent = get(address, &["spec", "parentRef"]);
    let (resource, group) = (text(parent, &["resource"]), text(parent, &["group"]));
    let dot = if group.is_empty() { "" } else { "." };
    let (namespace, name) = (text(parent, &["namespace"]), text(parent, &["name"]));
    let slash = if namespace.is_empty() { "" } else { "/" };
    if parent.is_null() {
        cells.text("<none>");
    } else {
        cells.display(format_args!("{resource}{dot}{group}/{namespace}{slash}{name}"));
    }
});

static SLICE: Printer =
    Printer::new(&[NAME, string("AddressType"), string("Ports"), string("Endpoints"), AGE], |slice, now, cells| {
        cells.name(slice);
        cells.text(text(slice, &["addressType"]));
        let ports = items(slice, &["ports"]).iter().map(|port| PortNumber(get(port, &["port"])));
        cells.display(Some3(ports, "<unset>"));
        let addresses = items(slice, &["endpoints"]).iter().flat_map(|e| items(e, &["addresses"])).map(Plain);
        cells.display(Some3(addresses, "<unset>"));
        cells.age(slice, now);
    });

struct PortNumber<'v>(&'v Value);

impl fmt::Display for PortNumber<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_null() { f.write_str("*") } else { Plain(self.0).fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn slices() {
        // C4.12
        let slice = json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": 80}, {"port": 443}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
        check("discovery.k8s.io", slice, &[("Ports", json!("80,443")), ("Endpoints", json!("10.0.0.1,10.0.0.2"))]);
        check(
            "discovery.k8s.io",
            json!({"kind": "EndpointSlice"}),
            &[("Ports", json!("<unset>")), ("Endpoints", json!("<unset>"))],
        );
    }

    #[test]
    fn ingresses_and_policies() {
        // C4.11, C4.20
        let ingress = json!({"kind": "Ingress", "spec": {"rules": [{"host": "a.b"}], "tls": [{}]}});
        check(
            "networking.k8s.io",
            ingress,
            &[("Class", json!("<none>")), ("Hosts", json!("a.b")), ("Ports", json!("80, 443"))],
        );
        check(
            "networking.k8s.io",
            json!({"kind": "NetworkPolicy", "spec": {"podSelector": {}}}),
            &[("Pod-Selector", json!("<none>"))],
        );
    }
}
