//! Whose a bearer token is: asked once, and believed for a while (A18.16).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use stoker_model::handle::{ApiError, TokenReviewer, UserInfo};

use crate::clock::Clock;

/// Tokens remembered. Whoever sends others is asked about each time.
const CACHE: usize = 1024;
/// Longer ones are nobody's.
const TOKEN_BYTES: usize = 16 << 10;

/// A token's user, and until when that is believed on the monotonic clock.
type Known = (Option<UserInfo>, Duration);

pub(super) struct Tokens {
    reviewer: Arc<dyn TokenReviewer>,
    /// kubelet's `authentication.webhook.cacheTTL`.
    ttl: Duration,
    /// By digest: a dump of this memory gives no token away.
    known: Mutex<HashMap<[u8; 32], Known>>,
}

impl Tokens {
    pub(super) fn new(reviewer: Arc<dyn TokenReviewer>, ttl: Duration) -> Self {
        Self { reviewer, ttl, known: Mutex::default() }
    }

    /// The user of a request's token; `None` where it has none, or nobody's.
    pub(super) async fn user(&self, headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
        let Some(token) = bearer(headers) else { return Ok(None) };
        let digest: [u8; 32] = Sha256::digest(token).into();
        let now = Clock.now().monotonic;
        if let Some(known) = self.remembered(&digest, now) {
            return Ok(known);
        }
        let user = self.reviewer.who(token).await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHE {
            known.retain(|_, (_, until)| *until > now);
        }
        if known.len() < CACHE {
            known.insert(digest, (user.clone(), now + self.ttl));
        }
        Ok(user)
    }

    fn remembered(&self, digest: &[u8; 32], now: Duration) -> Option<Option<UserInfo>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).filter(|(_, until)| *until > now).map(|(user, _)| user.clone())
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    let fits = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_BYTES;
    fits.then_some(token)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use http::HeaderValue;

    use super::*;

    #[derive(Default)]
    struct OneGood(AtomicUsize);

    #[async_trait]
    impl TokenReviewer for OneGood {
        async fn who(&self, token: &str) -> Result<Option<UserInfo>, ApiError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok((token == "good").then(|| UserInfo { name: "prometheus".into(), groups: vec![] }))
        }
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    #[tokio::test]
    async fn a_token_is_asked_about_once() {
        // A18.16
        let reviewer = Arc::new(OneGood::default());
        let tokens = Tokens::new(reviewer.clone(), Duration::from_secs(120));
        for _ in 0..3 {
            let user = tokens.user(&headers("Bearer good")).await.unwrap();
            assert_eq!(user.unwrap().name, "prometheus");
            assert_eq!(tokens.user(&headers("bearer bad")).await.unwrap(), None);
        }
        assert_eq!(reviewer.0.load(Ordering::SeqCst), 2);
        for nothing in ["Basic good", "Bearer ", "good"] {
            assert_eq!(tokens.user(&headers(nothing)).await.unwrap(), None, "{nothing}");
        }
        assert_eq!(reviewer.0.load(Ordering::SeqCst), 2, "what is no token is not asked about");
    }
}
