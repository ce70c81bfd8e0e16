//! Containers and sandboxes that are being stopped by a call of ours: who made the call learns of the end from its return, so
//! nobody needs to be told by an event as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts the calls that stop something, by its ID. Clones share one count.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending(Arc<Mutex<HashMap<String, usize>>>);

impl Ending {
    /// Notes a call until the answer is dropped.
    pub(super) fn begin(&self, id: &str) -> Call {
        *self.calls().entry(id.to_owned()).or_default() += 1;
        Call { ending: self.clone(), id: id.to_owned() }
    }

    /// Whether a call is under way.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.calls().contains_key(id)
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is under way.
#[must_use]
pub(super) struct Call {
    ending: Ending,
    id: String,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut calls = self.ending.calls();
        if let Some(number) = calls.get_mut(&self.id) {
            *number -= 1;
            if *number == 0 {
                calls.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_calls_ends_it() {
        let ending = Ending::default();
        let (first, second) = (ending.begin("c"), ending.begin("c"));
        drop(first);
        assert!(ending.contains("c") && !ending.contains("d"));
        drop(second);
        assert!(!ending.contains("c"));
    }
}
