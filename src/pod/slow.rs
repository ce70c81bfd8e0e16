//! Which steps of pods took long lately, for people who ask why a pod came up slowly.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::plan::Step;

/// What is quicker is not told.
const SLOW: Duration = Duration::from_millis(100);
/// So many are remembered, the newest.
const KEPT: usize = 64;

/// One step that took long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlowStep {
    /// Namespace and name of the pod.
    pub pod: String,
    /// What was done.
    pub step: String,
    /// How long it took.
    pub took: Duration,
}

/// The newest of them.
#[derive(Clone, Debug, Default)]
pub(super) struct SlowSteps(Arc<Mutex<VecDeque<SlowStep>>>);

impl SlowSteps {
    /// Remembers a step, if it was slow.
    pub(super) fn note(&self, pod: impl std::fmt::Display, step: Option<String>, took: Duration) {
        let Some(step) = step.filter(|_| took >= SLOW) else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(SlowStep { pod: pod.to_string(), step, took });
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<SlowStep> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// A step of a pod's start in words; `None` for those of its end, which take the time that the pod was given.
pub(super) fn described(step: &Step) -> Option<String> {
    Some(match step {
        Step::MakeCgroup => "make cgroup".to_owned(),
        Step::MountVolumes => "mount volumes".to_owned(),
        Step::RunSandbox { .. } => "run sandbox".to_owned(),
        Step::FindImage(_) | Step::LookForImage(_) => "find or pull image".to_owned(),
        Step::CreateContainer { name, .. } => format!("create container {name}"),
        Step::StartContainer { name, .. } => format!("start container {name}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slow_steps_of_starts_are_kept_and_not_for_ever() {
        let steps = SlowSteps::default();
        steps.note("a", described(&Step::MakeCgroup), Duration::from_millis(99));
        steps.note("a", described(&Step::TearDown), Duration::from_secs(9));
        assert_eq!(steps.all(), []);
        for number in 0..KEPT + 3 {
            steps.note(format!("p{number}"), described(&Step::MountVolumes), SLOW);
        }
        let all = steps.all();
        assert_eq!((all.len(), all[0].pod.as_str(), all[0].step.as_str()), (KEPT, "p3", "mount volumes"));
    }
}
