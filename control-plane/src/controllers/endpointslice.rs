//! EndpointSlices of Services with a selector: at most 100 endpoints each, one slice at least (C7.7). An endpoint stays in
//! the slice that it is in, so a change writes one slice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Context;
use super::deployment_status::condition;
use super::informer::Informer;
use super::owner::{controller_reference, is_being_deleted, labels_of};
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// Upstream's default for endpoints per slice.
const PER_SLICE: usize = 100;
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Clone)]
struct EndpointSlices {
    services: Arc<Informer>,
    pods: Arc<Informer>,
    nodes: Arc<Informer>,
    slices: Arc<Informer>,
}

/// Looks again at the Services that select a pod, before or after its change.
pub(super) fn follow_pods(pods: &Arc<Informer>, services: &Arc<Informer>, queue: &Queue) {
    let (of_pod, services) = (queue.clone(), Arc::clone(services));
    pods.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && is_same_to_services(old, new)
        {
            return;
        }
        let Some(pod) = new.or(old) else { return };
        let labels: Vec<_> = [old, new].into_iter().flatten().map(|pod| labels_of(pod)).collect();
        for service in services.list(text(&pod["metadata"], "namespace")) {
            let Some(selector) = service["spec"]["selector"].as_object().filter(|s| !s.is_empty()) else { continue };
            let selects = |labels: &stoker_model::selector::Labels| {
                selector.iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
            };
            if labels.iter().any(selects) {
                of_pod.add(Key::of(&service));
            }
        }
    });
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = EndpointSlices {
        services: context.informers.of("", "services"),
        pods: context.informers.of("", "pods"),
        nodes: context.informers.of("", "nodes"),
        slices: context.informers.of("discovery.k8s.io", "endpointslices"),
    };
    let queue = Queue::default();
    let of_service = queue.clone();
    controller.services.on_change(move |old, new| {
        if let Some(object) = new.or(old) {
            of_service.add(Key::of(object));
        }
    });
    follow_pods(&controller.pods, &controller.services, &queue);
    let of_slice = queue.clone();
    controller.slices.on_change(move |old, new| {
        for slice in [old, new].into_iter().flatten() {
            let service = text(&slice["metadata"]["labels"], stoker_model::names::SERVICE_NAME);
            if text(&slice["metadata"]["labels"], MANAGED_BY) == MANAGER && !service.is_empty() {
                of_slice.add(Key::new(text(&slice["metadata"], "namespace"), service));
            }
        }
    });
    Box::new(move |context| {
        queue.work("endpointslice", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

fn is_same_to_services(old: &Value, new: &Value) -> bool {
    let ready = |pod: &Value| condition(&pod["status"], "Ready").map(|c| c["status"].clone());
    old["metadata"]["labels"] == new["metadata"]["labels"]
        && old["metadata"]["deletionTimestamp"] == new["metadata"]["deletionTimestamp"]
        && old["spec"]["nodeName"] == new["spec"]["nodeName"]
        && old["status"]["podIPs"] == new["status"]["podIPs"]
        && old["status"]["podIP"] == new["status"]["podIP"]
        && old["status"]["phase"] == new["status"]["phase"]
        && ready(old) == ready(new)
}

impl EndpointSlices {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        // Slices of a Service that is gone are the garbage collector's.
        let Some(service) = self.services.get(&key.namespace, &key.name) else { return Ok(None) };
        let mut existing = self.slices.labelled(&key.namespace, &key.name);
        existing.retain(|slice| text(&slice["metadata"]["labels"], MANAGED_BY) == MANAGER && !is_being_deleted(slice));
        let has_selector = service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty());
        if !has_selector || text(&service["spec"], "type") == "ExternalName" || is_being_deleted(&service) {
            return Ok(None);
        }
        let pods = self.pods.list(&key.namespace);
        let zone_of = |node: &str| {
            let node = self.nodes.get("", node)?;
            node["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().map(str::to_owned)
        };
        for step in plan_all(&service, &existing, &pods, zone_of) {
            self.take(key, step).await?;
        }
        Ok(None)
    }

    async fn take(&self, key: &Key, step: Step) -> Result<(), StatusError> {
        let (objects, options) = (&self.slices.objects, WriteOptions::default());
        let now = json!(clock::seconds_text(clock::now()));
        let written = match step {
            Step::Create(mut slice) => {
                slice["metadata"]["annotations"] = json!({TRIGGER_TIME: now});
                objects.create(&key.namespace, slice, &options).await?
            }
            Step::Update(mut slice) => {
                slice["metadata"]["annotations"] = json!({TRIGGER_TIME: now});
                let name = text(&slice["metadata"], "name").to_owned();
                objects.update(&key.namespace, &name, "", slice, &options).await?
            }
            Step::Delete(name) => match objects.delete(&key.namespace, &name, &DeleteOptions::default()).await {
                Ok(deleted) => deleted,
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        self.slices.wait_for(&written).await;
        Ok(())
    }
}

/// Ports as the slice has them, as text to group by, and the endpoints that have them.
type Groups = BTreeMap<String, Vec<Value>>;

/// What becomes of one slice.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Update(Value),
    Delete(String),
}

/// The endpoints of a Service, by the ports that they have: named target ports may differ between pods.
fn endpoints_of(
    service: &Value,
    family: Family,
    pods: &[Arc<Value>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> Groups {
    let mut groups = Groups::new();
    let Some(selector) = service["spec"]["selector"].as_object() else { return groups };
    for pod in pods {
        let labels = &pod["metadata"]["labels"];
        let selected = selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let finished = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
        let address = address_in(family, pod);
        if !selected || finished || address.is_empty() {
            continue;
        }
        let ports = ports_for(service, pod);
        let endpoint = endpoint(service, pod, &address, &zone_of);
        groups.entry(ports.to_string()).or_default().push(endpoint);
    }
    for endpoints in groups.values_mut() {
        endpoints.sort_by(|a, b| text(&a["targetRef"], "name").cmp(text(&b["targetRef"], "name")));
    }
    groups
}

/// The pod's address of the Service's first family.
pub(super) fn address_of(service: &Value, pod: &Value) -> String {
    address_in(families_of(service)[0], pod)
}

/// An address family, as slices tell theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The Service's families, at least one.
fn families_of(service: &Value) -> Vec<Family> {
    let family = |name: &Value| if name == "IPv6" { Family::V6 } else { Family::V4 };
    let all: Vec<Family> = items(&service["spec"], "ipFamilies").map(family).collect();
    if all.is_empty() { vec![Family::V4] } else { all }
}

fn address_in(family: Family, pod: &Value) -> String {
    let v6 = family == Family::V6;
    let all = items(&pod["status"], "podIPs").map(|ip| text(ip, "ip"));
    let found = all.chain([text(&pod["status"], "podIP")]).find(|ip| !ip.is_empty() && ip.contains(':') == v6);
    found.unwrap_or_default().to_owned()
}

fn endpoint(service: &Value, pod: &Value, address: &str, zone_of: impl Fn(&str) -> Option<String>) -> Value {
    let serving = condition(&pod["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
    let terminating = is_being_deleted(pod);
    let published = service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": published || (serving && !terminating), "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"],
                      "uid": pod["metadata"]["uid"]},
    });
    let node = text(&pod["spec"], "nodeName");
    if !node.is_empty() {
        endpoint["nodeName"] = json!(node);
        if let Some(zone) = zone_of(node) {
            endpoint["zone"] = json!(zone);
        }
    }
    if endpoint["conditions"]["ready"] == true
        && let Some(hints) = hints(text(&service["spec"], "trafficDistribution"), &endpoint)
    {
        endpoint["hints"] = hints;
    }
    let hostname = text(&pod["spec"], "hostname");
    if !hostname.is_empty() && text(&pod["spec"], "subdomain") == text(&service["metadata"], "name") {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

/// Who should use an endpoint that is ready: those in its zone, and first those on its node (B1.26).
fn hints(distribution: &str, endpoint: &Value) -> Option<Value> {
    let named = |key: &str| endpoint.get(key).map(|name| json!([{"name": name}]));
    let zones = named("zone");
    let nodes = match distribution {
        "PreferSameNode" => named("nodeName"),
        "PreferClose" | "PreferSameZone" => None,
        _ => return None,
    };
    let mut hints = serde_json::Map::new();
    hints.extend(zones.map(|zones| ("forZones".to_owned(), zones)));
    hints.extend(nodes.map(|nodes| ("forNodes".to_owned(), nodes)));
    (!hints.is_empty()).then_some(Value::Object(hints))
}

/// The Service's ports with the numbers that this pod has for them; ports that it has not are left out.
pub(super) fn ports_for(service: &Value, pod: &Value) -> Value {
    let ports = items(&service["spec"], "ports").filter_map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => match name.parse::<i64>() {
                Ok(number) => number,
                Err(_) => named_port(pod, name, protocol)?,
            },
            Value::Number(number) => number.as_i64().filter(|n| *n != 0).or_else(|| port["port"].as_i64())?,
            _ => port["port"].as_i64()?,
        };
        let mut made = json!({"name": text(port, "name"), "port": number, "protocol": protocol});
        if let Some(application) = port.get("appProtocol").filter(|value| value.is_string()) {
            made["appProtocol"] = application.clone();
        }
        Some(made)
    });
    ports.collect()
}

fn named_port(pod: &Value, name: &str, protocol: &str) -> Option<i64> {
    let sidecars = items(&pod["spec"], "initContainers").filter(|c| c["restartPolicy"] == "Always");
    let containers = items(&pod["spec"], "containers").chain(sidecars);
    let mut ports = containers.flat_map(|container| items(container, "ports"));
    let found = ports.find(|p| p["name"] == name && p["protocol"].as_str().unwrap_or("TCP") == protocol)?;
    found["containerPort"].as_i64()
}

/// What to write so that each of the Service's families has its slices, and no other has.
fn plan_all(
    service: &Value,
    existing: &[Arc<Value>],
    pods: &[Arc<Value>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> Vec<Step> {
    let families = families_of(service);
    let of = |slice: &Value, family: Family| text(slice, "addressType") == family.address_type();
    let mut steps = Vec::new();
    for family in &families {
        let theirs: Vec<Arc<Value>> = existing.iter().filter(|slice| of(slice, *family)).cloned().collect();
        steps.extend(plan(service, *family, &theirs, endpoints_of(service, *family, pods, &zone_of)));
    }
    let left = existing.iter().filter(|slice| !families.iter().any(|family| of(slice, *family)));
    steps.extend(left.map(|slice| Step::Delete(text(&slice["metadata"], "name").to_owned())));
    steps
}

/// What to write so that the slices of one family show `groups`.
fn plan(service: &Value, family: Family, existing: &[Arc<Value>], mut groups: Groups) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut empty: Vec<&Arc<Value>> = Vec::new();
    let mut kept = 0;
    for slice in existing {
        let ports = normal_ports(&slice["ports"]).to_string();
        let wanted = groups.get_mut(&ports);
        let mut endpoints: Vec<Value> = Vec::new();
        if let Some(wanted) = wanted {
            for endpoint in items(slice, "endpoints") {
                let same = |w: &Value| w["targetRef"]["uid"] == endpoint["targetRef"]["uid"];
                if let Some(place) = wanted.iter().position(same) {
                    endpoints.push(wanted.remove(place));
                }
            }
            let room = PER_SLICE.saturating_sub(endpoints.len()).min(wanted.len());
            endpoints.extend(wanted.drain(..room));
        }
        if endpoints.is_empty() {
            empty.push(slice);
            continue;
        }
        kept += 1;
        let new = slice_for(service, family, &slice["ports"], endpoints);
        if !is_same(slice, &new) {
            steps.push(Step::Update(with_identity(new, slice)));
        }
    }
    for (ports, endpoints) in &groups {
        let ports: Value = serde_json::from_str(ports).unwrap_or_default();
        for part in endpoints.chunks(PER_SLICE) {
            kept += 1;
            let new = slice_for(service, family, &ports, part.to_vec());
            // A slice that ran empty is used again.
            steps.push(match empty.pop() {
                Some(slice) => Step::Update(with_identity(new, slice)),
                None => Step::Create(new),
            });
        }
    }
    if kept == 0 {
        let new = slice_for(service, family, &json!([]), Vec::new());
        match empty.pop() {
            Some(slice) if is_same(slice, &new) => {}
            Some(slice) => steps.push(Step::Update(with_identity(new, slice))),
            None => steps.push(Step::Create(new)),
        }
    }
    steps.extend(empty.into_iter().map(|slice| Step::Delete(text(&slice["metadata"], "name").to_owned())));
    steps
}

/// As [`ports_for`] writes them.
fn normal_ports(ports: &Value) -> Value {
    let normal = ports.as_array().into_iter().flatten().map(|port| {
        let mut made = json!({"name": text(port, "name"), "port": port["port"],
            "protocol": port["protocol"].as_str().unwrap_or("TCP")});
        if let Some(application) = port.get("appProtocol").filter(|value| value.is_string()) {
            made["appProtocol"] = application.clone();
        }
        made
    });
    normal.collect()
}

fn slice_for(service: &Value, family: Family, ports: &Value, endpoints: Vec<Value>) -> Value {
    let name = text(&service["metadata"], "name");
    let mut labels: Map<String, Value> = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(stoker_model::names::SERVICE_NAME.to_owned(), json!(name));
    labels.insert(MANAGED_BY.to_owned(), json!(MANAGER));
    labels.remove(stoker_model::names::SERVICE_HEADLESS);
    if text(&service["spec"], "clusterIP") == "None" {
        labels.insert(stoker_model::names::SERVICE_HEADLESS.to_owned(), json!(""));
    }
    // A service's name may be as long as a generated base may not.
    let base = name.get(..57).unwrap_or(name);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{base}-"), "namespace": service["metadata"]["namespace"], "labels": labels,
            "ownerReferences": [controller_reference(service)],
        },
        "addressType": family.address_type(),
        "ports": normal_ports(ports), "endpoints": endpoints,
    })
}

/// The new content under the old name.
fn with_identity(mut new: Value, old: &Value) -> Value {
    for key in ["name", "generateName", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = old["metadata"].get(key) {
            new["metadata"][key] = value.clone();
        }
    }
    new
}

fn is_same(old: &Value, new: &Value) -> bool {
    let endpoints = |slice: &Value| slice["endpoints"].as_array().cloned().unwrap_or_default();
    old["metadata"]["labels"] == new["metadata"]["labels"]
        && normal_ports(&old["ports"]) == normal_ports(&new["ports"])
        && endpoints(old) == endpoints(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.1.0", "ports": ports},
        })
    }

    fn pod(name: &str, ready: bool, named: i64) -> Arc<Value> {
        Arc::new(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": named}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.0.{}", name.len()),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
    }

    fn plan(service: &Value, existing: &[Arc<Value>], pods: &[Arc<Value>]) -> Vec<Step> {
        plan_all(service, existing, pods, |_| Some("z1".into()))
    }

    fn stored(step: &Step) -> Arc<Value> {
        let (Step::Create(slice) | Step::Update(slice)) = step else { panic!("{step:?}") };
        let mut slice = slice.clone();
        if slice["metadata"]["name"].is_null() {
            slice["metadata"]["name"] = json!(format!("web-{}", slice["endpoints"].as_array().unwrap().len()));
        }
        Arc::new(slice)
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let service = service(json!([{"port": 80}]));
        let steps = plan(&service, &[], &[]);
        assert_eq!(steps.len(), 1);
        assert_eq!(stored(&steps[0])["endpoints"], json!([]));
        assert_eq!(plan(&service, &[stored(&steps[0])], &[]), []);
    }

    #[test]
    fn endpoints_say_whether_they_are_ready_serving_and_terminating() {
        let service = service(
            json!([{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "targetPort": 9}]),
        );
        let mut leaving = (*pod("leaving", true, 8080)).clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut done = (*pod("done", true, 8080)).clone();
        done["status"]["phase"] = json!("Succeeded");
        let pods = [pod("up", true, 8080), pod("down", false, 8080), Arc::new(leaving), Arc::new(done)];
        let steps = plan(&service, &[], &pods);
        let slice = stored(&steps[0]);
        assert_eq!(
            slice["ports"],
            json!([{"name": "a", "port": 8080, "protocol": "TCP"}, {"name": "b", "port": 9, "protocol": "TCP"}])
        );
        let conditions: Vec<(&str, [bool; 3])> = items(&slice, "endpoints")
            .map(|e| {
                let c = |key: &str| e["conditions"][key].as_bool().unwrap();
                (text(&e["targetRef"], "name"), [c("ready"), c("serving"), c("terminating")])
            })
            .collect();
        assert_eq!(
            conditions,
            [("down", [false, false, false]), ("leaving", [false, true, true]), ("up", [true, true, false])]
        );
        let first = &slice["endpoints"][0];
        assert_eq!((text(first, "nodeName"), text(first, "zone")), ("n1", "z1"));
        let labels = &slice["metadata"]["labels"];
        assert_eq!(text(labels, "kubernetes.io/service-name"), "web");
        assert_eq!(text(labels, MANAGED_BY), "endpointslice-controller.k8s.io");
        assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
    }

    /// B1.24
    #[test]
    fn endpoints_are_published_before_they_are_ready_where_that_is_wanted() {
        let mut service = service(json!([{"port": 80}]));
        let mut leaving = (*pod("leaving", false, 0)).clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let pods = [pod("down", false, 0), Arc::new(leaving)];
        let conditions = |service: &Value| -> Vec<[Value; 3]> {
            let slice = stored(&plan(service, &[], &pods)[0]);
            let of = |e: &Value| ["ready", "serving", "terminating"].map(|key| e["conditions"][key].clone());
            items(&slice, "endpoints").map(of).collect()
        };
        let flags = |all: [bool; 3]| all.map(|flag| json!(flag));
        assert_eq!(conditions(&service), [flags([false, false, false]), flags([false, false, true])]);
        service["spec"]["publishNotReadyAddresses"] = json!(true);
        assert_eq!(conditions(&service), [flags([true, false, false]), flags([true, false, true])]);
    }

    /// B1.26
    #[test]
    fn a_preference_becomes_hints_of_ready_endpoints() {
        let mut service = service(json!([{"port": 80}]));
        let pods = [pod("up", true, 0), pod("down", false, 0)];
        let steps = |service: &Value, existing: &[Arc<Value>]| plan(service, existing, &pods);
        let hints = |steps: &[Step]| -> Vec<Value> {
            items(&stored(&steps[0]), "endpoints").map(|endpoint| endpoint["hints"].clone()).collect()
        };
        let before = steps(&service, &[]);
        assert_eq!(hints(&before), [json!(null), json!(null)]);
        for (preference, expected) in [
            ("PreferClose", json!({"forZones": [{"name": "z1"}]})),
            ("PreferSameZone", json!({"forZones": [{"name": "z1"}]})),
            ("PreferSameNode", json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]})),
        ] {
            service["spec"]["trafficDistribution"] = json!(preference);
            let after = steps(&service, &[stored(&before[0])]);
            assert!(matches!(after.as_slice(), [Step::Update(_)]), "{after:?}");
            // In order of the pods' names: `down` is not ready.
            assert_eq!(hints(&after), [json!(null), expected], "{preference}");
            assert_eq!(steps(&service, &[stored(&after[0])]), [], "a second time there is nothing to do");
        }
        let slice = stored(&plan_all(&service, &[], &pods, |_| None)[0]);
        assert_eq!(slice["endpoints"][1]["hints"], json!({"forNodes": [{"name": "n1"}]}), "no zone, no hint of one");
    }

    /// B1.18
    #[test]
    fn each_family_has_slices_of_its_own() {
        let mut service = service(json!([{"port": 80, "targetPort": 8080}]));
        let mut both = (*pod("both", true, 0)).clone();
        both["status"]["podIPs"] = json!([{"ip": "10.0.0.4"}, {"ip": "fd00::4"}]);
        let pods = [Arc::new(both), pod("four", true, 0)];
        let shown = |steps: &[Step]| -> Vec<(String, String)> {
            let addresses = |slice: &Value| {
                let all = items(slice, "endpoints").map(|e| e["addresses"][0].as_str().unwrap().to_owned());
                all.collect::<Vec<_>>().join(" ")
            };
            steps.iter().map(stored).map(|slice| (text(&slice, "addressType").to_owned(), addresses(&slice))).collect()
        };
        let pair = |family: &str, addresses: &str| (family.to_owned(), addresses.to_owned());
        service["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
        let steps = plan(&service, &[], &pods);
        assert_eq!(shown(&steps), [pair("IPv6", "fd00::4"), pair("IPv4", "10.0.0.4 10.0.0.4")]);
        assert_eq!(address_of(&service, &pods[0]), "fd00::4", "Endpoints have the first family");
        let mut slices: Vec<Arc<Value>> = steps.iter().map(stored).collect();
        for (slice, name) in slices.iter_mut().zip(["six", "four"]) {
            Arc::get_mut(slice).unwrap()["metadata"]["name"] = json!(name);
        }
        assert_eq!(plan(&service, &slices, &pods), []);
        service["spec"]["ipFamilies"] = json!(["IPv6"]);
        assert_eq!(
            plan(&service, &slices, &pods),
            [Step::Delete("four".into())],
            "a family that went takes its slices along"
        );
    }

    #[test]
    fn slices_hold_a_hundred_and_a_change_writes_one() {
        let service = service(json!([{"port": 80, "targetPort": 8080}]));
        let mut pods: Vec<Arc<Value>> = (0..150).map(|n| pod(&format!("pod-{n:03}"), true, 0)).collect();
        let steps = plan(&service, &[], &pods);
        let slices: Vec<Arc<Value>> = steps.iter().map(stored).collect();
        let sizes: Vec<usize> = slices.iter().map(|s| items(s, "endpoints").count()).collect();
        assert_eq!(sizes, [100, 50]);
        assert_eq!(plan(&service, &slices, &pods), []);
        pods[120] = pod("pod-120", false, 0);
        let steps = plan(&service, &slices, &pods);
        assert!(
            matches!(steps.as_slice(), [Step::Update(slice)] if slice["metadata"]["name"] == "web-50"),
            "{steps:?}"
        );
        pods.truncate(100);
        let steps = plan(&service, &slices, &pods);
        assert_eq!(steps, [Step::Delete("web-50".into())]);
    }

    #[test]
    fn named_ports_that_differ_make_slices_of_their_own() {
        let service = service(json!([{"port": 80, "targetPort": "http"}]));
        let pods = [pod("a", true, 8080), pod("bb", true, 9090)];
        let steps = plan(&service, &[], &pods);
        let ports: Vec<Value> = steps.iter().map(|s| stored(s)["ports"][0]["port"].clone()).collect();
        assert_eq!(ports, [json!(8080), json!(9090)]);
    }
}
