//! Names that are not the cluster's: asked of the node's own name servers, each question once at a time.
//!
//! A loop (the node's resolver asks us) is found with a question of our own that must not come back; and since equal
//! questions wait for one another, a loop that is not found yet costs one question, not a storm.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cache::Entry;
use super::metrics::Metrics;
use super::wire::{self, Code, Encoded, Key, Parsed, Question};
use crate::clock::Clock;

/// The port of name servers.
const PORT: u16 = 53;
/// How long one server has for one try; a client's own patience is 5 s.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long all tries together may take.
const ALTOGETHER: Duration = Duration::from_millis(4500);
/// Different questions that may wait at a time.
const MOST_WAITING: usize = 1000;
/// A server that did not answer is asked last for so long.
const DISTRUST: Duration = Duration::from_secs(10);
/// How often the node's resolv.conf is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Limits of how long answers are kept, whatever they say.
const LONGEST_KEPT: u32 = 3600;
const LONGEST_NOTHING_KEPT: u32 = 900;
/// The name below which we ask ourselves.
const PROBE: &str = "loop-check.stoker";

/// Where other names are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Upstream {
    /// At these servers.
    Servers(Vec<SocketAddr>),
    /// At those that a file in the format of resolv.conf names; it is read again when it changes.
    ResolvConf(PathBuf),
    /// Nowhere.
    None,
}

/// What became of a question.
pub(super) type Outcome = Result<Arc<Entry>, Code>;

type Waiting = HashMap<Box<[u8]>, watch::Receiver<Option<Outcome>>>;

/// Asks other servers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstream: Upstream,
    /// Our own addresses, which are never asked.
    own: Vec<IpAddr>,
    clock: Clock,
    metrics: Arc<Metrics>,
    servers: Mutex<Arc<Servers>>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Servers {
    /// Each with the time until which it is not trusted.
    list: Vec<(SocketAddr, Mutex<Duration>)>,
    /// The first label of the name that must not come back.
    probe: String,
    /// It came back.
    is_loop: AtomicBool,
}

impl Forwarder {
    pub(super) fn new(upstream: Upstream, own: Vec<IpAddr>, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { upstream, own, clock, metrics, servers: Mutex::default(), waiting: Mutex::default() }
    }

    fn servers(&self) -> Arc<Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the list of servers; runs for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let path = match &self.upstream {
            Upstream::Servers(servers) => {
                self.use_servers(servers.clone());
                self.probe().await;
                return std::future::pending().await;
            }
            Upstream::None => return std::future::pending().await,
            Upstream::ResolvConf(path) => path.clone(),
        };
        let mut seen: Option<Option<SystemTime>> = None;
        loop {
            let modified = tokio::fs::metadata(&path).await.and_then(|metadata| metadata.modified()).ok();
            if seen != Some(modified) {
                seen = Some(modified);
                match tokio::fs::read_to_string(&path).await {
                    Ok(text) => self.use_servers(nameservers(&text)),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "cannot read the node's name servers: only names of the cluster are answered");
                        self.use_servers(Vec::new());
                    }
                }
                self.probe().await;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn use_servers(&self, mut list: Vec<SocketAddr>) {
        list.retain(|server| {
            let own = self.own.contains(&server.ip()) && server.port() == PORT;
            if own {
                tracing::warn!(%server, "the node's name server is this one: it is not asked");
            }
            !own
        });
        tracing::info!(servers = ?list, "other names are asked for at");
        let probe = uuid::Uuid::new_v4().simple().to_string();
        let list = list.into_iter().map(|server| (server, Mutex::default())).collect();
        let servers = Servers { list, probe, is_loop: AtomicBool::new(false) };
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(servers);
    }

    /// Sends the question that must not come back; nobody cares for its answer.
    async fn probe(&self) {
        let servers = self.servers();
        if servers.list.is_empty() {
            return;
        }
        let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in std::iter::once(servers.probe.as_str()).chain(PROBE.split('.')) {
            packet.push(u8::try_from(label.len()).expect("labels of ours are short"));
            packet.extend(label.bytes());
        }
        packet.extend([0, 0, 1, 0, 1]);
        let Parsed::Question(question) = wire::parse(&packet) else { return };
        for (server, _) in &servers.list {
            // Whether it answers does not matter here.
            let _ = self.ask_over_udp(*server, &question, false).await;
        }
    }

    /// Notes a question that may be our own, come back.
    pub(super) fn is_own_question(&self, labels: &[&str]) -> bool {
        let [probe, rest @ ..] = labels else { return false };
        if rest.len() != 2 || !rest.iter().copied().eq(PROBE.split('.')) {
            return false;
        }
        let servers = self.servers();
        let own = *probe == servers.probe;
        if own && !servers.is_loop.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the node's name servers ask this one, which asks them: names outside of the cluster cannot be answered; name other servers in dns.upstream, or another resolvConf"
            );
        }
        own
    }

    /// The answer of some server, asked for once however many wait for it. What may be kept is given to `keep`.
    pub(super) async fn ask(
        self: &Arc<Self>,
        key: &Key,
        packet: &[u8],
        keep: impl FnOnce(Arc<Entry>) + Send + 'static,
    ) -> Outcome {
        let mut answer = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.get(key.as_bytes()) {
                Some(answer) => answer.clone(),
                None if waiting.len() >= MOST_WAITING => return Err(Code::Refused),
                None => {
                    let (sender, answer) = watch::channel(None);
                    waiting.insert(key.to_boxed(), answer.clone());
                    let (this, key, packet) = (self.clone(), key.to_boxed(), packet.to_vec());
                    tokio::spawn(async move {
                        let outcome = this.ask_all(&packet).await;
                        if let Ok(entry) = &outcome
                            && entry.until.is_some()
                        {
                            keep(entry.clone());
                        }
                        this.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                        sender.send_replace(Some(outcome));
                    });
                    answer
                }
            }
        };
        match answer.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(Code::ServFail)),
            Err(_) => Err(Code::ServFail),
        }
    }

    async fn ask_all(&self, packet: &[u8]) -> Outcome {
        let Parsed::Question(question) = wire::parse(packet) else { return Err(Code::FormErr) };
        let servers = self.servers();
        if servers.list.is_empty() {
            return Err(Code::Refused);
        }
        if servers.is_loop.load(Ordering::Relaxed) {
            return Err(Code::ServFail);
        }
        let begun = self.clock.now().monotonic;
        let answer = timeout(ALTOGETHER, self.ask_in_turn(&servers, &question)).await.ok().flatten();
        let now = self.clock.now().monotonic;
        self.metrics.forward_seconds.observe(now.saturating_sub(begun).as_secs_f64());
        let Some((encoded, keep)) = answer else {
            self.metrics.forward_failures.inc();
            return Err(Code::ServFail);
        };
        self.metrics.forwarded.inc();
        let longest = if encoded.code() == 0 { LONGEST_KEPT } else { LONGEST_NOTHING_KEPT };
        let lifetime =
            keep.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.min(longest).into()));
        Ok(Arc::new(Entry::new(encoded, now, lifetime, None)))
    }

    /// Two rounds; those that failed lately come last.
    async fn ask_in_turn(&self, servers: &Servers, question: &Question<'_>) -> Option<(Encoded, Option<u32>)> {
        let mut last = None;
        for _ in 0..2 {
            let now = self.clock.now().monotonic;
            let distrusted = |until: &Mutex<Duration>| *until.lock().unwrap_or_else(PoisonError::into_inner) > now;
            let mut order: Vec<_> = servers.list.iter().collect();
            order.sort_by_key(|(_, until)| distrusted(until));
            for (server, until) in order {
                match self.ask_one(*server, question).await {
                    Ok(found) if matches!(found.0.code(), 0 | 3) => {
                        *until.lock().unwrap_or_else(PoisonError::into_inner) = Duration::ZERO;
                        return Some(found);
                    }
                    // It lives, and perhaps another one knows more.
                    Ok(found) => last = Some(found),
                    Err(error) => {
                        tracing::debug!(%server, %error, "a name server does not answer");
                        *until.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.now().monotonic + DISTRUST;
                    }
                }
            }
            if last.is_some() {
                break;
            }
        }
        last
    }

    async fn ask_one(&self, server: SocketAddr, question: &Question<'_>) -> io::Result<(Encoded, Option<u32>)> {
        let mut found = self.ask_over_udp(server, question, true).await?;
        // Servers of before EDNS.
        if matches!(found.0.code(), 1 | 4) {
            found = self.ask_over_udp(server, question, false).await?;
        }
        if found.0.is_truncated()
            && let Ok(whole) = self.ask_over_tcp(server, question).await
        {
            found = whole;
        }
        Ok(found)
    }

    async fn ask_over_udp(
        &self,
        server: SocketAddr,
        question: &Question<'_>,
        with_edns: bool,
    ) -> io::Result<(Encoded, Option<u32>)> {
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // A port of its own for each question, which with the identifier is what forgers would have to guess.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        let mut query = Vec::new();
        wire::query(random_id(), question, with_edns, &mut query);
        socket.send(&query).await?;
        let exchange = async {
            let mut buffer = vec![0; 4096];
            loop {
                let length = socket.recv(&mut buffer).await?;
                if wire::answers(&buffer[..length], &query, question)
                    && let Some(found) = Encoded::new(buffer[..length].to_vec(), true)
                {
                    return Ok(found);
                }
            }
        };
        timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn ask_over_tcp(&self, server: SocketAddr, question: &Question<'_>) -> io::Result<(Encoded, Option<u32>)> {
        let exchange = async {
            let mut stream = TcpStream::connect(server).await?;
            let mut query = Vec::new();
            wire::query(random_id(), question, true, &mut query);
            let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            stream.write_all(&[&length.to_be_bytes(), query.as_slice()].concat()).await?;
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            if !wire::answers(&answer, &query, question) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Encoded::new(answer, true).ok_or_else(|| io::ErrorKind::InvalidData.into())
        };
        timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

fn random_id() -> u16 {
    let [high, low, ..] = uuid::Uuid::new_v4().into_bytes();
    u16::from_be_bytes([high, low])
}

/// The servers that a resolv.conf names.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { continue };
        match address.parse::<IpAddr>() {
            Ok(address) => found.push(SocketAddr::new(address, PORT)),
            Err(_) => tracing::warn!(address, "not the address of a name server, left out"),
        }
    }
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_our_own_are_left_out() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 192.0.2.53\nnameserver 10.96.0.10 # us\nnameserver fe80::1%eth0\nnameserver\nnameserver 2001:db8::53\n";
        let own: IpAddr = "10.96.0.10".parse().unwrap();
        let forwarder = Forwarder::new(Upstream::None, vec![own], Clock, Arc::new(Metrics::new()));
        forwarder.use_servers(nameservers(text));
        let list: Vec<String> = forwarder.servers().list.iter().map(|(server, _)| server.to_string()).collect();
        assert_eq!(list, ["192.0.2.53:53", "[2001:db8::53]:53"]);
    }

    #[test]
    fn only_our_own_question_is_a_loop() {
        let forwarder = Forwarder::new(Upstream::None, Vec::new(), Clock, Arc::new(Metrics::new()));
        forwarder.use_servers(vec!["192.0.2.53:53".parse().unwrap()]);
        let servers = forwarder.servers();
        assert!(!forwarder.is_own_question(&["other", "loop-check", "stoker"]));
        assert!(!forwarder.is_own_question(&[&servers.probe, "loop-check", "example"]));
        assert!(!servers.is_loop.load(Ordering::Relaxed));
        assert!(forwarder.is_own_question(&[&servers.probe, "loop-check", "stoker"]));
        assert!(servers.is_loop.load(Ordering::Relaxed));
    }
}
