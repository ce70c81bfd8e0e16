//! `/runningpods`: what the runtime runs, whatever anybody wishes (A18.3).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stoker_model::names;

use crate::runtime::{Runtime, RuntimeError, cri};

/// A PodList with names, images and UIDs only.
pub(super) async fn pods(runtime: &Runtime) -> Result<Value, RuntimeError> {
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
    let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
    let containers = runtime.list_containers(Some(filter)).await?;
    Ok(list(&containers))
}

fn list(containers: &[cri::Container]) -> Value {
    let mut pods: BTreeMap<&str, (Value, Vec<Value>)> = BTreeMap::new();
    for container in containers {
        let label = |name: &str| container.labels.get(name).map(String::as_str).unwrap_or_default();
        // Others may run containers here, too.
        let uid = label(names::POD_UID);
        if uid.is_empty() {
            continue;
        }
        let metadata =
            || json!({ "name": label(names::POD_NAME), "namespace": label(names::POD_NAMESPACE), "uid": uid });
        let (_, list) = pods.entry(uid).or_insert_with(|| (metadata(), Vec::new()));
        list.push(json!({ "name": label(names::CONTAINER_NAME), "image": container.image_ref, "resources": {} }));
    }
    let items: Vec<Value> = pods
        .into_values()
        .map(|(metadata, list)| json!({ "metadata": metadata, "spec": { "containers": list }, "status": {} }))
        .collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_put_together_by_pod() {
        let container = |uid: &str, name: &str| cri::Container {
            image_ref: "sha256:1".into(),
            labels: [
                (names::POD_UID, uid),
                (names::POD_NAME, "p"),
                (names::POD_NAMESPACE, "n"),
                (names::CONTAINER_NAME, name),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            ..Default::default()
        };
        // A18.3
        let list = list(&[container("u", "a"), container("u", "b"), cri::Container::default()]);
        let pods = list["items"].as_array().unwrap();
        assert_eq!((pods.len(), &pods[0]["metadata"]["uid"]), (1, &json!("u")));
        assert_eq!(pods[0]["spec"]["containers"][1]["name"], "b");
    }
}
