//! Which trace a span belongs to, and whether anybody wants it.

use ring::rand::{SecureRandom, SystemRandom};

/// A span as its children and callees know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    pub(super) is_recorded: bool,
}

/// How many of the spans without a recorded caller are recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampler {
    pub(super) per_million: u32,
}

impl Identity {
    /// Reads a `traceparent` header (W3C Trace Context): `00-<trace>-<span>-<flags>`; `None` for anything odd.
    pub(super) fn of_caller(header: &str) -> Option<Self> {
        let parts: Vec<&str> = header.trim().split('-').collect();
        let &[version, trace, span, flags, ref more @ ..] = parts.as_slice() else { return None };
        let is_lower = |text: &str| text.bytes().all(|sign| sign.is_ascii_digit() || (b'a'..=b'f').contains(&sign));
        let sizes = (version.len(), trace.len(), span.len(), flags.len());
        // Later versions may say more; the first one does not.
        if sizes != (2, 32, 16, 2) || version == "ff" || (version == "00" && !more.is_empty()) {
            return None;
        }
        if ![version, trace, span, flags].into_iter().all(is_lower) {
            return None;
        }
        let mut identity = Self { trace: [0; 16], span: [0; 8], is_recorded: false };
        hex::decode_to_slice(trace, &mut identity.trace).ok()?;
        hex::decode_to_slice(span, &mut identity.span).ok()?;
        identity.is_recorded = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (identity.trace != [0; 16] && identity.span != [0; 8]).then_some(identity)
    }
}

impl Sampler {
    /// The identity of a new span. Where there is a parent, it decides.
    pub(super) fn identify(self, parent: Option<&Identity>) -> Identity {
        let random = SystemRandom::new();
        let mut new = Identity { trace: [0; 16], span: [0; 8], is_recorded: false };
        // Without random numbers there are no spans; everything else goes on.
        if random.fill(&mut new.span).is_err() {
            return new;
        }
        match parent {
            Some(parent) => {
                new.trace = parent.trace;
                new.is_recorded = parent.is_recorded;
            }
            None if random.fill(&mut new.trace).is_err() => {}
            None => new.is_recorded = self.wants(&new.trace),
        }
        new
    }

    /// As Go's SDK decides, so that all parts of a cluster record the same traces: by the last eight bytes.
    fn wants(self, trace: &[u8; 16]) -> bool {
        let low: [u8; 8] = std::array::from_fn(|at| trace[8 + at]);
        let place = u128::from(u64::from_be_bytes(low) >> 1);
        place < u128::from(self.per_million) * (1 << 63) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_many_are_recorded_as_was_said() {
        let count = |per_million: u32| {
            let sampler = Sampler { per_million };
            (0..4000).filter(|_| sampler.identify(None).is_recorded).count()
        };
        assert_eq!((count(0), count(1_000_000)), (0, 4000));
        let half = count(500_000);
        assert!((1700..2300).contains(&half), "{half} of 4000");
    }

    #[test]
    fn odd_headers_are_no_callers() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(Identity::of_caller(good).is_some_and(|caller| caller.is_recorded));
        assert!(Identity::of_caller(&good.replace("00-", "01-")).is_some());
        for odd in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
        ] {
            assert_eq!(Identity::of_caller(odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(header in "\\PC*") {
            let _ = Identity::of_caller(&header);
        }
    }
}
