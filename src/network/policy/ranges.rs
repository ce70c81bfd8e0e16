//! Arithmetic on sets of numbers: blocks of addresses less their exceptions, ports merged into ranges.

/// First and last number, both in it.
pub(super) type Span = (u128, u128);

/// Sorted, and without overlaps or neighbours that touch: the kernel refuses intervals that overlap.
pub(super) fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for (first, last) in spans {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// What of `span` is in none of the exceptions.
pub(super) fn subtract(span: Span, exceptions: Vec<Span>) -> Vec<Span> {
    let (mut next, last) = span;
    let mut left = Vec::new();
    for (from, to) in merge(exceptions) {
        if to < next {
            continue;
        }
        if from > last {
            break;
        }
        if from > next {
            left.push((next, from - 1));
        }
        match to.checked_add(1) {
            Some(behind) if behind <= last => next = behind,
            _ => return left,
        }
    }
    left.push((next, last));
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exceptions_are_cut_out() {
        for (exceptions, left) in [
            (vec![], vec![(10, 20)]),
            (vec![(12, 13)], vec![(10, 11), (14, 20)]),
            (vec![(0, 12), (20, 90)], vec![(13, 19)]),
            (vec![(0, 5), (30, 40)], vec![(10, 20)]),
            (vec![(10, 20)], vec![]),
            (vec![(12, 15), (14, 17)], vec![(10, 11), (18, 20)]),
        ] {
            assert_eq!(subtract((10, 20), exceptions.clone()), left, "{exceptions:?}");
        }
        assert_eq!(subtract((0, u128::MAX), vec![(5, u128::MAX)]), [(0, 4)]);
    }

    #[test]
    fn spans_that_touch_are_merged() {
        assert_eq!(merge(vec![(5, 6), (1, 2), (3, 3), (6, 9)]), [(1, 3), (5, 9)]);
        assert_eq!(merge(vec![(0, u128::MAX), (3, 4)]), [(0, u128::MAX)]);
    }

    proptest! {
        #[test]
        fn a_number_is_left_when_no_exception_has_it(
            first in 0u128..40, length in 0u128..40,
            exceptions in prop::collection::vec((0u128..80, 0u128..20), 0..6),
        ) {
            let exceptions: Vec<Span> = exceptions.into_iter().map(|(first, length)| (first, first + length)).collect();
            let has = |spans: &[Span], number: u128| spans.iter().any(|(first, last)| (*first..=*last).contains(&number));
            let left = subtract((first, first + length), exceptions.clone());
            for number in 0..120 {
                let expected = has(&[(first, first + length)], number) && !has(&exceptions, number);
                prop_assert_eq!(has(&left, number), expected, "{}", number);
            }
            prop_assert!(left.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }
}
