//! Images: whether one is present, and pulling it once however many ask for it.
//!
//! When to pull, and when to try again, is for `pod` to decide.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tracing::debug;

use super::client::Runtime;
use super::credentials::{self, Keyring};
use super::cri;
use super::error::{PullFailure, RuntimeError};
use super::plugins::{Asker, Plugins};
use super::pulled::PullRecords;
use super::turns::Turns;
use crate::clock::Clock;

/// What to pull, and how.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pull {
    /// The reference, as in the pod.
    pub image: String,
    /// The runtime handler of the pod's RuntimeClass; empty for the default one.
    pub runtime_handler: String,
    /// Credentials in the order of trying; none of them: without.
    pub credentials: Vec<Credential>,
}

/// How to log in at a registry.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Credential {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`, where the secret has only that.
    pub auth: String,
    /// The registry's address.
    pub server_address: String,
    /// A token to get an access token with.
    pub identity_token: String,
    /// A bearer token.
    pub registry_token: String,
    /// The secret that it comes from.
    pub secret: Option<SecretRef>,
    /// The service account that it was given for. With neither of them the node has it for all pods.
    pub account: Option<SecretRef>,
}

/// A Secret or a ServiceAccount of the API.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SecretRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl fmt::Debug for Credential {
    /// Says who logs in where, and no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl Credential {
    fn to_cri(&self) -> cri::AuthConfig {
        cri::AuthConfig {
            username: self.username.clone(),
            password: self.password.clone(),
            auth: self.auth.clone(),
            server_address: self.server_address.clone(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
        }
    }
}

/// A pull that succeeded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pulled {
    /// The image's ID.
    pub id: String,
    /// What the pull itself took.
    pub took: Duration,
    /// The credential that worked.
    pub credential: Option<Credential>,
}

type Outcome = Result<Pulled, RuntimeError>;
type Present = Result<Option<Arc<cri::Image>>, RuntimeError>;

/// Looks images up and pulls them. Cloning is cheap; all clones share what is under way.
#[derive(Clone)]
pub struct Images {
    runtime: Runtime,
    turns: Turns,
    records: Option<Arc<PullRecords>>,
    under_way: Arc<Mutex<HashMap<Pull, Shared<BoxFuture<'static, Outcome>>>>>,
    /// Looks under way, by reference or ID.
    looks: Arc<Mutex<HashMap<String, WeakShared<BoxFuture<'static, Present>>>>>,
    rate: Option<Arc<Rate>>,
    node: NodeCredentials,
}

/// What opens registries to every pod of the node (A14.4).
#[derive(Clone, Debug, Default)]
pub struct NodeCredentials {
    /// kubelet's root directory, the first place for Docker's files; `None`: no files.
    pub root_dir: Option<PathBuf>,
    /// Programs to ask.
    pub plugins: Plugins,
}

/// A bucket of pulls that fills with time.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    burst: f64,
    /// How many there are, and since when (monotonic).
    left: Mutex<(f64, Duration)>,
}

impl Rate {
    fn new(per_second: u32, burst: u32, now: Duration) -> Self {
        let burst = f64::from(burst);
        Self { per_second: f64::from(per_second), burst, left: Mutex::new((burst, now)) }
    }

    /// Takes one out, if there is one.
    fn take(&self, now: Duration) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_sub(left.1).as_secs_f64();
        let there = (left.0 + passed * self.per_second).min(self.burst);
        let taken = there >= 1.0;
        *left = (if taken { there - 1.0 } else { there }, now);
        taken
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

impl Images {
    /// At most `parallel_pulls` at a time: 1 is kubelet's serializeImagePulls (A14.3).
    pub fn new(runtime: Runtime, parallel_pulls: NonZeroUsize) -> Self {
        Self {
            runtime,
            turns: Turns::new(parallel_pulls),
            records: None,
            under_way: Arc::default(),
            looks: Arc::default(),
            rate: None,
            node: NodeCredentials::default(),
        }
    }

    /// Bounds how many pulls begin in a second: kubelet's `registryPullQPS` and `registryBurst` (A14.3). 0 a second: no bound.
    #[must_use]
    pub fn with_rate(mut self, per_second: u32, burst: u32) -> Self {
        let now = Clock.now().monotonic;
        self.rate = (per_second > 0).then(|| Arc::new(Rate::new(per_second, burst, now)));
        self
    }

    /// Keeps records of who may use what was pulled (A14.6). Without them whoever runs here may use what is here.
    #[must_use]
    pub fn with_records(mut self, records: Arc<PullRecords>) -> Self {
        self.records = Some(records);
        self
    }

    /// Whether a pod may use an image that is there only after it was pulled for it, too (A14.6). `credentials` are those that the pod has
    /// for it, and only asked for when they matter.
    pub async fn must_pull(
        &self,
        image: &str,
        id: &str,
        credentials: impl Future<Output = Vec<Credential>> + Send,
    ) -> bool {
        match &self.records {
            Some(records) => records.must_pull(image, id, credentials).await,
            None => false,
        }
    }

    /// Gives every pull what opens registries to this node.
    #[must_use]
    pub fn with_node_credentials(mut self, node: NodeCredentials) -> Self {
        self.node = node;
        self
    }

    /// What the node itself has for an image that this pod asks for, in the order of trying.
    pub async fn node_credentials(&self, image: &str, asker: &Asker<'_>) -> Vec<Credential> {
        let mut found = match &self.node.root_dir {
            Some(root) => credentials::of_node(root).await.lookup(image),
            None => Vec::new(),
        };
        let mut keyring = Keyring::default();
        self.node.plugins.add_to(&mut keyring, image, asker).await;
        found.extend(keyring.lookup(image));
        found
    }

    /// The image of that reference or ID; `None` where it is not present. Whoever asks while the runtime is asked for the same gets the same
    /// answer: many pods that come together mostly are of one kind. Only that it is not there nobody is told who came after the question: it may
    /// have come since.
    pub async fn status(&self, image: &str) -> Result<Option<Arc<cri::Image>>, RuntimeError> {
        let (look, joined) = {
            let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
            match looks.get(image).and_then(WeakShared::upgrade).filter(|look| look.peek().is_none()) {
                Some(look) => (look, true),
                None => {
                    looks.retain(|_, look| look.upgrade().is_some());
                    let look = self.look(image).shared();
                    looks.extend(look.downgrade().map(|weak| (image.to_owned(), weak)));
                    (look, false)
                }
            }
        };
        match look.await {
            Ok(None) if joined => self.look(image).await,
            answer => answer,
        }
    }

    fn look(&self, image: &str) -> BoxFuture<'static, Present> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let runtime = self.runtime.clone();
        async move { Ok(runtime.image_status(spec).await?.map(Arc::new)) }.boxed()
    }

    /// Pulls an image. Whoever asks for the same while it is under way gets the same outcome: the same reference with other credentials is
    /// another pull, for credentials of one pod must not serve another. Dropping the future does not end the pull. Where pulls have to wait for
    /// each other, those of higher `priority` are first (A14.3).
    pub async fn pull(&self, pull: Pull, priority: i32) -> Outcome {
        let outcome = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.entry(pull.clone()).or_insert_with(|| self.start(pull, priority)).clone()
        };
        outcome.await
    }

    /// Starts the task of one pull.
    fn start(&self, pull: Pull, priority: i32) -> Shared<BoxFuture<'static, Outcome>> {
        let images = self.clone();
        let task = tokio::spawn(async move {
            let outcome = images.pull_recorded(&pull, priority).await;
            images.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&pull);
            outcome
        });
        let outcome = async {
            task.await.unwrap_or_else(|_| {
                Err(RuntimeError::Failed { call: "PullImage", message: "the agent is shutting down".to_owned() })
            })
        };
        outcome.boxed().shared()
    }

    async fn pull_recorded(&self, pull: &Pull, priority: i32) -> Outcome {
        let Some(records) = &self.records else { return self.pull_with_each(pull, priority).await };
        if let Err(error) = records.begin(&pull.image) {
            let message = format!("Failed to record image pull intent for container image \"{}\": {error}", pull.image);
            return Err(RuntimeError::ImagePull { failure: PullFailure::Other, message });
        }
        let outcome = self.pull_with_each(pull, priority).await;
        let pulled = outcome.as_ref().ok().map(|pulled| (pulled.id.as_str(), pulled.credential.as_ref()));
        records.end(&pull.image, pulled);
        outcome
    }

    /// One attempt for each credential until one succeeds (A14.4).
    async fn pull_with_each(&self, pull: &Pull, priority: i32) -> Outcome {
        if self.rate.as_ref().is_some_and(|rate| !rate.take(Clock.now().monotonic)) {
            let message = "pull QPS exceeded".to_owned();
            return Err(RuntimeError::ImagePull { failure: PullFailure::Other, message });
        }
        let _turn = self.turns.wait(priority).await;
        let started = Clock.now().monotonic;
        let mut errors: Vec<RuntimeError> = Vec::new();
        let mut attempts: Vec<Option<&Credential>> = pull.credentials.iter().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        for credential in attempts {
            match self.runtime.pull_image(request(pull, credential)).await {
                Ok(id) => {
                    let took = Clock.now().monotonic.saturating_sub(started);
                    return Ok(Pulled { id, took, credential: credential.cloned() });
                }
                Err(error) => {
                    debug!(image = pull.image, ?credential, %error, "pull failed");
                    if !errors.contains(&error) {
                        errors.push(error);
                    }
                }
            }
        }
        Err(combined(errors))
    }
}

fn request(pull: &Pull, credential: Option<&Credential>) -> cri::PullImageRequest {
    cri::PullImageRequest {
        image: Some(cri::ImageSpec {
            image: pull.image.clone(),
            user_specified_image: pull.image.clone(),
            runtime_handler: pull.runtime_handler.clone(),
            ..Default::default()
        }),
        auth: credential.map(Credential::to_cri),
        sandbox_config: None,
    }
}

/// One error for all attempts, in the form `[first, second]` that users know.
fn combined(mut errors: Vec<RuntimeError>) -> RuntimeError {
    if errors.len() == 1 {
        return errors.swap_remove(0);
    }
    let failure = errors
        .iter()
        .find_map(|error| match error {
            RuntimeError::ImagePull { failure, .. } if *failure != PullFailure::Other => Some(*failure),
            _ => None,
        })
        .unwrap_or(PullFailure::Other);
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    RuntimeError::ImagePull { failure, message: format!("[{}]", texts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handler_of_the_pods_class_pulls() {
        // A14.7
        let pull = Pull { image: "a/b:1".into(), runtime_handler: "kata".into(), ..Pull::default() };
        let credential = Credential { username: "robot".into(), ..Credential::default() };
        let asked = request(&pull, Some(&credential));
        let image = asked.image.expect("an image");
        assert_eq!((image.image.as_str(), image.runtime_handler.as_str()), ("a/b:1", "kata"));
        assert_eq!(asked.auth.map(|auth| auth.username).as_deref(), Some("robot"));
        assert!(request(&pull, None).auth.is_none());
    }

    #[test]
    fn secrets_are_not_printed() {
        let credential = Credential {
            username: "robot".into(),
            password: "s3cret".into(),
            auth: "czNj".into(),
            ..Default::default()
        };
        for printed in [format!("{credential:?}"), format!("{:?}", credential.to_cri())] {
            assert!(printed.contains("robot"), "{printed}");
            assert!(!printed.contains("s3cret") && !printed.contains("czNj"), "{printed}");
        }
    }

    #[test]
    fn pulls_begin_at_a_bounded_rate() {
        // A14.3
        let at = Duration::from_millis;
        let rate = Rate::new(5, 10, at(0));
        assert_eq!((0..20).filter(|_| rate.take(at(0))).count(), 10);
        assert!(!rate.take(at(199)));
        assert!(rate.take(at(399)) && !rate.take(at(399)));
        assert_eq!((0..20).filter(|_| rate.take(at(60_000))).count(), 10);
    }

    #[test]
    fn attempts_are_reported_together() {
        let failed = |message: &str, failure| RuntimeError::ImagePull { failure, message: message.into() };
        let one = failed("401", PullFailure::Other);
        assert_eq!(combined(vec![one.clone()]), one);
        let two = combined(vec![one, failed("RegistryUnavailable: no route", PullFailure::RegistryUnavailable)]);
        assert_eq!(two, failed("[401, RegistryUnavailable: no route]", PullFailure::RegistryUnavailable));
    }
}
