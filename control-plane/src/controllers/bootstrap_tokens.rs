//! Bootstrap tokens: those whose time is over go, and each that may sign signs `kube-public/cluster-info`, by which a node
//! that has only a token knows the cluster (C6.1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::queue::{Key, Queue};
use crate::api::DeleteOptions;
use crate::auth::bootstrap_token::{
    TOKEN_NAMESPACE, TOKEN_PREFIX, TOKEN_TYPE, data, detached_signature, expires, split_token,
};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

const INFO_NAMESPACE: &str = "kube-public";
const INFO: &str = "cluster-info";
/// Keys of signatures are this and the token's id.
const SIGNATURE: &str = "jws-kubeconfig-";

#[derive(Clone)]
struct Tokens {
    secrets: Arc<Informer>,
    maps: Arc<Informer>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller =
        Tokens { secrets: context.informers.of("", "secrets"), maps: context.informers.of("", "configmaps") };
    // One key for all: a signature depends on the tokens and the map alike, and both are few.
    let all = Key::new(INFO_NAMESPACE, INFO);
    let queue = Queue::default();
    let (of_secret, key) = (queue.clone(), all.clone());
    controller.secrets.on_change(move |old, new| {
        if new.or(old).is_some_and(|secret| is_of_token(secret)) {
            of_secret.add(key.clone());
        }
    });
    let of_map = queue.clone();
    controller.maps.on_change(move |old, new| {
        if new.or(old).is_some_and(|map| Key::of(map) == all) {
            of_map.add(all.clone());
        }
    });
    Box::new(move |context| {
        queue.work("bootstraptokens", 1, &context.stop, move |_| {
            let controller = controller.clone();
            async move { controller.reconcile().await }
        });
    })
}

fn is_of_token(secret: &Value) -> bool {
    let metadata = &secret["metadata"];
    text(metadata, "namespace") == TOKEN_NAMESPACE && text(metadata, "name").starts_with(TOKEN_PREFIX)
}

impl Tokens {
    async fn reconcile(&self) -> Result<Option<Duration>, StatusError> {
        let now = clock::now();
        let mut next = None;
        let mut signers = BTreeMap::new();
        // The cache keeps only the metadata of Secrets.
        for known in self.secrets.list(TOKEN_NAMESPACE).iter().filter(|secret| is_of_token(secret)) {
            let name = text(&known["metadata"], "name");
            let secret = match self.secrets.objects.get(TOKEN_NAMESPACE, name).await {
                Err(error) if error.is_not_found() => continue,
                result => result?,
            };
            if secret["type"] != TOKEN_TYPE || !secret["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            if let Some(end) = expires(&secret) {
                if end <= now {
                    let uid = Some(text(&secret["metadata"], "uid").to_owned());
                    let options = DeleteOptions { uid, ..DeleteOptions::default() };
                    match self.secrets.objects.delete(TOKEN_NAMESPACE, name, &options).await {
                        Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                        _ => tracing::info!(token = name, "an expired bootstrap token is gone"),
                    }
                    continue;
                }
                let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                next = Some(next.map_or(left, |soonest: Duration| soonest.min(left)));
            }
            let (id, key) = (data(&secret, "token-id"), data(&secret, "token-secret"));
            let whole = split_token(&format!("{id}.{key}")).is_some() && name == format!("{TOKEN_PREFIX}{id}");
            if whole && data(&secret, "usage-bootstrap-signing") == "true" {
                signers.insert(id, key);
            }
        }
        self.sign(&signers).await?;
        Ok(next)
    }

    async fn sign(&self, signers: &BTreeMap<String, String>) -> Result<(), StatusError> {
        let change = |map: &mut Value| {
            let content = text(&map["data"], "kubeconfig").to_owned();
            let Some(texts) = map["data"].as_object_mut() else { return false };
            let before = texts.clone();
            texts.retain(|key, _| !key.starts_with(SIGNATURE));
            if !content.is_empty() {
                for (id, key) in signers {
                    texts.insert(format!("{SIGNATURE}{id}"), json!(detached_signature(&content, id, key)));
                }
            }
            *texts != before
        };
        match self.maps.objects.modify(INFO_NAMESPACE, INFO, "", change).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
