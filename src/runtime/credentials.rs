//! Who may pull what: Docker's configuration files, and which of their entries are for an image (A14.4).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::images::{Credential, SecretRef};

/// Where Docker Hub's credentials stand.
const HUB: &str = "index.docker.io";
/// How Docker Hub is called in a complete reference.
const HUB_NAME: &str = "docker.io";

/// A file or secret that is no configuration of Docker's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this is no configuration with registry credentials: {0}")]
pub struct BadConfig(String);

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

impl Entry {
    fn credential(self) -> Result<Credential, BadConfig> {
        let (username, password) =
            if self.auth.is_empty() { (self.username, self.password) } else { user_and_password(&self.auth)? };
        Ok(Credential { username, password, ..Credential::default() })
    }
}

/// What the field `auth` holds: base64 of `user:password`, padded or not.
fn user_and_password(auth: &str) -> Result<(String, String), BadConfig> {
    let engine = if auth.trim_end().ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
    let bytes = engine.decode(auth).map_err(|error| BadConfig(format!("the field auth is not base64: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| BadConfig("the field auth is no text".to_owned()))?;
    let (user, password) =
        text.split_once(':').ok_or_else(|| BadConfig("the field auth is not base64 of user:password".to_owned()))?;
    Ok((user.to_owned(), password.to_owned()))
}

/// Credentials by what they are for: a host, which may hold `*`, perhaps with a port and a path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keyring(BTreeMap<String, Vec<Credential>>);

impl Keyring {
    /// Takes in a `config.json`, as secrets of type `kubernetes.io/dockerconfigjson` hold it.
    ///
    /// # Errors
    /// When it cannot be read; then nothing of it is taken in.
    pub fn add_config_json(&mut self, text: &[u8]) -> Result<(), BadConfig> {
        let config: ConfigJson = serde_json::from_slice(text).map_err(|error| BadConfig(error.to_string()))?;
        self.add(config.auths.unwrap_or_default())
    }

    /// Takes in a `.dockercfg`, as secrets of type `kubernetes.io/dockercfg` hold it.
    ///
    /// # Errors
    /// When it cannot be read; then nothing of it is taken in.
    pub fn add_dockercfg(&mut self, text: &[u8]) -> Result<(), BadConfig> {
        self.add(serde_json::from_slice(text).map_err(|error| BadConfig(error.to_string()))?)
    }

    fn add(&mut self, entries: BTreeMap<String, Entry>) -> Result<(), BadConfig> {
        let read = entries.into_iter().map(|(place, entry)| Ok((key_of(&place), entry.credential()?)));
        for (key, credential) in read.collect::<Result<Vec<_>, BadConfig>>()? {
            self.0.entry(key).or_default().push(credential);
        }
        Ok(())
    }

    /// Takes in what one secret holds.
    pub fn add_secret(&mut self, entries: Self, secret: &SecretRef) {
        for (key, credentials) in entries.0 {
            let marked = credentials.into_iter().map(|c| Credential { secret: Some(secret.clone()), ..c });
            self.0.entry(key).or_default().extend(marked);
        }
    }

    /// Adds one that somebody else has found.
    pub fn insert(&mut self, place: &str, credential: Credential) {
        self.0.entry(key_of(place)).or_default().push(credential);
    }

    /// Every credential that may be for an image, the most specific first.
    pub fn lookup(&self, image: &str) -> Vec<Credential> {
        let repository = repository(image);
        let matching = self.0.iter().rev().filter(|(key, _)| matches(key, &repository));
        let found: Vec<Credential> = matching.flat_map(|(_, credentials)| credentials.clone()).collect();
        if found.is_empty() && host_of(&repository) == HUB_NAME {
            return self.0.get(HUB).cloned().unwrap_or_default();
        }
        found
    }
}

/// The key of an entry: scheme and `/v1/` or `/v2/` do not count.
fn key_of(place: &str) -> String {
    let bare = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let (host, path) = bare.split_once('/').map_or((bare, ""), |(host, path)| (host, path));
    let path = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

/// The complete name of an image's repository, without tag and digest.
pub fn repository(image: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => name,
    };
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => match (host, path.contains('/')) {
            (HUB | HUB_NAME, false) => format!("{HUB_NAME}/library/{path}"),
            (HUB, true) => format!("{HUB_NAME}/{path}"),
            _ => name.to_owned(),
        },
        Some(_) => format!("{HUB_NAME}/{name}"),
        None => format!("{HUB_NAME}/library/{name}"),
    }
}

fn host_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// Whether an entry is for a repository: the same port, as many parts of the host's name, each fitting, and the path a prefix.
pub fn matches(key: &str, repository: &str) -> bool {
    let split = |text: &str| -> (String, String, String) {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        let (host, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
            _ => (host, ""),
        };
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let (key_host, key_port, key_path) = split(key);
    let (host, port, path) = split(repository);
    let (globs, labels): (Vec<&str>, Vec<&str>) = (key_host.split('.').collect(), host.split('.').collect());
    key_port == port
        && globs.len() == labels.len()
        && path.starts_with(&key_path)
        && globs.iter().zip(labels).all(|(glob, label)| fits(glob.as_bytes(), label.as_bytes()))
}

/// Shell patterns with `*` and `?`, for one label of a host name.
fn fits(glob: &[u8], text: &[u8]) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|from| fits(rest, &text[from..])),
        Some((b'?', rest)) => text.split_first().is_some_and(|(_, text)| fits(rest, text)),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && fits(rest, text)),
    }
}

/// The credentials of the node itself: the first readable `config.json` of the usual folders, else the first `.dockercfg`. They are
/// read anew for each pull, so a change needs no restart.
pub async fn of_node(root_dir: &Path) -> Keyring {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let (root, here) = (root_dir.to_owned(), PathBuf::from("."));
    let new = [root.clone(), here.clone(), home.join(".docker"), "/.docker".into()];
    let old = [root, here, home, "/".into()];
    first_readable(&new, &old).await
}

async fn first_readable(new: &[PathBuf], old: &[PathBuf]) -> Keyring {
    let files = new.iter().map(|folder| (folder.join("config.json"), true));
    for (path, is_json) in files.chain(old.iter().map(|folder| (folder.join(".dockercfg"), false))) {
        let Ok(text) = tokio::fs::read(&path).await else { continue };
        let mut keyring = Keyring::default();
        let read = if is_json { keyring.add_config_json(&text) } else { keyring.add_dockercfg(&text) };
        match read {
            Ok(()) => return keyring,
            Err(error) => tracing::debug!(path = %path.display(), %error, "not used for pulls"),
        }
    }
    Keyring::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(places: &[&str]) -> Keyring {
        let mut keyring = Keyring::default();
        for place in places {
            let text = serde_json::json!({"auths": {*place: {"username": place, "password": "x"}}}).to_string();
            keyring.add_config_json(text.as_bytes()).unwrap();
        }
        keyring
    }

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        keyring.lookup(image).into_iter().map(|credential| credential.username).collect()
    }

    #[test]
    fn entries_are_found_by_host_port_and_path() {
        // A14.4
        for (place, image, found) in [
            ("registry.example", "registry.example/a/b:1", true),
            ("https://registry.example/v2/", "registry.example/a", true),
            ("http://registry.example/v1/a", "registry.example/a/b", true),
            ("registry.example/a", "registry.example/b", false),
            ("registry.example:5000", "registry.example/a", false),
            ("registry.example:5000", "registry.example:5000/a@sha256:00", true),
            ("*.example", "registry.example/a", true),
            ("*.example", "deep.registry.example/a", false),
            ("reg*ry.exam?le", "registry.example/a", true),
            ("https://index.docker.io/v1/", "busybox", true),
            ("index.docker.io", "docker.io/library/busybox:1", true),
            ("docker.io", "someone/image", true),
            ("index.docker.io", "registry.example/a", false),
        ] {
            assert_eq!(!users(&keyring(&[place]), image).is_empty(), found, "{place} {image}");
        }
    }

    #[test]
    fn all_that_match_are_tried_the_most_specific_first() {
        // A14.4
        let keyring = keyring(&["a.example", "a.example/team", "*.example", "a.example/team/app", "a.example/other"]);
        let tried = users(&keyring, "a.example/team/app");
        assert_eq!(tried, ["a.example/team/app", "a.example/team", "a.example", "*.example"]);
    }

    #[test]
    fn both_formats_are_read_and_nonsense_is_refused() {
        // A14.4
        let mut keyring = Keyring::default();
        keyring.add_dockercfg(br#"{"a.example": {"auth": "cm9ib3Q6czNjcmV0"}}"#).unwrap();
        let found = keyring.lookup("a.example/x");
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("robot", "s3cret"));
        keyring.add_config_json(br#"{"auths": {"b.example": {"auth": "cm9ib3Q6Og=="}}, "HttpHeaders": {}}"#).unwrap();
        assert_eq!(keyring.lookup("b.example/x")[0].password, ":");
        for bad in [
            &b"{"[..],
            br#"{"auths": {"c.example": {"auth": "%%%"}}}"#,
            br#"{"auths": {"c.example": {"auth": "cm9ib3Q"}}}"#,
        ] {
            assert!(keyring.add_config_json(bad).is_err());
        }
        assert!(keyring.lookup("c.example/x").is_empty());
    }

    #[tokio::test]
    async fn the_nodes_first_readable_file_counts() {
        // A14.4
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [first.path().to_owned(), second.path().to_owned()];
        let write = |folder: &Path, file: &str, text: &str| std::fs::write(folder.join(file), text).unwrap();
        let json = |user: &str| format!(r#"{{"auths": {{"a.example": {{"username": "{user}", "password": "x"}}}}}}"#);
        write(first.path(), ".dockercfg", r#"{"a.example": {"username": "old", "password": "x"}}"#);
        assert_eq!(users(&first_readable(&folders, &folders).await, "a.example/x"), ["old"]);
        write(second.path(), "config.json", &json("second"));
        write(first.path(), "config.json", "nonsense");
        assert_eq!(users(&first_readable(&folders, &folders).await, "a.example/x"), ["second"]);
        write(first.path(), "config.json", &json("first"));
        assert_eq!(users(&first_readable(&folders, &folders).await, "a.example/x"), ["first"]);
    }
}
