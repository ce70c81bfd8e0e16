//! Tables and properties of the merge of hints.

use proptest::prelude::*;

use super::*;

fn chooser(policy: TopologyPolicy) -> Chooser {
    let distances = BTreeMap::from([(0, vec![10, 21]), (1, vec![21, 10])]);
    Chooser { policy, closest: false, distances }
}

fn set(nodes: &[usize]) -> NumaSet {
    NumaSet::of(nodes.iter().copied())
}

fn hint(nodes: &[usize], preferred: bool) -> Hint {
    Hint { affinity: Some(set(nodes)), preferred }
}

fn provider(resource: &str, hints: Option<Vec<Hint>>) -> Hints {
    Hints::from([(resource.to_owned(), hints)])
}

#[test]
fn hints_are_merged_as_upstream_does() {
    // A15.3
    use TopologyPolicy::{BestEffort, Restricted, SingleNumaNode};
    let whole = &[0, 1][..];
    let any = || Some(vec![hint(&[0], true), hint(&[1], true), hint(whole, false)]);
    let first = || Some(vec![hint(&[0], true), hint(whole, false)]);
    let second = || Some(vec![hint(&[1], true), hint(whole, false)]);
    let both = || Some(vec![hint(whole, true)]);
    type Case<'a> = (&'a str, Vec<Hints>, TopologyPolicy, Option<&'a [usize]>, bool, bool);
    let cases: &[Case<'_>] = &[
        ("nobody cares", vec![Hints::new()], BestEffort, Some(whole), true, true),
        ("nobody cares", vec![Hints::new()], SingleNumaNode, None, true, true),
        ("the resource does not care", vec![provider("a", None)], Restricted, Some(whole), true, true),
        ("it cannot be had", vec![provider("a", Some(vec![]))], BestEffort, Some(whole), false, true),
        ("it cannot be had", vec![provider("a", Some(vec![]))], Restricted, Some(whole), false, false),
        ("it cannot be had", vec![provider("a", Some(vec![]))], SingleNumaNode, None, false, false),
        ("the lowest node", vec![provider("cpu", any())], BestEffort, Some(&[0]), true, true),
        (
            "the common node",
            vec![provider("cpu", any()), provider("gpu", second())],
            Restricted,
            Some(&[1]),
            true,
            true,
        ),
        (
            "no common node",
            vec![provider("cpu", first()), provider("gpu", second())],
            BestEffort,
            Some(&[0]),
            false,
            true,
        ),
        (
            "no common node",
            vec![provider("cpu", first()), provider("gpu", second())],
            Restricted,
            Some(&[0]),
            false,
            false,
        ),
        (
            "no common node",
            vec![provider("cpu", first()), provider("gpu", second())],
            SingleNumaNode,
            None,
            false,
            false,
        ),
        ("needs both", vec![provider("cpu", both())], Restricted, Some(whole), true, true),
        ("needs both", vec![provider("cpu", both())], SingleNumaNode, None, false, false),
        ("one needs both", vec![provider("cpu", both()), provider("gpu", any())], BestEffort, Some(whole), false, true),
    ];
    for (name, hints, policy, affinity, preferred, admitted) in cases {
        let (best, good) = chooser(*policy).choose(hints);
        let expected = Hint { affinity: affinity.map(set), preferred: *preferred };
        assert_eq!((best, good), (expected, *admitted), "{name}, {policy:?}");
    }
}

#[test]
fn of_equally_many_nodes_the_closest_are_preferred() {
    // A15.3
    let distances = BTreeMap::from([
        (0, vec![10, 30, 12, 30]),
        (1, vec![30, 10, 30, 30]),
        (2, vec![12, 30, 10, 30]),
        (3, vec![30, 30, 30, 10]),
    ]);
    let pairs = Some(vec![hint(&[0, 1], true), hint(&[0, 2], true), hint(&[2, 3], true)]);
    let mut chooser = Chooser { policy: TopologyPolicy::BestEffort, closest: false, distances };
    assert_eq!(chooser.choose(&[provider("cpu", pairs.clone())]).0.affinity, Some(set(&[0, 1])));
    chooser.closest = true;
    assert_eq!(chooser.choose(&[provider("cpu", pairs)]).0.affinity, Some(set(&[0, 2])));
}

#[test]
fn sets_of_nodes_come_small_ones_first() {
    let all = NumaSet::all_of(&[0, 2]);
    assert_eq!(all, [set(&[0]), set(&[2]), set(&[0, 2])]);
    assert!(set(&[3]).is_narrower_than(set(&[0, 1])) && set(&[0]).is_narrower_than(set(&[1])));
}

fn hints() -> impl Strategy<Value = Vec<Hints>> {
    let hint =
        (1_u64..4, any::<bool>()).prop_map(|(bits, preferred)| Hint { affinity: Some(NumaSet(bits)), preferred });
    let of_resource = proptest::option::of(proptest::collection::vec(hint, 0..4));
    let provider = proptest::collection::btree_map("[a-c]", of_resource, 0..3);
    proptest::collection::vec(provider, 0..3)
}

proptest! {
    #[test]
    fn what_is_promised_holds(hints in hints()) {
        // A15.3
        let (single, admitted) = chooser(TopologyPolicy::SingleNumaNode).choose(&hints);
        prop_assert!(!admitted || single.affinity.is_none_or(|nodes| nodes.count() == 1));
        let (restricted, admitted) = chooser(TopologyPolicy::Restricted).choose(&hints);
        prop_assert_eq!(admitted, restricted.preferred);
        let (best, always) = chooser(TopologyPolicy::BestEffort).choose(&hints);
        prop_assert!(always && best == restricted);
        prop_assert!(best.affinity.is_some_and(|nodes| nodes.count() > 0));
        // What one node can give, all policies take.
        if single.preferred && single.affinity.is_some() {
            prop_assert!(best.preferred && best.affinity.map(NumaSet::count) <= Some(1));
        }
    }
}
