//! How containers begin and end: hooks, signals, grace periods, last words.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::events::TaskOom;
use containerd_client::services::v1::PublishRequest;
use containerd_client::services::v1::events_client::EventsClient;
use k8s_openapi::api::core::v1::{Container, Lifecycle, LifecycleHandler, Pod, Probe, Volume, VolumeMount};
use prost::Message as _;
use prost_types::Any;
use serde_json::{Value, from_value, json};
use sha2::{Digest as _, Sha256};
use stoker_model::pod::PodUid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::lab::busybox_layer;
use crate::node::{Builder, Node, condition, phase, pod, state, status};

const LONG: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
const DEAF: &str = "trap '' TERM; while :; do sleep 0.1; done";
/// Wants more memory than it may have. containerd hears of no kill that comes right after the start.
pub const HUNGRY: &str = "sleep 1; dd if=/dev/zero of=/dev/null bs=200M count=1";

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["/bin/busybox", "sh", "-c", script] } })
}

fn handler(value: Value) -> Option<LifecycleHandler> {
    Some(from_value(value).unwrap())
}

fn after_start(container: &mut Container, hook: Value) {
    container.lifecycle.get_or_insert_with(Lifecycle::default).post_start = handler(hook);
}

fn before_stop(container: &mut Container, hook: Value) {
    container.lifecycle.get_or_insert_with(Lifecycle::default).pre_stop = handler(hook);
}

fn probe(script: &str, more: Value) -> Option<Probe> {
    let mut all = json!({ "periodSeconds": 1, "failureThreshold": 1 });
    for fields in [exec(script), more] {
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    }
    Some(from_value(all).unwrap())
}

/// Every container of the pod sees a folder of the node at `/notes`, which stays when the pod goes.
fn with_notes(node: &Node, builder: Builder) -> Builder {
    let path = node.path("notes");
    fs::create_dir_all(&path).unwrap();
    let volume: Volume = from_value(json!({ "name": "notes", "hostPath": { "path": path } })).unwrap();
    let mount = VolumeMount { name: "notes".into(), mount_path: "/notes".into(), ..VolumeMount::default() };
    builder.spec(|spec| {
        spec.volumes.get_or_insert_default().push(volume);
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.volume_mounts.get_or_insert_default().push(mount.clone());
        }
    })
}

/// Lines that containers wrote, in their order.
fn notes(node: &Node, name: &str) -> Vec<String> {
    let text = fs::read_to_string(node.path("notes").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn told(node: &Node, wanted: &str) -> bool {
    node.api.events().iter().any(|event| event.starts_with(wanted))
}

async fn until_told(node: &Node, wanted: &str) {
    for _ in 0..400 {
        if told(node, wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{wanted} was not told: {:#?}", node.api.events());
}

async fn until_ready(node: &Node, uids: &[&PodUid]) {
    for uid in uids {
        node.api.until(uid, "ready", |pod| condition(pod, "Ready")).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test measures how long something took")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn what_ends_ends_in_its_order() {
    // A1.12, A3.4, A4.2, A4.3, A4.5, A4.6
    let node = Node::start().await;
    // Who is told to end waits for the other one's end and for the hooks of the sidecars: one after the other they would wait for ever.
    let waits = |own: &str, other: &str| {
        format!(
            "down() {{ echo {own}-term >> /notes/log; touch /notes/{own}-down; \
             until test -e /notes/{other}-down -a -e /notes/s-hook -a -e /notes/t-hook; do sleep 0.1; done; \
             echo {own}-end >> /notes/log; exit 0; }}; trap down TERM; while :; do sleep 0.1; done"
        )
    };
    let notes_hook = |name: &str| exec(&format!("touch /notes/{name}-hook; echo {name}-hook >> /notes/log"));
    let side = |name: &str| format!("trap 'echo {name}-term >> /notes/log; exit 0' TERM; while :; do sleep 0.1; done");
    let order = pod("order")
        .sidecar("s", &side("s"))
        .sidecar("t", &side("t"))
        .container("a", &waits("a", "b"))
        .with(|c| before_stop(c, notes_hook("a")))
        .container("b", &waits("b", "a"))
        .spec(|spec| {
            for sidecar in spec.init_containers.iter_mut().flatten() {
                let hook = notes_hook(&sidecar.name);
                before_stop(sidecar, hook);
            }
        });
    let order = node.api.create(with_notes(&node, order).0);

    // Hooks that are cut off, that take their part of the grace, and that have nothing to stop.
    let shortened =
        pod("shortened").container("main", LONG).with(|c| before_stop(c, json!({ "sleep": { "seconds": 90 } })));
    let shortened = node.api.create(shortened.0);
    let timed = pod("timed").container("main", DEAF).with(|c| before_stop(c, json!({ "sleep": { "seconds": 8 } })));
    let timed = node.api.create(timed.0);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    let calls = json!({ "httpGet": { "host": "127.0.0.1", "port": port } });
    let half = pod("half")
        .restart("Never")
        .container("done", "true")
        .with(|c| before_stop(c, calls.clone()))
        .container("main", LONG);
    let half = node.api.create(half.0);
    let forced = node.api.create(pod("forced").container("main", DEAF).0);
    let at_once = pod("at-once").container("main", LONG).with(|c| before_stop(c, calls));
    let at_once = node.api.create(at_once.0);
    until_ready(&node, &[&order, &shortened, &timed, &at_once, &forced]).await;
    let done = |pod: &Pod| state(status(pod, "done").state.as_ref()) == "terminated 0 Completed";
    node.api.until(&half, "half done", |pod| done(pod) && status(pod, "main").ready).await;

    // Its object is gone at once, and its container soon.
    let since = now();
    node.api.remove(&forced);
    node.until_nothing_is_left(&forced).await;
    assert!(since.elapsed() >= Duration::from_secs(2), "TERM has that long: {:?}", since.elapsed());

    let since = now();
    node.api.delete(&shortened, 90);
    node.api.delete(&timed, 10);
    let waits_for_timed = tokio::spawn({
        let (api, uid) = (node.api.clone(), timed.clone());
        async move { (api.until_failed_or_gone(&uid).await, since.elapsed()) }
    });
    node.api.delete(&order, 60);
    node.api.delete(&half, 20);
    node.api.delete(&at_once, 0);
    assert!(!node.api.until_failed_or_gone(&order).await, "nobody was killed");
    let log = notes(&node, "log");
    let place = |note: &str| log.iter().position(|line| line == note).unwrap_or_else(|| panic!("{note}: {log:?}"));
    for name in ["s", "t", "a"] {
        assert!(place(&format!("{name}-hook")) < place(&format!("{name}-term")), "the hook first: {log:?}");
    }
    assert!(place("a-end").max(place("b-end")) < place("t-term") && place("t-term") < place("s-term"), "{log:?}");

    node.api.until_gone(&half).await;
    node.api.until_gone(&at_once).await;
    let called = tokio::time::timeout(Duration::from_millis(100), nobody.accept()).await;
    assert!(called.is_err(), "a container that had ended has no hook, nor one without any grace");
    node.api.delete(&shortened, 1);
    node.api.until_gone(&shortened).await;
    assert!(since.elapsed() < Duration::from_secs(45), "a shortened grace cuts a hook off: {:?}", since.elapsed());
    let (failed, took) = waits_for_timed.await.unwrap();
    assert!(failed, "TERM did not end it");
    assert!((Duration::from_secs(10)..Duration::from_secs(17)).contains(&took), "8 of 10 s were the hook's: {took:?}");
    for uid in [&order, &shortened, &timed, &half, &at_once] {
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

/// An image with a stop signal of its own, as `docker save` writes it.
fn import_image(node: &Node, name: &str, config: Value) {
    let layer = busybox_layer();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let image = json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [digest] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(fs::File::create(node.path("image.tar")).unwrap());
    let files = [("config.json", image.to_string()), ("manifest.json", manifest.to_string())];
    let files = files.map(|(name, text)| (name, text.into_bytes()));
    for (name, bytes) in files.into_iter().chain([("layer.tar", layer)]) {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    archive.finish().unwrap();
    let socket = node.path("c.sock");
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(socket).args(["--namespace", "k8s.io", "images", "import"]).arg(node.path("image.tar"));
    let output = ctr.output().expect("ctr comes with containerd");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn images_choose_the_signal_and_last_words_have_their_bounds() {
    // A2.14, A2.15, A2.16, A2.22, A4.5, A4.8
    let node = Node::start().await;
    let image = "127.0.0.1:1/stoker/stops:1";
    import_image(
        &node,
        image,
        json!({ "Entrypoint": ["/bin/busybox"], "Env": ["PATH=/bin"], "StopSignal": "SIGUSR1" }),
    );
    let choosy = pod("choosy")
        .restart("Never")
        .container("main", "trap 'exit 0' USR1; trap 'exit 9' TERM; while :; do sleep 0.1; done")
        .with(|c| c.image = Some(image.into()));
    // What only a switched-off feature reads changes nothing.
    let plain = pod("plain")
        .restart("Never")
        .container("main", "trap 'exit 9' USR1; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let plain = plain.with(|c| c.lifecycle = Some(from_value(json!({ "stopSignal": "SIGUSR1" })).unwrap()));
    let [choosy, plain] = [choosy, plain].map(|built| node.api.create(built.0));

    let falls_back = |c: &mut Container| c.termination_message_policy = Some("FallbackToLogsOnError".into());
    let words = pod("words")
        .restart("Never")
        .container("long", "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log")
        .container("both", "echo -n said > /dev/termination-log; echo logged; exit 1")
        .with(falls_back)
        .container("quiet", "echo logged")
        .with(falls_back);
    let logs = pod("logs")
        .restart("Never")
        .container("lines", "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; exit 1")
        .with(falls_back)
        .container(
            "bytes",
            "i=0; while [ $i -lt 30 ]; do head -c 99 /dev/zero | tr '\\0' y; echo; i=$((i+1)); done; exit 1",
        )
        .with(falls_back)
        .container("silent", "echo logged; exit 1");
    // What never ran, and what ran out of memory before the rest of its pod began.
    let absent = pod("absent").container("main", "true").with(|c| c.command = Some(vec!["/nobody/has/this".into()]));
    let hungry = pod("hungry").restart("Never").init("init", HUNGRY).container("main", "true").spec(|spec| {
        let init = &mut spec.init_containers.as_mut().unwrap()[0];
        init.resources = Some(from_value(json!({ "limits": { "memory": "16Mi" } })).unwrap());
    });
    let rooted = pod("rooted").container("main", "true").with(|c| {
        c.security_context = Some(from_value(json!({ "runAsNonRoot": true })).unwrap());
    });
    let [words, logs, absent, hungry, rooted] =
        [words, logs, absent, hungry, rooted].map(|built| node.api.create(built.0));

    let said = |pod: &Pod, name: &str| {
        let end = status(pod, name).state.unwrap().terminated.unwrap();
        (end.exit_code, end.message.unwrap_or_default())
    };
    let ended = node.api.until(&words, "ended", |pod| phase(pod) == "Failed").await;
    assert_eq!(said(&ended, "long"), (0, "x".repeat(4096)));
    assert_eq!(said(&ended, "both"), (1, "said".to_owned()), "the file goes before the log");
    assert_eq!(said(&ended, "quiet"), (0, String::new()), "it went well");
    let ended = node.api.until(&logs, "ended", |pod| phase(pod) == "Failed").await;
    let lines: String = (20..100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(said(&ended, "lines"), (1, lines), "the last 80");
    let (_, bytes) = said(&ended, "bytes");
    assert!(bytes.len() == 2048 && bytes.ends_with("yyy\n"), "{}: {bytes}", bytes.len());
    assert_eq!(said(&ended, "silent"), (1, String::new()), "by default the log says nothing");

    let broken = |pod: &Pod| state(status(pod, "main").last_state.as_ref()) == "terminated 128 StartError";
    node.api.until(&absent, "broken", broken).await;
    let waits = |pod: &Pod| state(status(pod, "main").state.as_ref()) == "waiting RunContainerError";
    let waiting = node.api.until(&absent, "waits", waits).await;
    let message = status(&waiting, "main").state.unwrap().waiting.unwrap().message.unwrap();
    assert!(message.contains("/nobody/has/this"), "{message}");
    let refused = |pod: &Pod| state(status(pod, "main").state.as_ref()) == "waiting CreateContainerConfigError";
    let waiting = node.api.until(&rooted, "refused", refused).await;
    let message = status(&waiting, "main").state.unwrap().waiting.unwrap().message.unwrap();
    let text = format!(
        "container has runAsNonRoot and image will run as root (pod: \"rooted_default({rooted})\", container: main)"
    );
    assert_eq!(message, text);
    // The runtime may hear why it was killed after it has shown that it was.
    let starved = |pod: &Pod| state(status(pod, "init").state.as_ref()) == "terminated 137 OOMKilled";
    let ended = node.api.until(&hungry, "out of memory", starved).await;
    assert_eq!(
        (phase(&ended), state(status(&ended, "main").state.as_ref())),
        ("Failed", "waiting PodInitializing".into())
    );

    until_ready(&node, &[&choosy, &plain]).await;
    for uid in [&choosy, &plain] {
        node.api.delete(uid, 60);
        assert!(!node.api.until_failed_or_gone(uid).await, "it got another signal");
    }
    for uid in [&words, &logs, &absent, &hungry, &rooted] {
        node.api.delete(uid, 1);
        node.api.until_gone(uid).await;
    }
    node.stop().await;
}

/// containerd tells its CRI plugin, as if the kernel had killed the container's process for want of memory.
async fn tell_of_oom(node: &Node, id: &str) {
    let socket = format!("unix:{}", node.path("c.sock").display());
    let channel = Endpoint::from_shared(socket).unwrap().connect().await.unwrap();
    let event = TaskOom { container_id: id.trim_start_matches("containerd://").to_owned() };
    let event = Any { type_url: "containerd.events.TaskOOM".to_owned(), value: event.encode_to_vec() };
    let mut request = Request::new(PublishRequest { topic: "/tasks/oom".to_owned(), event: Some(event) });
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    EventsClient::new(channel).publish(request).await.unwrap();
}

#[tokio::test]
async fn who_ran_out_of_memory_is_shown_so_also_when_the_runtime_tells_of_it_late() {
    // A2.15, A2.22
    let node = Node::start().await;
    let once = pod("once").restart("Never").container("main", "exit 137");
    let again = "test -e /notes/again && sleep 1000; touch /notes/again; exit 137";
    let again = with_notes(&node, pod("again").container("main", again));
    for (late, goes_on) in [(once, false), (again, true)] {
        let uid = node.api.create(late.0);
        let end = |pod: &Pod| {
            let status = status(pod, "main");
            status.state.and_then(|s| s.terminated).or(status.last_state.and_then(|s| s.terminated))
        };
        let ended = node.api.until(&uid, "ended", |pod| end(pod).is_some()).await;
        let ended = end(&ended).unwrap();
        assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("Error")));
        tell_of_oom(&node, &ended.container_id.unwrap()).await;
        let shown = |pod: &Pod| {
            let runs = status(pod, "main").state.is_some_and(|s| s.running.is_some());
            end(pod).unwrap().reason.as_deref() == Some("OOMKilled") && runs == goes_on
        };
        node.api.until(&uid, "out of memory", shown).await;
        node.api.delete(&uid, 1);
        node.api.until_gone(&uid).await;
    }

    // And those whom the kernel kills indeed.
    let starved = |name: &str| {
        (0..10).fold(pod(name).restart("Never"), |pod, number| {
            pod.container(&format!("c{number}"), HUNGRY).with(|c| {
                c.resources = Some(from_value(json!({ "limits": { "memory": "16Mi" } })).unwrap());
            })
        })
    };
    let starved = ["left", "right"].map(|name| node.api.create(starved(name).0));
    let all_so = |pod: &Pod| {
        (0..10).all(|number| state(status(pod, &format!("c{number}")).state.as_ref()) == "terminated 137 OOMKilled")
    };
    for uid in &starved {
        node.api.until(uid, "all out of memory", all_so).await;
        node.api.delete(uid, 1);
    }
    for uid in &starved {
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

/// Answers one request over TLS, with a certificate that nobody has signed.
async fn one_secure_request(listener: TcpListener) -> String {
    let key = rcgen::generate_simple_self_signed(vec!["nobody.example".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await.unwrap();
    let mut stream = acceptor.accept(accepted.unwrap().0).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    // The other side may have gone already.
    let _ = stream.shutdown().await;
    String::from_utf8(head).unwrap().to_lowercase()
}

#[tokio::test]
async fn nothing_is_probed_before_its_hook_has_returned_and_calls_reach_whom_they_mean() {
    // A2.14, A21.1, A4.1, A4.4
    let node = Node::start().await;
    // The pod's address, to which a hook goes that names no host.
    node.change_node(|node| node.ips = vec!["127.0.0.1".parse().unwrap()]);
    let careful = pod("careful").container("main", LONG).with(|c| {
        after_start(c, exec("sleep 4; touch /tmp/up"));
        c.liveness_probe = probe("test -e /tmp/up", json!({}));
        c.readiness_probe = probe("test -e /tmp/up", json!({}));
    });
    let slept = pod("slept").container("main", LONG).with(|c| after_start(c, json!({ "sleep": { "seconds": 3 } })));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = closed.local_addr().unwrap().port();
    drop(closed);
    let refused = pod("refused").container("main", LONG).with(|c| {
        before_stop(c, json!({ "httpGet": { "host": "127.0.0.1", "port": nowhere } }));
    });
    let of_no_kind = pod("of-no-kind").container("main", LONG).with(|c| {
        after_start(c, json!({ "tcpSocket": { "port": 80 } }));
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let secure = tokio::spawn(one_secure_request(listener));
    let headers = json!([{ "name": "X-Word", "value": "one" }, { "name": "Authorization", "value": "secret" }]);
    let calls = pod("calls").container("main", LONG).with(|c| {
        let get = json!({ "path": "/bye?a=b", "port": port, "scheme": "HTTPS", "httpHeaders": headers });
        before_stop(c, json!({ "httpGet": get }));
    });
    let [careful, slept, refused, of_no_kind, calls] =
        [careful, slept, refused, of_no_kind, calls].map(|built| node.api.create(built.0));

    let begun =
        node.api.until(&slept, "running", |p| status(p, "main").state.is_some_and(|s| s.running.is_some())).await;
    assert_eq!((status(&begun, "main").started, status(&begun, "main").ready), (Some(false), false));
    let ready = node.api.until(&careful, "ready", |pod| condition(pod, "Ready")).await;
    assert_eq!(status(&ready, "main").restart_count, 0, "it was probed too early: {:#?}", node.api.events());
    assert!(!told(&node, "careful spec.containers{main} Unhealthy"), "{:#?}", node.api.events());
    until_ready(&node, &[&slept, &refused, &calls]).await;
    until_told(&node, "of-no-kind spec.containers{main} FailedPostStartHook: PostStartHook failed").await;
    let waits = |pod: &Pod| state(status(pod, "main").state.as_ref()) == "waiting PostStartHookError";
    node.api.until(&of_no_kind, "told of its hook", waits).await;
    assert!(told(&node, "of-no-kind spec.containers{main} Killing: FailedPostStartHook"), "{:#?}", node.api.events());

    for uid in [&refused, &calls, &careful, &slept, &of_no_kind] {
        node.api.delete(uid, 5);
    }
    let head = secure.await.unwrap();
    assert!(head.starts_with("get /bye?a=b http/1.1\r\n"), "{head}");
    for line in
        ["x-word: one", "authorization: secret", "user-agent: kube-lifecycle/1.36", &format!("host: 127.0.0.1:{port}")]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    for uid in [&refused, &calls, &careful, &slept, &of_no_kind] {
        node.api.until_gone(uid).await;
    }
    assert!(told(&node, "refused spec.containers{main} FailedPreStopHook: PreStopHook failed"));
    assert!(!told(&node, "calls spec.containers{main} FailedPreStopHook"), "503 is an answer");
    assert!(!told(&node, "calls  LifecycleHTTPFallback"), "{:#?}", node.api.events());
    node.stop().await;
}
