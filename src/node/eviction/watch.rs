//! Which thresholds are met, for how long, and what follows: conditions of the node, and what is to be reclaimed (A13.5). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::threshold::{Observations, Pressure, Signal, Threshold};

/// The pressure conditions that hold.
pub type Pressures = BTreeSet<Pressure>;

/// What is remembered from one look to the next. Times are monotonic.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Thresholds that are met, since when.
    since: Vec<(Threshold, Duration)>,
    /// Those of them whose grace period is over, until what is to be reclaimed is free.
    held: Vec<Threshold>,
    /// When each condition was last seen.
    pressures: BTreeMap<Pressure, Duration>,
}

impl Watch {
    /// Takes in a look; the thresholds to act on now, memory first.
    pub(super) fn note(&mut self, all: &[Threshold], seen: &Observations, now: Duration) -> Vec<Threshold> {
        let is_met = |t: &&Threshold| t.is_met(seen, false) || (self.held.contains(t) && t.is_met(seen, true));
        let met: Vec<Threshold> = all.iter().filter(is_met).copied().collect();
        let since = |t: &Threshold| self.since.iter().find(|(known, _)| known == t).map_or(now, |(_, since)| *since);
        self.since = met.iter().map(|t| (*t, since(t))).collect();
        for threshold in &met {
            self.pressures.insert(threshold.signal.pressure(), now);
        }
        let due = self.since.iter().filter(|(t, since)| now.saturating_sub(*since) >= t.grace);
        self.held = due.map(|(t, _)| *t).collect();
        let mut due = self.held.clone();
        due.sort_by_key(|t| !matches!(t.signal, Signal::Memory | Signal::AllocatableMemory));
        due
    }

    /// The conditions that hold: each for the transition period after it was last seen.
    pub(super) fn pressures(&self, transition: Duration, now: Duration) -> Pressures {
        let holds = |seen: Duration| seen == now || now.saturating_sub(seen) < transition;
        self.pressures.iter().filter(|(_, seen)| holds(**seen)).map(|(pressure, _)| *pressure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::threshold::{Observation, Style, Value};
    use super::*;

    const fn threshold(signal: Signal, value: i64, grace: u64, reclaim: Option<i64>) -> Threshold {
        let min_reclaim = match reclaim {
            Some(amount) => Some(Value::Amount(amount, Style::Decimal)),
            None => None,
        };
        let value = Value::Amount(value, Style::Decimal);
        Threshold { signal, value, grace: Duration::from_secs(grace), min_reclaim }
    }

    fn seen(pairs: &[(Signal, i64)]) -> Observations {
        pairs.iter().map(|(s, available)| (*s, Observation { available: *available, capacity: 1000 })).collect()
    }

    const AT: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_soft_threshold_waits_for_its_period_but_shows_at_once() {
        // A13.5
        let soft = threshold(Signal::NodeFs, 100, 30, None);
        let mut watch = Watch::default();
        assert!(watch.note(&[soft], &seen(&[(Signal::NodeFs, 99)]), AT(10)).is_empty());
        assert_eq!(watch.pressures(AT(300), AT(10)), Pressures::from([Pressure::Disk]));
        assert!(watch.note(&[soft], &seen(&[(Signal::NodeFs, 50)]), AT(39)).is_empty());
        assert_eq!(watch.note(&[soft], &seen(&[(Signal::NodeFs, 50)]), AT(40)), [soft]);
        assert!(watch.note(&[soft], &seen(&[(Signal::NodeFs, 100)]), AT(50)).is_empty());
        assert!(watch.note(&[soft], &seen(&[(Signal::NodeFs, 50)]), AT(60)).is_empty(), "the period begins anew");
    }

    #[test]
    fn a_threshold_holds_until_the_minimum_is_reclaimed() {
        // A13.5
        let hard = threshold(Signal::Memory, 100, 0, Some(50));
        let mut watch = Watch::default();
        let mut note = |available, at| !watch.note(&[hard], &seen(&[(Signal::Memory, available)]), AT(at)).is_empty();
        for (available, at, acts) in
            [(149, 0, false), (99, 10, true), (149, 20, true), (150, 30, false), (149, 40, false)]
        {
            assert_eq!(note(available, at), acts, "{available} at {at}");
        }
    }

    #[test]
    fn memory_comes_before_everything_else() {
        // A13.7
        let disk = threshold(Signal::NodeFs, 100, 0, None);
        let (memory, pods) =
            (threshold(Signal::Memory, 100, 0, None), threshold(Signal::AllocatableMemory, 100, 0, None));
        let all = [disk, pods, memory];
        let observations = seen(&[(Signal::NodeFs, 1), (Signal::Memory, 1), (Signal::AllocatableMemory, 1)]);
        assert_eq!(Watch::default().note(&all, &observations, AT(0)), [pods, memory, disk]);
    }

    #[test]
    fn conditions_stay_for_the_transition_period() {
        // A13.5, A13.11
        let memory = threshold(Signal::Memory, 100, 0, None);
        let mut watch = Watch::default();
        watch.note(&[memory], &seen(&[(Signal::Memory, 100)]), AT(10));
        assert!(watch.pressures(AT(300), AT(10)).is_empty(), "exactly at the threshold");
        watch.note(&[memory], &seen(&[(Signal::Memory, 99)]), AT(20));
        watch.note(&[memory], &seen(&[(Signal::Memory, 500)]), AT(30));
        assert_eq!(watch.pressures(AT(300), AT(319)), Pressures::from([Pressure::Memory]));
        assert!(watch.pressures(AT(300), AT(320)).is_empty());
    }
}
