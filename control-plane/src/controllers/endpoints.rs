//! Endpoints of Services with a selector, for who still reads them (C7.7): the same pods as in the slices, in one object
//! of at most 1000 addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::deployment_status::condition;
use super::endpointslice::{address_of, follow_pods, ports_for};
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items, text};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object.
const CAPACITY: usize = 1000;

#[derive(Clone)]
struct AllEndpoints {
    services: Arc<Informer>,
    pods: Arc<Informer>,
    endpoints: Arc<Informer>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = AllEndpoints {
        services: context.informers.of("", "services"),
        pods: context.informers.of("", "pods"),
        endpoints: context.informers.of("", "endpoints"),
    };
    let queue = Queue::default();
    for informer in [&controller.services, &controller.endpoints] {
        let queue = queue.clone();
        informer.on_change(move |old, new| {
            if let Some(object) = new.or(old) {
                queue.add(Key::of(object));
            }
        });
    }
    follow_pods(&controller.pods, &controller.services, &queue);
    Box::new(move |context| {
        queue.work("endpoints", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

fn has_selector(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

impl AllEndpoints {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let stored = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name).filter(|s| !is_being_deleted(s)) else {
            // Those that somebody made for a Service to come are theirs.
            let ours = stored.is_some_and(|stored| stored["metadata"]["labels"][MANAGED_BY] == MANAGER);
            if ours {
                let gone = self.endpoints.objects.delete(&key.namespace, &key.name, &DeleteOptions::default()).await;
                if let Err(error) = gone
                    && !error.is_not_found()
                {
                    return Err(error);
                }
            }
            return Ok(None);
        };
        if !has_selector(&service) || text(&service["spec"], "type") == "ExternalName" {
            return Ok(None);
        }
        let wanted = endpoints_for(&service, &self.pods.list(&key.namespace));
        let options = WriteOptions::default();
        let stamp = |object: &mut Value| {
            fill(&mut object["metadata"], "annotations", json!({}));
            object["metadata"]["annotations"][TRIGGER_TIME] = json!(clock::seconds_text(clock::now()));
        };
        let written = match stored {
            None => {
                let mut new = wanted;
                stamp(&mut new);
                match self.endpoints.objects.create(&key.namespace, new, &options).await {
                    Err(error) if error.is_already_exists() => return Ok(Some(Duration::from_secs(1))),
                    result => result?,
                }
            }
            Some(stored) => {
                let over = |object: &Value| object["metadata"]["annotations"][OVER_CAPACITY].clone();
                if stored["subsets"].as_array().cloned().unwrap_or_default()
                    == wanted["subsets"].as_array().cloned().unwrap_or_default()
                    && stored["metadata"]["labels"] == wanted["metadata"]["labels"]
                    && over(&stored) == over(&wanted)
                {
                    return Ok(None);
                }
                let mut new = wanted;
                stamp(&mut new);
                self.endpoints.objects.update(&key.namespace, &key.name, "", new, &options).await?
            }
        };
        self.endpoints.wait_for(&written).await;
        Ok(None)
    }
}

/// The object as it should be, but for the time.
fn endpoints_for(service: &Value, pods: &[Arc<Value>]) -> Value {
    let published = service["spec"]["publishNotReadyAddresses"] == true;
    // Addresses by what ports they have; ready ones and others.
    let mut groups: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for pod in pods {
        let labels = &pod["metadata"]["labels"];
        let selected = service["spec"]["selector"]
            .as_object()
            .is_some_and(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
        let ended = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
        let ip = address_of(service, pod);
        if !selected || ended || ip.is_empty() || (is_being_deleted(pod) && !published) {
            continue;
        }
        let ports = ports_for(service, pod);
        let has_ports = items(&service["spec"], "ports").next().is_some();
        if has_ports && ports.as_array().is_some_and(Vec::is_empty) {
            continue;
        }
        let ready = published || condition(&pod["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
        let metadata = &pod["metadata"];
        let mut address = json!({"ip": ip, "targetRef": {"kind": "Pod", "namespace": metadata["namespace"],
            "name": metadata["name"], "uid": metadata["uid"]}});
        for (key, value) in [("nodeName", text(&pod["spec"], "nodeName")), ("hostname", hostname(service, pod))] {
            if !value.is_empty() {
                address[key] = json!(value);
            }
        }
        let group = groups.entry(ports.to_string()).or_default();
        if ready { group.0.push(address) } else { group.1.push(address) }
    }
    let mut left = CAPACITY;
    let mut is_cut = false;
    let mut take = |mut addresses: Vec<Value>| {
        addresses.sort_by(|a, b| text(a, "ip").cmp(text(b, "ip")));
        is_cut |= addresses.len() > left;
        addresses.truncate(left);
        left -= addresses.len();
        addresses
    };
    // Ready ones first, where there are too many.
    let taken: Vec<(String, Vec<Value>, Vec<Value>)> = {
        let ready: Vec<_> = groups.iter_mut().map(|(_, group)| take(std::mem::take(&mut group.0))).collect();
        let others: Vec<_> = groups.iter_mut().map(|(_, group)| take(std::mem::take(&mut group.1))).collect();
        groups.into_keys().zip(ready).zip(others).map(|((ports, ready), others)| (ports, ready, others)).collect()
    };
    let mut subsets = Vec::new();
    for (ports, ready, others) in taken {
        let mut subset = json!({});
        let ports: Vec<Value> = serde_json::from_str(&ports).unwrap_or_default();
        for (key, list) in
            [("addresses", ready), ("notReadyAddresses", others), ("ports", ports.into_iter().map(port).collect())]
        {
            if !list.is_empty() {
                subset[key] = Value::Array(list);
            }
        }
        if !subset["addresses"].is_null() || !subset["notReadyAddresses"].is_null() {
            subsets.push(subset);
        }
    }
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), json!(MANAGER));
    labels.remove(stoker_model::names::SERVICE_HEADLESS);
    if text(&service["spec"], "clusterIP") == "None" {
        labels.insert(stoker_model::names::SERVICE_HEADLESS.to_owned(), json!(""));
    }
    let mut object = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": service["metadata"]["name"], "namespace": service["metadata"]["namespace"], "labels": labels}});
    if !subsets.is_empty() {
        object["subsets"] = Value::Array(subsets);
    }
    if is_cut {
        object["metadata"]["annotations"] = json!({OVER_CAPACITY: "truncated"});
    }
    object
}

/// As Endpoints write a port: one without a name has none.
fn port(mut port: Value) -> Value {
    if text(&port, "name").is_empty()
        && let Some(fields) = port.as_object_mut()
    {
        fields.remove("name");
    }
    port
}

fn hostname<'a>(service: &Value, pod: &'a Value) -> &'a str {
    let its = text(&pod["spec"], "subdomain") == text(&service["metadata"], "name");
    if its { text(&pod["spec"], "hostname") } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_pods_come_first_and_no_more_than_fit() {
        // C7.7
        let pod = |number: usize, ready: &str| {
            Arc::new(
                json!({"metadata": {"name": format!("p{number}"), "namespace": "d", "uid": number, "labels": {"a": "b"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c"}]}, "status": {"phase": "Running",
                "podIP": format!("10.0.{}.{}", number / 250, number % 250),
                "conditions": [{"type": "Ready", "status": ready}]}}),
            )
        };
        let service = json!({"metadata": {"name": "s", "namespace": "d"},
            "spec": {"selector": {"a": "b"}, "clusterIP": "None", "ports": [{"port": 80, "targetPort": 8080}]}});
        let few = endpoints_for(&service, &[pod(2, "False"), pod(1, "True")]);
        assert_eq!(few["subsets"][0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(few["subsets"][0]["notReadyAddresses"][0]["ip"], "10.0.0.2");
        assert_eq!(few["subsets"][0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(few["metadata"]["labels"], json!({MANAGED_BY: MANAGER, "service.kubernetes.io/headless": ""}));
        let many: Vec<_> = (0..1200).map(|number| pod(number, if number < 900 { "True" } else { "False" })).collect();
        let many = endpoints_for(&service, &many);
        let count = |key: &str| many["subsets"][0][key].as_array().unwrap().len();
        assert_eq!((count("addresses"), count("notReadyAddresses")), (900, 100));
        assert_eq!(many["metadata"]["annotations"][OVER_CAPACITY], "truncated");
    }
}
