//! Containers and sandboxes whose end somebody waits for in a call, and looks at when it has returned: nobody needs to be told by
//! an event as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts who waits, by the ID of what ends. Clones share one count.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending(Arc<Mutex<HashMap<String, usize>>>);

impl Ending {
    /// Notes that somebody waits, until the answer is dropped.
    pub(super) fn begin(&self, id: &str) -> Awaited {
        *self.waiting().entry(id.to_owned()).or_default() += 1;
        Awaited { ending: self.clone(), id: id.to_owned() }
    }

    /// Whether somebody waits.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.waiting().contains_key(id)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits as long as this lives.
#[must_use]
#[derive(Debug)]
pub(crate) struct Awaited {
    ending: Ending,
    id: String,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut waiting = self.ending.waiting();
        if let Some(number) = waiting.get_mut(&self.id) {
            *number -= 1;
            if *number == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_ends_it() {
        let ending = Ending::default();
        let (first, second) = (ending.begin("c"), ending.begin("c"));
        drop(first);
        assert!(ending.contains("c") && !ending.contains("d"));
        drop(second);
        assert!(!ending.contains("c"));
    }
}
