//! Looks for images, and pulls them (A14.1, A14.2).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use stoker_model::handle::EventType;
use stoker_model::metrics;
use stoker_model::pod::PodRef;

use super::Effect;
use super::sandboxes::runtime_handler;
use crate::pod::observed::{ImageKey, Kind, PullPolicy};
use crate::pod::shared::Shared;
use crate::runtime::credentials::{BadConfig, Keyring};
use crate::runtime::{Asker, Credential, Pull, PullFailure, RuntimeError, SecretRef, cri};

/// Finds an image for the container that first asked for it, or for a volume, and tells what came of it.
pub(in crate::pod) async fn find_image(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    container: Option<(Kind, String)>,
    key: ImageKey,
) -> Effect {
    let reference = PodRef::of(&pod);
    Seeker { shared: &shared, object: &pod, pod: &reference, container, key: &key }.find().await
}

/// The same of an image that may be there; it is not pulled, and what is wrong with it is told when it is needed.
pub(in crate::pod) async fn look_for_image(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    container: Option<(Kind, String)>,
    key: ImageKey,
) -> Effect {
    if !is_reference(&key.image) {
        return Effect::ImageAbsent { key };
    }
    match shared.images.status(&key.image).await {
        Ok(Some(found)) => {
            let reference = PodRef::of(&pod);
            let seeker = Seeker { shared: &shared, object: &pod, pod: &reference, container, key: &key };
            if seeker.must_pull(&found).await { Effect::ImageAbsent { key } } else { seeker.present(&found) }
        }
        Ok(None) | Err(_) => Effect::ImageAbsent { key },
    }
}

struct Seeker<'a> {
    shared: &'a Shared,
    object: &'a Pod,
    pod: &'a PodRef,
    /// `None`: it is for a volume.
    container: Option<(Kind, String)>,
    key: &'a ImageKey,
}

impl Seeker<'_> {
    fn tell(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        match &self.container {
            Some((of, name)) => self.shared.tell_of(self.pod, (*of, name), kind, reason, message),
            None => self.shared.tell(self.pod, kind, reason, message),
        }
    }

    fn missing(&self, reason: &'static str, message: String, pulled: bool) -> Effect {
        self.tell(EventType::Warning, "Failed", format!("Error: {reason}"));
        Effect::ImageMissing { key: self.key.clone(), reason, message, pulled }
    }

    fn found(&self, id: String, image: &cri::Image) -> Effect {
        let (uid, username) = (image.uid.map(|u| u.value), image.username.clone());
        Effect::ImageFound { key: self.key.clone(), id, uid, username }
    }

    fn present(&self, found: &cri::Image) -> Effect {
        let image = &self.key.image;
        let text = format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
        self.tell(EventType::Normal, "Pulled", text);
        self.found(found.id.clone(), found)
    }

    async fn find(&self) -> Effect {
        let image = &self.key.image;
        if !is_reference(image) {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            self.tell(EventType::Warning, "InspectFailed", message.clone());
            return self.missing("InvalidImageName", message, false);
        }
        let present = match self.shared.images.status(image).await {
            Ok(present) => present,
            Err(error) => {
                let (reason, message) = not_inspected(image, &error);
                self.tell(EventType::Warning, "InspectFailed", message.clone());
                return self.missing(reason, message, false);
            }
        };
        let usable = match present {
            Some(found) if self.key.policy != PullPolicy::Always && !self.must_pull(&found).await => Some(found),
            _ => None,
        };
        match (usable, self.key.policy) {
            (Some(found), _) => self.present(&found),
            // Nobody learns that an image is there which is not his.
            (None, PullPolicy::Never) => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                self.tell(EventType::Warning, "ErrImageNeverPull", message.clone());
                self.missing("ErrImageNeverPull", message, false)
            }
            _ => self.pull().await,
        }
    }

    /// Whether what is there was pulled for somebody else, and not for this pod (A14.6).
    async fn must_pull(&self, found: &cri::Image) -> bool {
        // What is wrong with a secret is told when it is pulled.
        let credentials = async { self.credentials().await.unwrap_or_default() };
        self.shared.images.must_pull(&self.key.image, &found.id, credentials).await
    }

    /// What may open the registry: the pod's secrets, then what the node has itself (A14.4).
    /// A secret that cannot be read fails the pull.
    async fn credentials(&self) -> Result<Vec<Credential>, BadConfig> {
        let mut keyring = Keyring::default();
        let mut missing = Vec::new();
        let references = self.object.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        for name in references.map(|reference| reference.name.as_str()).filter(|name| !name.is_empty()) {
            match self.shared.objects.secret(&self.pod.namespace, name).await {
                Ok(Some(secret)) => {
                    let origin = SecretRef {
                        namespace: self.pod.namespace.clone(),
                        name: name.to_owned(),
                        uid: secret.metadata.uid.clone().unwrap_or_default(),
                    };
                    keyring.add_secret(entries_of(&secret)?, &origin);
                }
                Ok(None) | Err(_) => missing.push(name),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.shared.tell(self.pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
        }
        let mut found = keyring.lookup(&self.key.image);
        let account = self.object.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let asker = Asker { pod: self.pod, account: account.unwrap_or_default(), objects: &*self.shared.objects };
        found.extend(self.shared.images.node_credentials(&self.key.image, &asker).await);
        Ok(found)
    }

    async fn pull(&self) -> Effect {
        let image = &self.key.image;
        let credentials = match self.credentials().await {
            Ok(credentials) => credentials,
            Err(error) => return self.missing("ErrImagePull", error.to_string(), false),
        };
        self.tell(EventType::Normal, "Pulling", format!("Pulling image \"{image}\""));
        let asked = self.shared.clock.now().monotonic;
        // Without its class the pod gets no sandbox, which tells what is wrong.
        let runtime_handler = runtime_handler(self.shared, self.object).await.unwrap_or_default();
        let pull = Pull { image: image.clone(), runtime_handler, credentials };
        let priority = self.object.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        match self.shared.images.pull(pull, priority).await {
            Ok(pulled) => {
                let waited = self.shared.clock.now().monotonic.saturating_sub(asked);
                let status = self.shared.images.status(&pulled.id).await.ok().flatten().unwrap_or_default();
                metrics::IMAGE_PULL_DURATION.observe(&[size_bucket(status.size)], pulled.took);
                self.tell(
                    EventType::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                        go_time(pulled.took),
                        go_time(waited),
                        status.size
                    ),
                );
                self.found(pulled.id, &status)
            }
            Err(error) => {
                self.tell(EventType::Warning, "Failed", format!("Failed to pull image \"{image}\": {error}"));
                self.missing(reason_of(&error), error.to_string(), true)
            }
        }
    }
}

/// What a secret of one of the two types for registries holds; others hold no credentials.
fn entries_of(secret: &Secret) -> Result<Keyring, BadConfig> {
    let mut keyring = Keyring::default();
    let data = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
        data.filter(|data| !data.is_empty())
    };
    match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            data(".dockerconfigjson").map_or(Ok(()), |text| keyring.add_config_json(text))
        }
        Some("kubernetes.io/dockercfg") => data(".dockercfg").map_or(Ok(()), |text| keyring.add_dockercfg(text)),
        _ => Ok(()),
    }?;
    Ok(keyring)
}

/// Reason and message of a container whose image cannot be looked at.
fn not_inspected(image: &str, error: &RuntimeError) -> (&'static str, String) {
    ("ImageInspectError", format!("Failed to inspect image \"{image}\": {error}"))
}

fn reason_of(error: &RuntimeError) -> &'static str {
    match error {
        RuntimeError::ImagePull { failure: PullFailure::InvalidName, .. } => "InvalidImageName",
        RuntimeError::ImagePull { failure: PullFailure::RegistryUnavailable, .. } => "RegistryUnavailable",
        RuntimeError::ImagePull { failure: PullFailure::SignatureValidation, .. } => "SignatureValidationFailed",
        _ => "ErrImagePull",
    }
}

/// As Go prints what is cut to milliseconds: `1m2.5s`, `12ms`.
fn go_time(took: Duration) -> String {
    let millis = took.as_millis();
    if millis < 1000 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!(".{:03}", rest % 1000);
    let seconds = format!("{}{}s", rest / 1000, fraction.trim_end_matches('0').trim_end_matches('.'));
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

/// Whether a text can be an image reference: lower-case path components, an optional tag and digest.
fn is_reference(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let tag_ok = tag.is_none_or(|t| (1..=128).contains(&t.len()) && t.chars().all(word) && !t.starts_with(['.', '-']));
    let digest_ok = digest.is_none_or(|d| d.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32));
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    let is_host = path.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let component = |part: &str| {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        !part.is_empty()
            && part.chars().all(|c| lower(c) || matches!(c, '.' | '_' | '-'))
            && part.starts_with(lower)
            && part.ends_with(lower)
    };
    tag_ok && digest_ok && (is_host || component(first)) && parts.all(component)
}

/// The size of an image as kubelet's metrics tell it.
fn size_bucket(bytes: u64) -> &'static str {
    const MEGABYTE: u64 = 1 << 20;
    const GIGABYTE: u64 = 1 << 30;
    match bytes {
        0 => "N/A",
        bytes if bytes < 10 * MEGABYTE => "0-10MB",
        bytes if bytes < 100 * MEGABYTE => "10MB-100MB",
        bytes if bytes < 500 * MEGABYTE => "100MB-500MB",
        bytes if bytes < GIGABYTE => "500MB-1GB",
        bytes if bytes < 5 * GIGABYTE => "1GB-5GB",
        bytes if bytes < 10 * GIGABYTE => "5GB-10GB",
        bytes if bytes < 20 * GIGABYTE => "10GB-20GB",
        bytes if bytes < 30 * GIGABYTE => "20GB-30GB",
        bytes if bytes < 40 * GIGABYTE => "30GB-40GB",
        bytes if bytes < 60 * GIGABYTE => "40GB-60GB",
        bytes if bytes < 100 * GIGABYTE => "60GB-100GB",
        _ => "GT100GB",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::pod::observed;
    use crate::pod::steps::pull_failure;

    #[test]
    fn times_are_written_as_go_does() {
        // A14.2
        for (millis, text) in [
            (0, "0s"),
            (7, "7ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (12_034, "12.034s"),
            (60_000, "1m0s"),
            (62_500, "1m2.5s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_time(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn each_failure_has_its_reason() {
        // A2.14
        let failed = |failure| RuntimeError::ImagePull { failure, message: "no".into() };
        for (error, reason) in [
            (failed(PullFailure::InvalidName), "InvalidImageName"),
            (failed(PullFailure::RegistryUnavailable), "RegistryUnavailable"),
            (failed(PullFailure::SignatureValidation), "SignatureValidationFailed"),
            (failed(PullFailure::Other), "ErrImagePull"),
            (RuntimeError::TimedOut { call: "PullImage", after: Duration::from_secs(1) }, "ErrImagePull"),
        ] {
            assert_eq!(reason_of(&error), reason, "{error:?}");
        }
        let error = RuntimeError::Failed { call: "ImageStatus", message: "the store is gone".into() };
        let (reason, message) = not_inspected("a/b:1", &error);
        assert_eq!(reason, "ImageInspectError");
        assert!(message.starts_with("Failed to inspect image \"a/b:1\": "), "{message}");
    }

    #[test]
    fn each_failure_of_a_pull_waits_longer() {
        // A14.2
        let start = Now { wall: jiff::Timestamp::UNIX_EPOCH, monotonic: Duration::ZERO };
        let mut last: Option<observed::PullFailure> = None;
        let mut waited = Duration::ZERO;
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            let now = start.plus(waited);
            let failure = pull_failure(last.as_ref(), "ErrImagePull", "no".into(), true, now);
            assert_eq!(failure.retry_at - now.monotonic, Duration::from_secs(seconds));
            assert!(failure.backoff_at > now.monotonic && failure.backoff_at < failure.retry_at);
            waited += Duration::from_secs(seconds);
            last = Some(failure);
        }
    }

    #[test]
    fn references_are_told_from_nonsense() {
        // A14.2
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for good in ["busybox", "busybox:1.36", "localhost:5000/a/b:x", "docker.io/library/a_b", "R.example/a", &digest]
        {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "UPPER", "a b", "a//b", ":tag", "a:", "http://a", "a:-x", "-a", "a@sha256:1", "localhost/"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
