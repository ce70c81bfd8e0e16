//! Nodes on one wire, pods attached by the CNI plugin, and a host outside of the cluster, as network namespaces.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The address of the host outside.
pub(crate) const OUTSIDE: &str = "192.0.2.100";

/// The namespaces of one test; deleted when it ends.
pub(crate) struct Lab {
    prefix: String,
    names: std::sync::Mutex<Vec<String>>,
    pub(crate) dir: tempfile::TempDir,
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) value: Value,
}

impl Lab {
    /// The wire, and a host outside that listens on port 80.
    pub(crate) fn new() -> Self {
        let prefix = format!("stoker-net-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("stoker-net-").tempdir().unwrap();
        let lab = Self { prefix, names: Vec::new().into(), dir };
        lab.add_namespace("wire");
        run(&format!("ip -n {} link add wire type bridge", lab.ns("wire")));
        run(&format!("ip -n {} link set wire up", lab.ns("wire")));
        lab.plug("outside", 100);
        lab.serve("outside", 80);
        lab
    }

    /// A namespace on the wire: `192.0.2.N` and `2001:db8::N`.
    fn plug(&self, name: &str, number: u8) {
        self.add_namespace(name);
        let (wire, ns) = (self.ns("wire"), self.ns(name));
        run(&format!("ip -n {wire} link add {name} type veth peer name uplink netns {ns}"));
        run(&format!("ip -n {wire} link set {name} master wire up"));
        run(&format!("ip -n {ns} addr add 192.0.2.{number}/24 dev uplink"));
        run(&format!("ip -n {ns} addr add 2001:db8::{number}/64 dev uplink nodad"));
        run(&format!("ip -n {ns} link set uplink up"));
    }

    /// A node, `192.0.2.N`, whose default route leads to the host outside.
    pub(crate) fn node(&self, number: u8) -> Node<'_> {
        let name = format!("node{number}");
        self.plug(&name, number);
        let ns = self.ns(&name);
        run(&format!("ip -n {ns} route add default via {OUTSIDE}"));
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.within(&name, move || std::fs::write(format!("/proc/sys/{path}"), "1").unwrap()).join().unwrap();
        }
        let state = self.dir.path().join(&name);
        Node { lab: self, name, number, state }
    }

    pub(crate) fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) fn ns_path(&self, name: &str) -> String {
        format!("/var/run/netns/{}", self.ns(name))
    }

    pub(crate) fn add_namespace(&self, name: &str) {
        let ns = self.ns(name);
        run(&format!("ip netns add {ns}"));
        self.names.lock().unwrap().push(ns.clone());
        self.within(name, || std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap())
            .join()
            .unwrap();
        run(&format!("ip -n {ns} link set lo up"));
    }

    /// Deletes a namespace, with all that is in it.
    pub(crate) fn delete_namespace(&self, name: &str) {
        run(&format!("ip netns delete {}", self.ns(name)));
    }

    /// Runs something on a thread in one of the namespaces.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.ns_path(name);
        std::thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        })
    }

    /// Answers each TCP connection and UDP datagram with the namespace's name and the source address that it saw.
    pub(crate) fn serve(&self, name: &str, port: u16) {
        let text = name.to_owned();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        self.within(name, move || {
            let tcp = TcpListener::bind(("::", port)).unwrap();
            let udp = UdpSocket::bind(("::", port)).unwrap();
            ready.send(()).unwrap();
            let udp_text = text.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 100];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{udp_text} {}", peer.ip().to_canonical()).as_bytes(), peer);
                }
            });
            std::thread::spawn(move || {
                for mut connection in tcp.incoming().flatten() {
                    let peer = connection.peer_addr().unwrap().ip().to_canonical();
                    let _ = connection.write_all(format!("{text} {peer}").as_bytes());
                }
            });
        });
        is_ready.recv().unwrap();
    }

    /// Who answers a TCP connection, and which source it saw.
    pub(crate) fn ask(&self, from: &str, to: &str) -> std::io::Result<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(from, move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(700))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(parse_answer(&text))
        })
        .join()
        .unwrap()
    }

    /// The same over UDP.
    pub(crate) fn ask_udp(&self, from: &str, to: &str) -> std::io::Result<(String, IpAddr)> {
        self.ask_udp_with(from, to, 3)
    }

    /// The same with so many bytes in the question. The kernel forbids others to cut it up.
    pub(crate) fn ask_udp_with(&self, from: &str, to: &str, bytes: usize) -> std::io::Result<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(from, move || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_read_timeout(Some(Duration::from_millis(700)))?;
            socket.connect(to)?;
            socket.send(&vec![b'?'; bytes])?;
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer)?;
            Ok(parse_answer(&String::from_utf8_lossy(&buffer[..length])))
        })
        .join()
        .unwrap()
    }

    /// Fails the test when nobody, or somebody else, answers; returns the source that it saw.
    #[track_caller]
    pub(crate) fn reaches(&self, from: &str, to: &str, who: &str) -> IpAddr {
        match self.ask(from, to) {
            Ok((name, source)) if name == who => source,
            other => panic!("{from} to {to}: expected {who}, got {other:?}"),
        }
    }

    /// Fails the test when somebody answers.
    #[track_caller]
    pub(crate) fn is_cut_off(&self, from: &str, to: &str) {
        if let Ok(answer) = self.ask(from, to) {
            panic!("{from} reaches {to}: {answer:?}");
        }
    }

    /// What a command prints in a namespace.
    #[track_caller]
    pub(crate) fn output(&self, ns: &str, command: &str) -> String {
        let output =
            Command::new("ip").args(["netns", "exec", &self.ns(ns)]).args(command.split(' ')).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.names.lock().unwrap().iter() {
            let _ = Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status();
        }
    }
}

fn parse_answer(text: &str) -> (String, IpAddr) {
    let (name, source) = text.trim().split_once(' ').unwrap_or((text, "0.0.0.0"));
    (name.to_owned(), source.parse().unwrap())
}

/// Waits until it is true, and fails the test when that takes too long.
#[track_caller]
pub(crate) fn eventually(what: &str, is_true: impl Fn() -> bool) {
    for _ in 0..100 {
        if is_true() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not in time: {what}");
}

#[track_caller]
pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A node and its part of the pod network: `10.244.N.0/24` and `fd00:244:N::/64`.
pub(crate) struct Node<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) state: PathBuf,
}

impl Node<'_> {
    /// The plugin's configuration; `change` overrides.
    pub(crate) fn config(&self, change: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "stoker", "type": "stoker-cni", "stateDir": self.state, "mtu": 1400,
            "ranges": [format!("10.244.{}.0/24", self.number), format!("fd00:244:{}::/64", self.number)],
        });
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    /// Calls the plugin as a runtime does, for the interface `eth0` of a namespace.
    pub(crate) fn call(&self, command: &str, pod: &str, config: &str) -> Answer {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.lab.ns(&self.name), env!("CARGO_BIN_EXE_stoker")])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod)
            .env("CNI_NETNS", self.lab.ns_path(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nowhere")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) };
        Answer { success: output.status.success(), value }
    }

    /// Calls the plugin with the usual configuration.
    pub(crate) fn plain(&self, command: &str, pod: &str) -> Answer {
        self.call(command, pod, &self.config(&json!({})).to_string())
    }

    /// A new pod that serves on port 8080; its addresses.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str) -> Vec<String> {
        self.pod_with(name, &json!({}))
    }

    /// The same with another configuration.
    #[track_caller]
    pub(crate) fn pod_with(&self, name: &str, change: &Value) -> Vec<String> {
        self.lab.add_namespace(name);
        let answer = self.call("ADD", name, &self.config(change).to_string());
        assert!(answer.success, "{}", answer.value);
        self.lab.serve(name, 8080);
        addresses(&answer)
    }

    /// The owner's names and the addresses of all leases.
    pub(crate) fn leases(&self) -> Vec<String> {
        let mut found: Vec<String> = std::fs::read_dir(self.state.join("leases"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect();
        found.sort();
        found
    }
}

/// The addresses in a result, without their prefixes.
pub(crate) fn addresses(answer: &Answer) -> Vec<String> {
    let ips = answer.value["ips"].as_array().into_iter().flatten();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}
