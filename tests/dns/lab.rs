//! A network namespace with the server under test, a client in it, and another name server behind it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Record;
use stoker::clock::Clock;
use stoker::dns::{DnsConfig, DnsServer, Upstream};
use stoker_model::service::ServiceChange;
use tokio::sync::mpsc;

/// The cluster DNS addresses.
pub(crate) const SERVER: &str = "10.96.0.10";
/// The same in IPv6.
pub(crate) const SERVER6: &str = "fd00:10:96::a";
/// The name server behind.
pub(crate) const OUTSIDE: &str = "127.0.0.53:5353";
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The namespace; deleted when the test ends.
pub(crate) struct Lab {
    name: String,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let name = format!("stoker-dns-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let lab = Self { name };
        run(&format!("ip netns add {}", lab.name));
        run(&format!("ip -n {} link set lo up", lab.name));
        lab
    }

    /// Runs something on a thread in the namespace.
    pub(crate) fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/var/run/netns/{}", self.name);
        std::thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        })
    }

    /// Starts the server with a name server behind it.
    pub(crate) fn start(&self) -> Server {
        self.start_with(Upstream::Servers(vec![OUTSIDE.parse().unwrap()]))
    }

    /// Starts the server.
    pub(crate) fn start_with(&self, upstream: Upstream) -> Server {
        let (changes, queue) = mpsc::channel(1024);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let thread = self.within(move || {
            let config = DnsConfig {
                addresses: vec![SERVER.parse().unwrap(), SERVER6.parse().unwrap()],
                domain: "cluster.local".into(),
                ttl: 5,
                upstream,
                cache_entries: 1000,
                metrics_port: Some(9153),
            };
            // Other threads would be in the namespace of whoever started them.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = DnsServer::start(config, Clock).await.unwrap();
                ready.send(()).unwrap();
                server.run(queue).await;
            });
        });
        is_ready.recv().unwrap();
        Server { changes: Some(changes), thread: Some(thread) }
    }

    /// What dig prints, with these arguments, asking the server.
    pub(crate) fn dig(&self, arguments: &str) -> String {
        self.dig_at(SERVER, arguments)
    }

    /// What dig prints, asking at one of the addresses; its columns are parted by one space.
    pub(crate) fn dig_at(&self, address: &str, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "dig", &format!("@{address}"), "+time=6", "+tries=1", "+nocookie"]);
        let output = command.args(arguments.split(' ')).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    /// From now on programs in the namespace find names as those of a pod in a namespace of the cluster do.
    pub(crate) fn resolve_as_in_a_pod(&self, namespace: &str) {
        let dir = format!("/etc/netns/{}", self.name);
        std::fs::create_dir_all(&dir).unwrap();
        let search = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local");
        std::fs::write(format!("{dir}/resolv.conf"), format!("nameserver {SERVER}\n{search}\noptions ndots:5\n"))
            .unwrap();
    }

    /// The data of the answers, in order of the alphabet.
    pub(crate) fn short(&self, arguments: &str) -> Vec<String> {
        let mut lines: Vec<String> = self.dig(&format!("+short {arguments}")).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Asks until the answer is right, for as long as a change may take.
    #[track_caller]
    pub(crate) fn eventually(&self, arguments: &str, expected: &[&str]) {
        for _ in 0..50 {
            if self.short(arguments) == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.short(arguments), expected, "{arguments}");
    }

    /// Runs a program in the namespace and returns what it prints.
    pub(crate) fn output(&self, command: &str) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.name]).args(command.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the name server behind.
    pub(crate) fn outside(&self) -> Outside {
        let outside = Outside::default();
        let (udp_side, tcp_side) = (outside.clone(), outside.clone());
        let (ready, is_ready) = std::sync::mpsc::sync_channel(2);
        let tcp_ready = ready.clone();
        self.within(move || {
            let socket = UdpSocket::bind(OUTSIDE).unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                if let Some(answer) = udp_side.answer(&buffer[..length], 512) {
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        self.within(move || {
            let listener = TcpListener::bind(OUTSIDE).unwrap();
            tcp_ready.send(()).unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut packet).unwrap();
                if let Some(answer) = tcp_side.answer(&packet, usize::MAX) {
                    stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            }
        });
        is_ready.recv().unwrap();
        is_ready.recv().unwrap();
        outside
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.name));
    }
}

#[track_caller]
fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

/// The running server.
pub(crate) struct Server {
    changes: Option<mpsc::Sender<ServiceChange>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Tells it changes.
    pub(crate) fn tell(&self, changes: impl IntoIterator<Item = ServiceChange>) {
        changes.into_iter().for_each(|change| self.changes.as_ref().unwrap().blocking_send(change).unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.changes.take());
        if self.thread.take().unwrap().join().is_err() && !std::thread::panicking() {
            panic!("the server died");
        }
    }
}

/// Code, answers, authorities.
type Said = (ResponseCode, Vec<Record>, Vec<Record>);

/// What the name server behind says, and how often it was asked.
#[derive(Clone, Default)]
pub(crate) struct Outside {
    told: Arc<Mutex<HashMap<String, Said>>>,
    asked: Arc<AtomicUsize>,
}

impl Outside {
    /// From now on, the answer for a name like `example.org. A`: code, answers, authorities. Names that it was not told of
    /// get no answer at all.
    pub(crate) fn say(&self, question: &str, code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) {
        self.told.lock().unwrap().insert(question.to_owned(), (code, answers, authorities));
    }

    /// How many questions it could answer so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer(&self, packet: &[u8], limit: usize) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).unwrap();
        let query = question.queries[0].clone();
        let name = format!("{} {}", query.name().to_ascii().to_ascii_lowercase(), query.query_type());
        let (code, answers, authorities) = self.told.lock().unwrap().get(&name)?.clone();
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(query);
        message.insert_answers(answers);
        message.insert_authorities(authorities);
        let whole = message.to_vec().unwrap();
        if whole.len() <= limit {
            return Some(whole);
        }
        Some(message.truncate().to_vec().unwrap())
    }
}
