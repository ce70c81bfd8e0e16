//! Which kinds are served, and what `kubectl get` prints of those that have no test of their own.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::server::Server;

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS: &[&str] = &["get", "patch", "update"];

/// Verbs by resource, as discovery lists them.
fn served(server: &Server, version: &str) -> BTreeMap<String, Vec<String>> {
    let list: Value = serde_json::from_str(&server.kubectl(&format!("get --raw {version}"))).unwrap();
    let verbs = |resource: &Value| -> Vec<String> {
        let mut verbs: Vec<String> =
            resource["verbs"].as_array().unwrap().iter().map(|verb| verb.as_str().unwrap().to_owned()).collect();
        verbs.sort();
        verbs
    };
    let resources = list["resources"].as_array().unwrap();
    resources.iter().map(|resource| (resource["name"].as_str().unwrap().to_owned(), verbs(resource))).collect()
}

#[test]
fn the_kinds_of_each_group_are_served() {
    // C1.2 C1.3 C1.5 C1.7 C1.8 C1.10 C1.15 C1.19
    let server = Server::start();
    for (version, kinds) in [
        (
            "/apis/apps/v1",
            &[
                "deployments+status+scale",
                "replicasets+status+scale",
                "statefulsets+status+scale",
                "daemonsets+status",
                "controllerrevisions",
            ][..],
        ),
        ("/apis/batch/v1", &["jobs+status", "cronjobs+status"]),
        ("/apis/policy/v1", &["poddisruptionbudgets+status"]),
        ("/apis/discovery.k8s.io/v1", &["endpointslices"]),
        ("/apis/coordination.k8s.io/v1", &["leases"]),
        ("/apis/rbac.authorization.k8s.io/v1", &["roles", "rolebindings", "clusterroles", "clusterrolebindings"]),
        ("/apis/scheduling.k8s.io/v1", &["priorityclasses"]),
        ("/apis/node.k8s.io/v1", &["runtimeclasses"]),
        ("/apis/flowcontrol.apiserver.k8s.io/v1", &["flowschemas+status", "prioritylevelconfigurations+status"]),
        // Not the whole of its group.
        (
            "/apis/storage.k8s.io/v1",
            &["storageclasses", "volumeattachments+status", "csidrivers", "csinodes", "csistoragecapacities"],
        ),
    ] {
        let found = served(&server, version);
        for kind in kinds {
            let mut parts = kind.split('+');
            let name = parts.next().unwrap();
            assert_eq!(
                found.get(name).map(Vec::as_slice),
                Some(&ALL.iter().map(|verb| (*verb).to_owned()).collect::<Vec<_>>()[..]),
                "{name}"
            );
            for part in parts {
                let verbs: Vec<String> = STATUS.iter().map(|verb| (*verb).to_owned()).collect();
                assert_eq!(found.get(&format!("{name}/{part}")), Some(&verbs), "{name}/{part}");
            }
        }
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn kinds_without_a_test_of_their_own_have_their_columns() {
    // C4.2 C4.7 C4.23 C4.25 C4.27 C4.28 C4.29 C4.32
    let server = Server::start();
    server.create("", "serviceaccounts", "default", json!({"metadata": {"name": "default"}}));
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    let set = json!({"metadata": {"name": "s"}, "spec": {"replicas": 2, "serviceName": "s", "selector": {"matchLabels": {"app": "a"}}, "template": template}});
    let owned = json!({"metadata": {"name": "r", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "uid": "u", "controller": true}]}, "revision": 3, "data": {}});
    for (group, plural, namespace, object) in [
        ("", "podtemplates", "default", json!({"metadata": {"name": "t"}, "template": template})),
        ("apps", "statefulsets", "default", set),
        ("apps", "controllerrevisions", "default", owned),
        (
            "coordination.k8s.io",
            "leases",
            "default",
            json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}),
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            "",
            json!({"metadata": {"name": "p"}, "value": 7, "globalDefault": true}),
        ),
        ("node.k8s.io", "runtimeclasses", "", json!({"metadata": {"name": "vm"}, "handler": "kata"})),
        (
            "storage.k8s.io",
            "volumeattachments",
            "",
            json!({"metadata": {"name": "a"}, "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}}),
        ),
        (
            "storage.k8s.io",
            "csinodes",
            "",
            json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
        ),
        ("storage.k8s.io", "csidrivers", "", json!({"metadata": {"name": "d"}, "spec": {"attachRequired": false}})),
        (
            "storage.k8s.io",
            "csistoragecapacities",
            "default",
            json!({"metadata": {"name": "c"}, "storageClassName": "gold", "capacity": "1Gi"}),
        ),
        (
            "flowcontrol.apiserver.k8s.io",
            "flowschemas",
            "",
            json!({"metadata": {"name": "f"}, "spec": {"priorityLevelConfiguration": {"name": "lev"}, "distinguisherMethod": {"type": "ByUser"}}}),
        ),
        (
            "flowcontrol.apiserver.k8s.io",
            "prioritylevelconfigurations",
            "",
            json!({"metadata": {"name": "lev"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue"}}}}),
        ),
    ] {
        server.create(group, plural, namespace, object);
    }
    for (arguments, header, row) in [
        ("podtemplates", &["NAME", "CONTAINERS", "IMAGES", "POD", "LABELS"][..], &["t", "c", "x:1", "app=a"][..]),
        ("sts", &["NAME", "READY", "AGE"], &["s", "0/2"]),
        ("sts -o wide", &["NAME", "READY", "AGE", "CONTAINERS", "IMAGES"], &["s", "0/2"]),
        ("controllerrevisions", &["NAME", "CONTROLLER", "REVISION", "AGE"], &["r", "statefulset.apps/s", "3"]),
        ("leases", &["NAME", "HOLDER", "AGE"], &["l", "me"]),
        ("pc", &["NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY"], &["p", "7", "true"]),
        ("runtimeclasses", &["NAME", "HANDLER", "AGE"], &["vm", "kata"]),
        ("volumeattachments", &["NAME", "ATTACHER", "PV", "NODE", "ATTACHED", "AGE"], &["a", "d", "pv", "n", "false"]),
        ("csinodes", &["NAME", "DRIVERS", "AGE"], &["n", "1"]),
        (
            "csidrivers",
            &[
                "NAME",
                "ATTACHREQUIRED",
                "PODINFOONMOUNT",
                "STORAGECAPACITY",
                "TOKENREQUESTS",
                "REQUIRESREPUBLISH",
                "MODES",
                "AGE",
            ],
            &["d", "false", "false", "false", "<unset>", "false", "Persistent"],
        ),
        ("csistoragecapacities", &["NAME", "STORAGECLASSNAME", "CAPACITY"], &["c", "gold", "1Gi"]),
        (
            "flowschemas",
            &["NAME", "PRIORITYLEVEL", "MATCHINGPRECEDENCE", "DISTINGUISHERMETHOD", "AGE", "MISSINGPL"],
            &["f", "lev", "1000", "ByUser"],
        ),
        (
            "prioritylevelconfigurations",
            &["NAME", "TYPE", "NOMINALCONCURRENCYSHARES", "QUEUES", "HANDSIZE", "QUEUELENGTHLIMIT", "AGE"],
            &["lev", "Limited", "30", "64", "8", "50"],
        ),
    ] {
        let table = server.kubectl(&format!("get {arguments}"));
        let mut lines = table.lines();
        assert_eq!(words(lines.next().unwrap()), header, "{arguments}");
        let found = words(lines.next().unwrap());
        assert_eq!(&found[..row.len()], row, "{arguments}");
    }
}
