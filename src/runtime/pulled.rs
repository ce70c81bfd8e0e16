//! Who may use an image that is there already: what was pulled with somebody's secret is not everybody's (A14.6). The records are
//! kubelet's files, so that a node may change from one to the other.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::cri;
use super::images::{Credential, SecretRef};
use crate::clock::Clock;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// A record takes in so many secrets that were not used for a pull of their own.
const MANY: usize = 100;

/// kubelet's `imagePullCredentialsVerificationPolicy`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum VerificationPolicy {
    /// Whoever runs here may use what is here.
    NeverVerify,
    /// Only what the agent has pulled belongs to whoever had it pulled.
    #[default]
    NeverVerifyPreloadedImages,
    /// Everything but these belongs to whoever had it pulled: names without tags, or beginnings that end with `/*`.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// Everything belongs to whoever had it pulled.
    AlwaysVerify,
}

/// Why a policy cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPolicy {
    /// No such policy.
    #[error(
        "imagePullCredentialsVerificationPolicy: {0:?} must be one of NeverVerify, NeverVerifyPreloadedImages, \
         NeverVerifyAllowlistedImages, AlwaysVerify"
    )]
    Unknown(String),
    /// The list belongs to another policy.
    #[error("preloadedImagesVerificationAllowlist: only counts with NeverVerifyAllowlistedImages: take it out")]
    ListWithout,
    /// A pattern that is none.
    #[error(
        "preloadedImagesVerificationAllowlist: {0:?}: write a name without tag and digest, or a beginning of names that ends with /*"
    )]
    Pattern(String),
}

impl VerificationPolicy {
    /// Reads the two fields.
    ///
    /// # Errors
    /// Names the field and what is wrong with it.
    pub fn new(policy: &str, allowlist: &[String]) -> Result<Self, BadPolicy> {
        let read = match policy {
            "NeverVerify" => Self::NeverVerify,
            "NeverVerifyPreloadedImages" => Self::NeverVerifyPreloadedImages,
            "AlwaysVerify" => Self::AlwaysVerify,
            "NeverVerifyAllowlistedImages" => {
                let is_fit = |pattern: &&String| {
                    let name = pattern.strip_suffix('*').filter(|name| name.ends_with('/')).unwrap_or(pattern);
                    !name.contains('*') && !matches!(name, "" | "/") && name.trim() == name && bare(name) == name
                };
                if let Some(wrong) = allowlist.iter().find(|pattern| !is_fit(pattern)) {
                    return Err(BadPolicy::Pattern(wrong.clone()));
                }
                return Ok(Self::NeverVerifyAllowlistedImages(allowlist.to_vec()));
            }
            other => return Err(BadPolicy::Unknown(other.to_owned())),
        };
        if allowlist.is_empty() { Ok(read) } else { Err(BadPolicy::ListWithout) }
    }

    fn verifies(&self, image: &str, was_pulled: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => was_pulled,
            Self::AlwaysVerify => true,
            Self::NeverVerifyAllowlistedImages(allowed) => {
                let name = bare(image);
                !allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                    Some(beginning) => name.starts_with(beginning),
                    None => name == pattern,
                })
            }
        }
    }
}

/// An image without tag and digest, otherwise as it was written.
fn bare(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => name,
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kind: String,
    api_version: String,
    last_updated_time: Timestamp,
    image_ref: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Accepted>,
}

/// What opened a registry for an image.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Accepted {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<Secret>,
    /// Those that a program gave credentials for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<Account>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    namespace: String,
    name: String,
    uid: String,
    credential_hash: String,
}

impl Secret {
    fn of(credential: &Credential) -> Option<Self> {
        let SecretRef { namespace, name, uid } = credential.secret.clone()?;
        Some(Self { namespace, name, uid, credential_hash: hash(credential) })
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&other.namespace, &other.name, &other.uid)
    }
}

/// A ServiceAccount; sorted as kubelet sorts them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    namespace: String,
    name: String,
    uid: String,
}

impl Account {
    fn of(credential: &Credential) -> Option<Self> {
        let SecretRef { namespace, name, uid } = credential.account.clone()?;
        Some(Self { namespace, name, uid })
    }
}

impl Accepted {
    /// What opened the registry: a pod's own, or what the node has for all, or nothing.
    fn by(credential: Option<&Credential>) -> Self {
        let secrets: Vec<Secret> = credential.and_then(Secret::of).into_iter().collect();
        let accounts: Vec<Account> = credential.and_then(Account::of).into_iter().collect();
        let node_pods_accessible = secrets.is_empty() && accounts.is_empty();
        Self { kubernetes_secrets: secrets, kubernetes_service_accounts: accounts, node_pods_accessible }
    }
}

/// The digest that kubelet makes: of the credential as Go's JSON has it.
fn hash(credential: &Credential) -> String {
    #[derive(Serialize)]
    struct AuthConfig<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        username: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        password: &'a str,
    }
    let config = AuthConfig { username: &credential.username, password: &credential.password };
    let text = serde_json::to_string(&config).unwrap_or_default();
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    hex::encode(Sha256::digest(text.as_bytes()))
}

fn file_name(of: &str) -> String {
    format!("sha256-{}", hex::encode(Sha256::digest(of.as_bytes())))
}

/// The records of one node. What cannot be written or read makes pulls more frequent, never images more open.
#[derive(Debug)]
pub struct PullRecords {
    dir: PathBuf,
    policy: VerificationPolicy,
    clock: Clock,
    /// Pulls under way by image. Also keeps two from writing one record.
    under_way: Mutex<HashMap<String, usize>>,
}

impl PullRecords {
    /// Below kubelet's root directory.
    pub fn new(root_dir: &Path, policy: VerificationPolicy, clock: Clock) -> Self {
        Self { dir: root_dir.join("image_manager"), policy, clock, under_way: Mutex::default() }
    }

    fn pulling(&self, image: &str) -> PathBuf {
        self.dir.join("pulling").join(file_name(image))
    }

    fn pulled(&self, id: &str) -> PathBuf {
        self.dir.join("pulled").join(file_name(id))
    }

    /// A pull begins: should the agent die meanwhile, the image is known to be nobody's in particular.
    ///
    /// # Errors
    /// When that cannot be written: then nothing is pulled that would be everybody's afterwards.
    pub(super) fn begin(&self, image: &str) -> io::Result<()> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let intent =
            Intent { kind: "ImagePullIntent".into(), api_version: API_VERSION.into(), image: image.to_owned() };
        write(&self.pulling(image), &intent)?;
        *under_way.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// A pull has ended: with the image's ID and the credential that opened the registry, if it succeeded.
    pub(super) fn end(&self, image: &str, pulled: Option<(&str, Option<&Credential>)>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, credential)) = pulled
            && let Err(error) = self.add(image, id, Some(Accepted::by(credential)))
        {
            // The intent stays: it keeps the image from being everybody's.
            warn!(image, %error, "not recorded who may use the image");
            return;
        }
        let count = under_way.get(image).copied().unwrap_or_default();
        if count > 1 {
            under_way.insert(image.to_owned(), count - 1);
            return;
        }
        match fs::remove_file(self.pulling(image)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(image, %error, "a pull stays recorded as under way")
            }
            _ => drop(under_way.remove(image)),
        }
    }

    /// What a former agent began to pull, and is there, is nobody's in particular.
    pub fn adopt(&self, images: &[cri::Image]) {
        let _guard = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        for intent in read_all::<Intent>(&self.dir.join("pulling")) {
            let is_it = |image: &&cri::Image| {
                image.repo_tags.iter().chain(&image.repo_digests).any(|name| *name == intent.image)
            };
            let Some(image) = images.iter().find(is_it) else { continue };
            match self.add(&intent.image, &image.id, None) {
                Ok(()) => drop(fs::remove_file(self.pulling(&intent.image))),
                Err(error) => warn!(image = intent.image, %error, "not recorded that the image was pulled"),
            }
        }
    }

    /// Forgets images that are gone; `since`: what was written later is left alone.
    pub(super) fn retain(&self, images: &[cri::Image], since: Timestamp) {
        let _guard = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        for record in read_all::<Record>(&self.dir.join("pulled")) {
            let present = images.iter().any(|image| image.id == record.image_ref);
            if !present && record.last_updated_time < since {
                let _ = fs::remove_file(self.pulled(&record.image_ref));
            }
        }
    }

    /// Whether a pod may use the image with that ID only after another pull: it has none of the credentials that opened it before.
    /// `credentials` are only asked for when they matter.
    pub(super) async fn must_pull(
        &self,
        image: &str,
        id: &str,
        credentials: impl Future<Output = Vec<Credential>> + Send,
    ) -> bool {
        let record = match read::<Record>(&self.pulled(id)) {
            Ok(record) => record,
            Err(error) => {
                warn!(image, %error, "cannot read who may use the image: it is pulled again");
                return true;
            }
        };
        let was_pulled = record.is_some() || self.pulling(image).exists();
        if !self.policy.verifies(image, was_pulled) {
            return false;
        }
        let Some(accepted) = record.and_then(|mut record| record.credential_mapping.remove(bare(image))) else {
            return true;
        };
        if accepted.node_pods_accessible {
            return false;
        }
        if accepted.kubernetes_secrets.is_empty() && accepted.kubernetes_service_accounts.is_empty() {
            return true;
        }
        let credentials = credentials.await;
        for own in credentials.iter().filter_map(Secret::of) {
            let same_content = |known: &Secret| known.credential_hash == own.credential_hash;
            let same_secret = |known: &Secret| known.is_same(&own);
            if !accepted.kubernetes_secrets.iter().any(|known| same_content(known) || same_secret(known)) {
                continue;
            }
            let is_new = !accepted.kubernetes_secrets.contains(&own);
            if is_new && accepted.kubernetes_secrets.len() < MANY {
                let _guard = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
                let accepted = Accepted { kubernetes_secrets: vec![own], ..Accepted::default() };
                if let Err(error) = self.add(image, id, Some(accepted)) {
                    warn!(image, %error, "not recorded that another secret opens the image");
                }
            }
            return false;
        }
        // A pod has one service account.
        let account = credentials.iter().find_map(Account::of);
        account.is_none_or(|account| !accepted.kubernetes_service_accounts.contains(&account))
    }

    /// Adds to a record what opened the image; `None`: nobody knows. The caller holds the lock.
    fn add(&self, image: &str, id: &str, accepted: Option<Accepted>) -> io::Result<()> {
        let path = self.pulled(id);
        let before = read::<Record>(&path).unwrap_or_default();
        let mut record = before.clone().unwrap_or_else(|| Record {
            kind: "ImagePulledRecord".into(),
            api_version: API_VERSION.into(),
            last_updated_time: Timestamp::UNIX_EPOCH,
            image_ref: id.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        if let Some(new) = accepted {
            let all = record.credential_mapping.entry(bare(image).to_owned()).or_default();
            if new.node_pods_accessible {
                *all = new;
            } else if !all.node_pods_accessible {
                for secret in new.kubernetes_secrets {
                    all.kubernetes_secrets.retain(|known| !known.is_same(&secret));
                    all.kubernetes_secrets.push(secret);
                }
                all.kubernetes_secrets.sort();
                for account in new.kubernetes_service_accounts {
                    if !all.kubernetes_service_accounts.contains(&account) {
                        all.kubernetes_service_accounts.push(account);
                    }
                }
                all.kubernetes_service_accounts.sort();
            }
        }
        if before.as_ref() == Some(&record) {
            return Ok(());
        }
        let now = self.clock.now().wall;
        record.last_updated_time = Timestamp::from_second(now.as_second()).unwrap_or(now);
        write(&path, &record)
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_all<T: for<'a> Deserialize<'a>>(dir: &Path) -> Vec<T> {
    let paths = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let records = paths.filter(|path| path.extension().is_none()).filter_map(|path| read(&path).ok().flatten());
    records.collect()
}

/// All of it or nothing, and for nobody else to read.
fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let fresh = path.with_extension("tmp");
    let mut file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
    io::Write::write_all(&mut file, &serde_json::to_vec(record)?)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
#[path = "pulled/tests.rs"]
mod tests;
