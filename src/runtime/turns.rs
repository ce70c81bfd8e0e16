//! A bounded number of turns, given to whoever matters most and has waited longest.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Hands out turns. Cloning is cheap; all clones share them.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// How many have waited so far.
    came: u64,
    /// Higher priorities first, then who came first.
    waiting: BTreeMap<(Reverse<i32>, u64), oneshot::Sender<Turn>>,
}

/// It is somebody's turn as long as this lives.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

impl Turns {
    pub(super) fn new(at_once: NonZeroUsize) -> Self {
        Self(Arc::new(Mutex::new(State { free: at_once.get(), came: 0, waiting: BTreeMap::new() })))
    }

    /// Waits for a turn. Who stops waiting loses nothing for the others.
    pub(super) async fn wait(&self, priority: i32) -> Turn {
        let given = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (turn, given) = oneshot::channel();
            state.came += 1;
            let place = (Reverse(priority), state.came);
            state.waiting.insert(place, turn);
            given
        };
        // The sender stays in the queue until it has given a turn; without one the caller would only be less bounded.
        given.await.unwrap_or(Turn(None))
    }

    /// Passes a turn on.
    fn give_back(&self) {
        loop {
            let next = {
                let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let next = state.waiting.pop_first();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some((_, waiting)) = next else { return };
            match waiting.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // That one waits no more: it is the next one's, and not given back twice.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_matters_most_is_next_and_who_left_is_passed_over() {
        // A14.3
        let turns = Turns::new(NonZeroUsize::new(2).unwrap());
        let first = turns.wait(0).now_or_never().expect("a free one");
        let second = turns.wait(0).now_or_never().expect("a free one");
        let mut waiting: Vec<_> = [0, 5, 5, 9].map(|priority| Box::pin(turns.wait(priority))).into();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none(), "two at once");
        }
        // The most important one gives up.
        drop(waiting.pop());
        drop(first);
        let third = waiting[1].as_mut().now_or_never().expect("the older one of priority 5");
        assert!(waiting[0].as_mut().now_or_never().is_none() && waiting[2].as_mut().now_or_never().is_none());
        drop(second);
        let fourth = waiting[2].as_mut().now_or_never().expect("the younger one of priority 5");
        drop((third, fourth));
        assert!(waiting[0].as_mut().now_or_never().is_some());
        drop(waiting);
        assert!(turns.wait(0).now_or_never().is_some() && turns.wait(0).now_or_never().is_some(), "nothing was lost");
    }
}
