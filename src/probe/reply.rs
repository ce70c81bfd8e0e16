//! What a server answered to a request, and how much of it is kept.

/// So much of a body is read (A5.8).
const LONGEST_BODY: usize = 10 << 10;

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Where to ask instead.
    pub(super) location: Option<String>,
    /// Its beginning.
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// One without a body so far.
    pub(super) fn new(status: u16, location: Option<&[u8]>) -> Self {
        let location = location.and_then(|l| str::from_utf8(l).ok()).filter(|l| !l.is_empty()).map(str::to_owned);
        Self { status, location, body: Vec::new() }
    }

    /// Takes over a piece of the body, as far as it is kept.
    pub(super) fn keep(&mut self, data: &[u8]) {
        self.body.extend_from_slice(&data[..data.len().min(LONGEST_BODY - self.body.len())]);
    }

    /// No more of the body is wanted.
    pub(super) fn is_full(&self) -> bool {
        self.body.len() >= LONGEST_BODY
    }
}
