//! Counts the results of one probe, and says when they amount to something (A5.1).

/// Results in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    last: Option<bool>,
    run: u32,
}

/// How many results in a row it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Thresholds {
    pub(super) success: u32,
    pub(super) failure: u32,
}

impl Tally {
    /// Counts a result; what the probe says now, where there are enough of a kind.
    pub(super) fn count(&mut self, success: bool, thresholds: Thresholds) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            *self = Self { last: Some(success), run: 1 };
        }
        let needed = if success { thresholds.success } else { thresholds.failure };
        (self.run >= needed).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enough_in_a_row_count() {
        // A5.1
        let mut tally = Tally::default();
        let thresholds = Thresholds { success: 2, failure: 3 };
        let seen: Vec<Option<bool>> = [false, false, true, false, false, false, false, true, true]
            .into_iter()
            .map(|result| tally.count(result, thresholds))
            .collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(seen, [None, None, None, None, None, no, no, None, yes]);
    }
}
