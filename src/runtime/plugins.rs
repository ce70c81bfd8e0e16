//! Programs that know a registry's password (`credentialprovider.kubelet.k8s.io`, A14.4): asked on standard input, their answers
//! kept for as long as they say.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::credentials::{Keyring, matches, repository};
use super::images::Credential;
use crate::clock::Clock;

/// A program that has not answered by then is ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// What an answer for all registries is kept under; no image has this name.
const EVERYWHERE: &str = "";

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
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'a str,
    api_version: &'a str,
    image: &'a str,
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
}

type Credentials = Arc<Vec<(String, Credential)>>;
/// By plugin, then by image, registry or [`EVERYWHERE`]; until when (monotonic).
type Kept = HashMap<(usize, String), (Duration, Credentials)>;

/// All programs of this node, with what they answered.
#[derive(Clone, Debug, Default)]
pub struct Plugins(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    plugins: Vec<Plugin>,
    kept: Mutex<Kept>,
}

impl Plugins {
    /// Nothing is asked yet.
    pub fn new(plugins: Vec<Plugin>) -> Self {
        Self(Arc::new(Inner { plugins, kept: Mutex::default() }))
    }

    /// Adds what the programs know about an image. One that fails is told of, and the others are asked all the same.
    pub async fn add_to(&self, keyring: &mut Keyring, image: &str) {
        let image = repository(image);
        for (index, plugin) in self.0.plugins.iter().enumerate() {
            if !plugin.match_images.iter().any(|glob| matches(glob, &image)) {
                continue;
            }
            match self.ask(index, plugin, &image).await {
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

    fn kept(&self, index: usize, image: &str) -> Option<Credentials> {
        let now = Clock.now().monotonic;
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (until, _)| now <= *until);
        [image, registry(image), EVERYWHERE]
            .into_iter()
            .find_map(|key| kept.get(&(index, key.to_owned())).map(|(_, found)| found.clone()))
    }

    async fn ask(&self, index: usize, plugin: &Plugin, image: &str) -> Result<Credentials, PluginError> {
        if let Some(found) = self.kept(index, image) {
            return Ok(found);
        }
        let response = run(plugin, image).await?;
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
        let credential =
            |auth: Auth| Credential { username: auth.username, password: auth.password, ..Credential::default() };
        let auth = response.auth.unwrap_or_default().into_iter();
        let found: Credentials = Arc::new(auth.map(|(place, auth)| (place, credential(auth))).collect());
        if !lifetime.is_zero() {
            let until = Clock.now().monotonic + lifetime;
            let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert((index, key.to_owned()), (until, found.clone()));
        }
        Ok(found)
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

async fn run(plugin: &Plugin, image: &str) -> Result<Response, PluginError> {
    let request = Request { kind: "CredentialProviderRequest", api_version: &plugin.api_version, image };
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
                plugins.add_to(&mut keyring, image).await;
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
        plugins.add_to(&mut keyring, "a.example/x").await;
        assert_eq!(keyring.lookup("a.example/x").len(), 1);
        broken.api_version = "credentialprovider.kubelet.k8s.io/v1beta1".into();
        assert!(run(&broken, "a.example/x").await.is_err_and(|error| error.to_string().contains("was expected")));
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [("1h30m0s", Some(5400)), ("0s", Some(0)), ("0", Some(0)), ("5", None), ("", None)] {
            assert_eq!(duration(text), expected.map(Duration::from_secs), "{text}");
        }
    }
}
