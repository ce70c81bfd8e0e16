//! Parts that die at any moment, and input that is wrong: what runs goes on, and nothing is lost.

use std::fs;

use crate::lab::manifest::{HELLO, pod};
use crate::lab::{Lab, text};

/// What must not change when a part of Stoker dies: object UIDs and running containers with their start times.
fn picture(lab: &Lab) -> (Vec<String>, Vec<(String, String)>) {
    let uids = |kind: &str| {
        let list = lab.get(&format!("{kind} -A"));
        list["items"].as_array().unwrap().iter().map(|item| format!("{kind} {}", item["metadata"]["uid"])).collect()
    };
    let mut objects: Vec<String> = ["nodes", "pods", "services", "deployments", "replicasets"]
        .into_iter()
        .flat_map(|kind| -> Vec<String> { uids(kind) })
        .collect();
    objects.sort();
    (objects, lab.running_containers())
}

#[test]
fn killed_parts_come_back_to_the_same_containers_and_objects() {
    let mut lab = Lab::start();
    lab.apply(&pod("web").image(HELLO).deployment(3));
    lab.apply(&pod("lone").build());
    lab.eventually("all pods are ready", |lab| lab.ready_pods("web") == 3 && lab.ready_pods("lone") == 1);
    let before = picture(&lab);
    assert_eq!(before.1.len(), 4, "{before:?}");

    lab.kill_agent();
    lab.start_agent();
    // A new pod shows that the new agent works.
    lab.apply(&pod("after-agent").build());
    lab.eventually("a new pod is ready", |lab| lab.ready_pods("after-agent") == 1);
    lab.kubectl("delete pod after-agent");
    assert_eq!(picture(&lab), before, "after a kill of the agent");

    lab.kill_control_plane();
    lab.start_control_plane();
    lab.apply(&pod("after-control-plane").build());
    lab.eventually("a new pod is ready", |lab| lab.ready_pods("after-control-plane") == 1);
    lab.kubectl("delete pod after-control-plane");
    assert_eq!(picture(&lab), before, "after a kill of the control plane");

    lab.kill_agent();
    lab.kill_control_plane();
    lab.kubectl_is_refused();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready again", Lab::node_is_ready);
    lab.apply(&pod("after-both").build());
    lab.eventually("a new pod is ready", |lab| lab.ready_pods("after-both") == 1);
    lab.kubectl("delete pod after-both");
    assert_eq!(picture(&lab), before, "after a kill of both");
    lab.finish();
}

#[test]
fn a_kill_in_the_middle_of_a_start_makes_every_container_once() {
    let mut lab = Lab::start();
    lab.apply(&pod("web").image(HELLO).deployment(4));
    // Wherever it is: some pods have a sandbox, some a container, some nothing.
    lab.eventually("the first container is there", |lab| lab.ctr("containers ls -q").out.lines().count() > 1);
    lab.kill_agent();
    lab.start_agent();
    lab.eventually("all pods are ready", |lab| lab.ready_pods("web") == 4);
    let restarts: Vec<String> = lab.get("pods -l app=web")["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].to_string())
        .collect();
    assert_eq!(restarts, ["0"; 4]);
    lab.eventually("each pod has one sandbox and one container", |lab| {
        lab.ctr("tasks ls -q").out.lines().count() == 8 && lab.ctr("containers ls -q").out.lines().count() == 8
    });
    lab.finish();
}

#[test]
fn a_runtime_that_is_away_is_waited_for_and_named() {
    let mut lab = Lab::start();
    lab.apply(&pod("web").image(HELLO).build());
    lab.eventually("the pod is ready", |lab| lab.ready_pods("web") == 1);
    let before = lab.running_containers();
    lab.kill_containerd();
    lab.eventually("the node says that its runtime is away", |lab| !lab.node_is_ready());
    assert!(lab.agent_lives());
    lab.restart_containerd();
    lab.eventually("the node is ready again", Lab::node_is_ready);
    assert_eq!(lab.running_containers(), before);
    lab.finish();
}

#[test]
fn an_image_that_is_nowhere_is_named_in_the_status() {
    let lab = Lab::start();
    lab.apply(&pod("lost").image("localhost/no-such-image:1").container("imagePullPolicy", "Never".into()).build());
    lab.eventually("the reason is ErrImageNeverPull", |lab| {
        let pod = lab.get("pod lost");
        text(&pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]) == "ErrImageNeverPull"
    });
    lab.finish();
}

#[test]
fn a_wrong_configuration_is_refused_with_file_field_and_line() {
    let mut lab = Lab::new();
    let file = lab.dir().join("kubelet.yaml");
    let text = fs::read_to_string(&file).unwrap() + "maxPodz: 10\n";
    let line = text.lines().count();
    fs::write(&file, text).unwrap();
    lab.start_agent();
    lab.eventually_ends();
    let log = fs::read_to_string(lab.dir().join("log/agent.log")).unwrap();
    for part in ["kubelet.yaml".to_owned(), "maxPodz".to_owned(), format!("line {line}")] {
        assert!(log.contains(&part), "`{part}` is missing in\n{log}");
    }
}

#[test]
fn a_missing_kubeconfig_is_named() {
    let mut lab = Lab::new();
    lab.start_agent();
    lab.eventually_ends();
    let log = fs::read_to_string(lab.dir().join("log/agent.log")).unwrap();
    assert!(log.contains("node-lab.kubeconfig"), "{log}");
}
