//! A future that is polled only so often: what wakes it meanwhile is looked at together.

use std::pin::pin;
use std::task::{Context, ready};
use std::time::Duration;

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// Polls `future` at once after a quiet time, and then not again before `pause` has passed; while `holds` is false, whenever it is woken.
/// Each event of a watch wakes whoever waits for it, and to be woken by each of a burst costs more than to read them.
pub(super) async fn gathered<F: Future>(pause: Duration, holds: impl Fn() -> bool, future: F) -> F::Output {
    // What yields for others' sake would not be asked again before the pause is over.
    let mut future = pin!(unconstrained(future));
    let mut timer = pin!(None::<Sleep>);
    let mut next = Instant::now();
    std::future::poll_fn(|context: &mut Context<'_>| {
        if holds() && Instant::now() < next {
            // Only what was woken needs the timer.
            if timer.is_none() {
                timer.set(Some(sleep_until(next)));
            }
            if let Some(timer) = timer.as_mut().as_pin_mut() {
                ready!(timer.poll(context));
            }
        }
        timer.set(None);
        let polled = future.as_mut().poll(context);
        next = Instant::now() + pause;
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn what_comes_in_a_burst_is_looked_at_together_and_nothing_is_lost() {
        const EVENTS: usize = 100;
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let (mut looks, mut taken) = (0, 0);
        let begun = Instant::now();
        let reading = gathered(PAUSE, || true, async {
            while receiver.recv().await.is_some() {
                (looks, taken) = (looks + 1, taken + 1);
                while receiver.try_recv().is_ok() {
                    taken += 1;
                }
            }
        });
        let sending = async move {
            for _ in 0..EVENTS {
                tokio::time::sleep(Duration::from_millis(1)).await;
                sender.send(()).expect("somebody reads");
            }
        };
        tokio::join!(reading, sending);
        assert_eq!(taken, EVENTS);
        let most = begun.elapsed().as_millis() as usize / PAUSE.as_millis() as usize + 2;
        assert!(looks <= most, "{looks} looks of {most}");
    }

    #[tokio::test]
    async fn after_a_quiet_time_nothing_waits() {
        let mut least = Duration::MAX;
        // A busy machine makes anybody wait, but not always.
        for _ in 0..20 {
            let (sender, receiver) = oneshot::channel();
            let reading = gathered(PAUSE, || true, async { receiver.await.map(|sent: Instant| sent.elapsed()) });
            let sending = async {
                tokio::time::sleep(PAUSE * 3).await;
                sender.send(Instant::now()).expect("somebody reads");
            };
            let (waited, ()) = tokio::join!(reading, sending);
            least = least.min(waited.expect("it was sent"));
        }
        assert!(least < PAUSE / 2, "{least:?}");
    }

    #[tokio::test]
    async fn a_long_queue_is_read_at_once() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        (0..10_000).for_each(|number| sender.send(number).expect("somebody reads"));
        drop(sender);
        let mut polls = 0;
        let mut reading = pin!(async { while receiver.recv().await.is_some() {} });
        let counted = std::future::poll_fn(|context| {
            polls += 1;
            reading.as_mut().poll(context)
        });
        gathered(PAUSE, || true, counted).await;
        assert_eq!(polls, 1, "yielding would have cost a pause each time");
    }
}
