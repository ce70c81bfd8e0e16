//! What is probed, when the next attempt is due, and what the results amount to. Reads no clock and does no I/O.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use stoker_model::handle::EventType;
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::Notify;

use super::action::{Action, Outcome};
use super::counts::Counts;
use super::tally::{Tally, Thresholds};
use super::{Target, Verdict, View};
use crate::clock::Now;

/// An attempt about which nothing can be said is repeated at once, so often in all (A5.3).
pub(super) const ATTEMPTS: u32 = 3;

/// The three kinds of probes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events write it.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// One probe of one running container.
#[derive(Debug)]
struct Track {
    pod: PodRef,
    container: String,
    field_path: String,
    kind: Kind,
    action: Arc<Action>,
    timeout: Duration,
    period: Duration,
    thresholds: Thresholds,
    tally: Tally,
    /// No attempt before this (monotonic).
    not_before: Duration,
    /// When the last attempt was due (monotonic).
    last_due: Duration,
    /// There is an attempt in the heap, or under way.
    scheduled: bool,
}

/// One running container.
#[derive(Debug)]
struct Watched {
    id: String,
    startup: Option<u64>,
    liveness: Option<u64>,
    readiness: Option<u64>,
    verdict: Verdict,
}

struct Entry {
    wake: Arc<Notify>,
    ending: bool,
    containers: BTreeMap<String, Watched>,
}

/// An attempt to be made now.
pub(super) struct Due {
    pub(super) number: u64,
    pub(super) action: Arc<Action>,
    pub(super) timeout: Duration,
}

/// What to publish after a result.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) pod: PodRef,
    pub(super) field_path: String,
    pub(super) reason: &'static str,
    pub(super) text: String,
}

impl Message {
    pub(super) const KIND: EventType = EventType::Warning;
}

/// See the module.
#[derive(Default)]
pub(super) struct Board {
    pods: HashMap<PodUid, Entry>,
    tracks: HashMap<u64, Track>,
    /// Attempts by time; those of tracks that are gone are passed over.
    due: BinaryHeap<Reverse<(Duration, u64)>>,
    next_number: u64,
    /// How attempts went, of the pods that are there.
    pub(super) counts: Counts,
}

impl Board {
    /// Takes over what runs of a pod, and tells what its probes say.
    pub(super) fn keep(&mut self, view: View<'_>, wake: &Arc<Notify>, now: Now) -> BTreeMap<String, Verdict> {
        let uid = &view.pod.uid;
        let mut entry = self.pods.remove(uid).unwrap_or_else(|| Entry {
            wake: wake.clone(),
            ending: false,
            containers: BTreeMap::new(),
        });
        entry.wake = wake.clone();
        let gone: Vec<String> = entry
            .containers
            .iter()
            .filter(|(name, watched)| !view.containers.iter().any(|t| t.spec.name == **name && t.id == watched.id))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(watched) = entry.containers.remove(&name) {
                self.drop_tracks(&watched);
            }
        }
        for target in view.containers {
            if !entry.containers.contains_key(&target.spec.name) && is_probed(target.spec) {
                let watched = self.watch(view, target, now);
                entry.containers.insert(target.spec.name.clone(), watched);
            }
        }
        if view.ending && !entry.ending {
            entry.ending = true;
            for watched in entry.containers.values_mut() {
                self.quiet(watched, now);
            }
        }
        let verdicts = entry.containers.iter().map(|(name, watched)| (name.clone(), watched.verdict)).collect();
        if !entry.containers.is_empty() {
            self.pods.insert(uid.clone(), entry);
        }
        verdicts
    }

    /// Forgets a pod.
    pub(super) fn forget(&mut self, uid: &PodUid) {
        self.counts.forget(uid);
        if let Some(entry) = self.pods.remove(uid) {
            for watched in entry.containers.values() {
                self.drop_tracks(watched);
            }
        }
    }

    fn drop_tracks(&mut self, watched: &Watched) {
        for number in [watched.startup, watched.liveness, watched.readiness].into_iter().flatten() {
            self.tracks.remove(&number);
        }
    }

    /// A container that was not there before.
    fn watch(&mut self, view: View<'_>, target: &Target<'_>, now: Now) -> Watched {
        let spec = target.spec;
        let reported = target.reported;
        let verdict = Verdict {
            started: spec.startup_probe.is_none() || reported.is_some_and(|r| r.started),
            ready: spec.readiness_probe.is_none() || reported.is_some_and(|r| r.ready),
            dead: false,
        };
        let mut watched = Watched { id: target.id.to_owned(), startup: None, liveness: None, readiness: None, verdict };
        let mut add =
            |kind, probe: &Option<Probe>| probe.as_ref().map(|probe| self.track(view, target, kind, probe, now));
        watched.startup = add(Kind::Startup, &spec.startup_probe);
        watched.liveness = add(Kind::Liveness, &spec.liveness_probe);
        watched.readiness = add(Kind::Readiness, &spec.readiness_probe);
        self.schedule_what_may_run(&watched, target.reported.is_some(), now.monotonic);
        watched
    }

    fn track(&mut self, view: View<'_>, target: &Target<'_>, kind: Kind, probe: &Probe, now: Now) -> u64 {
        let seconds = |given: Option<i32>, usual: u64| {
            let given = given.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
            Duration::from_secs(given.unwrap_or(usual))
        };
        let count = |given: Option<i32>, usual: u32| given.and_then(|n| u32::try_from(n).ok()).unwrap_or(usual).max(1);
        let running = Duration::try_from(now.wall.duration_since(target.running_since)).unwrap_or_default();
        let since = now.monotonic.saturating_sub(running);
        let delay = Duration::from_secs(probe.initial_delay_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
        let period = seconds(probe.period_seconds, 10);
        // Startup and liveness count failures from the start: like kubelet's, they leave the first period to the container.
        let first = if kind == Kind::Readiness { delay } else { delay.max(period) };
        self.next_number += 1;
        let track = Track {
            pod: view.pod.clone(),
            container: target.spec.name.clone(),
            field_path: target.field_path.to_owned(),
            kind,
            action: Arc::new(Action::of(probe, target.spec, target.id, view.address)),
            timeout: seconds(probe.timeout_seconds, 1),
            period,
            thresholds: Thresholds {
                success: count(probe.success_threshold, 1),
                failure: count(probe.failure_threshold, 3),
            },
            tally: Tally::default(),
            not_before: since + first,
            last_due: now.monotonic,
            scheduled: false,
        };
        self.tracks.insert(self.next_number, track);
        self.next_number
    }

    /// Schedules what a container's state lets run: until it has started that is its startup probe alone (A5.4).
    fn schedule_what_may_run(&mut self, watched: &Watched, spread: bool, now: Duration) {
        let numbers =
            if watched.verdict.started { [watched.liveness, watched.readiness] } else { [watched.startup, None] };
        for number in numbers.into_iter().flatten() {
            let Some(track) = self.tracks.get_mut(&number).filter(|track| !track.scheduled) else { continue };
            // After a start of the agent all containers are new to it: their probes spread over a period (A5.3).
            let wait = if spread { track.period.mul_f64(share(number)) } else { Duration::ZERO };
            let due = track.not_before.max(now) + wait;
            (track.scheduled, track.last_due) = (true, due);
            self.due.push(Reverse((due, number)));
        }
    }

    /// The pod ends: liveness and startup are asked no more, and what they said is forgotten (A5.6).
    fn quiet(&mut self, watched: &mut Watched, now: Now) {
        for number in [watched.startup.take(), watched.liveness.take()].into_iter().flatten() {
            self.tracks.remove(&number);
        }
        watched.verdict.started = true;
        watched.verdict.dead = false;
        self.schedule_what_may_run(watched, false, now.monotonic);
    }

    /// When the next attempt is due (monotonic).
    pub(super) fn next_due(&mut self) -> Option<Duration> {
        while let Some(Reverse((at, number))) = self.due.peek() {
            if self.tracks.contains_key(number) {
                return Some(*at);
            }
            self.due.pop();
        }
        None
    }

    /// Attempts that are due now.
    pub(super) fn take_due(&mut self, now: Duration) -> Vec<Due> {
        let mut all = Vec::new();
        while self.next_due().is_some_and(|at| at <= now) {
            if let Some(Reverse((_, number))) = self.due.pop()
                && let Some(track) = self.tracks.get(&number)
            {
                all.push(Due { number, action: track.action.clone(), timeout: track.timeout });
            }
        }
        all
    }

    /// Takes over the result of an attempt, and how long that took. `None`: it came to no end. What is to be told.
    pub(super) fn record(
        &mut self,
        number: u64,
        outcome: Option<(Outcome, Duration)>,
        now: Duration,
    ) -> Option<Message> {
        let track = self.tracks.get_mut(&number)?;
        let kind = track.kind;
        let outcome = outcome.map(|(outcome, took)| {
            self.counts.add(&track.pod, &track.container, kind, &outcome, took);
            outcome
        });
        let message = outcome.as_ref().and_then(|outcome| message(track, outcome));
        let counted = match outcome {
            Some(Outcome::Success | Outcome::Warning(_)) => track.tally.count(true, track.thresholds),
            Some(Outcome::Failure(_)) => track.tally.count(false, track.thresholds),
            Some(Outcome::Unknown(_)) | None => None,
        };
        track.scheduled = false;
        // A startup probe has said its word, and a container that liveness gave up on is killed (A5.4, A5.5).
        let over = counted.is_some_and(|passed| kind == Kind::Startup || kind == Kind::Liveness && !passed);
        if !over {
            // At its own pace, however long the attempt took; what was missed is not made up for.
            let next = track.last_due + track.period;
            let due = if next > now { next } else { now + track.period.mul_f64(share(number) / 10.0) };
            (track.scheduled, track.last_due) = (true, due);
            self.due.push(Reverse((due, number)));
        }
        if let Some(passed) = counted {
            let (uid, container) = (track.pod.uid.clone(), track.container.clone());
            self.decide(&uid, &container, kind, passed, now);
        }
        message
    }

    fn decide(&mut self, uid: &PodUid, container: &str, kind: Kind, passed: bool, now: Duration) {
        let Some(mut entry) = self.pods.remove(uid) else { return };
        if let Some(watched) = entry.containers.get_mut(container) {
            let before = watched.verdict;
            match (kind, passed) {
                (Kind::Startup, true) => watched.verdict.started = true,
                (Kind::Startup | Kind::Liveness, false) => watched.verdict.dead = true,
                (Kind::Liveness, true) => {}
                (Kind::Readiness, ready) => watched.verdict.ready = ready,
            }
            if watched.verdict != before {
                entry.wake.notify_one();
            }
            if kind == Kind::Startup && passed {
                self.schedule_what_may_run(watched, false, now);
            }
        }
        self.pods.insert(uid.clone(), entry);
    }

    /// How many probes there are.
    pub(super) fn len(&self) -> usize {
        self.tracks.len()
    }
}

fn is_probed(container: &Container) -> bool {
    container.startup_probe.is_some() || container.liveness_probe.is_some() || container.readiness_probe.is_some()
}

/// A number between 0 and 1 that differs from probe to probe: the golden ratio spreads consecutive ones best.
fn share(number: u64) -> f64 {
    let spread = number as f64 * 0.618_033_988_749_895;
    spread.fract()
}

fn message(track: &Track, outcome: &Outcome) -> Option<Message> {
    let kind = track.kind.text();
    let (reason, text) = match outcome {
        Outcome::Success => return None,
        Outcome::Warning(text) => ("ProbeWarning", format!("{kind} probe warning: {text}")),
        Outcome::Failure(text) => ("Unhealthy", format!("{kind} probe failed: {text}")),
        Outcome::Unknown(text) => ("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {text}")),
    };
    Some(Message { pod: track.pod.clone(), field_path: track.field_path.clone(), reason, text })
}

#[cfg(test)]
#[path = "board/tests.rs"]
mod tests;
