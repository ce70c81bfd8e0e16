//! Names of the cluster, as programs in pods find them.

use serde_json::json;

use crate::lab::manifest::{HELLO, pod};
use crate::lab::{Lab, text};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What a pod prints that looks up a name, by its end.
fn lookup(lab: &Lab, name: &str, host_network: bool, of: &str) -> String {
    let mut manifest = pod(name)
        .image(HELLO)
        .command(&["/bin/hello", "lookup", of])
        .spec("restartPolicy", json!("Never"))
        .spec("dnsPolicy", json!(if host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" }));
    if host_network {
        manifest = manifest.spec("hostNetwork", json!(true));
    }
    lab.apply(&manifest.build());
    lab.eventually(&format!("{name} has an end"), |lab| {
        ["Succeeded", "Failed"].contains(&text(&lab.get(&format!("pod {name}"))["status"]["phase"]).as_str())
    });
    lab.kubectl(&format!("logs {name}"))
}

#[test]
fn pods_find_services_and_pods_by_name() {
    let lab = Lab::start();
    lab.kubectl(&format!("apply -f {ROOT}/make/templates/kube-dns.yaml -f {ROOT}/examples/hello.yaml"));
    let address = text(&lab.get("service hello")["spec"]["clusterIP"]);
    let expected = format!("hello.default.svc.cluster.local {address}\n");
    // A11.5: also on the node's own network.
    assert_eq!(lookup(&lab, "in-pod", false, "hello"), expected);
    assert_eq!(lookup(&lab, "on-node", true, "hello.default"), expected);

    lab.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "group"},
        "spec": {"clusterIP": "None", "selector": {"app": "member"}, "ports": [{"name": "http", "port": 8080}]},
    }));
    let member = pod("member").image(HELLO).spec("hostname", json!("one")).spec("subdomain", json!("group"));
    lab.apply(&member.build());
    lab.eventually("the member is ready", |lab| lab.ready_pods("member") == 1);
    let ip = text(&lab.get("pod member")["status"]["podIP"]);
    lab.eventually("its slice has it", |lab| {
        lab.kubectl("get endpointslices -l kubernetes.io/service-name=group -o json").contains(&ip)
    });
    assert_eq!(lookup(&lab, "of-member", false, "one.group"), format!("one.group.default.svc.cluster.local {ip}\n"));
    assert_eq!(lookup(&lab, "of-group", false, "group"), format!("group.default.svc.cluster.local {ip}\n"));
    assert_eq!(lab.run("nft", &["list", "ruleset"]).out.matches("10.96.0.10").count(), 0, "no rule is in the way");
    lab.finish();
}
