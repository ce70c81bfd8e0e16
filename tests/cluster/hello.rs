//! What the README shows, verb by verb, with stock kubectl on the shipped example.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::{BUSYBOX, pod};
use crate::lab::{Lab, text};

const HELLO_MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/hello.yaml");

/// A lab in which the example runs.
fn lab_with_hello() -> Lab {
    let lab = Lab::start();
    lab.kubectl(&format!("apply -f {HELLO_MANIFEST}"));
    lab.eventually("both pods of hello are ready", |lab| lab.ready_pods("hello") == 2);
    lab
}

#[test]
fn hello_is_applied_read_scaled_and_replaced() {
    let lab = lab_with_hello();

    let again = lab.kubectl(&format!("apply -f {HELLO_MANIFEST}"));
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");

    let everything = lab.kubectl("get nodes,pods,svc,deploy -A -o wide");
    for part in ["node/lab", "Ready", "containerd://", "deployment.apps/hello", "2/2", "service/hello", "30080", "1/1"]
    {
        assert!(everything.contains(part), "`{part}` is missing in\n{everything}");
    }

    assert!(lab.kubectl("logs deploy/hello").contains("listening on port 8080"));

    let described = lab.kubectl("describe pod -l app=hello");
    for part in ["localhost/hello:1", "Started", "Scheduled"] {
        assert!(described.contains(part), "`{part}` is missing in\n{described}");
    }
    assert!(lab.kubectl("explain pod.spec").contains("containers"));

    lab.kubectl("scale deploy/hello --replicas=5");
    lab.eventually("five pods are ready", |lab| lab.ready_pods("hello") == 5);
    lab.kubectl("scale deploy/hello --replicas=2");
    lab.eventually("two pods are left", |lab| {
        lab.get("pods -l app=hello")["items"].as_array().is_some_and(|pods| pods.len() == 2)
    });

    let names = |lab: &Lab| lab.kubectl("get pods -l app=hello -o name");
    let before = names(&lab);
    lab.kubectl("delete pod -l app=hello");
    lab.eventually("two new pods are ready", |lab| lab.ready_pods("hello") == 2);
    let after = names(&lab);
    assert!(before.lines().all(|name| !after.contains(name)), "{before}\n{after}");
    lab.finish();
}

#[test]
fn a_service_answers_on_its_cluster_ip_and_on_the_node() {
    let lab = lab_with_hello();
    let service = lab.get("service hello");
    let cluster_ip = text(&service["spec"]["clusterIP"]);
    let urls = [format!("http://{cluster_ip}/"), format!("http://{NODE_IP}:30080/")];
    for url in &urls {
        lab.eventually(&format!("{url} answers from the node"), |lab| {
            lab.curl(url).out.starts_with("hello from hello-")
        });
    }
    // Both pods get their share.
    let answers: std::collections::BTreeSet<String> = (0..40).map(|_| lab.curl(&urls[0]).out).collect();
    assert_eq!(answers.len(), 2, "{answers:?}");

    lab.apply(&pod("client").build());
    lab.eventually("the client is ready", |lab| lab.ready_pods("client") == 1);
    let client = lab.get("pod client");
    let id = text(&client["status"]["containerStatuses"][0]["containerID"]).replace("containerd://", "");
    let tasks = lab.ctr("tasks ls").out;
    let task = tasks.lines().find(|line| line.starts_with(&id)).expect("the client's container runs");
    let pid = task.split_whitespace().nth(1).expect("a task has a pid").to_owned();
    for url in &urls {
        lab.eventually(&format!("{url} answers from a pod"), |lab| {
            let fetch = ["--target", &pid, "--net", "curl", "-sS", "--max-time", "3", url];
            lab.run("nsenter", &fetch).out.starts_with("hello from hello-")
        });
    }

    lab.kubectl("delete service hello");
    lab.eventually("the cluster IP is gone", |lab| !lab.curl(&urls[0]).success);
    lab.finish();
}

#[test]
fn logs_are_followed_until_the_container_ends() {
    let lab = Lab::start();
    let script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done";
    lab.apply(&pod("chatty").script(script).spec("restartPolicy", "Never".into()).build());
    lab.eventually("it runs", |lab| lab.try_kubectl("logs chatty").out.contains("line 1"));
    let mut follower = lab.kubectl_command("logs -f chatty").stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(follower.wait().unwrap().success());
    assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5"]);
    assert_eq!(lab.kubectl("logs chatty --tail=1"), "line 5\n");
    lab.eventually("it has succeeded", |lab| text(&lab.get("pod chatty")["status"]["phase"]) == "Succeeded");
    lab.finish();
}

#[test]
fn kubectl_run_makes_a_pod_that_runs() {
    let lab = Lab::start();
    lab.kubectl(&format!("run single --image={BUSYBOX} --labels=app=single --command -- sleep 10000"));
    lab.eventually("the pod is ready", |lab| lab.ready_pods("single") == 1);
    let pod = lab.get("pod single");
    assert_eq!(text(&pod["spec"]["nodeName"]), "lab");
    assert!(text(&pod["status"]["podIP"]).starts_with("10.244.0."), "{}", pod["status"]);
    lab.kubectl("delete pod single --grace-period=1");
    lab.finish();
}
