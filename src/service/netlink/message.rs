//! The bytes of nfnetlink messages: writing batches and reading answers. No sockets here.

/// `NFNL_SUBSYS_NFTABLES`.
pub(in crate::service) const SUBSYSTEM: u16 = 10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(in crate::service) const REQUEST: u16 = 0x1;
pub(in crate::service) const ACK: u16 = 0x4;
pub(in crate::service) const CREATE: u16 = 0x400;
pub(in crate::service) const DUMP: u16 = 0x300;
pub(in crate::service) const NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// nf_tables message types that we send or receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in crate::service) enum Kind {
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    GetSet = 10,
    NewElements = 12,
    GetElements = 13,
    DelElements = 14,
    NewGeneration = 15,
    GetGeneration = 16,
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub(in crate::service) fn family_number(family: crate::service::frontend::Family) -> u8 {
    match family {
        crate::service::frontend::Family::Ipv4 => 2,
        crate::service::frontend::Family::Ipv6 => 10,
    }
}

/// Messages under construction, one after another.
#[derive(Debug, Default)]
pub(in crate::service) struct Messages {
    bytes: Vec<u8>,
    next_sequence: u32,
    last_start: usize,
}

impl Messages {
    /// Empty; the messages are numbered from `first_sequence`.
    pub(in crate::service) fn new(first_sequence: u32) -> Self {
        Self { bytes: Vec::new(), next_sequence: first_sequence, last_start: 0 }
    }

    pub(in crate::service) fn begin_batch(&mut self) {
        self.raw(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, |_| {});
    }

    /// Asks for an acknowledgement of the last message and closes the batch.
    pub(in crate::service) fn end_batch(&mut self) {
        // The flags follow length and type. The acknowledgement is sent when the whole batch has been committed.
        let flags = self.last_start + 6;
        let old = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]);
        self.bytes[flags..flags + 2].copy_from_slice(&(old | ACK).to_ne_bytes());
        self.raw(BATCH_END, REQUEST, 0, SUBSYSTEM, |_| {});
    }

    /// Writes one nf_tables message and returns its sequence number.
    pub(in crate::service) fn message(
        &mut self,
        kind: Kind,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Self),
    ) -> u32 {
        self.raw((SUBSYSTEM << 8) | kind as u16, REQUEST | flags, family, 0, body)
    }

    /// Writes one message of any subsystem.
    pub(in crate::service) fn raw(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        body: impl FnOnce(&mut Self),
    ) -> u32 {
        let [high, low] = resource.to_be_bytes();
        self.framed(kind, flags, &[family, 0, high, low], body)
    }

    /// Writes one message of any netlink protocol; `header` is what the protocol puts before the attributes.
    pub(in crate::service) fn framed(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        body: impl FnOnce(&mut Self),
    ) -> u32 {
        let start = self.bytes.len();
        self.last_start = start;
        let sequence = self.next_sequence;
        self.next_sequence = self.next_sequence.wrapping_add(1);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.pad();
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message holds at most a few 64 KB attributes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        sequence
    }

    pub(in crate::service) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("values are keys, names and numbers, far below 64 KB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A NUL-terminated string.
    pub(in crate::service) fn text(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(value.len() + 5).expect("names of chains and sets are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// A number, in network order as all nf_tables attributes are.
    pub(in crate::service) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(in crate::service) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("lists of elements are cut before 64 KB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(in crate::service) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(in crate::service) fn next_sequence(&self) -> u32 {
        self.next_sequence
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(in crate::service) struct Received<'a> {
    pub(in crate::service) kind: u16,
    pub(in crate::service) flags: u16,
    pub(in crate::service) sequence: u32,
    /// Port of the socket whose request caused it.
    pub(in crate::service) port: u32,
    body: &'a [u8],
}

impl<'a> Received<'a> {
    /// The error number (positive), 0 for an acknowledgement; `None` for other messages.
    pub(in crate::service) fn error(&self) -> Option<i32> {
        let code = (self.kind == NLMSG_ERROR || self.kind == NLMSG_DONE).then(|| self.body.first_chunk::<4>())??;
        // Saturating: the one number without an opposite must not end the agent.
        Some(i32::from_ne_bytes(*code).saturating_neg())
    }

    pub(in crate::service) fn is_done(&self) -> bool {
        self.kind == NLMSG_DONE
    }

    /// The nf_tables type, if it is of that subsystem.
    pub(in crate::service) fn is(&self, kind: Kind) -> bool {
        self.kind == (SUBSYSTEM << 8) | kind as u16
    }

    /// What follows netlink's own header: the protocol's header, then its attributes.
    pub(in crate::service) fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The attributes after the header of nfnetlink or generic netlink, 4 bytes both.
    pub(in crate::service) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(4..).unwrap_or_default())
    }
}

/// Splits a datagram into messages; a broken tail ends it.
pub(in crate::service) fn received(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let message = Received {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes of a message or of a nested attribute.
#[derive(Clone, Copy, Debug)]
pub(in crate::service) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(in crate::service) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(in crate::service) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    pub(in crate::service) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub(in crate::service) fn text(self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.get(kind)?.split(|byte| *byte == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut messages = Messages::new(7);
        messages.message(Kind::NewChain, CREATE, 2, |m| {
            m.text(1, "stoker");
            m.nested(4, |m| m.number(1, 6));
        });
        let all: Vec<_> = received(messages.bytes()).collect();
        assert_eq!(all.len(), 1);
        assert!(all[0].is(Kind::NewChain) && all[0].sequence == 7);
        assert_eq!(all[0].attributes().text(1), Some("stoker"));
        assert_eq!(all[0].attributes().nested(4).and_then(|n| n.get(1)), Some(&[0, 0, 0, 6][..]));
    }

    #[test]
    fn an_error_is_a_positive_number_whatever_is_sent() {
        let told = |code: i32| {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes[16..].copy_from_slice(&code.to_ne_bytes());
            received(&bytes).next().and_then(|m| m.error())
        };
        assert_eq!(told(0), Some(0));
        assert_eq!(told(-2), Some(2));
        assert_eq!(told(i32::MIN), Some(i32::MAX));
    }

    #[test]
    fn broken_bytes_end_the_reading() {
        assert_eq!(received(&[1, 2, 3]).count(), 0);
        assert_eq!(received(&[255; 40]).count(), 0);
        assert_eq!(Attributes::of(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attributes::of(&[0, 0, 0, 0]).count(), 0);
    }
}
