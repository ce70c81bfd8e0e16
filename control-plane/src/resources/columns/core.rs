//! Columns of the core group (C4.2, C4.4, C4.10, C4.12–C4.18, C4.26), but the pod's.

use std::fmt;

use jiff::Timestamp;
use serde_json::Value;

use super::access::{Fields, Joined, Labels, Plain, flag, get, items, map, number, text, time};
use super::apps::REPLICAS;
use super::pod::POD;
use super::storage::{CLAIM, VOLUME};
use super::{AGE, Cells, NAME, Printer, integer, string, wide, wide_integer};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Pod" => &POD,
        "PodTemplate" => &POD_TEMPLATE,
        "ReplicationController" => &REPLICAS,
        "Service" => &SERVICE,
        "Endpoints" => &ENDPOINTS,
        "Node" => &NODE,
        "Event" => &EVENT,
        "Namespace" => &NAMESPACE,
        "Secret" => &SECRET,
        "ServiceAccount" => &SERVICE_ACCOUNT,
        "ConfigMap" => &CONFIG_MAP,
        "PersistentVolume" => &VOLUME,
        "PersistentVolumeClaim" => &CLAIM,
        "ResourceQuota" => &QUOTA,
        "ComponentStatus" => &COMPONENT,
        _ => return None,
    })
}

static POD_TEMPLATE: Printer =
    Printer::new(&[NAME, string("Containers"), string("Images"), string("Pod Labels")], |template, _, cells| {
        cells.name(template);
        let containers = items(template, &["template", "spec", "containers"]);
        cells.display(Fields(containers, "name"));
        cells.display(Fields(containers, "image"));
        cells.display(Labels(map(template, &["template", "metadata", "labels"])));
    });

static SERVICE: Printer = Printer::new(
    &[NAME, string("Type"), string("Cluster-IP"), string("External-IP"), string("Port(s)"), AGE, wide("Selector")],
    |service, now, cells| {
        cells.name(service);
        cells.text(text(service, &["spec", "type"]));
        let first = items(service, &["spec", "clusterIPs"]).first().and_then(Value::as_str);
        cells.or_none(first.unwrap_or_else(|| text(service, &["spec", "clusterIP"])));
        cells.display(ExternalAddress(service));
        cells.display(Ports(items(service, &["spec", "ports"])));
        cells.age(service, now);
        cells.display(Labels(map(service, &["spec", "selector"])));
    },
);

struct ExternalAddress<'v>(&'v Value);

impl fmt::Display for ExternalAddress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let external = items(self.0, &["spec", "externalIPs"]);
        let balanced = items(self.0, &["status", "loadBalancer", "ingress"]);
        let kind = text(self.0, &["spec", "type"]);
        if kind == "ExternalName" {
            return f.write_str(text(self.0, &["spec", "externalName"]));
        }
        let balancer = kind == "LoadBalancer";
        if balancer {
            let address = |ingress: &Value, f: &mut fmt::Formatter<'_>| {
                let ip = text(ingress, &["ip"]);
                f.write_str(if ip.is_empty() { text(ingress, &["hostname"]) } else { ip })
            };
            Joined(balanced, address, ",").fmt(f)?;
            if !balanced.is_empty() && !external.is_empty() {
                f.write_str(",")?;
            }
        }
        Joined(external, |ip: &Value, f: &mut fmt::Formatter<'_>| Plain(ip).fmt(f), ",").fmt(f)?;
        match (balancer, external.is_empty() && (!balancer || balanced.is_empty())) {
            (true, true) => f.write_str("<pending>"),
            (false, true) => f.write_str("<none>"),
            (_, false) => Ok(()),
        }
    }
}

struct Ports<'v>(&'v [Value]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("<none>");
        }
        let port = |port: &Value, f: &mut fmt::Formatter<'_>| {
            write!(f, "{}", number(port, &["port"]))?;
            let node = number(port, &["nodePort"]);
            if node > 0 {
                write!(f, ":{node}")?;
            }
            write!(f, "/{}", text(port, &["protocol"]))
        };
        Joined(self.0, port, ",").fmt(f)
    }
}

/// At most three, and how many more there are.
pub(super) struct Some3<I>(pub I, pub &'static str);

impl<I: Iterator<Item = T> + Clone, T: fmt::Display> fmt::Display for Some3<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut count = 0;
        for item in self.0.clone() {
            match count {
                0 => write!(f, "{item}")?,
                1 | 2 => write!(f, ",{item}")?,
                _ => {}
            }
            count += 1;
        }
        match count {
            0 => f.write_str(self.1),
            1..=3 => Ok(()),
            more => write!(f, " + {} more...", more - 3),
        }
    }
}

static ENDPOINTS: Printer = Printer::new(&[NAME, string("Endpoints"), AGE], |endpoints, now, cells| {
    cells.name(endpoints);
    let all = items(endpoints, &["subsets"]).iter().flat_map(|subset| {
        let ports = items(subset, &["ports"]);
        let addresses = items(subset, &["addresses"]);
        let bare = addresses.iter().filter(move |_| ports.is_empty()).map(|address| Endpoint(address, None));
        bare.chain(
            ports.iter().flat_map(move |port| addresses.iter().map(move |address| Endpoint(address, Some(port)))),
        )
    });
    cells.display(Some3(all, "<none>"));
    cells.age(endpoints, now);
});

struct Endpoint<'v>(&'v Value, Option<&'v Value>);

impl fmt::Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = text(self.0, &["ip"]);
        match self.1 {
            None => f.write_str(ip),
            Some(port) if ip.contains(':') => write!(f, "[{ip}]:{}", number(port, &["port"])),
            Some(port) => write!(f, "{ip}:{}", number(port, &["port"])),
        }
    }
}

static NODE: Printer = Printer::new(
    &[
        NAME,
        string("Status"),
        string("Roles"),
        AGE,
        string("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    |node, now, cells| {
        cells.name(node);
        let word = match super::access::condition(node, "Ready") {
            "True" => "Ready",
            "" => "Unknown",
            _ => "NotReady",
        };
        let closed = if flag(node, &["spec", "unschedulable"]) { ",SchedulingDisabled" } else { "" };
        cells.display(format_args!("{word}{closed}"));
        cells.display(Roles(node));
        cells.age(node, now);
        cells.text(text(node, &["status", "nodeInfo", "kubeletVersion"]));
        for kind in ["InternalIP", "ExternalIP"] {
            let address = items(node, &["status", "addresses"]).iter().find(|address| text(address, &["type"]) == kind);
            cells.or_none(address.map_or("", |address| text(address, &["address"])));
        }
        for field in ["osImage", "kernelVersion", "containerRuntimeVersion"] {
            let value = text(node, &["status", "nodeInfo", field]);
            cells.text(if value.is_empty() { "<unknown>" } else { value });
        }
    },
);

struct Roles<'v>(&'v Value);

impl fmt::Display for Roles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = map(self.0, &["metadata", "labels"]);
        let mut roles: Vec<&str> = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role).filter(|role| !role.is_empty()),
                None if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
                None => None,
            })
            .collect();
        roles.sort_unstable();
        roles.dedup();
        if roles.is_empty() { f.write_str("<none>") } else { f.write_str(&roles.join(",")) }
    }
}

static EVENT: Printer = Printer::new(
    &[
        string("Last Seen"),
        string("Type"),
        string("Reason"),
        string("Object"),
        wide("Subobject"),
        wide("Source"),
        string("Message"),
        wide("First Seen"),
        wide_integer("Count"),
        super::Column { priority: 1, ..NAME },
    ],
    event_row,
);

/// Core events and those of events.k8s.io, which name the same things differently.
fn event_row(event: &Value, now: Timestamp, cells: &mut Cells<'_>) {
    let either = |old: &str, new: &str| -> Option<Timestamp> {
        time(event, &[old]).or_else(|| time(event, &[new])).or_else(|| time(event, &["eventTime"]))
    };
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let series = time(event, &["series", "lastObservedTime"]);
    cells.since(series.or_else(|| either("lastTimestamp", "deprecatedLastTimestamp")).or(first), now);
    cells.text(text(event, &["type"]));
    cells.text(text(event, &["reason"]));
    let object = match get(event, &["involvedObject"]) {
        Value::Null => get(event, &["regarding"]),
        object => object,
    };
    let (kind, name) = (text(object, &["kind"]).to_ascii_lowercase(), text(object, &["name"]));
    if name.is_empty() {
        cells.text(&kind);
    } else {
        cells.display(format_args!("{kind}/{name}"));
    }
    cells.text(text(object, &["fieldPath"]));
    let source = match get(event, &["source"]) {
        Value::Null => get(event, &["deprecatedSource"]),
        source => source,
    };
    let component = match text(source, &["component"]) {
        "" => match text(event, &["reportingComponent"]) {
            "" => text(event, &["reportingController"]),
            component => component,
        },
        component => component,
    };
    match text(source, &["host"]) {
        "" => cells.text(component),
        host => cells.display(format_args!("{component}, {host}")),
    }
    let message = text(event, &["message"]);
    cells.text(if message.is_empty() { text(event, &["note"]) } else { message }.trim());
    cells.since(first, now);
    let count =
        number(event, &["series", "count"]).max(number(event, &["count"])).max(number(event, &["deprecatedCount"]));
    cells.integer(count.max(1));
    cells.name(event);
}

static NAMESPACE: Printer = Printer::new(&[NAME, string("Status"), AGE], |namespace, now, cells| {
    cells.name(namespace);
    cells.text(text(namespace, &["status", "phase"]));
    cells.age(namespace, now);
});

fn entries(object: &Value, field: &str) -> i64 {
    map(object, &[field]).map_or(0, |map| i64::try_from(map.len()).unwrap_or(i64::MAX))
}

static SECRET: Printer = Printer::new(&[NAME, string("Type"), integer("Data"), AGE], |secret, now, cells| {
    cells.name(secret);
    cells.text(text(secret, &["type"]));
    cells.integer(entries(secret, "data"));
    cells.age(secret, now);
});

static CONFIG_MAP: Printer = Printer::new(&[NAME, integer("Data"), AGE], |config, now, cells| {
    cells.name(config);
    cells.integer(entries(config, "data") + entries(config, "binaryData"));
    cells.age(config, now);
});

static SERVICE_ACCOUNT: Printer = Printer::new(&[NAME, AGE], |account, now, cells| {
    cells.name(account);
    cells.age(account, now);
});

static QUOTA: Printer = Printer::new(&[NAME, string("Request"), string("Limit"), AGE], |quota, now, cells| {
    cells.name(quota);
    cells.display(Usage(quota, false));
    cells.display(Usage(quota, true));
    cells.age(quota, now);
});

struct Usage<'v>(&'v Value, bool);

impl fmt::Display for Usage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hard = map(self.0, &["status", "hard"]).into_iter().flatten();
        let of_side = hard.filter(|(name, _)| name.starts_with("limits.") == self.1);
        for (at, (name, hard)) in of_side.enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            let used = get(self.0, &["status", "used", name]);
            write!(f, "{comma}{name}: {}/{}", Plain(used), Plain(hard))?;
        }
        Ok(())
    }
}

static COMPONENT: Printer =
    Printer::new(&[NAME, string("Status"), string("Message"), string("Error")], |component, _, cells| {
        cells.name(component);
        let health = items(component, &["conditions"]).iter().find(|c| text(c, &["type"]) == "Healthy");
        let word = match health.map(|health| text(health, &["status"])) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        };
        cells.text(word);
        cells.text(health.map_or("", |health| text(health, &["message"])));
        cells.text(health.map_or("", |health| text(health, &["error"])));
    });

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn services() {
        // C4.10
        let service = json!({"kind": "Service", "metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9",
            "clusterIPs": ["10.96.0.9"], "selector": {"app": "x"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        let common = [
            ("Cluster-IP", json!("10.96.0.9")),
            ("External-IP", json!("<none>")),
            ("Port(s)", json!("80:30080/TCP,53/UDP")),
            ("Selector", json!("app=x")),
            ("Age", json!("<unknown>")),
        ];
        check("", service.clone(), &common);
        let mut balanced = service;
        balanced["spec"]["type"] = json!("LoadBalancer");
        check("", balanced.clone(), &[("External-IP", json!("<pending>"))]);
        balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}});
        check("", balanced, &[("External-IP", json!("1.2.3.4"))]);
        let name = json!({"kind": "Service", "spec": {"type": "ExternalName", "externalName": "example.org"}});
        check(
            "",
            name,
            &[("Cluster-IP", json!("<none>")), ("External-IP", json!("example.org")), ("Port(s)", json!("<none>"))],
        );
    }

    #[test]
    fn nodes() {
        // C4.13
        let node = json!({"kind": "Node", "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
        check(
            "",
            node,
            &[
                ("Status", json!("Ready,SchedulingDisabled")),
                ("Roles", json!("control-plane,worker")),
                ("Version", json!("v1.36.0")),
                ("Internal-IP", json!("10.0.0.1")),
                ("External-IP", json!("<none>")),
            ],
        );
        check("", json!({"kind": "Node"}), &[("Status", json!("Unknown")), ("Roles", json!("<none>"))]);
    }

    #[test]
    fn events() {
        // C4.14
        let event = json!({"kind": "Event", "metadata": {"name": "e"}, "type": "Normal", "reason": "Started", "message": "it \"runs\"\n",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"}, "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z", "count": 3});
        check(
            "",
            event,
            &[
                ("Last Seen", json!("60s")),
                ("Object", json!("pod/p")),
                ("Subobject", json!("spec.containers{a}")),
                ("Source", json!("kubelet, n")),
                ("Message", json!("it \"runs\"")),
                ("First Seen", json!("10m")),
                ("Count", json!(3)),
            ],
        );
    }

    #[test]
    fn endpoints_are_cut_after_three() {
        // C4.12
        let addresses: Vec<_> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let endpoints = json!({"kind": "Endpoints", "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        check("", endpoints, &[("Endpoints", json!("10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."))]);
        check("", json!({"kind": "Endpoints"}), &[("Endpoints", json!("<none>"))]);
    }

    #[test]
    fn small_kinds() {
        // C4.15
        check("", json!({"kind": "ConfigMap", "data": {"a": "1"}, "binaryData": {"b": "Mg=="}}), &[("Data", json!(2))]);
        check(
            "",
            json!({"kind": "Secret", "type": "Opaque", "data": {"a": "1"}}),
            &[("Type", json!("Opaque")), ("Data", json!(1))],
        );
        check("", json!({"kind": "Namespace", "status": {"phase": "Active"}}), &[("Status", json!("Active"))]);
    }
}
