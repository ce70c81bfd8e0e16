//! EndpointSlices of Endpoints that users write themselves, for Services without a selector (C7.7).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::owner::{controller_reference, is_being_deleted};
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, WriteOptions};
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints object itself.
const OWN: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Addresses of a subset that are mirrored.
const PER_SUBSET: usize = 1000;

#[derive(Clone)]
struct Mirror {
    endpoints: Arc<Informer>,
    services: Arc<Informer>,
    slices: Arc<Informer>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Mirror {
        endpoints: context.informers.of("", "endpoints"),
        services: context.informers.of("", "services"),
        slices: context.informers.of("discovery.k8s.io", "endpointslices"),
    };
    let queue = Queue::default();
    for informer in [&controller.endpoints, &controller.services] {
        let queue = queue.clone();
        informer.on_change(move |old, new| {
            if let Some(object) = new.or(old) {
                queue.add(Key::of(object));
            }
        });
    }
    let of_slice = queue.clone();
    controller.slices.on_change(move |old, new| {
        if let Some(slice) = new.or(old).filter(|slice| is_mirror(slice)) {
            let name = text(&slice["metadata"]["labels"], stoker_model::names::SERVICE_NAME);
            of_slice.add(Key::new(text(&slice["metadata"], "namespace"), name));
        }
    });
    Box::new(move |context| {
        queue.work("endpointslicemirroring", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

fn is_mirror(slice: &Value) -> bool {
    text(&slice["metadata"]["labels"], MANAGED_BY) == MANAGER
}

impl Mirror {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let mut existing = self.slices.labelled(&key.namespace, &key.name);
        existing.retain(|slice| is_mirror(slice) && !is_being_deleted(slice));
        let service = self.services.get(&key.namespace, &key.name);
        let endpoints = self.endpoints.get(&key.namespace, &key.name);
        let wanted = match (&service, &endpoints) {
            (Some(service), Some(endpoints)) if is_mirrored(service, endpoints) => slices_for(endpoints),
            _ => Vec::new(),
        };
        for slice in wanted {
            let same_kind =
                |old: &Arc<Value>| old["addressType"] == slice["addressType"] && old["ports"] == slice["ports"];
            let written = match existing.iter().position(same_kind) {
                Some(at) => {
                    let old = existing.remove(at);
                    let same =
                        |key: &str| old[key] == slice[key] && old["metadata"]["labels"] == slice["metadata"]["labels"];
                    if same("endpoints") && old["metadata"]["annotations"] == slice["metadata"]["annotations"] {
                        continue;
                    }
                    let name = text(&old["metadata"], "name").to_owned();
                    let mut new = slice;
                    new["metadata"]["name"] = json!(name);
                    self.slices.objects.update(&key.namespace, &name, "", new, &WriteOptions::default()).await?
                }
                None => self.slices.objects.create(&key.namespace, slice, &WriteOptions::default()).await?,
            };
            self.slices.wait_for(&written).await;
        }
        for old in existing {
            match self
                .slices
                .objects
                .delete(&key.namespace, text(&old["metadata"], "name"), &DeleteOptions::default())
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn is_mirrored(service: &Value, endpoints: &Value) -> bool {
    let metadata = &endpoints["metadata"];
    let has_selector = service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    !has_selector
        && !is_being_deleted(service)
        && !is_being_deleted(endpoints)
        && metadata["labels"][SKIP] != "true"
        && metadata["annotations"][LEADER].is_null()
}

/// One slice for each subset and family of addresses.
fn slices_for(endpoints: &Value) -> Vec<Value> {
    let metadata = &endpoints["metadata"];
    let name = text(metadata, "name");
    let mut labels = metadata["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(stoker_model::names::SERVICE_NAME.to_owned(), json!(name));
    labels.insert(MANAGED_BY.to_owned(), json!(MANAGER));
    let mut annotations = metadata["annotations"].as_object().cloned().unwrap_or_default();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    // Subsets with the same ports are one slice: a reader could not tell them apart.
    let mut groups: BTreeMap<(String, &str), Vec<Value>> = BTreeMap::new();
    for subset in items(endpoints, "subsets") {
        let ports: Value = items(subset, "ports").map(port).collect();
        for (list, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in items(subset, list) {
                let Ok(ip) = text(address, "ip").parse::<IpAddr>() else { continue };
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                let group = groups.entry((ports.to_string(), family)).or_default();
                if group.len() < PER_SUBSET {
                    group.push(endpoint(address, &ip, ready));
                }
            }
        }
    }
    let base = name.get(..57).unwrap_or(name);
    let mut slices = Vec::new();
    for ((ports, family), all) in groups {
        for part in all.chunks(PER_SUBSET) {
            let mut slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"generateName": format!("{base}-"), "namespace": metadata["namespace"], "labels": labels,
                    "ownerReferences": [controller_reference(endpoints)]},
                "addressType": family, "endpoints": part,
                "ports": serde_json::from_str::<Value>(&ports).unwrap_or_default(),
            });
            if !annotations.is_empty() {
                slice["metadata"]["annotations"] = json!(annotations);
            }
            slices.push(slice);
        }
    }
    slices
}

fn port(port: &Value) -> Value {
    let mut made = json!({"name": text(port, "name"), "port": port["port"], "protocol": port["protocol"].as_str().unwrap_or("TCP")});
    if port["appProtocol"].is_string() {
        made["appProtocol"] = port["appProtocol"].clone();
    }
    made
}

fn endpoint(address: &Value, ip: &IpAddr, ready: bool) -> Value {
    let mut made = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    for key in ["hostname", "nodeName", "targetRef"] {
        if !address[key].is_null() {
            made[key] = address[key].clone();
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_slice_and_leaders_have_none() {
        // C7.7
        let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db", "namespace": "d", "labels": {"x": "y"}},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1", "hostname": "h"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]});
        let slices = slices_for(&endpoints);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0]["addressType"], "IPv4");
        assert_eq!(
            slices[0]["endpoints"],
            json!([
            {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
            {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}])
        );
        assert_eq!(slices[1]["endpoints"][0]["hostname"], "h");
        assert_eq!(slices[0]["ports"], json!([{"name": "", "port": 5432, "protocol": "TCP"}]));
        assert_eq!(slices[0]["metadata"]["labels"]["x"], "y");
        let service = json!({"spec": {}});
        assert!(is_mirrored(&service, &endpoints));
        for (part, key, value) in [("labels", SKIP, "true"), ("annotations", LEADER, "me")] {
            let mut other = endpoints.clone();
            other["metadata"][part][key] = json!(value);
            assert!(!is_mirrored(&service, &other), "{key}");
        }
        assert!(!is_mirrored(&json!({"spec": {"selector": {"a": "b"}}}), &endpoints));
    }
}
