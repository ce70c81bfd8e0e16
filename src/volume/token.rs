//! Service-account tokens, kept until most of their life has passed (A9.11).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use stoker_model::handle::{BoundToken, ObjectApi};
use stoker_model::pod::{PodRef, PodUid};

use super::error::VolumeError;

/// However long a token lives, it is fetched anew after this.
const REFRESH_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// What a token is for: the pod's service account, audiences, seconds to live.
type Key = (PodUid, String, Vec<String>, i64);

/// Tokens in use.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    kept: Mutex<HashMap<Key, (BoundToken, Timestamp)>>,
}

impl Tokens {
    /// A token with enough life left.
    pub(super) async fn get(
        &self,
        api: &dyn ObjectApi,
        pod: &PodRef,
        account: &str,
        audiences: &[String],
        seconds: i64,
        now: Timestamp,
    ) -> Result<BoundToken, VolumeError> {
        let key: Key = (pod.uid.clone(), account.to_owned(), audiences.to_vec(), seconds);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((token, since)) = &kept
            && !wants_refresh(*since, token.expires, now)
        {
            return Ok(token.clone());
        }
        match api.service_account_token(pod, account, audiences, seconds).await {
            Ok(token) => {
                let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(key, (token.clone(), now));
                Ok(token)
            }
            // While the API server is away the old one serves as long as it lives.
            Err(error) => match kept {
                Some((token, _)) if token.expires > now => Ok(token),
                _ => Err(error.into()),
            },
        }
    }

    /// Forgets the tokens of a pod that is gone.
    pub(super) fn forget(&self, pod: &PodUid) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.0 != *pod);
    }
}

fn wants_refresh(since: Timestamp, expires: Timestamp, now: Timestamp) -> bool {
    let (life, age) = (expires.duration_since(since), now.duration_since(since));
    age >= REFRESH_AFTER || age.as_secs() * 100 >= life.as_secs() * 80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_refreshed_in_time() {
        // A9.11
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        assert!(!wants_refresh(at(0), at(3600), at(2879)));
        assert!(wants_refresh(at(0), at(3600), at(2880)));
        assert!(!wants_refresh(at(0), at(1_000_000), at(86_399)));
        assert!(wants_refresh(at(0), at(1_000_000), at(86_400)));
    }
}
