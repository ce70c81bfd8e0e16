//! Which CPUs are taken on machines of several sockets.

use proptest::prelude::*;

use super::*;
use crate::resources::machine::tests::tree;

fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}

#[test]
fn what_belongs_together_is_taken_together() {
    // A15.2
    let plain = CpuOptions::default();
    let across = CpuOptions { across_nodes: true, ..plain };
    let whole = CpuOptions { across_nodes: true, whole_cores: true, ..plain };
    let cache = CpuOptions { by_cache: true, ..plain };
    // Sockets, memory nodes each, cores each, threads; free; how many; options; what is taken.
    for (machine, free, count, options, taken) in [
        // Two sockets, four cores each, two threads: 0-3,8-11 and 4-7,12-15.
        ((2, 1, 4, 2), "0-15", 1, plain, "0"),
        ((2, 1, 4, 2), "0-15", 2, plain, "0,8"),
        ((2, 1, 4, 2), "0-15", 3, plain, "0-1,8"),
        ((2, 1, 4, 2), "0-15", 8, plain, "0-3,8-11"),
        ((2, 1, 4, 2), "0-15", 10, plain, "0-4,8-12"),
        ((2, 1, 4, 2), "1-15", 8, plain, "4-7,12-15"),
        ((2, 1, 4, 2), "1-15", 2, plain, "1,9"),
        ((2, 1, 4, 2), "1-15", 1, plain, "8"),
        ((2, 1, 4, 2), "1-15", 0, plain, ""),
        ((2, 1, 4, 1), "1-3,5", 2, plain, "1,5"),
        ((2, 1, 4, 2), "0-15", 4, across, "0-1,8-9"),
        ((2, 1, 4, 2), "0-15", 10, across, "0-2,4-6,8-9,12-13"),
        ((2, 1, 4, 2), "0-15", 12, whole, "0-2,4-6,8-10,12-14"),
        ((2, 1, 4, 2), "1-3,5-7,9-11,13-15", 8, whole, "1-2,5-6,9-10,13-14"),
        // Two sockets with two nodes of two cores each.
        ((2, 2, 2, 1), "0-7", 4, plain, "0-3"),
        ((2, 2, 2, 1), "1-7", 2, plain, "2-3"),
        ((2, 2, 2, 2), "1-7,9-15", 2, cache, "1,9"),
        ((2, 2, 2, 2), "1-7,9-15", 4, cache, "2-3,10-11"),
    ] {
        let (sockets, nodes, cores, threads) = machine;
        let found = take(&tree(sockets, nodes, cores, threads), &set(free), count, options);
        assert_eq!(
            found.as_ref().map(ToString::to_string),
            Ok(taken.to_owned()),
            "{machine:?} {free} {count} {options:?}"
        );
    }
    let text = "not enough cpus available to satisfy request: requested=3, available=2";
    assert_eq!(take(&tree(1, 1, 4, 1), &set("1-2"), 3, plain), Err(text.to_owned()));
}

proptest! {
    #[test]
    fn exactly_what_is_asked_for_is_taken_of_what_is_free(
        free in proptest::collection::btree_set(0_usize..16, 1..16),
        ask in 0.0_f64..1.0,
        across_nodes: bool,
        whole_cores: bool,
        by_cache: bool,
    ) {
        // A15.2
        let free: CpuSet = free.into_iter().collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small numbers")]
        let count = (free.len() as f64 * ask) as usize;
        let options = CpuOptions { whole_cores, across_nodes, strict_reservation: false, by_cache };
        let taken = take(&tree(2, 2, 2, 2), &free, count, options);
        // Upstream's even split may give up on what is free in odd pieces only.
        if let Ok(taken) = taken {
            prop_assert_eq!(taken.len(), count);
            prop_assert!(taken.is_subset(&free));
        } else {
            prop_assert!(across_nodes);
        }
    }
}
