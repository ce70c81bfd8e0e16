//! DNS messages as bytes: what is read of a question, and how an answer is fitted to whoever asks. Pure.
//!
//! Everything here is bounded by the packet, follows no compression pointers but to step over them, and answers what it
//! cannot read with a bare header, so that a malformed packet is never answered with more bytes than it had.

/// Bytes of a message's header.
pub(super) const HEADER: usize = 12;
/// What we say that we take over UDP, and the most that we send: fits every usual MTU (DNS flag day 2020).
pub(super) const LONGEST_UDP: usize = 1232;
/// The most that a client without EDNS takes over UDP.
const PLAIN_UDP: usize = 512;
/// The most that TCP can carry.
pub(super) const LONGEST_TCP: usize = u16::MAX as usize;
/// Longest name on the wire.
const LONGEST_NAME: usize = 255;
/// An OPT record without options.
const OPT_LENGTH: usize = 11;
/// Records that a question may bring along; real ones bring OPT and perhaps TSIG.
const MOST_EXTRAS: u16 = 8;

const TC: u8 = 0x02;
const QR: u8 = 0x80;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const CD: u8 = 0x10;

/// Record types that are told apart here and in the zone.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// Class IN.
pub(super) const INTERNET: u16 = 1;

/// Codes of answers that hold nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Code {
    /// The question cannot be read.
    FormErr,
    /// We cannot tell now.
    ServFail,
    /// We do not do that.
    NotImp,
    /// We do not want to.
    Refused,
    /// An EDNS version that we do not know.
    BadVers,
}

impl Code {
    fn number(self) -> u16 {
        match self {
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }
}

/// What a client told with EDNS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Edns {
    /// The most that it takes over UDP.
    payload: u16,
    version: u8,
    dnssec_ok: bool,
}

/// A readable question, with the packet that it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    packet: &'a [u8],
    /// Where the question section ends.
    end: usize,
    edns: Option<Edns>,
}

/// What a packet is to us.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// To be answered.
    Question(Question<'a>),
    /// To be refused with [`refuse_unread`].
    Unreadable(Code),
    /// Not to be answered: too short, or itself an answer.
    Ignored,
}

/// What a cached answer is found by: the name in lower case, type, class, and the flags that change the answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key(Vec<u8>);

impl Key {
    /// Room for the longest, to be filled by [`Question::key_into`].
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(LONGEST_NAME + 5))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A key that holds no more memory than it needs.
    pub(super) fn to_boxed(&self) -> Box<[u8]> {
        self.0.as_slice().into()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The place after a name, which may end in a compression pointer.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            192.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start >= LONGEST_NAME {
            return None;
        }
    }
}

/// The place after a name without pointers: a question has nothing before it that one could mean.
fn after_plain_name(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        match length {
            0 => return Some(at),
            1..=63 if at - start < LONGEST_NAME => {}
            _ => return None,
        }
    }
}

/// One record's places in a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    start: usize,
    kind: u16,
    ttl: usize,
    data: usize,
    end: usize,
}

fn record_at(bytes: &[u8], start: usize) -> Option<Place> {
    let name = after_name(bytes, start)?;
    let data = name + 10;
    let end = data + usize::from(u16_at(bytes, name + 8)?);
    (end <= bytes.len()).then_some(Place { start, kind: u16_at(bytes, name)?, ttl: name + 4, data, end })
}

/// Reads a packet from a client.
pub(super) fn parse(packet: &[u8]) -> Parsed<'_> {
    if packet.len() < HEADER || packet[2] & QR != 0 {
        return Parsed::Ignored;
    }
    if packet[2] & 0x78 != 0 {
        return Parsed::Unreadable(Code::NotImp);
    }
    question(packet).map_or(Parsed::Unreadable(Code::FormErr), Parsed::Question)
}

fn question(packet: &[u8]) -> Option<Question<'_>> {
    let counts = [4, 6, 8, 10].map(|at| u16_at(packet, at).unwrap_or_default());
    let [1, 0, 0, extras @ 0..=MOST_EXTRAS] = counts else { return None };
    let end = after_plain_name(packet, HEADER)? + 4;
    packet.get(..end)?;
    let mut edns = None;
    let mut at = end;
    for _ in 0..extras {
        let record = record_at(packet, at)?;
        at = record.end;
        if record.kind != kind::OPT {
            continue;
        }
        if edns.is_some() || packet[record.start] != 0 {
            return None;
        }
        edns = Some(Edns {
            payload: u16_at(packet, record.ttl - 2)?,
            version: packet[record.ttl + 1],
            dnssec_ok: packet[record.ttl + 2] & 0x80 != 0,
        });
    }
    Some(Question { packet, end, edns })
}

impl<'a> Question<'a> {
    /// The name's labels, in the client's case.
    pub(super) fn labels(&self) -> impl Iterator<Item = &'a [u8]> {
        let packet = self.packet;
        let mut at = HEADER;
        std::iter::from_fn(move || {
            let length = usize::from(packet[at]);
            let label = (length > 0).then(|| &packet[at + 1..=at + length]);
            at += 1 + length;
            label
        })
    }

    /// All that came.
    pub(super) fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// The question section.
    pub(super) fn section(&self) -> &'a [u8] {
        &self.packet[HEADER..self.end]
    }

    /// The record type asked for.
    pub(super) fn kind(&self) -> u16 {
        u16_at(self.packet, self.end - 4).unwrap_or_default()
    }

    /// The class asked for.
    pub(super) fn class(&self) -> u16 {
        u16_at(self.packet, self.end - 2).unwrap_or_default()
    }

    /// Whether an EDNS version is asked for that we do not know.
    pub(super) fn is_of_unknown_edns(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version != 0)
    }

    /// Whether signatures are wanted.
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether the client checks signatures itself.
    pub(super) fn checking_disabled(&self) -> bool {
        self.packet[3] & CD != 0
    }

    /// The most that may be sent over UDP.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.payload).clamp(PLAIN_UDP, LONGEST_UDP))
    }

    /// Writes what the answer is cached by.
    pub(super) fn key_into(&self, key: &mut Key) {
        key.0.clear();
        // Lengths are below `A`, so they stay as they are.
        key.0.extend(self.section().iter().map(u8::to_ascii_lowercase));
        // Type and class are no letters.
        let tail = key.0.len() - 4;
        key.0[tail..].copy_from_slice(&self.packet[self.end - 4..self.end]);
        key.0.push(u8::from(self.dnssec_ok()) | u8::from(self.checking_disabled()) << 1);
    }

    /// Answers with a code only.
    pub(super) fn refuse(&self, code: Code, out: &mut Vec<u8>) {
        start_reply(self.packet, code.number(), out);
        out[5] = 1;
        out.extend_from_slice(self.section());
        self.append_opt(code.number(), out);
    }

    fn append_opt(&self, code: u16, out: &mut Vec<u8>) {
        let Some(edns) = self.edns else { return };
        let [size_high, size_low] = (LONGEST_UDP as u16).to_be_bytes();
        let extended = u8::try_from(code >> 4).unwrap_or_default();
        let flags = if edns.dnssec_ok { 0x80 } else { 0 };
        out.extend([0, 0, kind::OPT as u8, size_high, size_low, extended, 0, flags, 0, 0, 0]);
        add_to_count(out, 10, 1);
    }
}

fn add_to_count(message: &mut [u8], at: usize, more: u16) {
    let count = u16_at(message, at).unwrap_or_default().saturating_add(more);
    message[at..at + 2].copy_from_slice(&count.to_be_bytes());
}

fn start_reply(packet: &[u8], code: u16, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&packet[..2]);
    out.extend([QR | packet[2] & (0x78 | RD), RA | packet[3] & CD | (code & 0xf) as u8]);
    out.extend([0; 8]);
}

/// Answers a packet whose question cannot be read: never longer than the packet.
pub(super) fn refuse_unread(packet: &[u8], code: Code, out: &mut Vec<u8>) {
    start_reply(packet, code.number(), out);
}

/// An answer as it is kept: a message without OPT, with somebody's identifier and case of letters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Encoded {
    message: Box<[u8]>,
    /// Where the TTLs are, when they count down.
    ttls: Box<[u16]>,
    /// The alike address records that are to be rotated: where they start, and how long each is.
    addresses: Option<(usize, usize)>,
    /// Where the answer section ends, and where the authority section.
    ends: (usize, usize),
}

impl Encoded {
    /// Takes in a complete answer, and tells how many seconds it may be kept, if at all; `None` when it cannot be read. What a
    /// server sent us counts down.
    pub(super) fn new(mut message: Vec<u8>, counts_down: bool) -> Option<(Self, Option<u32>)> {
        if message.len() < HEADER || message.len() > LONGEST_TCP || message[2] & QR == 0 || u16_at(&message, 4)? != 1 {
            return None;
        }
        let name_end = after_name(&message, HEADER)?;
        if message[name_end - 1] != 0 {
            return None;
        }
        let mut at = name_end + 4;
        let asked = u16_at(&message, name_end)?;
        let mut places = Vec::new();
        let mut ends = [at; 3];
        let mut kept = [0_u16; 3];
        'sections: for section in 0..3 {
            for _ in 0..u16_at(&message, 6 + 2 * section)? {
                let place = record_at(&message, at)?;
                if place.kind == kind::OPT {
                    // Records behind it may have pointers over it, and are additional: they are left out too.
                    ends[section..].fill(at);
                    break 'sections;
                }
                at = place.end;
                kept[section] += 1;
                places.push((section, place));
            }
            ends[section..].fill(at);
        }
        message.truncate(at);
        for (section, count) in kept.into_iter().enumerate() {
            message[6 + 2 * section..8 + 2 * section].copy_from_slice(&count.to_be_bytes());
        }
        let keep = keep(&message, &places, asked);
        let answers = places.iter().filter(|(section, _)| *section == 0).map(|(_, place)| place);
        let addresses = rotatable(answers, ends[0]);
        let ttls = if counts_down {
            places.iter().filter_map(|(_, p)| u16::try_from(p.ttl).ok()).collect()
        } else {
            [].into()
        };
        let encoded = Self { message: message.into(), ttls, addresses, ends: (ends[0], ends[1]) };
        Some((encoded, keep))
    }

    /// The response code.
    pub(super) fn code(&self) -> u8 {
        self.message[3] & 0xf
    }

    /// Whether it was cut short.
    pub(super) fn is_truncated(&self) -> bool {
        self.message[2] & TC != 0
    }

    /// The whole message.
    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Writes it for one client: identifier, case of letters, age, order of addresses, EDNS, and at most `limit` bytes.
    /// `false`: it answers another question.
    pub(super) fn fit(&self, question: &Question<'_>, age: u32, turn: usize, limit: usize, out: &mut Vec<u8>) -> bool {
        let asked = question.section();
        if self.message.len() < HEADER + asked.len() {
            return false;
        }
        out.clear();
        out.extend_from_slice(&self.message);
        out[..2].copy_from_slice(&question.packet[..2]);
        out[2] = out[2] & !(RD | 0x78) | question.packet[2] & RD | QR;
        out[3] = out[3] & !CD | question.packet[3] & CD | RA;
        if !out[HEADER..HEADER + asked.len()].eq_ignore_ascii_case(asked) {
            return false;
        }
        out[HEADER..HEADER + asked.len()].copy_from_slice(asked);
        for at in self.ttls.iter().map(|at| usize::from(*at)) {
            let left = u32_at(out, at).unwrap_or_default().saturating_sub(age);
            out[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        if let Some((start, length)) = self.addresses {
            let records = &mut out[start..self.ends.0];
            let count = records.len() / length;
            records.rotate_left(turn % count * length);
        }
        let room = limit.saturating_sub(if question.edns.is_some() { OPT_LENGTH } else { 0 });
        if out.len() > room {
            self.cut(room, out);
        }
        question.append_opt(u16::from(self.code()), out);
        true
    }

    /// Leaves out what does not fit: first what nobody asked for, then whole records, and says so.
    fn cut(&self, room: usize, out: &mut Vec<u8>) {
        out[10..12].fill(0);
        if self.ends.1 <= room {
            out.truncate(self.ends.1);
            return;
        }
        out[8..10].fill(0);
        out[2] |= TC;
        let mut end = after_name(out, HEADER).map_or(HEADER, |end| end + 4);
        let mut count = 0_u16;
        for _ in 0..u16_at(out, 6).unwrap_or_default() {
            match record_at(out, end) {
                Some(place) if place.end <= room => end = place.end,
                _ => break,
            }
            count += 1;
        }
        out[6..8].copy_from_slice(&count.to_be_bytes());
        out.truncate(end);
    }
}

/// How long an answer may be kept: the least TTL; that there is nothing, as long as the SOA says (RFC 2308).
fn keep(message: &[u8], places: &[(usize, Place)], asked: u16) -> Option<u32> {
    let code = message[3] & 0xf;
    if message[2] & TC != 0 || (code != 0 && code != 3) {
        return None;
    }
    let ttl = |place: &Place| u32_at(message, place.ttl).unwrap_or_default();
    let answers = || places.iter().filter(|(section, _)| *section == 0).map(|(_, place)| place);
    let least = answers().map(ttl).min();
    if code == 0 && answers().any(|place| place.kind == asked || asked == kind::ANY) {
        return least;
    }
    let soa =
        places.iter().find(|(section, place)| *section == 1 && place.kind == kind::SOA).map(|(_, place)| place)?;
    let minimum = soa.end.checked_sub(4).filter(|at| *at >= soa.data).and_then(|at| u32_at(message, at))?;
    Some(minimum.min(ttl(soa)).min(least.unwrap_or(u32::MAX)))
}

/// Answers that are addresses only, each a pointer to the question.
fn rotatable<'a>(mut answers: impl Iterator<Item = &'a Place> + Clone, end: usize) -> Option<(usize, usize)> {
    let first = answers.clone().next()?;
    let length = first.end - first.start;
    let alike =
        |place: &Place| place.kind == first.kind && place.end - place.start == length && place.ttl - place.start == 6;
    let fits = matches!(first.kind, kind::A | kind::AAAA) && answers.all(alike) && end - first.start > length;
    fits.then_some((first.start, length))
}

/// The question as we ask it of another server.
pub(super) fn query(id: u16, question: &Question<'_>, with_edns: bool, out: &mut Vec<u8>) {
    let cd = if question.checking_disabled() { CD } else { 0 };
    out.clear();
    out.extend(id.to_be_bytes());
    out.extend([RD, cd, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(question.section());
    if with_edns {
        let edns = Some(Edns { payload: 0, version: 0, dnssec_ok: question.dnssec_ok() });
        Question { edns, ..*question }.append_opt(0, out);
    }
}

/// Whether a packet from a server answers the query that we sent.
pub(super) fn answers(packet: &[u8], query: &[u8], question: &Question<'_>) -> bool {
    let asked = question.section();
    packet.len() >= HEADER
        && packet[..2] == query[..2]
        && packet[2] & QR != 0
        && u16_at(packet, 4) == Some(1)
        && packet.get(HEADER..HEADER + asked.len()).is_some_and(|section| section.eq_ignore_ascii_case(asked))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn ask(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(payload) = payload {
            let mut edns = HickoryEdns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn read(packet: &[u8]) -> Question<'_> {
        match parse(packet) {
            Parsed::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn addresses(name: &str, count: u8) -> Vec<u8> {
        let name = Name::from_ascii(name).unwrap();
        let mut message = Message::response(0, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        for last in 0..count {
            message.add_answer(Record::from_rdata(name.clone(), 30, RData::A(A::new(10, 0, 0, last))));
        }
        message.to_vec().unwrap()
    }

    fn last_bytes(reply: &[u8]) -> Vec<u8> {
        let message = Message::from_vec(reply).unwrap();
        message
            .answers
            .iter()
            .map(|record| match &record.data {
                RData::A(a) => a.0.octets()[3],
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn case_and_identifier_are_the_clients_and_addresses_take_turns() {
        let (encoded, _) = Encoded::new(addresses("web.example.", 3), false).unwrap();
        let packet = ask("wEb.eXample.", RecordType::A, None);
        let mut out = Vec::new();
        for (turn, expected) in [(0, [0, 1, 2]), (1, [1, 2, 0]), (5, [2, 0, 1])] {
            assert!(encoded.fit(&read(&packet), 0, turn, 512, &mut out));
            assert_eq!(last_bytes(&out), expected);
        }
        assert_eq!(&out[..2], &[0x12, 0x34]);
        assert_eq!(&out[12..24], b"\x03wEb\x07eXample");
        let other = ask("other.example.", RecordType::A, None);
        assert!(!encoded.fit(&read(&other), 0, 0, 512, &mut out));
        let mut keys = [Key::new(), Key::new()];
        read(&packet).key_into(&mut keys[0]);
        let lower = ask("web.example.", RecordType::A, None);
        read(&lower).key_into(&mut keys[1]);
        assert_eq!(keys[0], keys[1]);
    }

    #[test]
    fn what_does_not_fit_is_cut_at_a_record_and_said() {
        let (encoded, _) = Encoded::new(addresses("web.example.", 60), false).unwrap();
        let mut out = Vec::new();
        let plain = ask("web.example.", RecordType::A, None);
        assert!(encoded.fit(&read(&plain), 0, 0, read(&plain).udp_limit(), &mut out));
        let message = Message::from_vec(&out).unwrap();
        assert!(message.metadata.truncation && out.len() <= 512);
        assert_eq!(message.answers.len(), (512 - 29) / 16);
        let large = ask("web.example.", RecordType::A, Some(4096));
        assert!(encoded.fit(&read(&large), 0, 0, read(&large).udp_limit(), &mut out));
        let message = Message::from_vec(&out).unwrap();
        assert!(!message.metadata.truncation && message.edns.is_some());
        assert_eq!(message.answers.len(), 60);
    }

    #[test]
    fn what_others_answered_ages_and_is_kept_as_long_as_it_says() {
        let (encoded, keep) = Encoded::new(addresses("web.example.", 1), true).unwrap();
        assert_eq!(keep, Some(30));
        let packet = ask("web.example.", RecordType::A, None);
        let mut out = Vec::new();
        encoded.fit(&read(&packet), 12, 0, 512, &mut out);
        assert_eq!(Message::from_vec(&out).unwrap().answers[0].ttl, 18);
        let name = Name::from_ascii("example.").unwrap();
        let mut nothing = Message::response(0, OpCode::Query);
        nothing.metadata.response_code = ResponseCode::NXDomain;
        nothing.add_query(Query::query(Name::from_ascii("no.example.").unwrap(), RecordType::A));
        let bare = nothing.to_vec().unwrap();
        assert_eq!(Encoded::new(bare, true).unwrap().1, None);
        let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 60);
        nothing.add_authority(Record::from_rdata(name, 300, RData::SOA(soa)));
        let mut edns = HickoryEdns::new();
        edns.set_max_payload(4096);
        nothing.set_edns(edns);
        let (encoded, keep) = Encoded::new(nothing.to_vec().unwrap(), true).unwrap();
        assert_eq!(keep, Some(60));
        assert!(Message::from_vec(encoded.message()).unwrap().edns.is_none(), "OPT is for one hop only");
    }

    #[test]
    fn unreadable_questions_are_refused_with_a_bare_header() {
        let good = ask("web.example.", RecordType::A, Some(4096));
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            bad
        };
        for (packet, code) in [
            (with(5, 2), Code::FormErr),
            (with(5, 0), Code::FormErr),
            (with(12, 0xc0), Code::FormErr),
            (with(12, 0x40), Code::FormErr),
            (with(7, 1), Code::FormErr),
            (with(2, 0x28), Code::NotImp),
            (good[..20].to_vec(), Code::FormErr),
        ] {
            let Parsed::Unreadable(found) = parse(&packet) else { panic!("{packet:?}") };
            assert_eq!(found, code);
            let mut out = Vec::new();
            refuse_unread(&packet, found, &mut out);
            assert_eq!(out.len(), HEADER);
        }
        assert!(matches!(parse(&good[..11]), Parsed::Ignored));
        assert!(matches!(parse(&with(2, 0x80)), Parsed::Ignored));
    }
}
