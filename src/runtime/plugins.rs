//! Programs that know a registry's password (`credentialprovider.kubelet.k8s.io`, A14.4): asked on standard input, their answers
//! kept for as long as they say.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stoker_model::handle::{ApiError, ObjectApi, ServiceAccountInfo};
use stoker_model::pod::{PodRef, PodUid};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::credentials::{Keyring, matches, repository};
use super::images::{Credential, SecretRef};
use crate::clock::Clock;

/// A program that has not answered by then is ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// What an answer for all registries is kept under; no image has this name.
const EVERYWHERE: &str = "";
/// How long a token is asked for: what the API server gives who does not say.
const TOKEN_SECONDS: i64 = 3600;
/// A token with less left is not handed on: kubelet asks anew after four fifths of the time.
const TOKEN_RESERVE: i64 = TOKEN_SECONDS / 5;

/// One program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plugin {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its variables beside ours.
    pub env: Vec<(String, String)>,
    /// The version that it speaks.
    pub api_version: String,
    /// Which images it is asked about.
    pub match_images: Vec<String>,
    /// How long an answer holds that does not say.
    pub default_cache: Duration,
    /// It is told whose pod asks.
    pub tokens: Option<PluginTokens>,
}

/// How a program learns whose pod asks: by a token of the pod's service account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PluginTokens {
    /// Whom the token is for.
    pub audience: String,
    /// Pods without a service account are not asked for.
    pub required: bool,
    /// An answer holds for one token, not for all of the service account's.
    pub per_token: bool,
    /// Annotations that the service account must have for the program to be asked; it is told them.
    pub required_annotations: Vec<String>,
    /// Those that it is told where they are.
    pub optional_annotations: Vec<String>,
}

/// The pod that an image is for.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// The pod.
    pub pod: &'a PodRef,
    /// Its service account; empty: none.
    pub account: &'a str,
    /// Where tokens come from.
    pub objects: &'a dyn ObjectApi,
}

impl std::fmt::Debug for Asker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("pod", self.pod).field("account", &self.account).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'a str,
    api_version: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<String, String>,
}

/// A pod's service account, as one program is told of it.
#[derive(Default)]
struct Account {
    /// `None`: the program is not told of any.
    reference: Option<SecretRef>,
    token: String,
    annotations: BTreeMap<String, String>,
    /// What answers for it are kept under; empty: for everybody.
    key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Why a program gave no credentials.
#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("it could not be run: {0}")]
    Run(#[from] std::io::Error),
    #[error("it did not answer within a minute")]
    Late,
    #[error("it ended with {0}: {1}")]
    Failed(std::process::ExitStatus, String),
    #[error("its answer cannot be read: {0}")]
    Answer(String),
    #[error("failed to get service account: {0}")]
    Account(ApiError),
    #[error("failed to get service account token: {0}")]
    Token(ApiError),
    #[error(
        "it returned the service account token as the password, which is not allowed unless its cacheType is Token"
    )]
    TokenAsPassword,
}

type Credentials = Arc<Vec<(String, Credential)>>;
/// By plugin, then by image, registry or [`EVERYWHERE`], then by account; until when (monotonic).
type Kept = HashMap<(usize, String, String), (Duration, Credentials)>;
/// Of a pod for a program, by the account's UID; until when (wall time) it is handed on.
type Tokens = HashMap<(usize, PodUid, String), (jiff::Timestamp, String)>;

/// All programs of this node, with what they answered.
#[derive(Clone, Debug, Default)]
pub struct Plugins(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    plugins: Vec<Plugin>,
    kept: Mutex<Kept>,
    tokens: Mutex<Tokens>,
}

impl Plugins {
    /// Nothing is asked yet.
    pub fn new(plugins: Vec<Plugin>) -> Self {
        Self(Arc::new(Inner { plugins, ..Inner::default() }))
    }

    /// Adds what the programs know about an image. One that fails is told of, and the others are asked all the same.
    pub async fn add_to(&self, keyring: &mut Keyring, image: &str, asker: &Asker<'_>) {
        let image = repository(image);
        for (index, plugin) in self.0.plugins.iter().enumerate() {
            if !plugin.match_images.iter().any(|glob| matches(glob, &image)) {
                continue;
            }
            match self.ask(index, plugin, &image, asker).await {
                Ok(found) => {
                    for (place, credential) in found.iter() {
                        keyring.insert(place, credential.clone());
                    }
                }
                Err(error) => {
                    tracing::warn!(program = %plugin.program.display(), image, %error, "a credential provider failed");
                }
            }
        }
    }

    fn kept(&self, index: usize, image: &str, account: &str) -> Option<Credentials> {
        let now = Clock.now().monotonic;
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (until, _)| now <= *until);
        [image, registry(image), EVERYWHERE]
            .into_iter()
            .find_map(|key| kept.get(&(index, key.to_owned(), account.to_owned())).map(|(_, found)| found.clone()))
    }

    async fn ask(
        &self,
        index: usize,
        plugin: &Plugin,
        image: &str,
        asker: &Asker<'_>,
    ) -> Result<Credentials, PluginError> {
        let account = match &plugin.tokens {
            None => Account::default(),
            Some(tokens) => match self.account(index, tokens, asker).await? {
                Some(account) => account,
                // It has nothing to say about this pod.
                None => return Ok(Credentials::default()),
            },
        };
        if let Some(found) = self.kept(index, image, &account.key) {
            return Ok(found);
        }
        let response = run(plugin, image, &account).await?;
        let per_account = plugin.tokens.as_ref().is_some_and(|tokens| !tokens.per_token);
        let is_token = |auth: &Auth| !account.token.is_empty() && auth.password == account.token;
        if per_account && response.auth.iter().flatten().any(|(_, auth)| is_token(auth)) {
            // A pod's token must not serve another pod.
            return Err(PluginError::TokenAsPassword);
        }
        let key = match response.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => registry(image),
            "Global" => EVERYWHERE,
            other => {
                return Err(PluginError::Answer(format!("cacheKeyType {other:?} is none of Image, Registry, Global")));
            }
        };
        let lifetime = match &response.cache_duration {
            None => plugin.default_cache,
            Some(text) => duration(text).ok_or_else(|| PluginError::Answer(format!("cacheDuration {text:?}")))?,
        };
        let credential = |auth: Auth| Credential {
            username: auth.username,
            password: auth.password,
            account: account.reference.clone(),
            ..Credential::default()
        };
        let auth = response.auth.unwrap_or_default().into_iter();
        let found: Credentials = Arc::new(auth.map(|(place, auth)| (place, credential(auth))).collect());
        if !lifetime.is_zero() {
            let until = Clock.now().monotonic + lifetime;
            let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert((index, key.to_owned(), account.key), (until, found.clone()));
        }
        Ok(found)
    }

    /// The account of the pod that asks, with what the program wants to know of it. `None`: it is not to be asked.
    async fn account(
        &self,
        index: usize,
        wanted: &PluginTokens,
        asker: &Asker<'_>,
    ) -> Result<Option<Account>, PluginError> {
        let (pod, name) = (asker.pod, asker.account);
        if name.is_empty() {
            return Ok((!wanted.required).then(Account::default));
        }
        let missing = || ApiError::NotFound(format!("serviceaccounts {name:?} not found"));
        let found = asker.objects.service_account(&pod.namespace, name).await.map_err(PluginError::Account)?;
        let ServiceAccountInfo { uid, annotations } = found.ok_or_else(|| PluginError::Account(missing()))?;
        let all = wanted.required_annotations.iter().chain(&wanted.optional_annotations);
        let told: BTreeMap<String, String> =
            all.filter_map(|key| Some((key.clone(), annotations.get(key)?.clone()))).collect();
        if let Some(absent) = wanted.required_annotations.iter().find(|key| !told.contains_key(*key)) {
            tracing::debug!(%pod, account = name, "required annotation {absent} not found");
            return Ok(None);
        }
        let token = self.token(index, wanted, asker, &uid).await?;
        // JSON keeps apart what a plain separator would not.
        let mut key = serde_json::json!([pod.namespace, name, uid, told]);
        if wanted.per_token
            && let Some(parts) = key.as_array_mut()
        {
            parts.extend([pod.uid.as_str().into(), hex::encode(Sha256::digest(token.as_bytes())).into()]);
        }
        let reference = Some(SecretRef { namespace: pod.namespace.clone(), name: name.to_owned(), uid });
        Ok(Some(Account { reference, token, annotations: told, key: key.to_string() }))
    }

    /// A token of the pod's account for the program's audience; one that was given lately serves again.
    async fn token(
        &self,
        index: usize,
        wanted: &PluginTokens,
        asker: &Asker<'_>,
        account: &str,
    ) -> Result<String, PluginError> {
        let now = Clock.now().wall;
        let key = (index, asker.pod.uid.clone(), account.to_owned());
        let lock = || self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        lock().retain(|_, (until, _)| *until > now);
        if let Some((_, token)) = lock().get(&key) {
            return Ok(token.clone());
        }
        let audiences = [wanted.audience.clone()];
        let asked = asker.objects.service_account_token(asker.pod, asker.account, &audiences, TOKEN_SECONDS);
        let given = asked.await.map_err(PluginError::Token)?;
        let until = given.expires.checked_sub(jiff::SignedDuration::from_secs(TOKEN_RESERVE)).unwrap_or(now);
        lock().insert(key, (until, given.token.clone()));
        Ok(given.token)
    }
}

/// The part of a repository's name before the first slash.
fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

/// A duration as Go writes it into JSON: `1h30m0s`, `100ms`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, left) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        rest = left;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
    }
    (!text.is_empty()).then_some(total)
}

async fn run(plugin: &Plugin, image: &str, account: &Account) -> Result<Response, PluginError> {
    let request = Request {
        kind: "CredentialProviderRequest",
        api_version: &plugin.api_version,
        image,
        service_account_token: &account.token,
        service_account_annotations: &account.annotations,
    };
    let request = serde_json::to_vec(&request).map_err(|error| PluginError::Answer(error.to_string()))?;
    let mut child = Command::new(&plugin.program)
        .args(&plugin.args)
        .envs(plugin.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read may answer all the same.
        let _ = input.write_all(&request).await;
    }
    let output = timeout(PATIENCE, child.wait_with_output()).await.map_err(|_| PluginError::Late)??;
    if !output.status.success() {
        return Err(PluginError::Failed(output.status, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let response: Response =
        serde_json::from_slice(&output.stdout).map_err(|error| PluginError::Answer(error.to_string()))?;
    if response.api_version != plugin.api_version || response.kind != "CredentialProviderResponse" {
        let found = format!("{} {}", response.api_version, response.kind);
        return Err(PluginError::Answer(format!("{found:?} where {:?} was expected", plugin.api_version)));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    /// A program that notes each question and answers alike.
    fn plugin(folder: &Path, name: &str, key: &str, more: &str) -> Plugin {
        let program = folder.join(name);
        let answer = format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{key}",{more}"auth":{{"*.example":{{"username":"'$1'","password":"'$SECRET'"}}}}}}"#
        );
        std::fs::write(&program, format!("#!/bin/sh\ncat >> $0.asked\necho >> $0.asked\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Plugin {
            program,
            args: vec!["robot".into()],
            env: vec![("SECRET".into(), "s3cret".into())],
            api_version: "credentialprovider.kubelet.k8s.io/v1".into(),
            match_images: vec!["*.example".into()],
            default_cache: Duration::from_secs(60),
            tokens: None,
        }
    }

    /// An API server that knows one account, and gives each token once.
    #[derive(Default)]
    struct Cluster {
        asked: Mutex<Vec<String>>,
    }

    #[async_trait::async_trait]
    impl ObjectApi for Cluster {
        async fn config_map(
            &self,
            _: &str,
            _: &str,
        ) -> Result<Option<Arc<k8s_openapi::api::core::v1::ConfigMap>>, ApiError> {
            Ok(None)
        }

        async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<k8s_openapi::api::core::v1::Secret>>, ApiError> {
            Ok(None)
        }

        async fn service_account(&self, _: &str, name: &str) -> Result<Option<ServiceAccountInfo>, ApiError> {
            let annotations = [("role", "puller"), ("other", "x")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let found = ServiceAccountInfo { uid: format!("{name}-uid"), annotations };
            Ok((name != "absent").then_some(found))
        }

        async fn service_account_token(
            &self,
            pod: &PodRef,
            account: &str,
            audiences: &[String],
            seconds: i64,
        ) -> Result<stoker_model::handle::BoundToken, ApiError> {
            let mut asked = self.asked.lock().unwrap();
            asked.push(format!("{} {account} {audiences:?} {seconds}", pod.name));
            let token = format!("token-{}", asked.len());
            Ok(stoker_model::handle::BoundToken { token, expires: "2099-01-01T00:00:00Z".parse().unwrap() })
        }
    }

    fn reference(name: &str) -> PodRef {
        PodRef { namespace: "ns".into(), name: name.into(), uid: PodUid::new(&format!("{name}-uid")) }
    }

    #[tokio::test]
    async fn programs_are_told_whose_pod_asks() {
        // A14.4: tokenAttributes
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::default();
        let tokens = |per_token| PluginTokens {
            audience: "r.example".into(),
            required: true,
            per_token,
            required_annotations: vec!["role".into()],
            optional_annotations: vec!["zone".into(), "other".into()],
        };
        let with = |name: &str, tokens| Plugin { tokens: Some(tokens), ..plugin(folder.path(), name, "Registry", "") };
        let count = |plugins: &Plugins, pod: &'static str, account: &'static str| {
            let (plugins, cluster) = (plugins.clone(), &cluster);
            async move {
                let (mut keyring, pod) = (Keyring::default(), reference(pod));
                plugins.add_to(&mut keyring, "a.example/x", &Asker { pod: &pod, account, objects: cluster }).await;
                keyring.lookup("a.example/x")
            }
        };

        // For the account: its second pod gets what was kept.
        let shared = with("shared", tokens(false));
        let plugins = Plugins::new(vec![shared.clone()]);
        for pod in ["p", "p", "q"] {
            let found = count(&plugins, pod, "builder").await;
            let account = SecretRef { namespace: "ns".into(), name: "builder".into(), uid: "builder-uid".into() };
            assert_eq!(found[0].account, Some(account), "{pod}");
        }
        assert_eq!(*cluster.asked.lock().unwrap(), ["p", "q"].map(|pod| format!("{pod} builder [\"r.example\"] 3600")));
        assert_eq!(count(&plugins, "r", "other").await.len(), 1);
        let told = asked(&shared);
        assert_eq!(told.len(), 2, "once for each account: {told:?}");
        let first: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
        assert_eq!(first["serviceAccountToken"], "token-1");
        assert_eq!(first["serviceAccountAnnotations"], serde_json::json!({"role": "puller", "other": "x"}));
        assert!(count(&plugins, "p", "").await.is_empty(), "it needs an account");
        assert!(count(&plugins, "p", "absent").await.is_empty());

        // For the token: each pod asks for itself.
        let own = with("own", tokens(true));
        let plugins = Plugins::new(vec![own.clone()]);
        for pod in ["p", "p", "q"] {
            count(&plugins, pod, "builder").await;
        }
        assert_eq!(asked(&own).len(), 2);

        // Who lacks a required annotation is not asked for, and without an account only where that may be.
        let marked = PluginTokens { required_annotations: vec!["role".into(), "missing".into()], ..tokens(false) };
        let free = PluginTokens { required: false, required_annotations: Vec::new(), ..tokens(false) };
        let (marked, free) = (with("marked", marked), with("free", free));
        let plugins = Plugins::new(vec![marked.clone(), free.clone()]);
        let found = count(&plugins, "p", "").await;
        assert_eq!((found.len(), found[0].account.clone()), (1, None));
        assert_eq!(count(&plugins, "p", "builder").await.len(), 1);
        assert_eq!((asked(&marked).len(), asked(&free).len()), (0, 2));
        let first: serde_json::Value = serde_json::from_str(&asked(&free)[0]).unwrap();
        assert!(first.get("serviceAccountToken").is_none() && first.get("serviceAccountAnnotations").is_none());

        // A token is no password for other pods.
        for (per_token, expected) in [(false, 0), (true, 1)] {
            let mut echo = with(&format!("echo{per_token}"), tokens(per_token));
            let next = cluster.asked.lock().unwrap().len() + 1;
            echo.env = vec![("SECRET".into(), format!("token-{next}"))];
            let plugins = Plugins::new(vec![echo]);
            assert_eq!(count(&plugins, "p", "builder").await.len(), expected, "{per_token}");
        }
    }

    fn asked(plugin: &Plugin) -> Vec<String> {
        let notes = std::fs::read_to_string(
            plugin.program.with_file_name(format!("{}.asked", plugin.program.file_name().unwrap().to_string_lossy())),
        );
        notes.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn programs_are_asked_and_their_answers_kept_as_they_say() {
        // A14.4
        let folder = tempfile::tempdir().unwrap();
        for (name, key, more, expected) in [
            ("image", "Image", "", 2),
            ("registry", "Registry", "", 1),
            ("global", "Global", r#""cacheDuration":"1h0m0s","#, 1),
            ("never", "Image", r#""cacheDuration":"0s","#, 3),
        ] {
            let plugin = plugin(folder.path(), name, key, more);
            let plugins = Plugins::new(vec![plugin.clone()]);
            for image in ["a.example/x:1", "a.example/y:1", "a.example/x:1", "b.other/x"] {
                let mut keyring = Keyring::default();
                let (pod, cluster) = (reference("p"), Cluster::default());
                let asker = Asker { pod: &pod, account: "builder", objects: &cluster };
                plugins.add_to(&mut keyring, image, &asker).await;
                let found = keyring.lookup(image);
                if image.starts_with("a.example") {
                    assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("robot", "s3cret"), "{name}");
                } else {
                    assert!(found.is_empty());
                }
            }
            let asked = asked(&plugin);
            assert_eq!(asked.len(), expected, "{name}: {asked:?}");
            let first: serde_json::Value = serde_json::from_str(&asked[0]).unwrap();
            assert_eq!(first["kind"], "CredentialProviderRequest");
            assert_eq!(first["image"], "a.example/x");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_is_passed_over() {
        // A14.4
        let folder = tempfile::tempdir().unwrap();
        let mut broken = plugin(folder.path(), "broken", "Nonsense", "");
        let absent = Plugin { program: folder.path().join("absent"), ..broken.clone() };
        let good = plugin(folder.path(), "good", "Image", "");
        let plugins = Plugins::new(vec![absent, broken.clone(), good]);
        let mut keyring = Keyring::default();
        let (pod, cluster) = (reference("p"), Cluster::default());
        plugins.add_to(&mut keyring, "a.example/x", &Asker { pod: &pod, account: "", objects: &cluster }).await;
        assert_eq!(keyring.lookup("a.example/x").len(), 1);
        broken.api_version = "credentialprovider.kubelet.k8s.io/v1beta1".into();
        assert!(
            run(&broken, "a.example/x", &Account::default())
                .await
                .is_err_and(|error| error.to_string().contains("was expected"))
        );
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [("1h30m0s", Some(5400)), ("0s", Some(0)), ("0", Some(0)), ("5", None), ("", None)] {
            assert_eq!(duration(text), expected.map(Duration::from_secs), "{text}");
        }
    }
}
