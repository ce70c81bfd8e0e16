//! What people type when they look after a cluster: edit, roll back, cordon, taint, describe, replace, compare, watch events.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use super::whole::{Whole, failed, succeeded};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1", ports: [{containerPort: 8080}]}]}
"#;

/// kubectl with an editor that is a shell script; `$1` is the file to edit.
fn edit(whole: &Whole, arguments: &str, script: &str) -> Output {
    use std::os::unix::fs::PermissionsExt as _;
    let editor = whole.file("editor", &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("kubectl");
    command.env("HOME", whole.path()).env("KUBE_EDITOR", editor).arg("--kubeconfig").arg(whole.admin());
    command.arg("edit").args(arguments.split_whitespace()).stdin(Stdio::null()).output().unwrap()
}

fn apply(whole: &Whole, name: &str, object: &str) -> String {
    let file = whole.file(name, object);
    whole.kubectl(&format!("apply -f {}", file.display()))
}

/// A kubectl that goes on until it is dropped.
struct Running(Child);

impl Running {
    fn start(whole: &Whole, arguments: &str) -> Self {
        let mut command = Command::new("kubectl");
        command.env("HOME", whole.path()).arg("--kubeconfig").arg(whole.admin()).args(arguments.split_whitespace());
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stdout.take().unwrap()).lines().map_while(Result::ok)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn objects_are_edited_replaced_and_compared() {
    let whole = Whole::start();
    apply(&whole, "web.yaml", WEB);
    let image = || whole.object("get deploy web")["spec"]["template"]["spec"]["containers"][0]["image"].clone();

    // D1.7: a change, none, one that is refused and then mended, and a status.
    let told = succeeded("edit", &edit(&whole, "deploy/web", "sed -i s/web:1/web:2/ $1"));
    assert!(told.contains("deployment.apps/web edited"), "{told}");
    assert_eq!(image(), "web:2");
    let managers: Value = whole.object("get deploy web --show-managed-fields")["metadata"]["managedFields"].clone();
    assert!(managers.as_array().unwrap().iter().any(|entry| entry["manager"] == "kubectl-edit"), "{managers}");
    let unchanged = edit(&whole, "deploy/web", "true");
    assert!(String::from_utf8_lossy(&unchanged.stderr).contains("Edit cancelled, no changes made"), "{unchanged:?}");
    let seen = whole.path().join("seen");
    let twice = format!(
        "if [ -e {0} ]; then cat $1 >>{0}; sed -i 's/replicas: -1/replicas: 3/' $1; else touch {0}; sed -i 's/replicas: 1/replicas: -1/' $1; fi",
        seen.display()
    );
    succeeded("the second try", &edit(&whole, "deploy/web", &twice));
    let shown = std::fs::read_to_string(&seen).unwrap();
    assert!(shown.contains("# deployments.apps \"web\" was not valid") && shown.contains("spec.replicas"), "{shown}");
    assert_eq!(whole.object("get deploy web")["spec"]["replicas"], 3);
    // Somebody else was faster.
    let kubectl = format!("kubectl --kubeconfig {}", whole.admin().display());
    let raced = format!("{kubectl} annotate deploy web other=1 >/dev/null; sed -i s/web:2/web:3/ $1");
    succeeded("two at a time", &edit(&whole, "deploy/web", &raced));
    assert_eq!(
        (image(), whole.object("get deploy web")["metadata"]["annotations"]["other"].clone()),
        (json!("web:3"), json!("1"))
    );
    whole.kubectl("create quota q --hard=pods=5");
    let status = "sed -i 's/^status:.*/status: {hard: {pods: \"7\"}}/; /^status:/,$ {/^status:/!d}' $1";
    succeeded("edit a status", &edit(&whole, "quota q --subresource=status", status));

    // D1.37
    let other = WEB.replace("web:1", "web:9");
    let file = whole.file("other.yaml", &other);
    let differs = whole.try_kubectl(&format!("diff -f {}", file.display()));
    let shown = String::from_utf8_lossy(&differs.stdout);
    assert_eq!(differs.status.code(), Some(1), "{differs:?}");
    assert!(shown.contains("-      - image: web:3") && shown.contains("+      - image: web:9"), "{shown}");
    let differs = whole.try_kubectl(&format!("diff --server-side --force-conflicts -f {}", file.display()));
    assert_eq!(differs.status.code(), Some(1), "{differs:?}");
    let fresh = whole.file("fresh.yaml", &WEB.replace("name: web}\nspec", "name: fresh}\nspec"));
    let new = whole.try_kubectl(&format!("diff -f {}", fresh.display()));
    assert!(
        new.status.code() == Some(1) && String::from_utf8_lossy(&new.stdout).contains("+kind: Deployment"),
        "{new:?}"
    );
    assert_eq!(image(), "web:3", "comparing changes nothing");
    whole.kubectl_fails("get deploy fresh");

    // D1.30: without a version, with an old one, and by making it anew.
    assert!(whole.kubectl(&format!("replace -f {}", file.display())).contains("deployment.apps/web replaced"));
    assert_eq!(image(), "web:9");
    let mut old = whole.object("get deploy web");
    whole.kubectl("label deploy web a=b");
    old["spec"]["replicas"] = json!(5);
    let stale = whole.file("stale.json", &old.to_string());
    let refused = whole.kubectl_fails(&format!("replace -f {}", stale.display()));
    assert!(refused.contains("the object has been modified"), "{refused}");
    let uid = || whole.object("get deploy web")["metadata"]["uid"].clone();
    let before = uid();
    let told = whole.kubectl(&format!("replace --force -f {}", file.display()));
    assert!(
        told.contains("deployment.apps \"web\" deleted") && told.contains("deployment.apps/web replaced"),
        "{told}"
    );
    assert_ne!(uid(), before);
    let none = whole.file("none.yaml", &WEB.replace("name: web}\nspec", "name: none}\nspec"));
    assert!(whole.kubectl_fails(&format!("replace -f {}", none.display())).contains("\"none\" not found"));
}

/// Lets all pods of a label be ready; here is no node that could.
fn make_ready(whole: &Whole, label: &str) {
    let ready = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
    for pod in whole.kubectl(&format!("get pods -l {label} -o name")).lines() {
        // It may be gone by now.
        let _ = whole.try_kubectl(&format!("patch {pod} --subresource=status --type=merge -p {ready}"));
    }
}

#[test]
fn rollouts_are_followed_and_undone() {
    let whole = Whole::start();
    whole.kubectl(r#"create -f - --raw /api/v1/nodes"#.replace("-f -", &format!("-f {}", whole.file("node.json",
        r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"status":{"conditions":[{"type":"Ready","status":"True"}],"allocatable":{"pods":"100"}}}"#).display())).as_str());
    apply(&whole, "web.yaml", WEB);
    let set = |kind: &str| {
        WEB.replace("Deployment", kind)
            .replace("metadata: {name: web}\n", "metadata: {name: set}\n")
            .replace("app: web", &format!("app: {kind}"))
    };
    apply(&whole, "ds.yaml", &set("DaemonSet").replace("  replicas: 1\n", ""));
    apply(&whole, "sts.yaml", &set("StatefulSet").replace("  replicas: 1\n", "  replicas: 2\n  serviceName: set\n"));

    // D1.9: each kind, until it is there.
    for (what, label, done) in [
        ("deploy/web", "app=web", "deployment \"web\" successfully rolled out"),
        ("ds/set", "app=DaemonSet", "daemon set \"set\" successfully rolled out"),
        ("sts/set", "app=StatefulSet", "partitioned roll out complete|statefulset rolling update complete 2 pods"),
    ] {
        let early = whole.try_kubectl(&format!("rollout status {what} --timeout=1s"));
        assert!(!early.status.success(), "{early:?}");
        let mut status = Running::start(&whole, &format!("rollout status {what} --timeout=60s"));
        let lines: Vec<String> = std::thread::scope(|all| {
            let lines = status.lines();
            let reading = all.spawn(move || lines.collect());
            whole.until(&format!("{what} to be there"), || {
                make_ready(&whole, label);
                reading.is_finished()
            });
            reading.join().unwrap()
        });
        let last = lines.last().unwrap();
        assert!(done.split('|').any(|end| last.contains(end)), "{lines:?}");
    }
    let partition = r#"patch sts set -p {"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}}}}"#;
    whole.kubectl(partition);
    assert!(whole.kubectl("rollout status sts/set --timeout=20s").contains("partitioned roll out complete"));

    // D1.10
    for (kind, name, label) in
        [("deploy", "web", "app=web"), ("ds", "set", "app=DaemonSet"), ("sts", "set", "app=StatefulSet")]
    {
        let what = format!("{kind}/{name}");
        whole.kubectl(&format!("annotate {what} kubernetes.io/change-cause=first --overwrite"));
        if kind == "sts" {
            whole.kubectl(&partition.replace('2', "0"));
        }
        let first = whole.object(&format!("get {what}"))["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        whole.kubectl(&format!("set image {what} web=web:2"));
        whole.kubectl(&format!("annotate {what} kubernetes.io/change-cause=second --overwrite"));
        let history = || whole.kubectl(&format!("rollout history {what}"));
        whole.until("two revisions", || {
            make_ready(&whole, label);
            history().lines().filter(|line| line.starts_with(|sign: char| sign.is_ascii_digit())).count() == 2
        });
        assert!(whole.kubectl(&format!("rollout history {what} --revision=2")).contains("web:2"), "{}", history());
        assert!(whole.kubectl(&format!("rollout history {what} --revision=1")).contains("web:1"), "{}", history());
        let told = whole.kubectl(&format!("rollout undo {what}"));
        assert!(told.contains("rolled back"), "{told}");
        let image =
            || whole.object(&format!("get {what}"))["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        whole.until("the old image", || image() == first);
        whole.until("a third revision", || {
            make_ready(&whole, label);
            history().lines().any(|line| line.starts_with('3'))
        });
        whole.kubectl(&format!("rollout undo {what} --to-revision=2"));
        assert_eq!(image(), "web:2");
        let none = whole.kubectl_fails(&format!("rollout undo {what} --to-revision=77"));
        assert!(none.contains("unable to find specified revision 77"), "{none}");
    }
    let history = whole.kubectl("rollout history deploy/web");
    assert!(history.contains("CHANGE-CAUSE") && history.contains("second"), "{history}");

    // A rollout that does not come to its end in time.
    apply(
        &whole,
        "late.yaml",
        &WEB.replace("name: web}\nspec:", "name: late}\nspec:\n  progressDeadlineSeconds: 1\n  minReadySeconds: 0")
            .replace("app: web", "app: late"),
    );
    let late = whole.kubectl_fails("rollout status deploy/late --timeout=30s");
    assert!(late.contains("exceeded its progress deadline"), "{late}");
}

#[test]
fn nodes_are_cordoned_and_tainted() {
    let whole = Whole::start();
    let node = whole
        .file("node.json", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","labels":{"disk":"ssd"}}}"#);
    whole.kubectl(&format!("create -f {}", node.display()));
    let spec = || whole.object("get node n1")["spec"].clone();

    // D1.17
    assert!(whole.kubectl("cordon n1 --dry-run=server").contains("node/n1 cordoned (server dry run)"));
    assert_eq!(spec()["unschedulable"], Value::Null);
    assert_eq!(whole.kubectl("cordon n1").trim(), "node/n1 cordoned");
    assert_eq!(spec()["unschedulable"], true);
    assert!(whole.kubectl("get node n1").contains("SchedulingDisabled"));
    assert_eq!(whole.kubectl("cordon n1").trim(), "node/n1 already cordoned");
    assert_eq!(whole.kubectl("uncordon -l disk=ssd").trim(), "node/n1 uncordoned");
    assert_eq!(spec()["unschedulable"], Value::Null);
    whole.kubectl_fails("cordon nobody");

    // D1.19
    let taints = || -> Vec<String> {
        let of = |taint: &Value| {
            format!(
                "{}={}:{}",
                taint["key"].as_str().unwrap(),
                taint["value"].as_str().unwrap_or(""),
                taint["effect"].as_str().unwrap()
            )
        };
        let all = spec()["taints"].as_array().cloned().unwrap_or_default();
        all.iter().map(of).filter(|taint| !taint.starts_with("node.kubernetes.io/")).collect()
    };
    assert_eq!(whole.kubectl("taint node n1 a=b:NoSchedule c:NoExecute").trim(), "node/n1 tainted");
    assert_eq!(taints(), ["a=b:NoSchedule", "c=:NoExecute"]);
    let managers = whole.object("get node n1 --show-managed-fields")["metadata"]["managedFields"].clone();
    assert!(managers.as_array().unwrap().iter().any(|entry| entry["manager"] == "kubectl-taint"), "{managers}");
    let twice = whole.kubectl_fails("taint node n1 a=x:NoSchedule");
    assert!(twice.contains("already has a taint(s) with same effect(s) and --overwrite is false"), "{twice}");
    whole.kubectl("taint node n1 a=x:NoSchedule --overwrite");
    assert!(taints().contains(&"a=x:NoSchedule".to_owned()), "{:?}", taints());
    assert!(whole.kubectl_fails("taint node n1 a=x:Never").contains("invalid taint effect"));
    assert_eq!(whole.kubectl("taint node n1 a- c:NoExecute-").trim(), "node/n1 untainted");
    assert_eq!(taints(), Vec::<String>::new());
}

#[test]
fn what_is_there_is_described() {
    // D1.20, D1.15, D1.38
    let whole = Whole::start();
    let node = whole.file("node.json", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}"#);
    whole.kubectl(&format!("create -f {}", node.display()));
    apply(&whole, "web.yaml", WEB);
    whole.kubectl("expose deploy web --port=80 --target-port=8080");
    whole.until("a pod", || !whole.kubectl("get pods -o name").is_empty());
    let pod = whole.kubectl("get pods -o name").lines().next().unwrap().to_owned();
    let uid = whole.object(&format!("get {pod}"))["metadata"]["uid"].as_str().unwrap().to_owned();
    let name = pod.trim_start_matches("pod/");
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": "default", "uid": uid},
        "reason": "Sneezed", "message": "it was cold", "type": "Warning", "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "source": {"component": "nose"}});
    let file = whole.file("event.json", &event.to_string());
    whole.kubectl(&format!("create -f {}", file.display()));
    let bound = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"there"},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"x:1","resources":{"requests":{"cpu":"250m"}}}]}}"#;
    apply(&whole, "there.json", bound);
    whole.kubectl("create quota q --hard=pods=5");
    apply(
        &whole,
        "limits.json",
        r#"{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"l"},"spec":{"limits":[{"type":"Container","max":{"cpu":"2"}}]}}"#,
    );
    apply(
        &whole,
        "pvc.json",
        r#"{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"data"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}"#,
    );
    apply(
        &whole,
        "user.json",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"user"},"spec":{"containers":[{"name":"c","image":"x:1"}],"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"data"}}]}}"#,
    );
    let lease = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"n1","namespace":"kube-node-lease"},"spec":{"holderIdentity":"n1"}}"#;
    apply(&whole, "lease.json", lease);
    for (what, parts) in [
        (pod.as_str(), &["Controlled By:", "ReplicaSet/web-", "Sneezed", "it was cold", "nose", "Tolerations:"][..]),
        ("node n1", &["HolderIdentity:", "Non-terminated Pods:", "there", "250m", "Taints:"]),
        ("deploy web", &["NewReplicaSet:", "web-", "(1/1 replicas created)", "ScalingReplicaSet", "StrategyType:"]),
        ("rs", &["Controlled By:", "Deployment/web", "SuccessfulCreate"]),
        ("svc web", &["Selector:", "app=web", "TargetPort:", "8080/TCP", "Endpoints:"]),
        ("pvc data", &["Used By:", "user", "Status:", "Pending"]),
        ("namespace default", &["Resource Quotas", "q", "Resource Limits", "Container", "Status:", "Active"]),
        ("quota q", &["pods"]),
        ("clusterrole view", &["PolicyRule:", "pods/log"]),
        ("sa default", &["Tokens:"]),
    ] {
        let text = whole.kubectl(&format!("describe {what}"));
        for part in parts {
            assert!(text.contains(part), "{what} lacks {part}:\n{text}");
        }
    }
    assert!(whole.kubectl_fails("describe pod nobody").contains("pods \"nobody\" not found"));

    let events = whole.kubectl(&format!("events --for {pod}"));
    assert!(events.contains("Sneezed") && !events.contains("ScalingReplicaSet"), "{events}");
    let warnings = whole.kubectl("events --types=Warning");
    assert!(warnings.contains("Sneezed") && !warnings.contains("ScalingReplicaSet"), "{warnings}");
    assert!(whole.kubectl("events -A").contains("ScalingReplicaSet"));
    let mut watch = Running::start(&whole, "events -w --types=Warning");
    let mut lines = watch.lines();
    assert!(lines.any(|line| line.contains("Sneezed")));
    let again = event.to_string().replace("\"e1\"", "\"e2\"").replace("Sneezed", "Coughed");
    let file = whole.file("event.json", &again);
    whole.kubectl(&format!("create -f {}", file.display()));
    assert!(lines.any(|line| line.contains("Coughed")), "it comes while kubectl waits");

    let info = whole.kubectl("cluster-info");
    assert!(info.contains(&whole.server), "{info}");
    let dump = whole.path().join("dump");
    whole.kubectl(&format!("cluster-info dump --output-directory={} --namespaces=default", dump.display()));
    for file in [
        "nodes.json",
        "default/pods.json",
        "default/events.json",
        "default/replicasets.json",
        "default/deployments.json",
        "default/services.json",
    ] {
        let text = std::fs::read_to_string(dump.join(file)).unwrap_or_default();
        assert!(text.contains("List"), "{file}: {text}");
    }
}

#[test]
fn writes_are_answered_with_metadata_where_no_more_is_asked_for() {
    // C3.9
    let whole = Whole::start();
    let mut proxy = Running::start(&whole, "proxy --port=0");
    let first = proxy.lines().next().unwrap();
    let address = first.rsplit(' ').next().unwrap().to_owned();
    let ask = |arguments: &[&str], path: &str| -> serde_json::Value {
        let url = format!("http://{address}/api/v1/namespaces/default/configmaps{path}");
        let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).arg(url).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let accept = "Accept: application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
    let new = r#"{"metadata":{"name":"a"},"data":{"x":"y"}}"#;
    let made = ask(&["-H", accept, "-H", "Content-Type: application/json", "-d", new], "");
    let patch = "Content-Type: application/strategic-merge-patch+json";
    let patched = ask(&["-X", "PATCH", "-H", accept, "-H", patch, "-d", r#"{"data":{"x":"z"}}"#], "/a");
    for answer in [&made, &patched] {
        assert_eq!((&answer["kind"], answer.get("data")), (&"PartialObjectMetadata".into(), None));
        assert_eq!(answer["metadata"]["uid"], made["metadata"]["uid"]);
    }
    let now = ask(&[], "/a");
    assert_eq!(now["data"]["x"], "z");
    assert_eq!(now["metadata"]["resourceVersion"], patched["metadata"]["resourceVersion"]);
}

#[test]
fn anything_goes_through_a_proxy_of_kubectls() {
    // D1.24
    let whole = Whole::start();
    let mut proxy = Running::start(&whole, "proxy --port=0");
    let first = proxy.lines().next().unwrap();
    let address = first.rsplit(' ').next().unwrap().to_owned();
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let url = |path: &str| format!("http://{address}{path}");
    assert!(curl(&[&url("/api/v1/namespaces")]).contains("NamespaceList"));
    assert!(curl(&[&url("/version")]).contains("gitVersion"));
    let made = curl(&[
        "-H",
        "Content-Type: application/json",
        "-d",
        r#"{"metadata":{"name":"a"},"data":{"x":"y"}}"#,
        &url("/api/v1/namespaces/default/configmaps"),
    ]);
    assert!(made.contains("\"uid\""), "{made}");
    let watched = curl(&[
        "-N",
        &url("/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=2&fieldSelector=metadata.name=a"),
    ]);
    assert!(watched.contains("\"ADDED\""), "{watched}");
    assert!(curl(&["-X", "DELETE", &url("/api/v1/namespaces/default/configmaps/a")]).contains("Success"));
    let missing = curl(&[&url("/api/v1/namespaces/default/services/http:none:80/proxy/")]);
    assert!(missing.contains("services \\\"none\\\" not found"), "{missing}");
    // What kubectl's own filter keeps.
    let exec = curl(&["-X", "POST", &url("/api/v1/namespaces/default/pods/p/exec?command=x")]);
    assert!(exec.contains("Forbidden"), "{exec}");
    assert!(
        failed("no such path", &whole.try_kubectl("get --raw /nothing")).contains("NotFound")
            || !curl(&[&url("/nothing")]).is_empty()
    );
}
