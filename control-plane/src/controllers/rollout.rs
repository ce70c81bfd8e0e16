//! The arithmetic of a Deployment's rollout (C7.1), as pure functions on sizes.

use serde_json::Value;

/// A ReplicaSet of a deployment, as far as sizes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    /// Creation order: RFC 3339 sorts by time.
    pub(super) created: String,
    /// `spec.replicas`.
    pub(super) size: i64,
    /// `status.replicas`.
    pub(super) actual: i64,
    pub(super) ready: i64,
    pub(super) available: i64,
    /// Annotation `deployment.kubernetes.io/max-replicas` at the last scaling.
    pub(super) max_annotation: Option<i64>,
    /// Annotation `deployment.kubernetes.io/desired-replicas`.
    pub(super) desired_annotation: Option<i64>,
}

/// What the deployment wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Goal {
    pub(super) replicas: i64,
    pub(super) max_surge: i64,
    pub(super) max_unavailable: i64,
    pub(super) recreate: bool,
}

impl Goal {
    /// Reads a defaulted Deployment.
    pub(super) fn of(deployment: &Value) -> Self {
        let spec = &deployment["spec"];
        let replicas = spec["replicas"].as_i64().unwrap_or(1);
        let recreate = spec["strategy"]["type"] == "Recreate";
        if recreate {
            return Self { replicas, max_surge: 0, max_unavailable: 0, recreate };
        }
        let rolling = &spec["strategy"]["rollingUpdate"];
        let max_surge = resolve(rolling.get("maxSurge"), replicas, true);
        let mut max_unavailable = resolve(rolling.get("maxUnavailable"), replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            // Both round to nothing: without this the rollout could never move.
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable: max_unavailable.min(replicas), recreate }
    }

    fn max_total(self) -> i64 {
        self.replicas + self.max_surge
    }

    /// What must stay available.
    pub(super) fn min_available(self) -> i64 {
        self.replicas - self.max_unavailable
    }
}

/// A number, or a percentage of `total`; absent means 25 %.
pub(super) fn resolve(value: Option<&Value>, total: i64, round_up: bool) -> i64 {
    match value {
        Some(Value::Number(number)) => number.as_i64().unwrap_or_default(),
        Some(Value::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            let product = total * percent;
            if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }
        }
        _ => resolve(Some(&Value::from("25%")), total, round_up),
    }
}

/// A set's new size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resize {
    pub(super) name: String,
    pub(super) to: i64,
}

fn resize(set: &Set, to: i64) -> Resize {
    Resize { name: set.name.clone(), to }
}

fn total_size<'a>(sets: impl IntoIterator<Item = &'a Set>) -> i64 {
    sets.into_iter().map(|set| set.size).sum()
}

/// How large the new set may be beside the others (`current` is its size now, 0 if it does not exist yet).
pub(super) fn new_set_size(goal: Goal, current: i64, olds: &[Set]) -> i64 {
    if goal.recreate {
        return goal.replicas;
    }
    let all = current + total_size(olds);
    if all >= goal.max_total() {
        return current;
    }
    current + (goal.max_total() - all).min(goal.replicas - current)
}

/// The new set's next step of a rolling update; `None`: it is as large as it may be.
pub(super) fn grow_new(goal: Goal, new: &Set, olds: &[Set]) -> Option<Resize> {
    let size = if new.size > goal.replicas { goal.replicas } else { new_set_size(goal, new.size, olds) };
    (size != new.size).then(|| resize(new, size))
}

/// What a rolling update takes from the old sets: first pods that are not available anyway, then as many as leaves
/// enough available.
pub(super) fn shrink_old(goal: Goal, new: &Set, olds: &[Set]) -> Vec<Resize> {
    let mut olds = olds.to_vec();
    if total_size(&olds) == 0 {
        return Vec::new();
    }
    let new_unavailable = new.size - new.available;
    let removable = new.size + total_size(&olds) - goal.min_available() - new_unavailable;
    if removable <= 0 {
        return Vec::new();
    }
    olds.sort_by(|a, b| a.created.cmp(&b.created));
    let before = olds.clone();
    let mut left = removable;
    for set in &mut olds {
        let unhealthy = (set.size - set.available).clamp(0, left);
        set.size -= unhealthy;
        left -= unhealthy;
    }
    let available = new.available + olds.iter().map(|set| set.available).sum::<i64>();
    let mut left = available - goal.min_available();
    for set in &mut olds {
        let taken = set.size.min(left).max(0);
        set.size -= taken;
        left -= taken;
    }
    let changed = olds.iter().zip(&before).filter(|(after, before)| after.size != before.size);
    changed.map(|(after, before)| resize(before, after.size)).collect()
}

/// What a change of the deployment's size means for its sets, also while a rollout is under way or paused: the one set
/// that is in use follows; several share in proportion. `newest` is the current set if there is one, else the latest.
pub(super) fn scale(goal: Goal, newest: Option<&Set>, new: Option<&Set>, olds: &[Set]) -> Vec<Resize> {
    let all: Vec<&Set> = olds.iter().chain(new).collect();
    let active: Vec<&Set> = all.iter().copied().filter(|set| set.size > 0).collect();
    let only = match active.as_slice() {
        [] => newest,
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        return if only.size == goal.replicas { Vec::new() } else { vec![resize(only, goal.replicas)] };
    }
    let saturated = new.is_some_and(|new| {
        new.size == goal.replicas && new.desired_annotation == Some(goal.replicas) && new.available == goal.replicas
    });
    if saturated {
        return olds.iter().filter(|set| set.size > 0).map(|set| resize(set, 0)).collect();
    }
    if goal.recreate {
        return Vec::new();
    }
    in_proportion(goal, active)
}

fn in_proportion(goal: Goal, mut active: Vec<&Set>) -> Vec<Resize> {
    let allowed = if goal.replicas > 0 { goal.max_total() } else { 0 };
    let to_add = allowed - total_size(active.iter().copied());
    // Larger ones first; of equals the newer when growing, the older when shrinking.
    active.sort_by(|a, b| {
        let by_age = if to_add > 0 { b.created.cmp(&a.created) } else { a.created.cmp(&b.created) };
        b.size.cmp(&a.size).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<i64> = Vec::new();
    for set in &active {
        let left = to_add - added;
        let share = share_of(goal, set);
        let change = match to_add {
            0 => 0,
            1.. => share.min(left).max(0),
            _ => share.max(left).min(0),
        };
        sizes.push(set.size + change);
        added += change;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    let changed = active.iter().zip(sizes).filter(|(set, size)| set.size != *size);
    changed.map(|(set, size)| resize(set, size)).collect()
}

/// By how much a set would change if it kept its share of the whole.
fn share_of(goal: Goal, set: &Set) -> i64 {
    if goal.replicas == 0 {
        return -set.size;
    }
    let before = set.max_annotation.filter(|max| *max > 0).unwrap_or_else(|| goal.max_total());
    // Rounded to the nearest, halves up; all are positive.
    (2 * set.size * goal.max_total() + before) / (2 * before) - set.size
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn goal(replicas: i64, max_surge: i64, max_unavailable: i64) -> Goal {
        Goal { replicas, max_surge, max_unavailable, recreate: false }
    }

    fn set(name: &str, size: i64, available: i64) -> Set {
        Set {
            name: name.into(),
            created: name.into(),
            size,
            actual: size,
            ready: available,
            available,
            ..Set::default()
        }
    }

    #[track_caller]
    fn sizes(resizes: &[Resize], expected: &[(&str, i64)]) {
        let resizes: Vec<(&str, i64)> = resizes.iter().map(|r| (r.name.as_str(), r.to)).collect();
        assert_eq!(resizes, expected);
    }

    #[test]
    fn surge_rounds_up_and_unavailable_rounds_down() {
        let of = |replicas: i64, surge: Value, unavailable: Value| {
            Goal::of(&json!({"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        };
        assert_eq!(of(10, json!("25%"), json!("25%")), goal(10, 3, 2));
        assert_eq!(of(1, json!("25%"), json!("25%")), goal(1, 1, 0));
        assert_eq!(of(4, json!(0), json!("10%")), goal(4, 0, 1));
        assert_eq!(of(3, json!(1), json!(9)), goal(3, 1, 3));
        assert_eq!(Goal::of(&json!({"spec": {"replicas": 4}})), goal(4, 1, 1));
    }

    #[test]
    fn the_new_set_grows_as_far_as_the_surge_lets_it() {
        let olds = [set("a", 10, 10)];
        assert_eq!(new_set_size(goal(10, 3, 2), 0, &olds), 3);
        assert_eq!(new_set_size(goal(10, 3, 2), 0, &[]), 10);
        assert_eq!(new_set_size(Goal { recreate: true, ..goal(10, 0, 0) }, 0, &olds), 10);
        assert_eq!(grow_new(goal(10, 3, 2), &set("b", 3, 0), &olds), None);
        sizes(&[grow_new(goal(2, 1, 0), &set("b", 5, 5), &[]).unwrap()], &[("b", 2)]);
    }

    #[test]
    fn old_pods_go_only_as_far_as_enough_stay_available() {
        sizes(&shrink_old(goal(10, 3, 2), &set("b", 3, 0), &[set("a", 10, 10)]), &[("a", 8)]);
        sizes(&shrink_old(goal(10, 3, 2), &set("b", 5, 0), &[set("a", 8, 8)]), &[]);
        sizes(&shrink_old(goal(10, 3, 2), &set("b", 5, 5), &[set("a", 8, 8)]), &[("a", 3)]);
        // Unhealthy old pods do not count as available, so they go first.
        sizes(&shrink_old(goal(10, 3, 2), &set("b", 3, 0), &[set("a", 8, 8), set("aa", 2, 0)]), &[("aa", 0)]);
        sizes(&shrink_old(goal(1, 1, 0), &set("b", 1, 0), &[set("a", 1, 1)]), &[]);
        sizes(&shrink_old(goal(1, 1, 0), &set("b", 1, 1), &[set("a", 1, 1)]), &[("a", 0)]);
    }

    #[test]
    fn one_set_follows_the_size_and_several_share_it() {
        let only = set("a", 3, 3);
        sizes(&scale(goal(5, 1, 1), Some(&only), Some(&only), &[]), &[("a", 5)]);
        // 10 with surge 3 became 20 with surge 5 in the middle of a rollout of 8 old and 5 new.
        let with_max = |s: Set| Set { max_annotation: Some(13), desired_annotation: Some(10), ..s };
        let (new, old) = (with_max(set("b", 5, 0)), with_max(set("a", 8, 8)));
        let grown = scale(goal(20, 5, 5), Some(&new), Some(&new), std::slice::from_ref(&old));
        sizes(&grown, &[("a", 15), ("b", 10)]);
        sizes(&scale(goal(0, 0, 0), Some(&new), Some(&new), &[old]), &[("a", 0), ("b", 0)]);
    }

    /// From any start, taking one step after another while pods become available ends with only the new set, and never
    /// leaves the bounds that the user set (C7.1).
    #[test]
    fn a_rollout_always_ends_and_never_leaves_its_bounds() {
        for (replicas, surge, unavailable) in [(1, 1, 0), (1, 0, 1), (5, 2, 1), (10, 3, 2), (7, 0, 3), (20, 20, 20)] {
            let goal = goal(replicas, surge, unavailable);
            let mut old = set("a", replicas, replicas);
            let mut new = set("b", 0, 0);
            for _ in 0..200 {
                if let Some(step) = grow_new(goal, &new, std::slice::from_ref(&old)) {
                    new.size = step.to;
                } else if let Some(step) = shrink_old(goal, &new, std::slice::from_ref(&old)).first() {
                    old.size = step.to;
                    old.available = old.available.min(old.size);
                } else if new.available < new.size {
                    new.available += 1;
                }
                assert!(new.size + old.size <= replicas + surge, "{goal:?}: {new:?} {old:?}");
                assert!(new.available + old.available >= replicas - unavailable, "{goal:?}: {new:?} {old:?}");
            }
            assert_eq!((new.size, old.size), (replicas, 0), "{goal:?}");
        }
    }
}
