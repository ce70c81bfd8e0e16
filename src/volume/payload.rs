//! The files of `configMap`, `secret`, `downwardAPI` and `projected` volumes (A9.7, A9.9, A9.10).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret,
    ServiceAccountTokenProjection, Volume,
};
use stoker_model::handle::{ApiError, NodeSnapshot, ObjectApi, ObjectName, TrustBundles};
use stoker_model::pod::PodRef;

use super::atomic::{File, Payload};
use super::error::VolumeError;
use super::fields;
use super::token::Tokens;

const DEFAULT_MODE: i32 = 0o644;
/// A token is for its owner alone, where all containers share one user (A9.11).
const TOKEN_MODE: u32 = 0o600;
/// kubelet's default for `expirationSeconds`.
const TOKEN_SECONDS: i64 = 3600;

/// Where the content of volumes comes from.
pub(super) struct Sources<'a> {
    pub(super) pod: &'a Pod,
    pub(super) reference: &'a PodRef,
    pub(super) node: &'a NodeSnapshot,
    pub(super) objects: &'a dyn ObjectApi,
    pub(super) tokens: &'a Tokens,
    pub(super) now: Timestamp,
}

/// Keys and what they hold.
type Content = BTreeMap<String, Vec<u8>>;

impl Sources<'_> {
    /// The files of a volume; `None`: it is of another kind.
    pub(super) async fn payload(&self, volume: &Volume) -> Result<Option<Payload>, VolumeError> {
        let mut payload = Payload::new();
        if let Some(source) = &volume.config_map {
            let optional = source.optional.unwrap_or_default();
            let content = self.config_map(&source.name, optional).await?;
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            pick(&mut payload, content, source.items.as_deref(), mode, optional, "config")?;
        } else if let Some(source) = &volume.secret {
            let optional = source.optional.unwrap_or_default();
            let name = source.secret_name.as_deref().unwrap_or_default();
            let content = self.secret(name, optional).await?;
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            pick(&mut payload, content, source.items.as_deref(), mode, optional, "secret")?;
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            self.downward(&mut payload, source.items.as_deref().unwrap_or_default(), mode)?;
        } else if let Some(source) = &volume.projected {
            self.projected(&mut payload, source).await?;
        } else {
            return Ok(None);
        }
        Ok(Some(payload))
    }

    async fn projected(&self, payload: &mut Payload, volume: &ProjectedVolumeSource) -> Result<(), VolumeError> {
        let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
        for source in volume.sources.iter().flatten() {
            if let Some(part) = &source.config_map {
                let optional = part.optional.unwrap_or_default();
                let content = self.config_map(&part.name, optional).await?;
                pick(payload, content, part.items.as_deref(), mode, optional, "config")?;
            } else if let Some(part) = &source.secret {
                let optional = part.optional.unwrap_or_default();
                let content = self.secret(&part.name, optional).await?;
                pick(payload, content, part.items.as_deref(), mode, optional, "secret")?;
            } else if let Some(part) = &source.downward_api {
                self.downward(payload, part.items.as_deref().unwrap_or_default(), mode)?;
            } else if let Some(part) = &source.service_account_token {
                self.token(payload, part, mode).await?;
            } else if let Some(part) = &source.cluster_trust_bundle {
                self.trust_bundle(payload, part, mode).await?;
            } else {
                return Err(VolumeError::Other("this node does not support podCertificate projections".to_owned()));
            }
        }
        Ok(())
    }

    async fn trust_bundle(
        &self,
        payload: &mut Payload,
        source: &ClusterTrustBundleProjection,
        default_mode: i32,
    ) -> Result<(), VolumeError> {
        let choice = if let Some(name) = &source.name {
            TrustBundles::Named(name.clone())
        } else if let Some(signer) = &source.signer_name {
            // No selector chooses nothing, an empty one everything.
            match &source.label_selector {
                Some(selector) => TrustBundles::Signer(signer.clone(), selector.clone()),
                None => {
                    return Err(VolumeError::Other(format!("no label selector for the bundles of signer {signer}")));
                }
            }
        } else {
            let text = "ClusterTrustBundle projection requires either name or signerName to be set";
            return Err(VolumeError::Other(text.to_owned()));
        };
        let texts = match self.objects.trust_bundles(&choice).await {
            Err(ApiError::NotFound(_)) if source.optional.unwrap_or_default() => Vec::new(),
            other => other?,
        };
        if texts.is_empty() && !source.optional.unwrap_or_default() {
            let text = match choice {
                TrustBundles::Named(name) => format!("clustertrustbundle \"{name}\" not found"),
                TrustBundles::Signer(signer, _) => {
                    format!("no trust bundles found for signer {signer} and the label selector")
                }
            };
            return Err(VolumeError::Other(text));
        }
        let content = certificates(&texts).into_bytes();
        payload.insert(source.path.clone(), File { content, mode: mode(default_mode), uid: shared_user(self.pod) });
        Ok(())
    }

    async fn config_map(&self, name: &str, optional: bool) -> Result<Content, VolumeError> {
        match self.objects.config_map(&self.reference.namespace, name).await? {
            Some(object) => Ok(config_map_content(&object)),
            None if optional => Ok(Content::new()),
            None => Err(VolumeError::NoObject { kind: "configmap", name: name.to_owned() }),
        }
    }

    async fn secret(&self, name: &str, optional: bool) -> Result<Content, VolumeError> {
        match self.objects.secret(&self.reference.namespace, name).await? {
            Some(object) => Ok(secret_content(&object)),
            None if optional => Ok(Content::new()),
            None => Err(VolumeError::NoObject { kind: "secret", name: name.to_owned() }),
        }
    }

    fn downward(
        &self,
        payload: &mut Payload,
        items: &[DownwardAPIVolumeFile],
        default_mode: i32,
    ) -> Result<(), VolumeError> {
        for item in items {
            let text = if let Some(field) = &item.field_ref {
                fields::field(self.pod, &field.field_path)?
            } else if let Some(resource) = &item.resource_field_ref {
                fields::resource(self.pod, None, resource, &self.node.allocatable)?
            } else {
                String::new()
            };
            let mode = mode(item.mode.unwrap_or(default_mode));
            payload.insert(item.path.clone(), File { content: text.into_bytes(), mode, uid: None });
        }
        Ok(())
    }

    async fn token(
        &self,
        payload: &mut Payload,
        source: &ServiceAccountTokenProjection,
        default_mode: i32,
    ) -> Result<(), VolumeError> {
        let spec = self.pod.spec.as_ref();
        let account = spec.and_then(|s| s.service_account_name.as_deref()).filter(|n| !n.is_empty());
        let account = account.unwrap_or("default");
        let audiences: Vec<String> = source.audience.iter().filter(|a| !a.is_empty()).cloned().collect();
        let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let tokens = self.tokens;
        let token = tokens.get(self.objects, self.reference, account, &audiences, seconds, self.now).await?;
        let owner = shared_user(self.pod);
        let mode = if owner.is_some() { TOKEN_MODE } else { mode(default_mode) };
        payload.insert(source.path.clone(), File { content: token.token.into_bytes(), mode, uid: owner });
        Ok(())
    }
}

/// The certificates of PEM texts, each once, in an order that does not depend on that of the texts.
fn certificates(texts: &[String]) -> String {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let mut all = BTreeSet::new();
    for text in texts {
        for block in text.split(begin).skip(1) {
            if let Some((body, _)) = block.split_once(end) {
                all.insert(format!("{begin}{body}{end}\n"));
            }
        }
    }
    all.into_iter().collect()
}

/// The ConfigMaps and Secrets that the pod's volumes show.
pub(super) fn objects_of(pod: &Pod) -> BTreeSet<ObjectName> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let volumes = || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let projected =
        || volumes().flat_map(|v| v.projected.iter()).flat_map(|projected| projected.sources.iter().flatten());
    let maps = volumes().filter_map(|v| Some(v.config_map.as_ref()?.name.clone()));
    let maps = maps.chain(projected().filter_map(|s| Some(s.config_map.as_ref()?.name.clone())));
    let secrets = volumes().filter_map(|v| v.secret.as_ref()?.secret_name.clone());
    let secrets = secrets.chain(projected().filter_map(|s| Some(s.secret.as_ref()?.name.clone())));
    let maps = maps.map(|name| ObjectName::ConfigMap(namespace.clone(), name));
    maps.chain(secrets.map(|name| ObjectName::Secret(namespace.clone(), name))).collect()
}

/// What a ConfigMap holds, text and binary.
fn config_map_content(object: &ConfigMap) -> Content {
    let text = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, ByteString(value))| (key.clone(), value.clone()));
    text.chain(binary).collect()
}

fn secret_content(object: &Secret) -> Content {
    object.data.iter().flatten().map(|(key, ByteString(value))| (key.clone(), value.clone())).collect()
}

/// Chooses keys and their paths.
fn pick(
    payload: &mut Payload,
    content: Content,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
    kind: &'static str,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let mode = mode(default_mode);
        payload.extend(content.into_iter().map(|(path, content)| (path, File { content, mode, uid: None })));
        return Ok(());
    };
    for item in items {
        match content.get(&item.key) {
            Some(content) => {
                let mode = mode(item.mode.unwrap_or(default_mode));
                payload.insert(item.path.clone(), File { content: content.clone(), mode, uid: None });
            }
            None if optional => {}
            None => return Err(VolumeError::NoKey { kind, key: item.key.clone() }),
        }
    }
    Ok(())
}

fn mode(value: i32) -> u32 {
    u32::try_from(value).unwrap_or_default() & 0o7777
}

/// The user that all containers of the pod run as, if it is one and the same (A9.11).
fn shared_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = containers.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}
