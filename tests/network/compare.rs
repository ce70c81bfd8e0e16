//! The plugin beside those that it replaces, in the same run: loopback, bridge with host-local, portmap.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stoker::clock::Clock;

use super::lab::{Lab, Node};

/// Where Debian has them.
const THEIRS: &str = "/usr/lib/cni";
const ROUNDS: usize = 9;

fn call(program: PathBuf, command: &str, pod: &str, netns: &str, interface: &str, config: &Value) -> String {
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", interface)
        .env("CNI_PATH", THEIRS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{} {command}: {text}", program.display());
    text
}

/// What a runtime does for one sandbox, and how long it took.
fn timed(node: &Node<'_>, command: &'static str, pod: &str, ours: bool) -> Duration {
    let (netns, pod) = (node.lab.ns_path(pod), pod.to_owned());
    let loopback = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let own = node.config(&json!({"cniVersion": "1.0.0", "ranges": ["10.244.1.0/24"]}));
    let state = node.lab.dir.path().join("host-local");
    let work = move || {
        let stoker = || PathBuf::from(env!("CARGO_BIN_EXE_stoker"));
        let theirs = |name: &str| PathBuf::from(THEIRS).join(name);
        let begun = Clock.now().monotonic;
        if ours {
            call(stoker(), command, &pod, &netns, "lo", &loopback);
            call(stoker(), command, &pod, &netns, "eth0", &own);
        } else {
            call(theirs("loopback"), command, &pod, &netns, "lo", &loopback);
            let mut bridge = json!({
                "cniVersion": "0.4.0", "name": "compared", "type": "bridge", "bridge": "compared0", "isGateway": true,
                "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
            });
            let result = call(theirs("bridge"), command, &pod, &netns, "eth0", &bridge);
            bridge["type"] = "portmap".into();
            bridge["capabilities"] = json!({"portMappings": true});
            bridge["prevResult"] = serde_json::from_str(&result).unwrap_or_default();
            call(theirs("portmap"), command, &pod, &netns, "eth0", &bridge);
        }
        Clock.now().monotonic - begun
    };
    node.lab.within(&node.name, work).join().unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_sandbox_costs_less_than_with_the_usual_plugins() {
    let lab = Lab::new();
    let node = lab.node(1);
    let mut times: [Vec<Duration>; 4] = Default::default();
    // In turns, so that whatever else the machine does meets both.
    for round in 0..ROUNDS {
        for (place, ours) in [(0, true), (2, false)] {
            let pod = format!("p{place}-{round}");
            lab.add_namespace(&pod);
            times[place].push(timed(&node, "ADD", &pod, ours));
            if ours {
                lab.serve(&pod, 8080);
            }
            times[place + 1].push(timed(&node, "DEL", &pod, ours));
        }
    }
    let [add, del, their_add, their_del] = times.map(median);
    println!("ADD {add:?}, the usual plugins {their_add:?}; DEL {del:?}, the usual plugins {their_del:?}");
    assert!(add * 2 < their_add, "ADD {add:?} is not half of {their_add:?}");
    assert!(del < their_del, "DEL {del:?}, the usual plugins {their_del:?}");
}
