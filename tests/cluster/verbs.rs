//! Verbs of kubectl's that need a node: debug, drain.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::lab::manifest::{BUSYBOX, HELLO, pod};
use crate::lab::{Lab, NODE, text};

/// kubectl with a script as the last word, fed with some input that does not end: with its end kubectl would hear nothing more.
fn fed(lab: &Lab, arguments: &str, script: &str, input: &str) -> Output {
    let mut command: Command = lab.kubectl_command(arguments);
    // containerd passes on what is typed a moment before it passes on what is written.
    let mut child = command
        .arg(format!("read word; sleep 1; {script}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut open = child.stdin.take().expect("it was piped");
    open.write_all(input.as_bytes()).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    drop(open);
    output
}

#[test]
fn pods_and_nodes_are_debugged_and_a_node_is_drained() {
    let lab = Lab::start();
    lab.apply(&pod("box").build());
    let mut web = pod("web").image(HELLO).deployment(2);
    web["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
    lab.apply(&web);
    let mut daemon = pod("daemon").deployment(1);
    daemon["kind"] = json!("DaemonSet");
    daemon["spec"].as_object_mut().expect("a spec").remove("replicas");
    lab.apply(&daemon);
    lab.eventually("all are ready", |lab| {
        lab.ready_pods("box") == 1 && lab.ready_pods("web") == 2 && lab.ready_pods("daemon") == 1
    });

    assert_eq!(lab.get("pod box")["metadata"]["generation"], 1);

    // A3.7, D1.35: a container beside the others, which sees the processes of the one that is meant.
    let image = format!("--image={BUSYBOX} --image-pull-policy=IfNotPresent --profile=general");
    let arguments = format!("debug box {image} --container=help --target=box -i -- sh -c");
    let debugged = fed(&lab, &arguments, "echo heard $word; ps | grep -c 'sleep 100000'", "you\n");
    let out = String::from_utf8_lossy(&debugged.stdout).into_owned();
    assert!(out.contains("heard you"), "{debugged:?}");
    let help = lab.get("pod box")["spec"]["ephemeralContainers"][0].clone();
    assert_eq!((text(&help["name"]), text(&help["targetContainerName"])), ("help".into(), "box".into()), "{help}");
    lab.eventually("its end is told", |lab| {
        lab.get("pod box")["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    });
    // A1.19: each change of the spec counts, and the node tells which one it has seen.
    lab.eventually("the node has seen the change", |lab| {
        let debugged = lab.get("pod box");
        debugged["metadata"]["generation"] == 2 && debugged["status"]["observedGeneration"] == 2
    });
    // A3.7: logs and exec reach such a container as any other.
    assert_eq!(lab.kubectl("logs box -c help").lines().next(), Some("heard you"));
    lab.kubectl(&format!("debug box {image} --container=stay -- sleep 100000"));
    lab.eventually("it runs", |lab| lab.try_kubectl("exec box -c stay -- true").success);
    assert_eq!(lab.kubectl("exec box -c stay -- echo inside"), "inside\n");
    // A copy with one container more, which shares its processes.
    lab.kubectl(&format!("debug box {image} --container=help --copy-to=copy --share-processes -- sleep 1000"));
    lab.eventually("the copy runs", |lab| lab.get("pod copy")["status"]["phase"] == "Running");
    let copy = lab.get("pod copy")["spec"].clone();
    assert_eq!(copy["shareProcessNamespace"], true);
    assert_eq!(copy["containers"].as_array().map(Vec::len), Some(2), "{copy}");
    lab.kubectl("delete pod copy --grace-period=1");
    // The node itself, whose root is at /host.
    let arguments = format!("debug node/{NODE} {image} -i -- sh -c");
    let script = "echo $word; ls -d /host/proc/1 /host/etc; hostname";
    let debugged = fed(&lab, &arguments, script, "there\n");
    let out = String::from_utf8_lossy(&debugged.stdout).into_owned();
    assert!(out.contains("there") && out.contains("/host/etc") && out.contains("/host/proc/1"), "{debugged:?}");
    let pods = lab.get("pods");
    let of_node = |pod: &&serde_json::Value| text(&pod["metadata"]["name"]).starts_with("node-debugger-");
    let debugger = pods["items"].as_array().into_iter().flatten().find(of_node).expect("kubectl leaves it").clone();
    assert_eq!((&debugger["spec"]["hostPID"], &debugger["spec"]["hostNetwork"]), (&json!(true), &json!(true)));
    lab.kubectl(&format!("delete pod {}", text(&debugger["metadata"]["name"])));

    // D1.18: what may not be lost is named first.
    let scratch = pod("scratch").spec("volumes", json!([{"name": "tmp", "emptyDir": {}}])).build();
    lab.apply(&scratch);
    lab.eventually("it is there", |lab| lab.ready_pods("scratch") == 1);
    let refused = lab.try_kubectl(&format!("drain {NODE}"));
    for told in [
        "cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): default/daemon-",
        "cannot delete Pods with local storage (use --delete-emptydir-data to override): default/scratch",
        "default/box",
    ] {
        assert!(!refused.success && refused.err.contains(told), "{told}: {refused:?}");
    }
    assert_eq!(lab.get(&format!("node {NODE}"))["spec"]["unschedulable"], true, "it is cordoned all the same");
    let all = format!("drain {NODE} --ignore-daemonsets --delete-emptydir-data --force");
    let dry = lab.kubectl(&format!("{all} --dry-run=server"));
    assert!(dry.contains("evicting pod default/box (server dry run)"), "{dry}");
    assert_eq!(lab.ready_pods("box"), 1);
    // A budget holds it up, until there is none.
    lab.kubectl("create pdb web --selector=app=web --min-available=2");
    lab.eventually("the budget is counted", |lab| lab.get("pdb web")["status"]["currentHealthy"] == 2);
    let mut drain = lab.kubectl_command(&format!("{all} --timeout=80s"));
    let drain = drain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    lab.eventually("the others are gone", |lab| lab.ready_pods("box") == 0 && lab.ready_pods("scratch") == 0);
    assert_eq!(lab.ready_pods("web"), 2);
    lab.kubectl("delete pdb web");
    let drained = drain.wait_with_output().expect("it ends");
    let (out, err) = (String::from_utf8_lossy(&drained.stdout), String::from_utf8_lossy(&drained.stderr));
    assert!(drained.status.success() && out.contains(&format!("node/{NODE} drained")), "{out}{err}");
    assert!(err.contains("Cannot evict pod as it would violate the pod's disruption budget"), "{err}");
    assert_eq!((lab.ready_pods("web"), lab.ready_pods("daemon")), (0, 1));
    lab.kubectl(&format!("uncordon {NODE}"));
    lab.eventually("what has a controller is back", |lab| lab.ready_pods("web") == 2);
    lab.kubectl("delete daemonset daemon");
    lab.finish();
}
