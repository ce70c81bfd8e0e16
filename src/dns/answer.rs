//! One packet to one answer: the cache, the zone, and what has to be asked of others.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use stoker_model::service::ServiceChange;

use super::cache::{Cache, Entry};
use super::forward::Forwarder;
use super::metrics::Metrics;
use super::wire::{self, Code, Encoded, INTERNET, Key, LONGEST_TCP, Parsed, Question, kind};
use super::zone::{Authority, Found, Records, SRV_WEIGHT};
use crate::clock::Clock;

/// Names that lead to names: no more steps than this.
const LONGEST_CHAIN: usize = 8;

/// How a question came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    /// As a datagram.
    Udp,
    /// On a stream.
    Tcp,
}

/// What to do with a packet.
#[derive(Debug)]
pub(super) enum Step {
    /// Send what was written.
    Reply,
    /// Nothing.
    Ignore,
    /// Others have to be asked first: [`Answerer::finish`].
    Ask(Pending),
}

/// A question that others have to be asked for.
#[derive(Debug)]
pub(super) struct Pending {
    packet: Box<[u8]>,
    /// What we know ourselves: the aliases that lead to another name.
    chain: Option<Chain>,
}

#[derive(Debug)]
struct Chain {
    records: Vec<Record>,
    target: Name,
}

/// Answers questions; shared by all sockets.
#[derive(Debug)]
pub(super) struct Answerer {
    authority: RwLock<Authority>,
    /// Grows with each change of the authority.
    generation: AtomicU64,
    domain: Name,
    ttl: u32,
    cache: Cache,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    clock: Clock,
    turn: AtomicUsize,
}

/// What an [`Answerer`] is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) domain: Name,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: u32,
    pub(super) cache_entries: usize,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
}

impl Answerer {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { domain, addresses, ttl, cache_entries, forwarder, metrics, clock } = parts;
        Self {
            authority: RwLock::new(Authority::new(&domain.to_ascii(), addresses)),
            generation: AtomicU64::new(0),
            domain,
            ttl,
            cache: Cache::new(cache_entries),
            forwarder,
            metrics,
            clock,
            turn: AtomicUsize::new(0),
        }
    }

    /// Takes in changes.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = ServiceChange>) {
        let mut authority = self.authority.write().unwrap_or_else(PoisonError::into_inner);
        changes.into_iter().for_each(|change| authority.apply(change));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether names of the cluster are answered.
    pub(super) fn is_ready(&self) -> bool {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).is_complete()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        self.metrics.entries.set(i64::try_from(self.cache.len()).unwrap_or(i64::MAX));
        &self.metrics
    }

    fn now(&self) -> Duration {
        self.clock.now().monotonic
    }

    /// Answers what can be answered at once. `key` and `out` are room that is used again.
    pub(super) fn answer(&self, packet: &[u8], transport: Transport, key: &mut Key, out: &mut Vec<u8>) -> Step {
        match transport {
            Transport::Udp => self.metrics.requests_udp.inc(),
            Transport::Tcp => self.metrics.requests_tcp.inc(),
        };
        let question = match wire::parse(packet) {
            Parsed::Question(question) => question,
            Parsed::Unreadable(code) => {
                self.metrics.malformed.inc();
                wire::refuse_unread(packet, code, out);
                return self.reply(out);
            }
            Parsed::Ignored => {
                self.metrics.malformed.inc();
                return Step::Ignore;
            }
        };
        let refusal = match question.kind() {
            _ if question.is_of_unknown_edns() => Some(Code::BadVers),
            kind::AXFR | kind::IXFR => Some(Code::Refused),
            kind::OPT => Some(Code::FormErr),
            _ if question.class() != INTERNET => Some(Code::Refused),
            _ => None,
        };
        if let Some(code) = refusal {
            question.refuse(code, out);
            return self.reply(out);
        }
        question.key_into(key);
        // Before the zone is read: what changes meanwhile makes the answer old at once, not new for ever.
        let generation = self.generation.load(Ordering::Acquire);
        if let Some(entry) = self.cache.get(key, generation, || self.now()) {
            self.metrics.hits.inc();
            return self.fit(&entry, &question, transport, out);
        }
        self.metrics.misses.inc();
        self.look_up(&question, transport, key, generation, out)
    }

    fn reply(&self, out: &[u8]) -> Step {
        self.metrics.count_response(out);
        Step::Reply
    }

    fn fit(&self, entry: &Entry, question: &Question<'_>, transport: Transport, out: &mut Vec<u8>) -> Step {
        let limit = match transport {
            Transport::Udp => question.udp_limit(),
            Transport::Tcp => LONGEST_TCP,
        };
        let age = entry.until.map_or(0, |_| self.now().saturating_sub(entry.since).as_secs());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if !entry.encoded.fit(question, u32::try_from(age).unwrap_or(u32::MAX), turn, limit, out) {
            question.refuse(Code::ServFail, out);
        }
        self.reply(out)
    }

    fn look_up(
        &self,
        question: &Question<'_>,
        transport: Transport,
        key: &Key,
        generation: u64,
        out: &mut Vec<u8>,
    ) -> Step {
        let labels: Vec<Vec<u8>> = question.labels().map(<[u8]>::to_ascii_lowercase).collect();
        let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice)) else {
            question.refuse(Code::FormErr, out);
            return self.reply(out);
        };
        // What is no text is no name of ours, and none of its labels is empty otherwise.
        let texts: Vec<&str> = labels.iter().map(|label| std::str::from_utf8(label).unwrap_or_default()).collect();
        if self.forwarder.is_own_question(&texts) {
            question.refuse(Code::Refused, out);
            return self.reply(out);
        }
        let found = self.local(&name, &texts, question.kind());
        let message = match found {
            Local::Elsewhere(None) => return Step::Ask(Pending { packet: question.packet().into(), chain: None }),
            Local::Elsewhere(chain) => return Step::Ask(Pending { packet: question.packet().into(), chain }),
            Local::NotYet => {
                question.refuse(Code::ServFail, out);
                return self.reply(out);
            }
            Local::Message(message) => message,
        };
        let Some(encoded) = encode(&message) else {
            question.refuse(Code::ServFail, out);
            return self.reply(out);
        };
        let entry = Arc::new(Entry::new(encoded, Duration::ZERO, None, Some(generation)));
        self.cache.put(key.to_boxed(), entry.clone(), generation, self.now());
        self.fit(&entry, question, transport, out)
    }

    fn local(&self, asked: &Name, labels: &[&str], kind: u16) -> Local {
        let authority = self.authority.read().unwrap_or_else(PoisonError::into_inner);
        let mut records = Vec::new();
        let mut name = asked.clone();
        let mut found = authority.find(labels);
        for _ in 0..LONGEST_CHAIN {
            let target = match found {
                Found::Elsewhere if records.is_empty() => return Local::Elsewhere(None),
                Found::Elsewhere => return Local::Elsewhere(Some(Chain { records, target: name })),
                Found::NotYet => return Local::NotYet,
                Found::Nothing => {
                    let code = ResponseCode::NXDomain;
                    return Local::Message(self.message(asked, kind, code, records, Vec::new()));
                }
                Found::Name(here) => {
                    let additionals = self.records(&name, kind, &here, &mut records);
                    return Local::Message(self.message(asked, kind, ResponseCode::NoError, records, additionals));
                }
                Found::Alias(target) => target,
            };
            let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.')).to_ascii_lowercase()) else {
                return Local::Message(self.message(asked, kind, ResponseCode::ServFail, Vec::new(), Vec::new()));
            };
            records.push(Record::from_rdata(name, self.ttl, RData::CNAME(CNAME(target.clone()))));
            if matches!(kind, kind::CNAME | kind::ANY) {
                return Local::Message(self.message(asked, kind, ResponseCode::NoError, records, Vec::new()));
            }
            let text = target.to_ascii();
            let labels: Vec<&str> = text.trim_end_matches('.').split('.').collect();
            found = authority.find(&labels);
            name = target;
        }
        Local::Message(self.message(asked, kind, ResponseCode::ServFail, Vec::new(), Vec::new()))
    }

    /// Appends the records of a type; returns what the asker will want to know next.
    fn records(&self, name: &Name, kind: u16, here: &Records, to: &mut Vec<Record>) -> Vec<Record> {
        let wants = |one: u16| kind == one || kind == kind::ANY;
        let record = |data: RData| Record::from_rdata(name.clone(), self.ttl, data);
        let address = |name: &Name, address: IpAddr| {
            let data = match address {
                IpAddr::V4(v4) => RData::A(A(v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
            };
            Record::from_rdata(name.clone(), self.ttl, data)
        };
        let of_type = here.addresses.iter().filter(|ip| wants(if ip.is_ipv4() { kind::A } else { kind::AAAA }));
        to.extend(of_type.map(|ip| address(name, *ip)));
        let mut additionals = Vec::new();
        if wants(kind::SRV) {
            for (port, target, addresses) in &here.services {
                let Some(target) = self.below(target) else { continue };
                to.push(record(RData::SRV(SRV::new(0, SRV_WEIGHT, *port, target.clone()))));
                additionals.extend(addresses.iter().map(|ip| address(&target, *ip)));
            }
        }
        if wants(kind::TXT) {
            to.extend(here.text.map(|text| record(RData::TXT(TXT::new(vec![text.to_owned()])))));
        }
        if wants(kind::PTR) {
            let names = here.pointers.iter().filter_map(|name| self.below(name));
            to.extend(names.map(|name| record(RData::PTR(PTR(name)))));
        }
        if here.is_apex {
            to.extend(wants(kind::SOA).then(|| self.soa()).flatten());
            to.extend(self.below("ns.dns").filter(|_| wants(kind::NS)).map(|server| record(RData::NS(NS(server)))));
        }
        additionals
    }

    fn below(&self, name: &str) -> Option<Name> {
        Name::from_ascii(name).ok()?.append_domain(&self.domain).ok()
    }

    fn soa(&self) -> Option<Record> {
        // The serial matters to secondary servers, which do not exist.
        let soa = SOA::new(self.below("ns.dns")?, self.below("hostmaster")?, 1, 7200, 1800, 86400, self.ttl);
        Some(Record::from_rdata(self.domain.clone(), self.ttl, RData::SOA(soa)))
    }

    fn message(
        &self,
        name: &Name,
        kind: u16,
        code: ResponseCode,
        answers: Vec<Record>,
        additionals: Vec<Record>,
    ) -> Message {
        let mut message = Message::response(0, OpCode::Query);
        message.metadata.authoritative = code != ResponseCode::ServFail;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        let mut query = Query::query(name.clone(), RecordType::from(kind));
        query.set_query_class(DNSClass::IN);
        message.add_query(query);
        let is_reached =
            answers.last().is_some_and(|last| last.record_type() != RecordType::CNAME || kind == kind::CNAME);
        if !is_reached && kind != kind::ANY || answers.is_empty() {
            message.add_authorities(self.soa());
        }
        message.insert_answers(answers);
        message.insert_additionals(additionals);
        message
    }

    /// Answers what others had to be asked for.
    pub(super) async fn finish(self: &Arc<Self>, pending: Pending, transport: Transport) -> Option<Vec<u8>> {
        let Parsed::Question(question) = wire::parse(&pending.packet) else { return None };
        let mut out = Vec::new();
        let mut key = Key::new();
        question.key_into(&mut key);
        let generation = self.generation.load(Ordering::Acquire);
        let outcome = match pending.chain {
            None => self.ask(&key, &pending.packet).await,
            Some(chain) => self.follow(chain, &question, &key, generation).await,
        };
        match outcome {
            Ok(entry) => drop(self.fit(&entry, &question, transport, &mut out)),
            Err(code) => {
                question.refuse(code, &mut out);
                self.metrics.count_response(&out);
            }
        }
        Some(out)
    }

    async fn ask(self: &Arc<Self>, key: &Key, packet: &[u8]) -> Result<Arc<Entry>, Code> {
        let this = self.clone();
        let boxed = key.to_boxed();
        let keep = move |entry: Arc<Entry>| {
            let generation = this.generation.load(Ordering::Acquire);
            let now = this.now();
            this.cache.put(boxed, entry, generation, now);
        };
        self.forwarder.ask(key, packet, keep).await
    }

    /// Asks others for the end of a chain of aliases. When nobody knows, the chain itself is the answer.
    async fn follow(
        self: &Arc<Self>,
        chain: Chain,
        question: &Question<'_>,
        key: &Key,
        generation: u64,
    ) -> Result<Arc<Entry>, Code> {
        let kind = question.kind();
        let asked = chain.records.first().map(|record| record.name.clone()).unwrap_or_default();
        let mut ask = Message::query();
        ask.metadata.recursion_desired = true;
        ask.add_query(Query::query(chain.target.clone(), RecordType::from(kind)));
        let packet = ask.to_vec().map_err(|_| Code::ServFail)?;
        let Parsed::Question(next) = wire::parse(&packet) else { return Err(Code::ServFail) };
        let mut next_key = Key::new();
        next.key_into(&mut next_key);
        let cached = self.cache.get(&next_key, generation, || self.now());
        let end = match cached {
            Some(entry) => Ok(entry),
            None => self.ask(&next_key, &packet).await,
        };
        let mut message = self.message(&asked, kind::CNAME, ResponseCode::NoError, chain.records, Vec::new());
        message.queries[0].set_query_type(RecordType::from(kind));
        let mut lifetime = Duration::from_secs(self.ttl.into());
        if let Ok(entry) = end
            && let Ok(mut rest) = Message::from_vec(entry.encoded.message())
        {
            let age = self.now().saturating_sub(entry.since);
            let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            for record in rest.answers.iter_mut().chain(&mut rest.authorities) {
                record.ttl = record.ttl.saturating_sub(seconds);
            }
            message.metadata.authoritative = false;
            message.metadata.response_code = rest.metadata.response_code;
            message.answers.append(&mut rest.answers);
            message.authorities = rest.authorities;
            lifetime = lifetime.min(entry.until.map_or(Duration::ZERO, |until| until.saturating_sub(self.now())));
        } else {
            lifetime = Duration::ZERO;
        }
        let encoded = encode(&message).ok_or(Code::ServFail)?;
        let now = self.now();
        let entry = Arc::new(Entry::new(encoded, now, Some(lifetime), Some(generation)));
        if !lifetime.is_zero() {
            self.cache.put(key.to_boxed(), entry.clone(), generation, now);
        }
        Ok(entry)
    }
}

/// What we know ourselves.
enum Local {
    Elsewhere(Option<Chain>),
    NotYet,
    Message(Message),
}

fn encode(message: &Message) -> Option<Encoded> {
    Encoded::new(message.to_vec().ok()?, false).map(|(encoded, _)| encoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::forward::Upstream;
    use super::*;

    fn answerer() -> Arc<Answerer> {
        let metrics = Arc::new(Metrics::new());
        let answerer = Answerer::new(Parts {
            domain: Name::from_ascii("cluster.local.").unwrap(),
            addresses: vec!["10.96.0.10".parse().unwrap()],
            ttl: 5,
            cache_entries: 100,
            forwarder: Arc::new(Forwarder::new(Upstream::None, Vec::new(), Clock, metrics.clone())),
            metrics,
            clock: Clock,
        });
        let service = |text: &str| ServiceChange::Service(Arc::new(serde_json::from_str(text).unwrap()));
        answerer.apply([
            service(r#"{"metadata":{"namespace":"a","name":"b"},"spec":{"clusterIP":"10.96.1.1"}}"#),
            service(r#"{"metadata":{"namespace":"a","name":"l"},"spec":{"type":"ExternalName","externalName":"l.a.svc.cluster.local"}}"#),
            ServiceChange::Complete,
        ]);
        Arc::new(answerer)
    }

    fn ask(answerer: &Arc<Answerer>, packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match answerer.answer(packet, Transport::Udp, &mut Key::new(), &mut out) {
            Step::Reply => Some(out),
            Step::Ignore => None,
            Step::Ask(pending) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(answerer.finish(pending, Transport::Udp))
            }
        }
    }

    #[test]
    fn an_alias_of_itself_ends() {
        let packet = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01l\x01a\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
        let answer = ask(&answerer(), packet).unwrap();
        let message = Message::from_vec(&answer).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    }

    #[test]
    fn an_alias_that_nobody_knows_is_told_alone() {
        let answerer = answerer();
        let out =
            r#"{"metadata":{"namespace":"a","name":"l"},"spec":{"type":"ExternalName","externalName":"example.org"}}"#;
        answerer.apply([ServiceChange::Service(Arc::new(serde_json::from_str(out).unwrap()))]);
        let packet = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01l\x01a\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
        let message = Message::from_vec(&ask(&answerer, packet).unwrap()).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert_eq!(message.answers.len(), 1);
        assert_eq!(message.answers[0].record_type(), RecordType::CNAME);
    }

    /// Labels that are likely to lead somewhere.
    fn label() -> impl Strategy<Value = Vec<u8>> {
        let known =
            ["a", "b", "l", "svc", "pod", "cluster", "local", "_tcp", "_http", "in-addr", "ip6", "arpa", "10-0-0-1"];
        prop_oneof![
            4 => prop::sample::select(known.to_vec()).prop_map(|label| label.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..64),
        ]
    }

    proptest! {
        #[test]
        fn no_question_panics_and_answers_are_bounded(
            name in prop::collection::vec(label(), 0..10),
            tail in prop::collection::vec(any::<u8>(), 4),
            internet in any::<bool>(),
            flags in any::<[u8; 2]>(),
            payload in prop::option::of(any::<[u8; 2]>()),
        ) {
            let mut packet = vec![1, 2, flags[0] & 0x07, flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(payload.is_some())];
            for label in &name {
                packet.push(label.len() as u8);
                packet.extend(label);
            }
            packet.push(0);
            packet.extend(if internet { [0, tail[0], 0, 1] } else { [tail[0], tail[1], tail[2], tail[3]] });
            if let Some([high, low]) = payload {
                packet.extend([0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
            }
            let answerer = answerer();
            // The second time from the cache, alike.
            for _ in 0..2 {
                let answer = ask(&answerer, &packet);
                if packet.len() > 12 + 255 + 4 + 11 {
                    prop_assert!(answer.is_some_and(|answer| answer.len() == wire::HEADER));
                    continue;
                }
                let answer = answer.unwrap();
                let limit = payload.map_or(512, |payload| usize::from(u16::from_be_bytes(payload)).clamp(512, 1232));
                prop_assert!(answer.len() <= limit);
                if answer.len() > wire::HEADER {
                    let message = Message::from_vec(&answer);
                    prop_assert!(message.is_ok(), "{message:?}");
                    prop_assert_eq!(message.unwrap().metadata.id, 0x0102);
                }
            }
        }
    }
}
