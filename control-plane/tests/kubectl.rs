//! Stock kubectl against the real API server over TLS. Here without controllers; `whole` runs the program with all rooms.

#[path = "kubectl/access.rs"]
mod access;
#[path = "kubectl/joining.rs"]
mod joining;
#[path = "kubectl/kinds.rs"]
mod kinds;
#[path = "kubectl/reviews.rs"]
mod reviews;
mod server;
#[path = "kubectl/verbs.rs"]
mod verbs;
#[path = "kubectl/whole.rs"]
mod whole;

use serde_json::{Value, json};
use server::Server;

const HELLO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello, labels: {app: hello}}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{containerPort: 8080}]}
      - {name: side, image: "side:1"}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
"#;

fn started() -> Server {
    let server = Server::start();
    server.create("", "serviceaccounts", "default", json!({"metadata": {"name": "default"}}));
    server
}

fn object(server: &Server, what: &str) -> Value {
    serde_json::from_str(&server.kubectl(&format!("get {what} -o json --show-managed-fields"))).unwrap()
}

#[test]
fn discovery_and_version() {
    // D1.32, D1.34
    let server = started();
    assert!(server.kubectl("api-versions").lines().any(|line| line == "apps/v1"));
    let resources = server.kubectl("api-resources");
    let deployments = resources.lines().find(|line| line.starts_with("deployments ")).unwrap();
    assert_eq!(
        deployments.split_whitespace().collect::<Vec<_>>(),
        ["deployments", "deploy", "apps/v1", "true", "Deployment"]
    );
    assert!(server.kubectl("version").contains("Server Version: v1."));
}

#[test]
fn create_commands_that_send_protobuf() {
    // C3.1, D1.1
    let server = started();
    server.kubectl("create configmap c --from-literal=a=1");
    server.kubectl("create secret generic s --from-literal=b=2");
    server.kubectl("create namespace n");
    server.kubectl("create deployment web --image=nginx --replicas=3 --port=80");
    assert_eq!(object(&server, "cm c")["data"], json!({"a": "1"}));
    assert_eq!(object(&server, "secret s")["data"], json!({"b": "Mg=="}));
    let web = object(&server, "deploy web");
    assert_eq!(web["spec"]["replicas"], 3);
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"], 80);
    assert_eq!(web["metadata"]["managedFields"][0]["manager"], "kubectl-create");
    assert!(server.kubectl("create deployment dry --image=x --dry-run=server -o name").contains("deployment.apps/dry"));
    assert!(server.kubectl_fails("get deploy dry").contains("deployments.apps \"dry\" not found"));
}

#[test]
fn get_prints_the_servers_columns() {
    // C3.9, C4.6, D1.5
    let server = started();
    server.kubectl(&format!("apply -f {}", server.file("hello.yaml", HELLO).display()));
    let table = server.kubectl("get deploy -o wide");
    let mut lines = table.lines();
    let words = |line: Option<&str>| line.unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(lines.next()),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    let row = words(lines.next());
    assert_eq!((row[0].as_str(), row[1].as_str(), row[7].as_str()), ("hello", "0/2", "app=hello"));
    assert!(server.kubectl("get all -A").contains("service/hello"));
    assert!(server.kubectl("get deploy -l app=hello -o name").contains("deployment.apps/hello"));
    assert_eq!(server.kubectl("get deploy -l app=other -o name"), "");
}

#[test]
fn apply_twice_and_change() {
    // D1.27, C3.11
    let server = started();
    let file = server.file("hello.yaml", HELLO);
    let apply = format!("apply -f {}", file.display());
    assert!(server.kubectl(&apply).contains("deployment.apps/hello created"));
    let again = server.kubectl(&apply);
    assert!(again.contains("deployment.apps/hello unchanged") && again.contains("service/hello unchanged"), "{again}");
    assert_eq!(server.kubectl(&format!("diff -f {}", file.display())), "");
    server
        .file("hello.yaml", &HELLO.replace("      - {name: side, image: \"side:1\"}\n", "").replace("web:1", "web:2"));
    assert!(server.kubectl(&apply).contains("deployment.apps/hello configured"));
    let containers = object(&server, "deploy hello")["spec"]["template"]["spec"]["containers"].clone();
    assert_eq!(containers.as_array().unwrap().len(), 1, "the dropped container is gone");
    assert_eq!(containers[0]["image"], "web:2");
}

#[test]
fn server_side_apply_and_its_conflicts() {
    // C3.12, D1.28
    let server = started();
    let apply = format!("apply --server-side -f {}", server.file("hello.yaml", HELLO).display());
    assert!(server.kubectl(&apply).contains("deployment.apps/hello serverside-applied"));
    let version = object(&server, "deploy hello")["metadata"]["resourceVersion"].clone();
    server.kubectl(&apply);
    assert_eq!(object(&server, "deploy hello")["metadata"]["resourceVersion"], version, "nothing changed");
    server.kubectl_args(&["patch", "deploy", "hello", "--field-manager=other", "-p", r#"{"spec":{"replicas":5}}"#]);
    let error = server.kubectl_fails(&apply);
    assert!(error.contains("conflict with \"other\" using apps/v1") && error.contains(".spec.replicas"), "{error}");
    server.kubectl(&format!("{apply} --force-conflicts"));
    assert_eq!(object(&server, "deploy hello")["spec"]["replicas"], 2);
}

#[test]
fn set_label_annotate_patch_scale_and_rollout_commands() {
    // D1.4, D1.11, D1.12, D1.29, D1.31
    let server = started();
    server.kubectl("create deployment web --image=nginx");
    for command in [
        "set image deploy/web nginx=nginx:2",
        "set env deploy/web A=b",
        "label deploy web tier=front",
        "annotate deploy web note=x",
        "rollout restart deploy/web",
        "rollout pause deploy/web",
        "rollout resume deploy/web",
        "scale deploy web --replicas=5",
        r#"patch deploy web --type=merge -p {"spec":{"minReadySeconds":3}}"#,
        r#"patch deploy web --type=json -p [{"op":"add","path":"/metadata/labels/x","value":"y"}]"#,
        r#"patch deploy web -p {"spec":{"template":{"spec":{"containers":[{"name":"nginx","tty":true}]}}}}"#,
    ] {
        server.kubectl(command);
    }
    let web = object(&server, "deploy web");
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["tty"]), (&json!("nginx:2"), &json!(true)));
    assert_eq!(container["env"], json!([{"name": "A", "value": "b"}]));
    assert_eq!(web["metadata"]["labels"], json!({"app": "web", "tier": "front", "x": "y"}));
    assert_eq!((&web["spec"]["replicas"], &web["spec"]["minReadySeconds"]), (&json!(5), &json!(3)));
    let template = &web["spec"]["template"]["metadata"];
    assert!(template["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string());
}

#[test]
fn run_expose_wait_and_delete() {
    // D1.2, D1.3, D1.8, D1.36
    let server = started();
    server.kubectl("run p --image=busybox --labels=app=p --port=80 -- sleep 1");
    server.kubectl("expose pod p --port=80");
    assert_eq!(object(&server, "svc p")["spec"]["selector"], json!({"app": "p"}));
    server.kubectl("wait --for=jsonpath={.status.phase}=Pending pod/p --timeout=10s");
    assert!(server.kubectl("describe pod p").contains("Status:"));
    assert!(server.kubectl("delete pod p").contains("pod \"p\" deleted"));
    assert!(server.kubectl_fails("get pod p").contains("pods \"p\" not found"));
}

#[test]
fn autoscalers_show_in_both_versions() {
    // C1.4, C3.23
    let server = started();
    server.kubectl("create deployment web --image=nginx");
    server.kubectl("autoscale deploy web --min=2 --max=4 --cpu-percent=60");
    let shown = object(&server, "horizontalpodautoscalers.v1.autoscaling web");
    assert_eq!((&shown["apiVersion"], &shown["spec"]["maxReplicas"]), (&json!("autoscaling/v1"), &json!(4)));
    assert_eq!(shown["spec"]["targetCPUUtilizationPercentage"], 60);
    let shown = object(&server, "horizontalpodautoscalers.v2.autoscaling web");
    assert_eq!(shown["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60);
    server.kubectl_args(&[
        "patch",
        "horizontalpodautoscalers.v1.autoscaling",
        "web",
        "-p",
        r#"{"spec":{"maxReplicas":9}}"#,
    ]);
    assert_eq!(object(&server, "hpa web")["spec"]["maxReplicas"], 9);
    assert!(server.kubectl("get hpa").contains("cpu: <unknown>/60%"));
    assert!(server.kubectl("describe hpa web").contains("60%"));
    server.kubectl("delete hpa web");
    assert_eq!(server.kubectl("get hpa -o name"), "");
}

#[test]
fn explain_reads_the_schemas() {
    // C2.3, D1.6
    let server = started();
    let spec = server.kubectl("explain pod.spec");
    assert!(spec.contains("containers\t<[]Container> -required-"), "{spec}");
    let path = server.kubectl("explain pod.spec.containers.livenessProbe.httpGet.port");
    assert!(path.contains("FIELD: port <IntOrString>"), "{path}");
    assert!(server.kubectl("explain deployment.spec.strategy --recursive").contains("maxSurge"));
}

#[test]
fn strict_validation_names_unknown_fields() {
    // C3.13
    let server = started();
    let wrong = HELLO.replace("  replicas: 2", "  replicas: 2\n  replics: 3");
    let error = server.kubectl_fails(&format!("create -f {}", server.file("wrong.yaml", &wrong).display()));
    assert!(error.contains("strict decoding error: unknown field \"spec.replics\""), "{error}");
}

#[test]
fn access_reviews() {
    // D1.26
    let server = started();
    assert_eq!(server.kubectl("auth can-i create pods").trim(), "yes");
    assert!(server.kubectl("auth whoami").contains("kubernetes-admin"));
}
