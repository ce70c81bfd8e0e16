//! exec, attach, port-forward, cp and proxy through stock kubectl: what goes in comes out, and nothing stays when a client has gone.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{scope, sleep};
use std::time::Duration;

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::{BUSYBOX, HELLO, pod};
use crate::lab::{Lab, text};

/// kubectl's exec with a command that holds blanks, fed with some input. `extra` comes before the pod's name.
fn exec(lab: &Lab, extra: &str, pod: &str, script: &str, input: &[u8]) -> Output {
    let mut command = lab.kubectl_command(&format!("exec {extra} {pod} -- sh -c"));
    fed(command.arg(script), input)
}

fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut to = child.stdin.take().expect("it was piped");
    scope(|all| {
        // Both directions at a time: pipes are short.
        all.spawn(move || {
            let _ = to.write_all(input);
        });
        child.wait_with_output().expect("it ends")
    })
}

fn spdy() -> [(&'static str, &'static str); 2] {
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")]
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Connections of clients to the node's API, by what the kernel shows.
fn streams_of_clients(lab: &Lab) -> usize {
    let shown = lab.run("ss", &["-Htn", "state", "established", "sport", "=", ":10250"]).out;
    shown.lines().count()
}

#[test]
fn commands_run_in_containers_over_websockets_and_spdy() {
    let lab = Lab::start();
    lab.apply(&pod("web").image(HELLO).build());
    lab.apply(&pod("box").build());
    lab.eventually("both are ready", |lab| lab.ready_pods("web") == 1 && lab.ready_pods("box") == 1);

    // A18.8, A19.1, A19.2, A19.3, A19.4, D1.22: both ways, each stream by itself, and the exit code.
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    for (name, envs) in [("websockets", vec![]), ("SPDY", spdy().to_vec())] {
        let run = |extra: &str, script: &str, input: &[u8]| {
            let mut command = lab.kubectl_command(&format!("exec {extra} box -- sh -c"));
            fed(command.arg(script).envs(envs.iter().copied()), input)
        };
        let both = run("", "echo out; echo err >&2; exit 3", b"");
        assert_eq!((out(&both).as_str(), both.status.code()), ("out\n", Some(3)), "{name}: {}", err(&both));
        assert!(err(&both).contains("err\n") && err(&both).contains("exit code 3"), "{name}: {}", err(&both));
        // cat ends only when its input does.
        let counted = run("-i", "cat | wc -c", b"hello");
        assert_eq!(out(&counted).trim(), "5", "{name}: {}", err(&counted));
        let echoed = run("-i", "cat", &big);
        assert!(echoed.stdout == big, "{name}: {} bytes came back of {}", echoed.stdout.len(), big.len());
        // A command that never reads does not hold up its end. No more than a pipe holds: containerd 1.6 waits for ever for a write to
        // the pipe of a process that has ended, whoever sends it.
        let deaf = run("-i", "echo done", &big[..32 << 10]);
        assert_eq!((out(&deaf).as_str(), deaf.status.code()), ("done\n", Some(0)), "{name}: {}", err(&deaf));
    }

    let missing = lab.try_kubectl("exec box -- /no/such/program");
    assert!(!missing.success && missing.err.contains("/no/such/program"), "{missing:?}");
    let unknown = lab.try_kubectl("exec box -c other -- true");
    assert!(unknown.err.contains("container other is not valid for pod box"), "{unknown:?}");
    let nobody = lab.try_kubectl("exec nobody -- true");
    assert!(nobody.err.contains("pods \"nobody\" not found"), "{nobody:?}");

    // A terminal: one stream, and the size that it has outside.
    let line = format!("kubectl --kubeconfig {} exec -it box -- sh -c", lab.kubeconfig().display());
    let seen =
        lab.run("script", &["-qec", &format!("stty rows 33 cols 77; {line} 'sleep 1; stty size; tty'"), "/dev/null"]);
    assert!(seen.out.contains("33 77") && seen.out.contains("/dev/pts/"), "{seen:?}");

    // Many at once.
    scope(|all| {
        let one = |number: usize| {
            let lab = &lab;
            move || out(&exec(lab, "-i", "box", "cat", format!("number {number}").as_bytes()))
        };
        let runs: Vec<_> = (0..12).map(|number| all.spawn(one(number))).collect();
        for (number, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap(), format!("number {number}"));
        }
    });

    // A client that is killed leaves no connection, and what waited for its input ends.
    let before = streams_of_clients(&lab);
    let mut client =
        lab.kubectl_command("exec -i box -- cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let runs_cat = |lab: &Lab| lab.run("pgrep", &["-x", "cat", "-a"]).out.contains("cat");
    lab.eventually("cat runs in the container", |lab| {
        lab.kubectl("exec box -- ps").lines().any(|line| line.ends_with(" cat"))
    });
    assert!(runs_cat(&lab) && streams_of_clients(&lab) > before);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", client.id())).unwrap();
    let _ = Command::new("kill").args(["-KILL"]).args(children.split_whitespace()).status().unwrap();
    client.wait().unwrap();
    lab.eventually("cat is gone", |lab| !lab.kubectl("exec box -- ps").lines().any(|line| line.ends_with(" cat")));
    lab.eventually("the connection is gone", |lab| streams_of_clients(lab) <= before);
    lab.finish();
}

#[test]
fn logs_come_as_websocket_messages() {
    // A19.7: an empty message of the binary kind, then the bytes, then the end.
    let lab = Lab::start();
    lab.apply(&pod("box").script("echo hello; sleep 1000").build());
    lab.eventually("it is ready", |lab| lab.ready_pods("box") == 1);
    let script = format!(
        "cd {0}; field() {{ kubectl --kubeconfig {1} config view --raw -o jsonpath=\"{{$1}}\"; }}
        field .users[0].user.client-certificate-data | base64 -d >cert; field .users[0].user.client-key-data | base64 -d >key
        curl -sk --http1.1 --cert cert --key key -m 10 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -D head \\
          -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Sec-WebSocket-Protocol: binary.k8s.io' \\
          $(field .clusters[0].cluster.server)/api/v1/namespaces/default/pods/box/log | od -An -c",
        lab.dir().display(),
        lab.kubeconfig().display(),
    );
    let messages = lab.run("sh", &["-c", &script]).out.split_whitespace().collect::<Vec<_>>().join(" ");
    let head = fs::read_to_string(lab.dir().join("head")).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("sec-websocket-protocol: binary.k8s.io"), "{head}");
    assert!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "the key of RFC 6455 has this answer: {head}");
    assert!(messages.starts_with("202 \\0 202 006 h e l l o \\n 210"), "{messages}");
    lab.finish();
}

#[test]
fn files_are_copied_both_ways_unchanged() {
    // D1.25
    let lab = Lab::start();
    lab.apply(&pod("box").build());
    lab.eventually("it is ready", |lab| lab.ready_pods("box") == 1);
    let (there, back) = (lab.dir().join("there"), lab.dir().join("back"));
    // Not compressible, not of a round size.
    let made = lab.run("sh", &["-c", &format!("head -c 50000001 /dev/urandom > {}", there.display())]);
    assert!(made.success, "{made:?}");
    lab.kubectl(&format!("cp {} box:/tmp/copy", there.display()));
    lab.kubectl(&format!("cp box:/tmp/copy {}", back.display()));
    let sums = lab.run("sha256sum", &[there.to_str().unwrap(), back.to_str().unwrap()]).out;
    let sums: Vec<&str> = sums.lines().filter_map(|line| line.split(' ').next()).collect();
    let inside = lab.kubectl("exec box -- sha256sum /tmp/copy");
    assert_eq!(sums[0], sums[1]);
    assert!(inside.starts_with(sums[0]), "{inside}");
    lab.finish();
}

#[test]
fn a_running_process_is_attached_to() {
    let lab = Lab::start();
    let script = "while read line; do echo heard $line; done; echo end of input; sleep 1000";
    lab.apply(&pod("ears").script(script).container("stdin", true.into()).build());
    lab.eventually("it is ready", |lab| lab.ready_pods("ears") == 1);
    // A18.9, D1.22
    for envs in [vec![], spdy().to_vec()] {
        let mut command = lab.kubectl_command("attach -i ears");
        let mut client: Child =
            command.envs(envs).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = client.stdin.take().unwrap();
        input.write_all(b"you\n").unwrap();
        let mut line = String::new();
        BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "heard you\n");
        // Going away does not end the process (A19.6).
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", client.id())).unwrap();
        let _ = Command::new("kill").args(["-KILL"]).args(children.split_whitespace()).status().unwrap();
        client.wait().unwrap();
        assert_eq!(lab.ready_pods("ears"), 1);
    }
    // A19.6: with stdinOnce the end of the first client's input is that of the process.
    let script = "read line; echo heard $line; cat; echo end of input";
    let ends = pod("ends").script(script).container("stdin", true.into()).container("stdinOnce", true.into());
    lab.apply(&ends.spec("restartPolicy", "Never".into()).build());
    lab.eventually("it is ready", |lab| lab.ready_pods("ends") == 1);
    let ended = fed(&mut lab.kubectl_command("attach -i ends"), b"you\n");
    assert!(out(&ended).ends_with("heard you\nend of input\n"), "{ended:?}");

    lab.eventually("both clients were heard", |lab| lab.kubectl("logs ears").matches("heard you").count() == 2);

    // D1.2: a pod for one command, which is gone after it.
    let mut command = lab.kubectl_command(&format!(
        "run once --image={BUSYBOX} --image-pull-policy=IfNotPresent -i --rm --restart=Never -- sh -c"
    ));
    let once = fed(command.arg("sleep 2; cat; exit 4"), b"said\n");
    assert!(out(&once).contains("said\n"), "{once:?}");
    assert_eq!(once.status.code(), Some(4), "{once:?}");
    assert!(lab.try_kubectl("get pod once").err.contains("not found"));
    lab.finish();
}

#[test]
fn ports_are_forwarded_and_requests_proxied() {
    let lab = Lab::start();
    lab.apply(&pod("web").image(HELLO).container("ports", serde_json::json!([{"containerPort": 8080}])).build());
    lab.kubectl("expose pod web --port=80 --target-port=8080");
    lab.eventually("it is ready", |lab| lab.ready_pods("web") == 1);
    // A18.10, A19.5, D1.23
    for (port, envs) in [(18080, vec![]), (18081, spdy().to_vec())] {
        let mut command = lab.kubectl_command(&format!("port-forward pod/web {port}:8080"));
        let mut client = command.envs(envs).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        // It goes on to write there.
        let mut said = BufReader::new(client.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.contains("Forwarding from"), "{line}");
        let url = format!("http://127.0.0.1:{port}/");
        for _ in 0..5 {
            assert!(lab.curl(&url).out.starts_with("hello from web"), "{:?}", lab.curl(&url));
        }
        scope(|all| {
            let runs: Vec<_> = (0..8).map(|_| all.spawn(|| lab.curl(&url).out)).collect();
            assert!(runs.into_iter().all(|run| run.join().unwrap().starts_with("hello from web")));
        });
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", client.id())).unwrap();
        let _ = Command::new("kill").args(["-KILL"]).args(children.split_whitespace()).status().unwrap();
        client.wait().unwrap();
    }
    lab.eventually("no connection is left", |lab| {
        sleep(Duration::from_millis(100));
        streams_of_clients(lab) <= 1
    });

    // C3.25
    let raw = |path: &str| lab.try_kubectl(&format!("get --raw {path}"));
    let pods = "/api/v1/namespaces/default/pods";
    for (path, answer) in [
        (format!("{pods}/web/proxy/"), "hello from web"),
        (format!("{pods}/web:8080/proxy/healthz"), "ok"),
        (format!("{pods}/http:web:8080/proxy/"), "hello from web"),
        ("/api/v1/namespaces/default/services/web/proxy/".to_owned(), "hello from web"),
        ("/api/v1/namespaces/default/services/http:web:80/proxy/".to_owned(), "hello from web"),
    ] {
        lab.eventually(&format!("{path} answers"), |_| raw(&path).out.starts_with(answer));
    }
    assert_eq!(raw("/api/v1/nodes/lab/proxy/healthz").out, "ok");
    assert!(raw("/api/v1/nodes/lab:10250/proxy/pods").out.contains("\"PodList\""));
    let refused = raw(&format!("{pods}/web:1/proxy/"));
    assert!(refused.err.contains("error trying to reach service"), "{refused:?}");
    let none = raw("/api/v1/namespaces/default/services/web:81/proxy/");
    assert!(none.err.contains("no service port \"81\" found for service \"web\""), "{none:?}");
    // Nothing of the machine itself is behind a proxy.
    assert!(text(&lab.get("node lab")["status"]["addresses"][0]["address"]) == NODE_IP);

    // A19.9: whoever may read pods may not run commands in them.
    lab.kubectl("create serviceaccount reader");
    lab.kubectl("create role reader --verb=get,list --resource=pods,pods/exec");
    lab.kubectl("create rolebinding reader --role=reader --serviceaccount=default:reader");
    let denied = lab.try_kubectl("exec web --as=system:serviceaccount:default:reader -- true");
    assert!(denied.err.contains("cannot create resource \"pods/exec\""), "{denied:?}");
    lab.finish();
}
