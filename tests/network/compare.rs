//! The plugin beside those that it replaces, in the same run: loopback, bridge with host-local, portmap.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use stoker::clock::Clock;

use super::lab::{Lab, Node};

/// Where Debian has them.
const THEIRS: &str = "/usr/lib/cni";
const ROUNDS: usize = 7;

/// Calls plugins one after another in a PID namespace of their own, as a runtime does for one sandbox. How many tasks
/// (processes and threads) that started, and how long it took.
fn run(node: &Node<'_>, command: &str, pod: &str, calls: &[(&str, &Path, Value)]) -> (usize, Duration) {
    let dir = node.lab.dir.path();
    let mut script = String::new();
    for (index, (interface, program, config)) in calls.iter().enumerate() {
        let file = dir.join(format!("{pod}-{index}.json"));
        fs::write(&file, config.to_string()).unwrap();
        let (file, program) = (file.display(), program.display());
        script += &format!("CNI_IFNAME={interface} {program} < {file} > {file}.out || {{ cat {file}.out; exit 1; }}\n");
    }
    // Numbers of processes are given out one after another.
    script += "sh -c 'echo $$'\n";
    let begun = Clock.now().monotonic;
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            &node.lab.ns(&node.name),
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            &script,
        ])
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod)
        .env("CNI_NETNS", node.lab.ns_path(pod))
        .env("CNI_PATH", THEIRS)
        .output()
        .unwrap();
    let time = Clock.now().monotonic - begun;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command} {pod}: {text} {}", String::from_utf8_lossy(&output.stderr));
    // Less the shell, and the one that told its number.
    (text.trim().parse::<usize>().unwrap() - 2, time)
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

#[test]
fn a_sandbox_costs_less_than_with_the_usual_plugins() {
    let lab = Lab::new();
    let node = lab.node(1);
    let stoker = Path::new(env!("CARGO_BIN_EXE_stoker"));
    let loopback = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let own = node.config(&json!({"cniVersion": "1.0.0", "ranges": ["10.244.1.0/24"]}));
    let bridge = json!({
        "cniVersion": "0.4.0", "name": "compared", "type": "bridge", "bridge": "compared0", "isGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": lab.dir.path().join("host-local"), "ranges": [[{"subnet": "10.99.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let portmap = json!({
        "cniVersion": "0.4.0", "name": "compared", "type": "portmap", "capabilities": {"portMappings": true},
        "prevResult": {"cniVersion": "0.4.0", "interfaces": [], "ips": [{"version": "4", "address": "10.99.0.2/24"}]},
    });
    let theirs = |name: &str| Path::new(THEIRS).join(name);
    let (their_loopback, their_bridge, their_portmap) = (theirs("loopback"), theirs("bridge"), theirs("portmap"));
    let ours = [("lo", stoker, loopback.clone()), ("eth0", stoker, own)];
    let usual = [
        ("lo", their_loopback.as_path(), loopback),
        ("eth0", their_bridge.as_path(), bridge),
        ("eth0", their_portmap.as_path(), portmap),
    ];
    let mut measured: [Vec<(usize, Duration)>; 2] = Default::default();
    // In turns, so that whatever else the machine does meets both.
    for round in 0..ROUNDS {
        for (place, calls) in [(0, &ours[..]), (1, &usual[..])] {
            let pod = format!("p{place}-{round}");
            lab.add_namespace(&pod);
            let add = run(&node, "ADD", &pod, calls);
            let del = run(&node, "DEL", &pod, calls);
            measured[place].push((add.0 + del.0, add.1));
        }
    }
    let [ours, usual] = measured.map(|all| {
        let (tasks, times): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        (median(tasks), median(times))
    });
    println!("tasks {} against {}, ADD {:?} against {:?}", ours.0, usual.0, ours.1, usual.1);
    assert_eq!(ours.0, 4, "one process and no thread for each call");
    assert!(ours.0 * 3 < usual.0, "{} tasks, and {} with the usual plugins", ours.0, usual.0);
    // An unoptimized binary is so large that starting it is most of the time.
    if !cfg!(debug_assertions) {
        assert!(ours.1 * 2 < usual.1, "ADD {:?} is not half of {:?}", ours.1, usual.1);
    }
}
