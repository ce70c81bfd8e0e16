//! Signals of pressure, and the thresholds that the operator sets for them (A13.3 to A13.5). Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_model::quantity::Milli;

use crate::node::capacity::binary;

/// Something that the node can run short of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Signal {
    /// Memory of the machine.
    Memory,
    /// Memory that pods together may have.
    AllocatableMemory,
    /// Bytes of the file system with pods' directories and logs.
    NodeFs,
    /// Its inodes.
    NodeFsInodes,
    /// Bytes of the file system with the images.
    ImageFs,
    /// Its inodes.
    ImageFsInodes,
    /// Bytes of the file system with what containers write into their own layer.
    ContainerFs,
    /// Its inodes.
    ContainerFsInodes,
    /// Process numbers.
    Pids,
}

/// What is short when a signal is, as events and messages name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resource {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

impl Resource {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// An amount as upstream prints it: counts with decimal suffixes, bytes with binary ones.
    pub(super) fn text(self, amount: i64) -> String {
        quantity(amount, matches!(self, Self::Memory | Self::EphemeralStorage))
    }
}

/// A pressure condition of the node (A13.11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pressure {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pids,
}

const NAMES: [(Signal, &str); 9] = [
    (Signal::Memory, "memory.available"),
    (Signal::AllocatableMemory, "allocatableMemory.available"),
    (Signal::NodeFs, "nodefs.available"),
    (Signal::NodeFsInodes, "nodefs.inodesFree"),
    (Signal::ImageFs, "imagefs.available"),
    (Signal::ImageFsInodes, "imagefs.inodesFree"),
    (Signal::ContainerFs, "containerfs.available"),
    (Signal::ContainerFsInodes, "containerfs.inodesFree"),
    (Signal::Pids, "pid.available"),
];

impl Signal {
    fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(signal, _)| *signal)
    }

    /// As the configuration writes it.
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(signal, _)| *signal == self).map_or("", |(_, name)| name)
    }

    pub(super) const fn resource(self) -> Resource {
        match self {
            Self::Memory | Self::AllocatableMemory => Resource::Memory,
            Self::NodeFs | Self::ImageFs | Self::ContainerFs => Resource::EphemeralStorage,
            Self::NodeFsInodes | Self::ImageFsInodes | Self::ContainerFsInodes => Resource::Inodes,
            Self::Pids => Resource::Pids,
        }
    }

    pub(super) const fn pressure(self) -> Pressure {
        match self.resource() {
            Resource::Memory => Pressure::Memory,
            Resource::EphemeralStorage | Resource::Inodes => Pressure::Disk,
            Resource::Pids => Pressure::Pids,
        }
    }

    /// The same signal of the writable layers, for one of another file system.
    const fn of_containers(self) -> Option<Self> {
        match self {
            Self::NodeFs | Self::ImageFs => Some(Self::ContainerFs),
            Self::NodeFsInodes | Self::ImageFsInodes => Some(Self::ContainerFsInodes),
            _ => None,
        }
    }
}

/// An amount, or a share of what there is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value {
    Amount(i64, Style),
    Share(f32),
}

/// How an amount was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Style {
    Binary,
    Decimal,
}

impl Value {
    pub(super) fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Amount(amount, _) => amount,
            #[expect(clippy::cast_possible_truncation, reason = "a share of an i64, and upstream's is a float, too")]
            Self::Share(share) => (capacity as f64 * f64::from(share)) as i64,
        }
    }

    /// As the message of an eviction tells it.
    pub(super) fn text(self, capacity: i64) -> String {
        quantity(self.of(capacity), !matches!(self, Self::Amount(_, Style::Decimal)))
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f32 = percent.parse().ok()?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Share(percent / 100.0));
        }
        let amount = Milli::parse(text).ok()?.units();
        Some(Self::Amount(amount, if text.ends_with('i') { Style::Binary } else { Style::Decimal }))
    }
}

/// A whole amount as the API prints it, with the largest suffix that loses nothing.
pub(super) fn quantity(amount: i64, is_binary: bool) -> String {
    if is_binary && !(-1023..=1023).contains(&amount) {
        return binary(amount);
    }
    let (mut rest, mut suffix) = (amount, "");
    for next in ["k", "M", "G", "T", "P", "E"] {
        if rest == 0 || rest % 1000 != 0 {
            break;
        }
        (rest, suffix) = (rest / 1000, next);
    }
    format!("{rest}{suffix}")
}

/// A quantity that a person wrote, as the API prints it.
pub(super) fn canonical(text: &str) -> String {
    match Milli::parse(text) {
        Ok(amount) if amount.milli() % 1000 == 0 => quantity(amount.units(), text.ends_with('i')),
        _ => text.to_owned(),
    }
}

/// One threshold.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Threshold {
    pub(super) signal: Signal,
    pub(super) value: Value,
    /// How long it must be met; zero: a hard one.
    pub(super) grace: Duration,
    /// How much more must be free afterwards.
    pub(super) min_reclaim: Option<Value>,
}

/// What is there of something, and what of that is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Observation {
    pub(super) available: i64,
    pub(super) capacity: i64,
}

pub(super) type Observations = BTreeMap<Signal, Observation>;

impl Threshold {
    pub(super) const fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    /// Whether less is free than the threshold, or than that and what is to be reclaimed beyond it.
    pub(super) fn is_met(&self, observations: &Observations, with_reclaim: bool) -> bool {
        let Some(seen) = observations.get(&self.signal) else { return false };
        let more = self.min_reclaim.filter(|_| with_reclaim).map_or(0, |value| value.of(seen.capacity));
        seen.available < self.value.of(seen.capacity).saturating_add(more)
    }
}

/// The operator's fields, by signal.
#[derive(Clone, Debug, Default)]
pub struct ThresholdFields {
    /// `evictionHard`.
    pub hard: BTreeMap<String, String>,
    /// `evictionSoft`.
    pub soft: BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`.
    pub soft_grace: BTreeMap<String, Duration>,
    /// `evictionMinimumReclaim`.
    pub min_reclaim: BTreeMap<String, String>,
    /// `enforceNodeAllocatable` has `pods`: the memory of all pods together is watched like that of the machine.
    pub enforces_pods: bool,
}

/// A field that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// No such signal.
    #[error("{field}: unsupported eviction signal {signal}: write one of {}", NAMES.map(|(_, name)| name).join(", "))]
    Signal {
        /// In this field.
        field: &'static str,
        /// As written.
        signal: String,
    },
    /// No amount.
    #[error("{field}: {signal}: {value:?} must be a positive amount such as 100Mi, or 0% to 100%")]
    Value {
        /// In this field.
        field: &'static str,
        /// Of this signal.
        signal: String,
        /// As written.
        value: String,
    },
    /// A soft threshold needs a period.
    #[error("evictionSoft: {0} needs a period in evictionSoftGracePeriod")]
    NoPeriod(String),
}

/// Reads the thresholds, hard ones first.
pub(super) fn read(fields: &ThresholdFields) -> Result<Vec<Threshold>, ThresholdError> {
    let signal = |field: &'static str, name: &String| {
        Signal::parse(name).ok_or_else(|| ThresholdError::Signal { field, signal: name.clone() })
    };
    let value = |field: &'static str, name: &String, text: &String, zero_fits: bool| {
        let fits = |value: &Value| match value {
            Value::Amount(amount, _) => *amount > 0 || (zero_fits && *amount == 0),
            Value::Share(share) => *share > 0.0 || !zero_fits,
        };
        let wrong = || ThresholdError::Value { field, signal: name.clone(), value: text.clone() };
        Value::parse(text).filter(fits).ok_or_else(wrong)
    };
    let mut reclaim = BTreeMap::new();
    for (name, text) in &fields.min_reclaim {
        const FIELD: &str = "evictionMinimumReclaim";
        reclaim.insert(signal(FIELD, name)?, value(FIELD, name, text, true)?);
    }
    for name in fields.soft_grace.keys() {
        signal("evictionSoftGracePeriod", name)?;
    }
    let mut all = Vec::new();
    for (field, map, is_soft) in [("evictionHard", &fields.hard, false), ("evictionSoft", &fields.soft, true)] {
        for (name, text) in map {
            let signal = signal(field, name)?;
            let value = value(field, name, text, false)?;
            // Upstream's way to switch a threshold off.
            if matches!(text.as_str(), "0%" | "100%") {
                continue;
            }
            let grace = match is_soft {
                true => *fields.soft_grace.get(name).ok_or_else(|| ThresholdError::NoPeriod(name.clone()))?,
                false => Duration::ZERO,
            };
            all.push(Threshold { signal, value, grace, min_reclaim: reclaim.get(&signal).copied() });
        }
    }
    if fields.enforces_pods {
        let of_pods = all.iter().filter(|t| t.signal == Signal::Memory && t.is_hard());
        let of_pods: Vec<_> = of_pods.map(|t| Threshold { signal: Signal::AllocatableMemory, ..*t }).collect();
        all.extend(of_pods);
    }
    Ok(all)
}

/// Which things share a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// Everything is on one.
    One,
    /// Images and what containers write have one of their own.
    ImagesApart,
    /// Images have one of their own; what containers write is beside the pods' directories.
    Split,
}

/// The thresholds with those of the writable layers, which are those of the file system that they are on: what was written for them
/// does not count (A13.3).
pub(super) fn with_containers(thresholds: &[Threshold], layout: Layout) -> Vec<Threshold> {
    let of_containers = |s: Signal| matches!(s, Signal::ContainerFs | Signal::ContainerFsInodes);
    let source = |s: Signal| match layout {
        Layout::One | Layout::Split => matches!(s, Signal::NodeFs | Signal::NodeFsInodes),
        Layout::ImagesApart => matches!(s, Signal::ImageFs | Signal::ImageFsInodes),
    };
    let mut all: Vec<Threshold> = thresholds.iter().filter(|t| !of_containers(t.signal)).copied().collect();
    let derived = thresholds.iter().filter(|t| source(t.signal));
    let derived = derived.filter_map(|t| Some(Threshold { signal: t.signal.of_containers()?, ..*t }));
    all.extend(derived.collect::<Vec<_>>());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn seen(signal: Signal, available: i64, capacity: i64) -> Observations {
        Observations::from([(signal, Observation { available, capacity })])
    }

    #[test]
    fn every_signal_is_read_and_belongs_to_a_resource() {
        // A13.3
        use {Pressure as P, Resource as R};
        for (name, resource, pressure) in [
            ("memory.available", R::Memory, P::Memory),
            ("allocatableMemory.available", R::Memory, P::Memory),
            ("nodefs.available", R::EphemeralStorage, P::Disk),
            ("nodefs.inodesFree", R::Inodes, P::Disk),
            ("imagefs.available", R::EphemeralStorage, P::Disk),
            ("imagefs.inodesFree", R::Inodes, P::Disk),
            ("containerfs.available", R::EphemeralStorage, P::Disk),
            ("containerfs.inodesFree", R::Inodes, P::Disk),
            ("pid.available", R::Pids, P::Pids),
        ] {
            let all = read(&ThresholdFields { hard: map(&[(name, "10%")]), ..ThresholdFields::default() }).unwrap();
            let signal = all[0].signal;
            assert_eq!((signal.name(), signal.resource(), signal.pressure()), (name, resource, pressure));
            assert!(all[0].is_met(&seen(signal, 9, 100), false) && !all[0].is_met(&seen(signal, 10, 100), false));
        }
    }

    #[test]
    fn soft_ones_have_a_period_and_all_may_have_more_to_reclaim() {
        // A13.5
        let fields = ThresholdFields {
            hard: map(&[("memory.available", "100Mi"), ("imagefs.available", "0%"), ("pid.available", "100%")]),
            soft: map(&[("nodefs.available", "20%")]),
            soft_grace: BTreeMap::from([("nodefs.available".to_owned(), Duration::from_secs(90))]),
            min_reclaim: map(&[("memory.available", "0"), ("nodefs.available", "5%")]),
            enforces_pods: true,
        };
        let all = read(&fields).unwrap();
        let signals: Vec<_> = all.iter().map(|t| (t.signal, t.is_hard())).collect();
        assert_eq!(signals, [(Signal::Memory, true), (Signal::NodeFs, false), (Signal::AllocatableMemory, true)]);
        assert_eq!(all[1].grace, Duration::from_secs(90));
        for (available, met, unresolved) in [(19, true, true), (20, false, true), (24, false, true), (25, false, false)]
        {
            let seen = seen(Signal::NodeFs, available, 100);
            assert_eq!((all[1].is_met(&seen, false), all[1].is_met(&seen, true)), (met, unresolved), "{available}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        // A13.5, A22.1h
        let told = |fields: ThresholdFields| read(&fields).unwrap_err().to_string();
        let hard = |name, value| ThresholdFields { hard: map(&[(name, value)]), ..ThresholdFields::default() };
        assert!(told(hard("memory", "1Gi")).starts_with("evictionHard: unsupported eviction signal memory: write one"));
        for value in ["0", "-1", "101%", "x", "-1%"] {
            assert!(told(hard("memory.available", value)).contains("must be a positive amount"), "{value}");
        }
        let soft = ThresholdFields { soft: map(&[("pid.available", "1%")]), ..ThresholdFields::default() };
        assert_eq!(told(soft), "evictionSoft: pid.available needs a period in evictionSoftGracePeriod");
        let reclaim = ThresholdFields { min_reclaim: map(&[("pid.available", "0%")]), ..ThresholdFields::default() };
        assert!(told(reclaim).starts_with("evictionMinimumReclaim: pid.available"));
    }

    #[test]
    fn writable_layers_follow_the_file_system_that_they_are_on() {
        // A13.3
        let hard = [("nodefs.available", "10%"), ("imagefs.available", "15%"), ("containerfs.available", "50%")];
        let written = read(&ThresholdFields { hard: map(&hard), ..ThresholdFields::default() }).unwrap();
        for (layout, share) in [(Layout::One, 0.1), (Layout::Split, 0.1), (Layout::ImagesApart, 0.15)] {
            let all = with_containers(&written, layout);
            let of_containers: Vec<_> = all.iter().filter(|t| t.signal == Signal::ContainerFs).collect();
            assert_eq!(of_containers.len(), 1);
            assert_eq!(of_containers[0].value, Value::Share(share), "{layout:?}");
        }
    }

    #[test]
    fn amounts_are_printed_as_the_api_prints_them() {
        // A13.9
        for (text, printed) in [
            ("100Mi", "100Mi"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("100M", "100M"),
            ("1000k", "1M"),
            ("1500", "1500"),
            ("512", "512"),
            ("1Ki", "1Ki"),
            ("100m", "100m"),
        ] {
            assert_eq!(canonical(text), printed, "{text}");
        }
        assert_eq!(Value::Share(0.1).text(10 << 30), "1073741840", "as a float of 32 bits has it");
        assert_eq!(
            (quantity(1 << 20, true), quantity(5000, false), quantity(1000, true)),
            ("1Mi".into(), "5k".into(), "1k".into())
        );
        assert_eq!((Resource::Memory.text(2048), Resource::Inodes.text(2048)), ("2Ki".into(), "2048".into()));
    }
}
