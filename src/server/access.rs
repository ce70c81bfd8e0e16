//! Whether a user may do what he asks for: each possible subresource in turn, with a cache of decisions (A18.17).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use stoker_model::handle::{ApiError, Authorizer, UserInfo};

use crate::clock::Clock;

/// Decisions kept. Only those with a certificate of the cluster's CA make any.
const CACHE: usize = 1024;

/// What a decision was about: user, verb, subresource of `nodes`.
type Question = (UserInfo, &'static str, &'static str);

pub(super) struct Access {
    authorizer: Arc<dyn Authorizer>,
    /// How long a permission and a refusal are believed.
    ttl: (Duration, Duration),
    /// Decisions, and when they end on the monotonic clock.
    decisions: Mutex<HashMap<Question, (bool, Duration)>>,
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// 403, with kubelet's text.
    Forbidden(String),
    /// 500: nobody could be asked.
    Unknown(String),
}

impl Access {
    pub(super) fn new(authorizer: Arc<dyn Authorizer>, ttl: (Duration, Duration)) -> Self {
        Self { authorizer, ttl, decisions: Mutex::default() }
    }

    /// Whether one of the subresources of `nodes` allows it: the fine-grained first, then `proxy`.
    pub(super) async fn check(
        &self,
        user: &UserInfo,
        method: &Method,
        subresources: &[&'static str],
    ) -> Result<(), Refusal> {
        let verb = verb(method);
        for subresource in subresources {
            match self.decide((user.clone(), verb, subresource)).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(user = user.name, verb, subresource, %error, "cannot authorize a request");
                    return Err(Refusal::Unknown(format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        user.name
                    )));
                }
            }
        }
        let subresources = subresources.join(" ");
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])",
            user.name
        )))
    }

    async fn decide(&self, question: Question) -> Result<bool, ApiError> {
        let now = Clock.now().monotonic;
        if let Some(decision) = self.remembered(&question, now) {
            return Ok(decision);
        }
        let (user, verb, subresource) = &question;
        let decision = self.authorizer.may(user, verb, subresource).await?;
        let until = now + if decision { self.ttl.0 } else { self.ttl.1 };
        let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        if decisions.len() >= CACHE {
            decisions.retain(|_, (_, until)| *until > now);
        }
        if decisions.len() < CACHE {
            decisions.insert(question, (decision, until));
        }
        Ok(decision)
    }

    fn remembered(&self, question: &Question, now: Duration) -> Option<bool> {
        let decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        decisions.get(question).filter(|(_, until)| *until > now).map(|(decision, _)| *decision)
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;

    /// Allows `proxy` only, and counts.
    #[derive(Default)]
    struct ProxyOnly(AtomicUsize);

    #[async_trait]
    impl Authorizer for ProxyOnly {
        async fn may(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ApiError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            if user.name == "unlucky" {
                return Err(ApiError::Unavailable { message: "away".into(), retry_after_seconds: None });
            }
            Ok(subresource == "proxy" && verb == "get")
        }
    }

    #[tokio::test]
    async fn the_fine_grained_subresource_is_tried_first_and_decisions_are_kept() {
        // A18.17
        let authorizer = Arc::new(ProxyOnly::default());
        let minute = Duration::from_secs(60);
        let access = Access::new(authorizer.clone(), (minute, minute));
        let user = UserInfo { name: "a".into(), groups: vec![] };
        for _ in 0..3 {
            access.check(&user, &Method::GET, &["pods", "proxy"]).await.unwrap();
        }
        assert_eq!(authorizer.0.load(Ordering::SeqCst), 2, "one question for each subresource");
        let Err(Refusal::Forbidden(text)) = access.check(&user, &Method::POST, &["pods", "proxy"]).await else {
            panic!("POST is not allowed")
        };
        assert_eq!(text, "Forbidden (user=a, verb=create, resource=nodes, subresource(s)=[pods proxy])");
        let unlucky = UserInfo { name: "unlucky".into(), groups: vec![] };
        let refusal = access.check(&unlucky, &Method::GET, &["proxy"]).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Unknown(_)));
    }

    #[tokio::test]
    async fn decisions_are_kept_for_their_time() {
        // A18.17
        let authorizer = Arc::new(ProxyOnly::default());
        let access = Access::new(authorizer.clone(), (Duration::from_secs(60), Duration::from_millis(200)));
        let user = UserInfo { name: "a".into(), groups: vec![] };
        let asked = || authorizer.0.load(Ordering::SeqCst);
        for _ in 0..2 {
            access.check(&user, &Method::GET, &["proxy"]).await.unwrap();
            access.check(&user, &Method::DELETE, &["proxy"]).await.unwrap_err();
        }
        assert_eq!(asked(), 2);
        tokio::time::sleep(Duration::from_millis(250)).await;
        access.check(&user, &Method::GET, &["proxy"]).await.unwrap();
        assert_eq!(asked(), 2, "a permission holds longer");
        access.check(&user, &Method::DELETE, &["proxy"]).await.unwrap_err();
        assert_eq!(asked(), 3, "a refusal does not");
        let verbs = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].map(|method| verb(&method));
        assert_eq!(verbs, ["get", "create", "update", "patch", "delete"]);
    }
}
