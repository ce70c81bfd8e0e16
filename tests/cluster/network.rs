//! The pod network of our own in a whole cluster: addresses, host ports, policies, and an agent that is killed.

use serde_json::json;

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::{HELLO, pod};
use crate::lab::{Lab, text};

/// Fetches a URL from within a pod's network.
fn fetch(lab: &Lab, pod: &str, url: &str) -> bool {
    let id = text(&lab.get(&format!("pod {pod}"))["status"]["containerStatuses"][0]["containerID"]);
    let tasks = lab.ctr("tasks ls").out;
    let task = tasks.lines().find(|line| line.starts_with(&id.replace("containerd://", ""))).expect("it runs");
    let pid = task.split_whitespace().nth(1).expect("a task has a pid");
    let arguments = ["--target", pid, "--net", "curl", "-sS", "--max-time", "2", url];
    lab.run("nsenter", &arguments).out.starts_with("hello from")
}

#[test]
fn pods_have_addresses_host_ports_and_policies() {
    let mut lab = Lab::start();
    // A11.9
    let ports = json!([{"name": "http", "containerPort": 8080, "hostPort": 8090}]);
    lab.apply(&pod("web").image(HELLO).container("ports", ports).build());
    lab.apply(&pod("client").build());
    lab.apply(&pod("stranger").build());
    for name in ["web", "client", "stranger"] {
        lab.eventually("the pod is ready", |lab| lab.ready_pods(name) == 1);
    }
    // A11.10: the address is the one that the plugin leased.
    let ip = text(&lab.get("pod web")["status"]["podIP"]);
    assert!(lab.dir().join("network/leases").join(&ip).symlink_metadata().is_ok(), "{ip} is not leased");
    let url = format!("http://{ip}:8080/");
    assert!(lab.curl(&url).success && fetch(&lab, "client", &url));
    for address in [NODE_IP, "127.0.0.1"] {
        let url = format!("http://{address}:8090/");
        lab.eventually(&format!("{url} answers"), |lab| lab.curl(&url).success);
    }
    assert!(fetch(&lab, "client", &format!("http://{NODE_IP}:8090/")));

    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "only-clients"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": "http"}]}]},
    });
    lab.apply(&policy);
    assert!(lab.kubectl("get networkpolicies").contains("app=web"));
    lab.eventually("strangers are kept out", |lab| !fetch(lab, "stranger", &url));
    assert!(fetch(&lab, "client", &url), "whom the policy lets in");
    assert!(lab.curl(&url).success, "the node reaches its own pods");

    // Nobody notices that the agent is killed, and the new one opens nothing.
    lab.kill_agent();
    assert!(fetch(&lab, "client", &url) && !fetch(&lab, "stranger", &url));
    lab.start_agent();
    lab.kubectl("label pod stranger app=client --overwrite");
    lab.eventually("a new label counts", |lab| fetch(lab, "stranger", &url));
    lab.kubectl("delete networkpolicy only-clients");
    lab.eventually("nothing is isolated any more", |lab| {
        !lab.run("nft", &["list", "table", "inet", "stoker-policy"]).out.contains(&ip)
    });
    lab.kubectl("delete pod web --grace-period=1");
    lab.eventually("the lease is given back", |lab| {
        lab.dir().join("network/leases").join(&ip).symlink_metadata().is_err()
    });
    assert!(!lab.run("nft", &["list", "ruleset"]).out.contains("8090"), "the host port is closed");
    lab.finish();
}
