//! Which memory nodes of the machine suit a container best: hints of several resources are merged to one (A15.3). Pure.

use std::collections::BTreeMap;

/// A set of memory (NUMA) nodes: bit n is node n.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct NumaSet(u64);

impl NumaSet {
    /// Of node numbers; those beyond 63 do not exist.
    pub(super) fn of(nodes: impl IntoIterator<Item = usize>) -> Self {
        Self(nodes.into_iter().filter(|node| *node < 64).fold(0, |bits, node| bits | 1 << node))
    }

    pub(super) const fn contains(self, node: usize) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    pub(super) fn meets(self, nodes: &[usize]) -> bool {
        nodes.iter().any(|node| self.contains(*node))
    }

    pub(super) const fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn nodes(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |node| self.contains(*node))
    }

    /// Fewer nodes; of equally many, the one with the lower numbers.
    pub(super) fn is_narrower_than(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }

    /// Every set of these nodes but the empty one, small ones first.
    pub(super) fn all_of(nodes: &[usize]) -> Vec<Self> {
        let mut sets = vec![Self::default()];
        for node in nodes {
            let with: Vec<Self> = sets.iter().map(|set| Self(set.0 | 1 << node)).collect();
            sets.extend(with);
        }
        sets.retain(|set| set.0 != 0);
        sets.sort_by_key(|set| (set.count(), set.0));
        sets
    }
}

/// Where something could be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hint {
    /// `None`: anywhere.
    pub(super) affinity: Option<NumaSet>,
    /// It cannot be on fewer nodes.
    pub(super) preferred: bool,
}

/// Hints by resource. `None`: the resource does not care; none at all: it cannot be had.
pub(super) type Hints = BTreeMap<String, Option<Vec<Hint>>>;

/// `topologyManagerPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopologyPolicy {
    /// Nothing is aligned.
    None,
    /// The best place there is.
    BestEffort,
    /// The best place there is, if it is as good as it can be.
    Restricted,
    /// One node.
    SingleNumaNode,
}

/// The memory nodes of a machine, and how it chooses among them.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    pub(super) policy: TopologyPolicy,
    /// `prefer-closest-numa-nodes`.
    pub(super) closest: bool,
    /// Distances of each node to all of them, by node.
    pub(super) distances: BTreeMap<usize, Vec<u64>>,
}

impl Chooser {
    fn whole(&self) -> NumaSet {
        NumaSet::of(self.distances.keys().copied())
    }

    /// The best place for what has these hints, and whether it is good enough.
    pub(super) fn choose(&self, providers: &[Hints]) -> (Hint, bool) {
        let single = self.policy == TopologyPolicy::SingleNumaNode;
        let mut all = by_resource(providers);
        if single {
            for hints in &mut all {
                hints.retain(|hint| hint.preferred && hint.affinity.is_none_or(|nodes| nodes.count() == 1));
            }
        }
        let mut best = self.merge(&all);
        if single && best.affinity == Some(self.whole()) {
            best.affinity = None;
        }
        let good = match self.policy {
            TopologyPolicy::None | TopologyPolicy::BestEffort => true,
            TopologyPolicy::Restricted | TopologyPolicy::SingleNumaNode => best.preferred,
        };
        (best, good)
    }

    fn merge(&self, all: &[Vec<Hint>]) -> Hint {
        let whole = self.whole();
        // Of what is not as good as could be, that is best which has the nodes of the resource that needs the most of them.
        let narrowest = |hints: &Vec<Hint>| hints.iter().filter_map(|h| h.affinity).map(NumaSet::count).min();
        let wanted = all.iter().filter_map(narrowest).max().unwrap_or(0);
        let mut best: Option<Hint> = None;
        for_each_choice(all, &mut Vec::new(), &mut |chosen| {
            let candidate = merged(whole, chosen);
            best = Some(self.better(best, candidate, wanted)).flatten();
        });
        best.unwrap_or(Hint { affinity: Some(whole), preferred: false })
    }

    /// The better of two places; `None` where neither is one.
    fn better(&self, current: Option<Hint>, candidate: Hint, wanted: u32) -> Option<Hint> {
        let size = |hint: &Hint| hint.affinity.map_or(0, NumaSet::count);
        if size(&candidate) == 0 {
            return current;
        }
        let Some(current) = current else { return Some(candidate) };
        let fitter = || if self.fits_better(&candidate, &current) { candidate } else { current };
        let (now, then) = (size(&current), size(&candidate));
        let best = match (current.preferred, candidate.preferred) {
            (false, true) => candidate,
            (true, false) => current,
            (true, true) => fitter(),
            (false, false) if now > wanted => fitter(),
            (false, false) if now == wanted => {
                if then == wanted {
                    fitter()
                } else {
                    current
                }
            }
            // Both are, or the present one is, too small: up to what is wanted, not beyond.
            (false, false) if then > wanted => current,
            (false, false) if then == wanted || then > now => candidate,
            (false, false) if then < now => current,
            (false, false) => fitter(),
        };
        Some(best)
    }

    fn fits_better(&self, candidate: &Hint, current: &Hint) -> bool {
        let (new, old) = (candidate.affinity.unwrap_or_default(), current.affinity.unwrap_or_default());
        if new == old {
            return false;
        }
        if self.closest && self.policy != TopologyPolicy::SingleNumaNode && new.count() == old.count() {
            let (new_distance, old_distance) = (self.mean_distance(new), self.mean_distance(old));
            if (new_distance - old_distance).abs() > f64::EPSILON {
                return new_distance < old_distance;
            }
        }
        new.is_narrower_than(old)
    }

    #[expect(clippy::cast_precision_loss, reason = "distances are small numbers")]
    fn mean_distance(&self, nodes: NumaSet) -> f64 {
        let distance = |a: usize, b: usize| self.distances.get(&a).and_then(|d| d.get(b)).copied().unwrap_or_default();
        let sum: u64 =
            nodes.nodes().flat_map(|a| nodes.nodes().map(move |b| (a, b))).map(|(a, b)| distance(a, b)).sum();
        sum as f64 / f64::from((nodes.count() * nodes.count()).max(1))
    }
}

/// One list of hints for each resource of each provider.
fn by_resource(providers: &[Hints]) -> Vec<Vec<Hint>> {
    let anywhere = |preferred| vec![Hint { affinity: None, preferred }];
    let mut all = Vec::new();
    for provider in providers {
        if provider.is_empty() {
            all.push(anywhere(true));
        }
        all.extend(provider.values().map(|hints| match hints {
            None => anywhere(true),
            Some(hints) if hints.is_empty() => anywhere(false),
            Some(hints) => hints.clone(),
        }));
    }
    all
}

fn for_each_choice(rest: &[Vec<Hint>], chosen: &mut Vec<Hint>, act: &mut impl FnMut(&[Hint])) {
    let Some((first, rest)) = rest.split_first() else { return act(chosen) };
    for hint in first {
        chosen.push(*hint);
        for_each_choice(rest, chosen, act);
        chosen.pop();
    }
}

/// Where all of them can be at once; preferred if all prefer the same.
fn merged(whole: NumaSet, chosen: &[Hint]) -> Hint {
    let affinities: Vec<NumaSet> = chosen.iter().filter_map(|hint| hint.affinity).collect();
    let same = affinities.windows(2).all(|pair| pair[0] == pair[1]);
    let affinity = affinities.iter().fold(whole, |all, nodes| all.and(*nodes));
    Hint { affinity: Some(affinity), preferred: same && chosen.iter().all(|hint| hint.preferred) }
}

#[cfg(test)]
#[path = "numa/tests.rs"]
mod tests;
