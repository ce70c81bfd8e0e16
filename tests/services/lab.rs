//! A node, its pods and somebody outside, as network namespaces joined by veth pairs; and the data path under test in the
//! node's namespace.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use stoker::clock::Clock;
use stoker::service::http::{self, ProxyState};
use stoker::service::{Cidr, Health, LocalTraffic, Problems, ServiceConfig, Turn};
use stoker_model::service::{EndpointSlice, NodeTopology, Service, ServiceChange};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(5);

/// How long a packet may take before it counts as lost; an emulated machine sets STOKER_LAB_PACKET_SECONDS.
fn packet_patience() -> Duration {
    let seconds = std::env::var("STOKER_LAB_PACKET_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The address of the node on the link to the client.
pub(crate) const NODE: &str = "192.0.2.1";
/// The client's address.
pub(crate) const CLIENT: &str = "192.0.2.2";
/// The same in IPv6.
pub(crate) const NODE6: &str = "2001:db8::1";

/// The namespaces of one test; deleted when it ends.
pub(crate) struct Lab {
    prefix: String,
    names: Vec<String>,
}

impl Lab {
    /// A node with `pods` pods, each serving on port 8080 over TCP and UDP and both families.
    pub(crate) fn with_pods(pods: u8) -> Self {
        let prefix = format!("stoker-service-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { prefix, names: Vec::new() };
        lab.add_namespace("node");
        lab.add_namespace("client");
        // A redirect towards the client would use up the few ICMP errors that the kernel grants it.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv4/conf/{scope}/send_redirects");
            lab.within("node", move || std::fs::write(path, "0").unwrap()).join().unwrap();
        }
        lab.join("client", "outside", (NODE, CLIENT, 24), (NODE6, "2001:db8::2", 64));
        // Programs of the node need some route to a service IP before destination NAT can turn it.
        run(&format!("ip -n {} route add default via {CLIENT}", lab.ns("node")));
        run(&format!("ip -n {} -6 route add default via 2001:db8::2", lab.ns("node")));
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            lab.within("node", move || std::fs::write(format!("/proc/sys/{path}"), "1").unwrap()).join().unwrap();
        }
        for pod in 1..=pods {
            let name = format!("pod{pod}");
            lab.add_namespace(&name);
            let v4 = (format!("10.244.{pod}.1"), format!("10.244.{pod}.2"));
            let v6 = (format!("fd00:244:{pod}::1"), format!("fd00:244:{pod}::2"));
            lab.join(&name, &name, (&v4.0, &v4.1, 24), (&v6.0, &v6.1, 64));
            lab.serve(&name);
        }
        lab
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn add_namespace(&mut self, name: &str) {
        let ns = self.ns(name);
        run(&format!("ip netns add {ns}"));
        self.names.push(ns.clone());
        // Duplicate address detection keeps link-local addresses from use for a second.
        self.within(name, || std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap())
            .join()
            .unwrap();
        run(&format!("ip -n {ns} link set lo up"));
    }

    /// A veth pair between the node, where it is called `interface`, and another namespace, whose default route it becomes.
    fn join(&self, name: &str, interface: &str, v4: (&str, &str, u8), v6: (&str, &str, u8)) {
        let (node, ns) = (self.ns("node"), self.ns(name));
        run(&format!("ip -n {node} link add {interface} type veth peer name eth0 netns {ns}"));
        for (ns, interface, v4_address, v6_address) in [(&node, interface, v4.0, v6.0), (&ns, "eth0", v4.1, v6.1)] {
            run(&format!("ip -n {ns} addr add {v4_address}/{} dev {interface}", v4.2));
            run(&format!("ip -n {ns} addr add {v6_address}/{} dev {interface} nodad", v6.2));
            run(&format!("ip -n {ns} link set {interface} up"));
        }
        run(&format!("ip -n {ns} route add default via {}", v4.0));
        run(&format!("ip -n {ns} -6 route add default via {}", v6.0));
    }

    /// Runs something on a thread in one of the namespaces.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = format!("/var/run/netns/{}", self.ns(name));
        std::thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        })
    }

    /// Answers each TCP connection and UDP datagram with the pod's name and the source address it saw; TCP then echoes lines.
    fn serve(&self, pod: &str) {
        let name = pod.to_owned();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        self.within(pod, move || {
            let tcp = TcpListener::bind("[::]:8080").unwrap();
            let udp = UdpSocket::bind("[::]:8080").unwrap();
            ready.send(()).unwrap();
            let udp_name = name.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 100];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{udp_name} {}", peer.ip().to_canonical()).as_bytes(), peer);
                }
            });
            std::thread::spawn(move || {
                for connection in tcp.incoming() {
                    let name = name.clone();
                    std::thread::spawn(move || answer(connection.unwrap(), &name));
                }
            });
        });
        is_ready.recv().unwrap();
    }

    /// Connects from a namespace; the answer tells who served and which source it saw.
    pub(crate) fn connect(&self, from: &str, to: &str) -> std::io::Result<Connection> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(from, move || Connection::open(to)).join().unwrap()
    }

    /// Whether a TCP connection is made within a moment; a packet that comes too soon is lost, and sent again only after 1 s.
    pub(crate) fn answers_at_once(&self, from: &str, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_millis(20)).is_ok();
        self.within(from, connect).join().unwrap()
    }

    /// Which pod answers a TCP connection.
    #[track_caller]
    pub(crate) fn served_by(&self, from: &str, to: &str) -> String {
        match self.connect(from, to) {
            Ok(connection) => connection.served_by,
            Err(error) => panic!("{from} cannot connect to {to}: {error}\n{}", self.nft()),
        }
    }

    /// Asks over UDP from a new port who is there.
    pub(crate) fn datagram(&self, from: &str, to: &str) -> std::io::Result<String> {
        exchange(&self.udp(from, to))
    }

    /// A UDP socket of a namespace, bound and connected, for several exchanges.
    pub(crate) fn udp(&self, from: &str, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.within(from, move || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(packet_patience())).unwrap();
            socket.connect(to).unwrap();
            socket
        })
        .join()
        .unwrap()
    }

    /// What the user's nft says about the node.
    pub(crate) fn nft(&self) -> String {
        self.nft_command("list ruleset")
    }

    /// Runs nft in the node's namespace.
    pub(crate) fn nft_command(&self, arguments: &str) -> String {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output =
            Command::new("ip").args(["netns", "exec", &self.ns("node"), "nft"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// One more address of a namespace.
    pub(crate) fn add_address(&self, name: &str, address: &str) {
        run(&format!("ip -n {} addr add {address} dev lo", self.ns(name)));
    }

    /// Runs conntrack in the node's namespace.
    pub(crate) fn conntrack(&self, arguments: &str) -> String {
        let arguments = arguments.split(' ').chain(["-o", "id"]);
        let output =
            Command::new("ip").args(["netns", "exec", &self.ns("node"), "conntrack"]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sends SCTP's first packet to port 80 of an address; the port at which it arrives in a pod, if it does.
    pub(crate) fn sctp_arrives(&self, from: &str, to: &str, pod: &str) -> Option<u16> {
        use rustix::net::{
            AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketType, ipproto, recv, sendto, socket,
        };
        let raw = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
        let arrivals = self.within(pod, raw).join().unwrap();
        let patience = Some(packet_patience());
        rustix::net::sockopt::set_socket_timeout(&arrivals, rustix::net::sockopt::Timeout::Recv, patience).unwrap();
        let to = SocketAddrV4::new(to.parse().unwrap(), 0);
        self.within(from, move || sendto(raw(), &sctp_init(5000, 80), SendFlags::empty(), &to).unwrap())
            .join()
            .unwrap();
        let mut packet = [0_u8; 256];
        let (length, _) = recv(&arrivals, &mut packet[..], RecvFlags::empty()).ok()?;
        // Behind the IP header: source port, destination port.
        let header = usize::from(packet[0] & 0xf) * 4;
        packet[..length].get(header + 2..)?.first_chunk().map(|port| u16::from_be_bytes(*port))
    }

    /// Starts the data path on the node, with pods recognised by their addresses.
    pub(crate) fn start(&self) -> Daemon {
        let sources = ["10.244.0.0/16", "fd00:244::/32"];
        let sources: Vec<Cidr> = sources.iter().map(|range| range.parse().unwrap()).collect();
        self.start_with(ServiceConfig { local_traffic: LocalTraffic::Sources(sources), ..ServiceConfig::default() })
    }

    /// Starts the data path on the node.
    pub(crate) fn start_with(&self, config: ServiceConfig) -> Daemon {
        // Shown when the test fails.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let (changes, receiver) = mpsc::channel(65536);
        let (answer, started) = std::sync::mpsc::sync_channel(1);
        let thread = self.within("node", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let ips = vec![NODE.parse().unwrap(), NODE6.parse().unwrap()];
                let topology = NodeTopology { name: "node".into(), zone: Some("zone-a".into()), ips };
                let (_keep, facts) = watch::channel(Arc::new(topology));
                let families = config.families.clone();
                let sync_period = config.sync_period;
                let node_port_addresses = config.node_port_addresses.clone();
                let proxy = stoker::service::spawn(receiver, facts, config, Clock).unwrap();
                let (eligible, is_eligible) = watch::channel(true);
                answer.send((proxy.health.clone(), proxy.problems, proxy.service_ranges, eligible, proxy.turn)).unwrap();
                let state = ProxyState {
                    health: proxy.health,
                    eligible: is_eligible,
                    families,
                    sync_period,
                    metrics: proxy.metrics,
                    mode: "nftables",
                    configz: r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#.into(),
                    debugging: Some(|level| if level < 10 { Ok(()) } else { Err("too much".to_owned()) }),
                    started: Clock.now(),
                    clock: Clock,
                };
                tokio::select! {
                    ended = proxy.task => ended.unwrap(),
                    Err(error) = http::serve_health("0.0.0.0:10256".parse().unwrap(), true, state.clone()) => panic!("{error}"),
                    Err(error) = http::serve_metrics("127.0.0.1:10249".parse().unwrap(), true, state.clone()) => panic!("{error}"),
                    () = http::serve_health_checks(proxy.health_checks, node_port_addresses, state.clone()) => {}
                }
            });
        });
        let (health, problems, ranges, eligible, turn) = started.recv().unwrap();
        Daemon { changes: Some(changes), health, problems, ranges, eligible, turn, thread: Some(thread) }
    }

    /// GETs a page within a namespace: the status, the head in lower case and the body.
    #[track_caller]
    pub(crate) fn get(&self, from: &str, to: &str, path: &str) -> (u16, String, String) {
        self.ask(from, to, "GET", path, "")
    }

    /// As [`Self::get`], with another method and a body.
    #[track_caller]
    pub(crate) fn ask(&self, from: &str, to: &str, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let to: SocketAddr = to.parse().unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let asked = move || -> std::io::Result<String> {
            // The port may be opened a moment after the rules are written.
            let connect = || TcpStream::connect_timeout(&to, packet_patience());
            let mut tries = (0..50).map(|_| connect().inspect_err(|_| std::thread::sleep(Duration::from_millis(20))));
            let mut stream = tries.find(Result::is_ok).unwrap_or_else(connect)?;
            stream.write_all(request.as_bytes())?;
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stream, &mut text)?;
            Ok(text)
        };
        let text = self.within(from, asked).join().unwrap().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    /// What a command of the node prints.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        self.run_in("node", command)
    }

    /// What a command of a namespace prints.
    #[track_caller]
    pub(crate) fn run_in(&self, name: &str, command: &str) -> String {
        let words = command.split(' ');
        let output = Command::new("ip").args(["netns", "exec", &self.ns(name)]).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Removes our tables from the node.
    pub(crate) fn cleanup(&self) {
        self.within("node", || stoker::service::cleanup(&ServiceConfig::default()).unwrap()).join().unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

/// One question and answer over UDP.
pub(crate) fn exchange(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"who")?;
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_owned())
}

#[track_caller]
fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

fn answer(mut connection: TcpStream, name: &str) {
    let peer = connection.peer_addr().unwrap().ip().to_canonical();
    let _ = connection.write_all(format!("{name} {peer}\n").as_bytes());
    let mut lines = BufReader::new(connection.try_clone().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        let _ = connection.write_all(line.as_bytes());
        line.clear();
    }
}

/// An open TCP connection.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The pod that answered.
    pub(crate) served_by: String,
    /// The source address that it saw.
    pub(crate) source: IpAddr,
}

impl Connection {
    fn open(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, packet_patience())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let line = read_line(&stream)?;
        let (name, source) = line.trim().split_once(' ').unwrap();
        Ok(Self { stream, served_by: name.to_owned(), source: source.parse().unwrap() })
    }

    /// Whether a line comes back.
    pub(crate) fn still_answers(&mut self) -> bool {
        self.stream.write_all(b"there?\n").is_ok() && read_line(&self.stream).is_ok_and(|line| line == "there?\n")
    }
}

fn read_line(stream: &TcpStream) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

/// The running data path.
pub(crate) struct Daemon {
    changes: Option<mpsc::Sender<ServiceChange>>,
    health: watch::Receiver<Health>,
    /// Whether this node should get traffic.
    pub(crate) eligible: watch::Sender<bool>,
    /// Whether the data path may work.
    pub(crate) turn: watch::Sender<Turn>,
    problems: watch::Receiver<Problems>,
    ranges: watch::Sender<Arc<BTreeSet<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Tells it something without waiting.
    pub(crate) fn tell(&self, change: ServiceChange) {
        self.changes.as_ref().unwrap().blocking_send(change).unwrap();
    }

    /// Tells it something and waits until the kernel knows.
    #[track_caller]
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = ServiceChange>) {
        let before = Clock.now().monotonic;
        changes.into_iter().for_each(|change| self.tell(change));
        self.wait(before);
    }

    #[track_caller]
    fn wait(&self, before: Duration) {
        let queue = self.changes.as_ref().unwrap();
        let done = || {
            let health = *self.health.borrow();
            queue.capacity() == queue.max_capacity()
                && health.queued_since.is_none()
                && health.last_updated.is_some_and(|at| at.monotonic > before)
        };
        let deadline = before + 2 * PATIENCE;
        // A change that was just taken is not in the health yet: what was written a moment ago may have been a repair without it.
        let settled = packet_patience() / 50;
        let mut since = None;
        loop {
            let now = Clock.now().monotonic;
            assert!(now < deadline, "not written in time: {:?}", *self.health.borrow());
            since = if done() { since.or(Some(now)) } else { None };
            if since.is_some_and(|since| now - since >= settled) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Transactions written since its start.
    pub(crate) fn transactions(&self) -> u64 {
        self.health.borrow().transactions
    }

    /// Tells it the ranges of all ServiceCIDRs.
    pub(crate) fn service_ranges(&self, ranges: &[&str]) {
        self.ranges.send_replace(Arc::new(ranges.iter().map(ToString::to_string).collect()));
    }

    /// What could not be done, each with its Service.
    pub(crate) fn problems(&self) -> Vec<String> {
        let all = self.problems.borrow();
        let of = all.iter().flat_map(|(name, troubled)| troubled.problems.iter().map(move |problem| (name, problem)));
        of.map(|(name, problem)| format!("{}/{}: {problem}", name.namespace, name.name)).collect()
    }

    /// Whether the kernel was brought up to date at least once.
    pub(crate) fn has_written(&self) -> bool {
        self.health.borrow().last_updated.is_some()
    }

    /// Ends it and waits for its end.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.changes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// A Service `default/web` from what differs from a plain ClusterIP Service of port 80 over TCP.
pub(crate) fn service(spec: serde_json::Value) -> ServiceChange {
    ServiceChange::Service(Arc::new(service_object("web", spec)))
}

/// The object of [`service`], by name.
pub(crate) fn service_object(name: &str, spec: serde_json::Value) -> Service {
    let mut object = serde_json::json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ports": [{"port": 80, "protocol": "TCP"}]},
    });
    merge(&mut object["spec"], &spec);
    if let Some(status) = spec.get("status") {
        object["status"] = status.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut serde_json::Value, from: &serde_json::Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// Both slices of `default/web`, with the given pods as ready endpoints.
pub(crate) fn endpoints(pods: &[u8]) -> Vec<ServiceChange> {
    endpoints_on(pods, "node")
}

/// As [`endpoints`], on a node of that name.
pub(crate) fn endpoints_on(pods: &[u8], node: &str) -> Vec<ServiceChange> {
    let slice = |family: &str, address: fn(u8) -> String| {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|&pod| serde_json::json!({"addresses": [address(pod)], "conditions": {"ready": true}, "nodeName": node}))
            .collect();
        let object = serde_json::json!({
            "metadata": {"name": format!("web-{family}"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"port": 8080, "protocol": "TCP"}, {"port": 8080, "protocol": "UDP"}],
        });
        ServiceChange::from(serde_json::from_value::<EndpointSlice>(object).unwrap())
    };
    vec![slice("IPv4", |pod| format!("10.244.{pod}.2")), slice("IPv6", |pod| format!("fd00:244:{pod}::2"))]
}

/// More slices of `default/web`, with pods that are said to be on another node.
pub(crate) fn elsewhere(pods: &[u8]) -> Vec<ServiceChange> {
    let mut all = endpoints_on(pods, "other");
    for change in &mut all {
        if let ServiceChange::Slice(slice, _) = change {
            let slice = Arc::make_mut(slice);
            slice.name = format!("{}-elsewhere", slice.name).into();
        }
    }
    all
}

/// The packet that opens an SCTP association, with the checksum without which no kernel tracks it.
fn sctp_init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let crc = packet.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    });
    packet[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("{what}: not within 5 s");
}
