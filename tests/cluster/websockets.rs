//! exec, attach and port-forward over raw websockets through the API server, as programs without kubectl's library speak them.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use http::Request;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::lab::manifest::{HELLO, pod};
use crate::lab::{Lab, text};

/// The API server as a websocket's client sees it.
struct Api<'a> {
    lab: &'a Lab,
    tls: TlsConnector,
    host: String,
    runtime: tokio::runtime::Runtime,
}

/// What came on a channel.
#[derive(Debug, PartialEq, Eq)]
struct Piece(u8, Vec<u8>);

impl<'a> Api<'a> {
    fn new(lab: &'a Lab) -> Self {
        let config: Value = serde_json::from_str(&lab.kubectl("config view --raw -o json")).expect("JSON");
        let decoded = |value: &Value| STANDARD.decode(text(value)).expect("kubectl encodes it");
        let user = &config["users"][0]["user"];
        let cluster = &config["clusters"][0]["cluster"];
        let mut roots = RootCertStore::empty();
        let ca = decoded(&cluster["certificate-authority-data"]);
        roots.add(CertificateDer::from_pem_slice(&ca).expect("a certificate")).expect("a CA");
        let chain = vec![CertificateDer::from_pem_slice(&decoded(&user["client-certificate-data"])).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(&decoded(&user["client-key-data"])).expect("PEM");
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        let tls = tls.with_root_certificates(roots).with_client_auth_cert(chain, key).expect("they fit");
        let host = text(&cluster["server"]).trim_start_matches("https://").to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { lab, tls: TlsConnector::from(std::sync::Arc::new(tls)), host, runtime }
    }

    /// Says something, and collects what comes until the end or until `enough`. An error: code and body of the refusal.
    fn talk(
        &self,
        path: &str,
        protocol: &str,
        said: &[Message],
        enough: impl Fn(&[Piece]) -> bool,
    ) -> Result<Vec<Piece>, (u16, String)> {
        let connect = || {
            self.lab.enter_network();
            std::net::TcpStream::connect(&self.host).expect("the API server listens")
        };
        let stream = std::thread::scope(|all| all.spawn(connect).join().expect("it connects"));
        let work = async {
            stream.set_nonblocking(true).expect("a socket");
            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
            let address: std::net::SocketAddr = self.host.parse().expect("an address");
            let stream = self.tls.connect(ServerName::IpAddress(address.ip().into()), stream).await.expect("TLS");
            let request = Request::get(format!("wss://{}/api/v1/namespaces/default/pods/{path}", self.host))
                .header("Host", &self.host)
                .header("Connection", "Upgrade")
                .header("Upgrade", "websocket")
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header("Sec-WebSocket-Protocol", protocol);
            let (mut socket, answer) = match client_async(request.body(()).expect("a request"), stream).await {
                Ok(open) => open,
                Err(Error::Http(refusal)) => {
                    let body = refusal.body().clone().unwrap_or_default();
                    return Err((refusal.status().as_u16(), String::from_utf8_lossy(&body).into_owned()));
                }
                Err(error) => panic!("{path} {protocol}: {error}"),
            };
            let chosen = answer.headers().get("sec-websocket-protocol").and_then(|value| value.to_str().ok());
            assert_eq!(chosen.unwrap_or_default(), protocol);
            for message in said {
                socket.send(message.clone()).await.expect("it listens");
            }
            let mut pieces = Vec::new();
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Binary(data) => pieces.push(Piece(data[0], data[1..].to_vec())),
                    // base64: the channel as a digit.
                    Message::Text(data) => {
                        let data = data.as_bytes();
                        pieces.push(Piece(data[0] - b'0', STANDARD.decode(&data[1..]).expect("base64")));
                    }
                    _ => {}
                }
                if enough(&pieces) {
                    break;
                }
            }
            Ok(pieces)
        };
        self.runtime.block_on(async { timeout(Duration::from_secs(60), work).await.expect("it comes to its end") })
    }
}

/// All bytes, where there are no channels.
fn whole(pieces: &[Piece]) -> Vec<u8> {
    pieces.iter().flat_map(|Piece(first, rest)| std::iter::once(*first).chain(rest.iter().copied())).collect()
}

/// All bytes of a channel.
fn of(pieces: &[Piece], channel: u8) -> String {
    let bytes: Vec<u8> = pieces.iter().filter(|piece| piece.0 == channel).flat_map(|piece| piece.1.clone()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn binary(channel: u8, data: &[u8]) -> Message {
    Message::Binary([&[channel], data].concat().into())
}

#[test]
fn raw_websockets_go_through_the_api_server() {
    let lab = Lab::start();
    lab.apply(&pod("box").build());
    lab.apply(&pod("web").image(HELLO).build());
    let script = "while read line; do echo heard $line; done";
    lab.apply(&pod("ears").script(script).container("stdin", true.into()).build());
    // The runtime promises no order between a size and what is said after it.
    let script = "while read line; do sleep 1; stty size; echo and errors >&2; done";
    lab.apply(&pod("term").script(script).container("stdin", true.into()).container("tty", true.into()).build());
    lab.apply(&pod("ended").script("true").spec("restartPolicy", "Never".into()).build());
    let mut two = pod("two").build();
    let mut second = two["spec"]["containers"][0].clone();
    second["name"] = json!("second");
    two["spec"]["containers"].as_array_mut().expect("a list").push(second);
    lab.apply(&two);
    let mut waits = pod("waits").build();
    waits["spec"]["nodeSelector"] = json!({"nowhere": "yes"});
    lab.apply(&waits);
    lab.eventually("all are ready", |lab| ["box", "web", "ears", "term"].iter().all(|name| lab.ready_pods(name) == 1));
    let api = Api::new(&lab);
    let to_the_end = |_: &[Piece]| false;
    let shell = |script: &str| {
        let script: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
        format!("box/exec?command=sh&command=-c&command={script}&container=box&stdout=1&stderr=1")
    };

    // A19.3, A19.7: every protocol, of which only the newer ones tell of success.
    for protocol in [
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "v5.channel.k8s.io",
    ] {
        let pieces = api.talk(&shell("echo out; echo err >&2"), protocol, &[], to_the_end).expect(protocol);
        assert_eq!(pieces[0], Piece(1, Vec::new()), "{protocol}: an empty one on the lowest channel is first");
        assert_eq!((of(&pieces, 1).as_str(), of(&pieces, 2).as_str()), ("out\n", "err\n"), "{protocol}");
        let told = of(&pieces, 3);
        if protocol.starts_with('v') {
            let status: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{protocol}: {told}"));
            assert_eq!(status["status"], "Success", "{protocol}");
        } else {
            assert_eq!(told, "", "{protocol}");
        }
        // A19.2
        let failed = of(&api.talk(&shell("exit 3"), protocol, &[], to_the_end).expect(protocol), 3);
        if protocol.starts_with('v') {
            let status: Value = serde_json::from_str(&failed).unwrap_or_else(|_| panic!("{protocol}: {failed}"));
            let causes = json!([{"reason": "ExitCode", "message": "3"}]);
            assert_eq!((&status["status"], &status["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
            assert_eq!(status["details"]["causes"], causes, "{protocol}");
            assert!(text(&status["message"]).starts_with("command terminated with non-zero exit code"), "{status}");
        } else {
            assert!(!failed.is_empty(), "{protocol}");
        }
    }
    // Without a protocol it is the oldest.
    let script = format!(
        "cd {}; field() {{ kubectl --kubeconfig {} config view --raw -o jsonpath=\"{{$1}}\"; }}
        field .users[0].user.client-certificate-data | base64 -d >cert; field .users[0].user.client-key-data | base64 -d >key
        curl -sk --http1.1 --cert cert --key key -m 10 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \
          -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' \
          \"$(field .clusters[0].cluster.server)/api/v1/namespaces/default/pods/box/exec?command=echo&command=out&stdout=1\" | od -An -c",
        lab.dir().display(),
        lab.kubeconfig().display(),
    );
    let messages = lab.run("sh", &["-c", &script]).out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(messages.starts_with("202 001 001 202 005 001 o u t \\n"), "{messages}");
    // Input, and in the newest protocol its end.
    let input = format!("{}&stdin=1", shell("cat; echo end"));
    let said = [binary(0, b"hello\n"), binary(255, &[0])];
    let pieces = api.talk(&input, "v5.channel.k8s.io", &said, to_the_end).expect("v5");
    assert_eq!(of(&pieces, 1), "hello\nend\n");
    let line = format!("{}&stdin=1", shell("read line; echo got $line"));
    let pieces = api.talk(&line, "v4.channel.k8s.io", &[binary(0, b"it\n")], to_the_end).expect("v4");
    assert_eq!(of(&pieces, 1), "got it\n");
    // A terminal, and its size.
    let sized = format!("{}&stdin=1&tty=1", shell("sleep 1; stty size")).replace("&stderr=1", "");
    let size = [binary(4, br#"{"Width":91,"Height":37}"#)];
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let pieces = api.talk(&sized, protocol, &size, to_the_end).expect(protocol);
        assert!(of(&pieces, 1).contains("37 91"), "{protocol}: {pieces:?}");
    }
    // A19.6: the end of a client is not that of the process.
    for protocol in ["channel.k8s.io", "v5.channel.k8s.io"] {
        let heard = |pieces: &[Piece]| of(pieces, 1).contains("heard you");
        api.talk("ears/attach?stdin=1&stdout=1", protocol, &[binary(0, b"you\n")], heard).expect(protocol);
    }
    assert_eq!(lab.ready_pods("ears"), 1);
    assert_eq!(lab.get("pod ears")["status"]["containerStatuses"][0]["restartCount"], 0);

    // A terminal's process that is attached to hears of its size, and everything it says comes on one channel.
    let attached = "term/attach?stdin=1&stdout=1&stderr=1&tty=1";
    let sized = [binary(4, br#"{"Width":81,"Height":27}"#), binary(0, b"go\n")];
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let heard = |pieces: &[Piece]| of(pieces, 1).contains("27 81") && of(pieces, 1).contains("and errors");
        let pieces = api.talk(attached, protocol, &sized, heard).expect(protocol);
        assert_eq!(of(&pieces, 2), "", "{protocol}");
    }

    // A19.5, A19.7: two channels for each port, both begin with its number.
    let request = [binary(0, b"GET / HTTP/1.0\r\n\r\n")];
    let answered = |pieces: &[Piece]| of(pieces, 0).contains("hello from web");
    let pieces = api.talk("web/portforward?ports=8080", "v4.channel.k8s.io", &request, answered).expect("v4");
    for channel in [0, 1] {
        let first = pieces.iter().find(|piece| piece.0 == channel && !piece.1.is_empty()).expect("its port");
        assert_eq!(first.1, 8080_u16.to_le_bytes(), "{channel}");
    }
    // Of the second port they are the next two.
    let second = [binary(2, b"GET / HTTP/1.0\r\n\r\n")];
    let answered_there = |pieces: &[Piece]| of(pieces, 2).contains("hello from web");
    let two_ports = "web/portforward?ports=8081&ports=8080";
    let pieces = api.talk(two_ports, "v4.channel.k8s.io", &second, answered_there).expect("v4");
    for (channel, port) in [(0, 8081_u16), (1, 8081), (2, 8080), (3, 8080)] {
        let first = pieces.iter().find(|piece| piece.0 == channel && !piece.1.is_empty()).expect("its port");
        assert_eq!(first.1, port.to_le_bytes(), "{channel}");
    }
    // A19.4, A19.5: frames of SPDY in binary messages, as kubectl sends them; a ping comes back as it went.
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    let (tunnel, said) = ("SPDY/3.1+portforward.k8s.io", [Message::Binary(ping.to_vec().into())]);
    let pieces =
        api.talk("web/portforward", tunnel, &said, |pieces| whole(pieces).len() >= ping.len()).expect("a tunnel");
    assert_eq!(whole(&pieces), ping);

    // A19.9: refusals are a Status.
    for (path, code, told) in [
        ("box/exec?command=true&stdout=1&container=other", 400, "container other is not valid for pod box"),
        ("nobody/exec?command=true&stdout=1", 404, "pods \"nobody\" not found"),
        ("box/exec?command=true", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        (
            "two/exec?command=true&stdout=1",
            400,
            "a container name must be specified for pod two, choose one of: [two second]",
        ),
        ("waits/exec?command=true&stdout=1", 400, "pod waits does not have a host assigned"),
        ("waits/attach?stdout=1", 400, "pod waits does not have a host assigned"),
        ("waits/portforward?ports=80", 400, "pod waits does not have a host assigned"),
        ("box/attach?stdout=1&container=other", 400, "container other is not valid for pod box"),
        ("web/portforward", 400, "query parameter \"port\" is required"),
        // In the node's own words.
        ("ended/exec?command=true&stdout=1", 500, "container not found (\"ended\")"),
        ("ended/attach?stdout=1", 500, "container ended not found in pod ended_default"),
    ] {
        let (status, body) = api.talk(path, "v4.channel.k8s.io", &[], to_the_end).expect_err(path);
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        assert_eq!((status, &body["kind"]), (code, &json!("Status")), "{path}: {body}");
        assert!(text(&body["message"]).contains(told), "{path}: {body}");
    }

    assert_eq!(lab.kubectl("get --raw /api/v1/namespaces/default/pods/waits/log"), "", "nothing was said yet");

    // A18.11: one command without a stream; A18.8: a pod may be named with its UID.
    let run = |path: &str| {
        let empty = lab.dir().join("empty");
        fs::write(&empty, "").expect("the folder is ours");
        lab.try_kubectl(&format!("create --raw /api/v1/nodes/lab/proxy/run/default/{path} -f {}", empty.display()))
    };
    assert_eq!(run("box/box?cmd=echo+a+b").out, "a b\n");
    let uid = text(&lab.get("pod box")["metadata"]["uid"]);
    assert_eq!(run(&format!("box/{uid}/box?cmd=echo+c")).out, "c\n");
    let failed = run("box/box?cmd=ls+/nowhere");
    assert!(!failed.success && failed.err.contains("exited with 1"), "{failed:?}");
    for path in ["box/other-uid/box?cmd=true", "nobody/box?cmd=true"] {
        assert!(run(path).err.contains("could not find the requested resource"), "{path}: {:?}", run(path));
    }

    // A19.4: to a node that does not declare them the API server speaks SPDY, whatever its clients speak.
    drop(api);
    let mut lab = lab;
    let config = lab.dir().join("kubelet.yaml");
    let fields = fs::read_to_string(&config).expect("the folder is ours");
    fs::write(&config, format!("{fields}\nfeatureGates: {{ExtendWebSocketsToKubelet: false}}\n")).expect("ours");
    let declared = |lab: &Lab| lab.get("node lab")["status"]["declaredFeatures"].to_string();
    assert!(declared(&lab).contains("ExtendWebSocketsToKubelet"), "{}", declared(&lab));
    lab.kill_agent();
    lab.start_agent();
    lab.eventually("it is not declared", |lab| !declared(lab).contains("ExtendWebSocketsToKubelet"));
    lab.eventually("the node is ready", Lab::node_is_ready);
    let api = Api::new(&lab);
    for protocol in ["channel.k8s.io", "v4.channel.k8s.io"] {
        let pieces = api.talk(&shell("echo out; echo err >&2; exit 3"), protocol, &[], to_the_end).expect(protocol);
        assert_eq!((of(&pieces, 1).as_str(), of(&pieces, 2).as_str()), ("out\n", "err\n"), "{protocol}");
        assert!(of(&pieces, 3).contains("exit code"), "{protocol} {pieces:?}");
    }
    let pieces = api.talk("web/portforward?ports=8080", "v4.channel.k8s.io", &request, answered).expect("v4");
    assert!(of(&pieces, 0).contains("hello from web"));
    let said = [binary(0, b"hello\n"), binary(255, &[0])];
    let pieces = api.talk(&input, "v5.channel.k8s.io", &said, to_the_end).expect("v5");
    assert_eq!((of(&pieces, 1).as_str(), pieces[0].1.len()), ("hello\nend\n", 0));
    let failed = api.talk(&shell("echo err >&2; exit 3"), "v5.channel.k8s.io", &[], to_the_end).expect("v5");
    assert!(of(&failed, 2) == "err\n" && of(&failed, 3).contains("NonZeroExitCode"), "{failed:?}");
    let refused = api.talk("ended/exec?command=true&stdout=1", "v5.channel.k8s.io", &[], to_the_end);
    assert!(matches!(&refused, Err((500, told)) if told.contains("container not found")), "{refused:?}");
    let said = [Message::Binary(ping.to_vec().into())];
    let pieces =
        api.talk("web/portforward", tunnel, &said, |pieces| whole(pieces).len() >= ping.len()).expect("a tunnel");
    assert_eq!(whole(&pieces), ping);
    assert_eq!(lab.kubectl("exec box -- echo over SPDY"), "over SPDY\n");
    drop(api);
    lab.finish();
}
