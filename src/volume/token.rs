//! Service-account tokens, kept until most of their life has passed (A9.11).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use stoker_model::handle::{BoundToken, ObjectApi};
use stoker_model::pod::{PodRef, PodUid};

use super::error::VolumeError;

/// However long a token lives, it is fetched anew after this.
const REFRESH_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// Up to so many seconds earlier.
const SPREAD: i64 = 10;

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
            && now < refresh_at(&pod.uid, *since, token.expires)
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

    /// When the first of a pod's tokens is to be fetched anew.
    pub(super) fn due(&self, pod: &PodUid) -> Option<Timestamp> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let own = kept.iter().filter(|(key, _)| key.0 == *pod);
        own.map(|(_, (token, since))| refresh_at(pod, *since, token.expires)).min()
    }

    /// Forgets the tokens of a pod that is gone.
    pub(super) fn forget(&self, pod: &PodUid) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.0 != *pod);
    }
}

/// When a token is fetched anew: a little earlier for some pods than for others.
fn refresh_at(pod: &PodUid, since: Timestamp, expires: Timestamp) -> Timestamp {
    let most = SignedDuration::from_secs(expires.duration_since(since).as_secs() * 80 / 100);
    let spread = pod.as_str().bytes().fold(0_i64, |sum, byte| (sum * 31 + i64::from(byte)) % SPREAD);
    let life = most.min(REFRESH_AFTER) - SignedDuration::from_secs(spread);
    since.checked_add(life).unwrap_or(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_refreshed_in_time() {
        // A9.11
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..100 {
            let pod = PodUid::new(&format!("pod-{number}"));
            let after = |expires: i64| refresh_at(&pod, at(0), at(expires)).as_second();
            assert!((2870..=2880).contains(&after(3600)), "{number}: {}", after(3600));
            assert!((86_390..=86_400).contains(&after(1_000_000)), "{number}");
            seen.insert(after(3600));
        }
        assert!(seen.len() > 5, "not all at once: {seen:?}");
        let (tokens, pod) = (Tokens::default(), PodUid::new("p"));
        assert_eq!(tokens.due(&pod), None);
        let token = BoundToken { token: "t".into(), expires: at(3600) };
        let key = (pod.clone(), "default".to_owned(), Vec::new(), 3600);
        tokens.kept.lock().unwrap().insert(key, (token, at(0)));
        assert_eq!(tokens.due(&pod), Some(refresh_at(&pod, at(0), at(3600))));
    }
}
