//! The built control plane, over TLS, asked by the real kubectl: what requests mean, and what a kill leaves.

#[path = "api/admission.rs"]
mod admission;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A running `stoker-control-plane run` with its own directory and port.
struct ControlPlane {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl ControlPlane {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Self::spawn(&dir, port);
        let this = Self { dir, port, child };
        this.wait();
        this
    }

    fn spawn(dir: &tempfile::TempDir, port: u16) -> Child {
        Command::new(env!("CARGO_BIN_EXE_stoker-control-plane"))
            .args(["run", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--node-name", "n1"])
            .args(["--port", &port.to_string(), "--data-dir"])
            .arg(dir.path().join("data"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(format!("{name}.kubeconfig"))
    }

    fn wait(&self) {
        for _ in 0..200 {
            if self.ask("admin", &["get", "sa", "default"], "").is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the control plane does not answer");
    }

    fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir, self.port);
        self.wait();
    }

    /// What kubectl prints, or what it complains about.
    fn ask(&self, user: &str, arguments: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write as _;
        let mut kubectl = Command::new("kubectl")
            .env("HOME", self.dir.path())
            .arg("--kubeconfig")
            .arg(self.kubeconfig(user))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl must be installed for these tests");
        kubectl.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = kubectl.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// What kubectl says besides its answer.
    #[track_caller]
    fn told(&self, arguments: &[&str]) -> String {
        let mut kubectl = Command::new("kubectl");
        kubectl.env("HOME", self.dir.path()).arg("--kubeconfig").arg(self.kubeconfig("admin")).args(arguments);
        String::from_utf8_lossy(&kubectl.output().unwrap().stderr).into_owned()
    }

    #[track_caller]
    fn kubectl(&self, arguments: &str) -> String {
        self.ask("admin", &arguments.split(' ').collect::<Vec<_>>(), "").unwrap()
    }

    #[track_caller]
    fn refused(&self, arguments: &str, input: &str) -> String {
        self.ask("admin", &arguments.split(' ').collect::<Vec<_>>(), input).unwrap_err()
    }

    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.kubectl(arguments)).unwrap()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_kill_keeps_every_object_and_its_version() {
    let mut plane = ControlPlane::start();
    plane.kubectl("create configmap a --from-literal=x=y");
    plane.kubectl("run p --image=x:1");
    let seen = |plane: &ControlPlane| {
        plane.kubectl("get cm,svc -A -o jsonpath={range.items[*]}{.metadata.uid}/{.metadata.resourceVersion}{end}")
    };
    let before = seen(&plane);
    plane.kill_and_restart();
    assert_eq!(seen(&plane), before);
    plane.kubectl("delete pod p");
}

#[test]
fn what_is_written_is_checked() {
    let plane = ControlPlane::start();
    // C3.13: a strict writer hears of a field that nobody knows.
    let odd =
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"a","imag":"b"}]}}"#;
    let error = plane.refused("create -f -", odd);
    assert!(error.contains(r#"strict decoding error: unknown field "spec.containers[0].imag""#), "{error}");
    // C3.15: an object that was changed meanwhile is not overwritten.
    plane.kubectl("create configmap a --from-literal=x=y");
    let mut old = plane.json("get configmap a -o json");
    plane.kubectl("label configmap a b=c");
    old["data"]["x"] = "z".into();
    let error = plane.refused("replace -f -", &old.to_string());
    assert!(error.contains("Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"), "{error}");
    // Nothing can be made in a namespace that is not there.
    let error = plane.refused("-n nowhere create configmap a", "");
    assert!(error.contains(r#"namespaces "nowhere" not found"#), "{error}");
    let error = plane.refused("create configmap a", "");
    assert!(error.contains(r#"configmaps "a" already exists"#), "{error}");
}

#[test]
fn lists_come_in_pages_of_one_moment() {
    // C3.3
    let plane = ControlPlane::start();
    for name in ["a", "b", "c"] {
        plane.kubectl(&format!("create configmap {name}"));
    }
    let path = "/api/v1/namespaces/default/configmaps";
    let first = plane.json(&format!("get --raw {path}?limit=2"));
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    plane.kubectl("create configmap d");
    let rest = plane.json(&format!("get --raw {path}?limit=500&continue={token}"));
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["c", "kube-root-ca.crt"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(plane.refused(&format!("get --raw {path}?continue=nonsense"), "").contains("continue key is not valid"));
}

#[test]
fn a_streamed_list_ends_with_its_bookmark() {
    // C3.6
    let plane = ControlPlane::start();
    plane.kubectl("create configmap a --from-literal=x=y");
    let path = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true";
    let text =
        plane.kubectl(&format!("get --raw {path}&resourceVersionMatch=NotOlderThan&fieldSelector=metadata.name=a"));
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["type"], "ADDED");
    assert_eq!(events[0]["object"]["metadata"]["name"], "a");
    assert_eq!(events[1]["type"], "BOOKMARK");
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let error = plane.refused(&format!("get --raw {path}"), "");
    assert!(error.contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"), "{error}");
}

#[test]
fn a_node_may_only_do_its_own_work() {
    // C5.3
    let plane = ControlPlane::start();
    plane.kubectl("create secret generic s --from-literal=a=b");
    let error = plane.ask("node-n1", &["get", "secret", "s"], "").unwrap_err();
    assert!(
        error.contains(r#"secrets "s" is forbidden: User "system:node:n1" cannot get resource "secrets""#),
        "{error}"
    );
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n2"}}"#;
    assert!(plane.ask("node-n1", &["create", "-f", "-"], node).is_err());
    let node = node.replace("n2", "n1");
    plane.ask("node-n1", &["create", "-f", "-"], &node).unwrap();
    // C5.4: what it writes is looked into, by whatever way it comes.
    let refused = |arguments: &[&str], input: &str, why: &str| {
        let error = plane.ask("node-n1", arguments, input).unwrap_err();
        assert!(error.contains(why), "{arguments:?}: {error}");
    };
    let lease = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"n2","namespace":"kube-node-lease"}}"#;
    refused(&["create", "-f", "-"], lease, "can only access node lease with the same name as the requesting node");
    plane.ask("node-n1", &["create", "-f", "-"], &lease.replace("n2", "n1")).unwrap();
    let label = r#"{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}"#;
    let why = "is not allowed to modify labels: node-restriction.kubernetes.io/x";
    refused(&["patch", "node", "n1", "--type=merge", "-p", label], "", why);
    refused(&["patch", "node", "n1", "--subresource=status", "--type=merge", "-p", label], "", why);
    let uid = plane.kubectl("get node n1 -o jsonpath={.metadata.uid}");
    let mirror = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"m","annotations":{{"kubernetes.io/config.mirror":"x"}},
        "ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"n1","uid":"{uid}","controller":true}}]}},
        "spec":{{"nodeName":"n1","containers":[{{"name":"c","image":"x:1","envFrom":[{{"secretRef":{{"name":"s"}}}}]}}]}}}}"#
    );
    refused(&["create", "-f", "-"], &mirror, "can not create pods that reference secrets");
    plane
        .ask("node-n1", &["create", "-f", "-"], &mirror.replace(r#","envFrom":[{"secretRef":{"name":"s"}}]"#, ""))
        .unwrap();
    plane.kubectl("get pod m");
    // Tokens only for its pods, to die with them.
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"x:1"}]}}"#;
    plane.ask("admin", &["create", "-f", "-"], pod).unwrap();
    let uid = plane.kubectl("get pod p -o jsonpath={.metadata.uid}");
    refused(&["create", "token", "default"], "", "node requested token not bound to a pod");
    let bound = |uid: &str| {
        let uid = format!("--bound-object-uid={uid}");
        plane.ask(
            "node-n1",
            &["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name=p", &uid],
            "",
        )
    };
    assert!(bound("other").is_err());
    bound(&uid).unwrap();
    let label = r#"{"metadata":{"labels":{"app":"other"}}}"#;
    let why = "cannot update labels through pod status";
    refused(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", label], "", why);
    // So a node learns that its pod was replaced (A2.10).
    let replaced = r#"{"metadata":{"uid":"another"},"status":{"reason":"Late"}}"#;
    let why = r#"metadata.uid: Invalid value: "another": field is immutable"#;
    refused(&["patch", "pod", "p", "--subresource=status", "--type=strategic", "-p", replaced], "", why);
    // What the last one of many pods refers to counts as well.
    plane.kubectl("create secret generic other --from-literal=a=b");
    let last = r#"{"name":"c","image":"x:1","envFrom":[{"secretRef":{"name":"s"}}]}"#;
    let pods = (0..80).map(|i| pod.replace(r#""p""#, &format!(r#""p{i}""#)));
    let last = pod.replace(r#""p""#, r#""z""#).replace(r#"{"name":"c","image":"x:1"}"#, last);
    let pods = pods.chain([last]).collect::<Vec<_>>().join("\n");
    plane.ask("admin", &["create", "-f", "-"], &pods).unwrap();
    plane.ask("node-n1", &["get", "secret", "s"], "").unwrap();
    assert!(plane.ask("node-n1", &["get", "secret", "other"], "").unwrap_err().contains("no relationship found"));
}

#[test]
fn a_right_in_a_namespace_is_none_outside_of_it() {
    // C5.2
    let plane = ControlPlane::start();
    plane.kubectl("create role all --verb=* --resource=*.*");
    plane.kubectl("create rolebinding bob --role=all --user=bob");
    let bob = |path: &str| plane.ask("admin", &["--as=bob", "get", "--raw", path], "");
    bob("/api/v1/namespaces/default/secrets").unwrap();
    for path in [
        "/api/v1/namespaces/kube-system/secrets",
        "/api/v1/secrets",
        "/api/v1/nodes",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/namespaces/kube-system",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterrolebindings/x",
    ] {
        let error = bob(path).unwrap_err();
        assert!(
            error.contains("forbidden") || error.contains("could not find the requested resource"),
            "{path}: {error}"
        );
    }
    // Nobody takes another's place without being allowed to.
    assert!(plane.ask("node-n1", &["--as=bob", "get", "pods"], "").unwrap_err().contains("cannot impersonate"));
    let binding = r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"bob"},
        "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},
        "subjects":[{"kind":"User","name":"bob"}]}"#;
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterrolebindings";
    assert!(plane.ask("admin", &["--as=bob", "create", "--raw", path, "-f", "-"], binding).is_err());
    assert!(bob("/api/v1/nodes").is_err());
}

#[test]
fn no_request_ends_the_server() {
    let mut plane = ControlPlane::start();
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"nodeName":"n1","terminationGracePeriodSeconds":9223372036854775807,"containers":[{"name":"c","image":"x:1"}]}}"#;
    plane.ask("admin", &["create", "-f", "-"], pod).unwrap();
    // C3.16: a grace that ends after the calendar does.
    plane.kubectl("delete pod p --wait=false");
    let pod = plane.json("get pod p -o json");
    assert!(pod["metadata"]["deletionTimestamp"].as_str().unwrap().starts_with("20"), "{pod}");
    plane.kubectl("delete pod p --grace-period=9223372036854775806 --wait=false");
    let forever = "/api/v1/pods?watch=true&timeoutSeconds=18446744073709551615";
    // The watch goes on until kubectl has had enough; it does not break off.
    let watched = plane.ask("admin", &["get", "--request-timeout=1s", "--raw", forever], "");
    let ended = watched.err().unwrap_or_default();
    assert!(ended.is_empty() || ended.contains("deadline exceeded") || ended.contains("Timeout"), "{ended}");
    assert!(plane.refused("create token default --duration=2562047h", "").contains("2^32 seconds"));
    plane.ask("admin", &["create", "-f", "-"], r#"{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"name":"e","namespace":"default"},"regarding":{"kind":"Pod","name":"p","namespace":"default"},"reason":"r","action":"a","type":"Normal","reportingController":"c/d","reportingInstance":"i","eventTime":"2026-01-01T00:00:00.000000Z"}"#).unwrap();
    for patch in [r#"[{"op":"replace","path":"","value":"x"}]"#, r#"[{"op":"replace","path":"/metadata","value":"x"}]"#]
    {
        let arguments = ["patch", "events.v1.events.k8s.io", "e", "--type=json", "-p", patch];
        assert!(plane.ask("admin", &arguments, "").is_err());
    }
    assert!(plane.child.try_wait().unwrap().is_none(), "the server is still the same");
}

#[test]
fn evicting_binding_and_scaling_work() {
    // C3.18
    let plane = ControlPlane::start();
    plane.kubectl("run p --image=x:1");
    let binding =
        r#"{"apiVersion":"v1","kind":"Binding","metadata":{"name":"p"},"target":{"kind":"Node","name":"n1"}}"#;
    let path = "/api/v1/namespaces/default/pods/p/binding";
    plane.ask("admin", &["create", "--raw", path, "-f", "-"], binding).unwrap();
    assert_eq!(plane.kubectl("get pod p -o jsonpath={.spec.nodeName}"), "n1");
    let error = plane.refused(&format!("create --raw {path} -f -"), binding);
    assert!(error.contains(r#"pod p is already assigned to node "n1""#), "{error}");
    // C3.16: a pod with a node gets its grace, and stays until its node has ended it.
    plane.kubectl("delete pod p --wait=false");
    let pod = plane.json("get pod p -o json");
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
    plane.kubectl("delete pod p --grace-period=0 --force");
    assert!(plane.refused("get pod p", "").contains(r#"pods "p" not found"#));
    plane.kubectl("create deployment d --image=x:1");
    plane.kubectl("scale deployment d --replicas=3");
    assert_eq!(plane.kubectl("get deployment d -o jsonpath={.spec.replicas}"), "3");
}
