//! Who may have the runtime start something now. More at once than a few only make all of them slower: they contend for the kernel's
//! locks, and each finds the mounts of all the others in its way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// What takes longer waits for something else than the processors: it holds nobody up, such as the pod that it may wait for.
const LONGEST: Duration = Duration::from_secs(2);

/// On two processors 100 pods take a quarter less time than all at once; with four at once they take longer again.
const AT_ONCE: usize = 10;

/// What is to be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Launch {
    /// A container of a pod that has its sandbox: it goes first, so that pods are ready one after another and not all in the end.
    Container,
    /// A pod.
    Sandbox,
}

/// The turns of a node. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    state: Arc<Mutex<State>>,
    /// What takes longer does not count.
    longest: Duration,
}

#[derive(Debug)]
struct State {
    free: usize,
    containers: VecDeque<oneshot::Sender<Turn>>,
    sandboxes: VecDeque<oneshot::Sender<Turn>>,
}

/// A turn, given back when it is dropped.
#[derive(Debug)]
struct Turn(Turns);

impl Turns {
    /// As many at once as this machine does best.
    pub(super) fn of_machine() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self::new(AT_ONCE.max(processors * 2), LONGEST)
    }

    /// So many at once.
    fn new(at_once: usize, longest: Duration) -> Self {
        let state = State { free: at_once, containers: VecDeque::new(), sandboxes: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)), longest }
    }

    /// Does the work when it is its turn. Whoever gives up waiting loses nothing of others.
    ///
    /// The work is made, and gets its room, when it is its turn: of a hundred pods that start together most wait for theirs.
    pub(super) async fn take<F: Future>(&self, launch: Launch, work: impl FnOnce() -> F) -> F::Output {
        let turn = self.turn(launch).await;
        let mut work = Box::pin(work());
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(self.longest) => drop(turn),
        }
        work.await
    }

    /// Whether whoever comes now must wait.
    pub(super) fn are_taken(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).free == 0
    }

    async fn turn(&self, launch: Launch) -> Option<Turn> {
        let turn = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free > 0 {
                state.free -= 1;
                return Some(Turn(self.clone()));
            }
            let (given, turn) = oneshot::channel();
            match launch {
                Launch::Container => state.containers.push_back(given),
                Launch::Sandbox => state.sandboxes.push_back(given),
            }
            turn
        };
        turn.await.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.containers.pop_front().or_else(|| state.sandboxes.pop_front());
        match next {
            None => state.free += 1,
            Some(next) => {
                // Who has given up gives it to the next one, by dropping it.
                let turn = Turn(self.0.clone());
                drop(state);
                let _ = next.send(turn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work that notes its beginning, and ends when it is told to.
    fn work(
        turns: &Turns,
        launch: Launch,
        name: &'static str,
        begun: &Arc<Mutex<Vec<&'static str>>>,
    ) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let (end, ended) = oneshot::channel::<()>();
        let (turns, begun) = (turns.clone(), begun.clone());
        let task = tokio::spawn(async move {
            let work = async || {
                begun.lock().unwrap().push(name);
                let _ = ended.await;
            };
            turns.take(launch, work).await;
        });
        (end, task)
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn containers_of_pods_that_have_begun_go_first() {
        // A1.3
        let (turns, begun) = (Turns::new(2, Duration::from_secs(600)), Arc::<Mutex<Vec<&str>>>::default());
        let seen = || begun.lock().unwrap().join(" ");
        let one = work(&turns, Launch::Sandbox, "s1", &begun);
        let two = work(&turns, Launch::Sandbox, "s2", &begun);
        assert!(!turns.are_taken());
        settle().await;
        assert!(turns.are_taken());
        let three = work(&turns, Launch::Sandbox, "s3", &begun);
        let gives_up = work(&turns, Launch::Container, "c0", &begun);
        settle().await;
        gives_up.1.abort();
        let four = work(&turns, Launch::Container, "c1", &begun);
        settle().await;
        assert_eq!(seen(), "s1 s2", "no more than two");
        drop(one.0);
        settle().await;
        assert_eq!(seen(), "s1 s2 c1", "in spite of who came before, and of who gave up");
        drop(four.0);
        settle().await;
        assert_eq!(seen(), "s1 s2 c1 s3");
        drop((two.0, three.0));
        settle().await;
        assert_eq!(turns.state.lock().unwrap().free, 2);
    }

    #[tokio::test]
    async fn what_hangs_holds_nobody_up() {
        // A1.3
        let longest = Duration::from_millis(200);
        let (turns, begun) = (Turns::new(1, longest), Arc::<Mutex<Vec<&str>>>::default());
        let seen = || begun.lock().unwrap().join(" ");
        let hangs = work(&turns, Launch::Sandbox, "s1", &begun);
        settle().await;
        let waits = work(&turns, Launch::Sandbox, "s2", &begun);
        settle().await;
        assert_eq!(seen(), "s1");
        tokio::time::sleep(longest * 2).await;
        assert_eq!(seen(), "s1 s2", "it may be the pod that the network of the first one needs");
        drop((hangs.0, waits.0));
        let _ = (hangs.1.await, waits.1.await);
        assert_eq!(turns.state.lock().unwrap().free, 1);
    }
}
