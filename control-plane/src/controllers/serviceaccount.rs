//! In every namespace the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`, made again when deleted (C7.12).

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::WriteOptions;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

const ROOT_CA: &str = "kube-root-ca.crt";

#[derive(Clone)]
struct Basics {
    namespaces: Arc<Informer>,
    accounts: Arc<Informer>,
    maps: Arc<Informer>,
    ca: Arc<str>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Basics {
        namespaces: context.informers.of("", "namespaces"),
        accounts: context.informers.of("", "serviceaccounts"),
        maps: context.informers.of("", "configmaps"),
        ca: context.config.pki.ca_certificate().into(),
    };
    let queue = Queue::default();
    let of_namespace = queue.clone();
    controller.namespaces.on_change(move |_, new| {
        if let Some(namespace) = new {
            of_namespace.add(Key::of(namespace));
        }
    });
    for (informer, name) in [(&controller.accounts, "default"), (&controller.maps, ROOT_CA)] {
        let queue = queue.clone();
        informer.on_change(move |old, new| {
            if let Some(object) = new.or(old).filter(|object| object["metadata"]["name"] == name) {
                queue.add(Key::new("", text(&object["metadata"], "namespace")));
            }
        });
    }
    Box::new(move |context| {
        queue.work("serviceaccount", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key.name).await }
        });
    })
}

impl Basics {
    async fn reconcile(&self, namespace: &str) -> Result<Option<Duration>, StatusError> {
        let usable = self.namespaces.get("", namespace).is_some_and(|object| !is_being_deleted(&object));
        if !usable {
            return Ok(None);
        }
        let options = WriteOptions::default();
        if self.accounts.get(namespace, "default").is_none() {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
            match self.accounts.objects.create(namespace, account, &options).await {
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            }
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": ROOT_CA, "namespace": namespace,
                "annotations": {"kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."},
            },
            "data": {"ca.crt": *self.ca},
        });
        match self.maps.objects.get(namespace, ROOT_CA).await {
            Ok(stored) if stored["data"] == map["data"] => {}
            Ok(_) => {
                self.maps.objects.update(namespace, ROOT_CA, "", map, &options).await?;
            }
            Err(error) if error.is_not_found() => match self.maps.objects.create(namespace, map, &options).await {
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            },
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}
