//! What is told of a pod that the runtime does not show.

use crate::runtime::RuntimeError;

/// The event about it: reason and text; none while the runtime is away altogether.
pub(super) fn not_seen(error: &RuntimeError) -> Option<(&'static str, String)> {
    match error {
        RuntimeError::Unavailable(_) => None,
        RuntimeError::TimedOut { call: "PodSandboxStatus", .. }
        | RuntimeError::Failed { call: "PodSandboxStatus", .. } => {
            Some(("FailedPodSandBoxStatus", format!("Unable to get pod sandbox status: {error}")))
        }
        other => Some(("FailedSync", format!("error determining status: {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_cannot_be_seen_is_told_of() {
        // A21.1
        let failed = |call| RuntimeError::Failed { call, message: "the store is gone".into() };
        let reason = |error: &RuntimeError| not_seen(error).map(|(reason, _)| reason);
        assert_eq!(reason(&RuntimeError::Unavailable("away".into())), None);
        assert_eq!(reason(&failed("PodSandboxStatus")), Some("FailedPodSandBoxStatus"));
        assert_eq!(reason(&failed("ListContainers")), Some("FailedSync"));
        let late = RuntimeError::TimedOut { call: "ContainerStatus", after: Duration::from_secs(120) };
        let (reason, text) = not_seen(&late).unwrap();
        assert_eq!(reason, "FailedSync");
        assert!(text.starts_with("error determining status: "), "{text}");
    }
}
