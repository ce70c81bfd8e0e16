//! Pulls from a registry that asks who is there: Debian's docker-registry, on loopback.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{LocalObjectReference, Pod};

use crate::lab::BUSYBOX;
use crate::node::{Node, phase, pod, state, status};

/// `robot` with the password `s3cret`.
const USERS: &str = "robot:$2y$05$C0LFdtOISTypQj0Q33NGqubuXhs0ahUGlOphZZ4ANOMIuG/E2yN5.\n";

struct Registry {
    process: Child,
    /// `127.0.0.1:port`
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// A private one, which holds busybox as `private/busybox:1`.
    async fn start(node: &Node) -> Self {
        let folder = node.path("registry");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("users"), USERS).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\nhttp:\n  addr: {host}\n\
             auth:\n  htpasswd:\n    realm: test\n    path: {0}/users\n",
            folder.display()
        );
        fs::write(folder.join("config.yml"), config).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, host };
        for _ in 0..100 {
            if std::net::TcpStream::connect(&registry.host).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let image = registry.image();
        ctr(node, &["images", "tag", BUSYBOX, &image]);
        ctr(node, &["images", "push", "--plain-http", "--user", "robot:s3cret", &image]);
        ctr(node, &["images", "rm", "--sync", &image]);
        registry
    }

    fn image(&self) -> String {
        format!("{}/private/busybox:1", self.host)
    }

    fn config_json(&self, password: &str) -> String {
        let entry = serde_json::json!({ "username": "robot", "password": password });
        serde_json::json!({ "auths": { &self.host: entry } }).to_string()
    }
}

fn ctr(node: &Node, arguments: &[&str]) {
    let socket = node.path("c.sock");
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(["--namespace", "k8s.io"]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn of(registry: &Registry, name: &str, secrets: &[&str]) -> Pod {
    let references = secrets.iter().map(|name| LocalObjectReference { name: (*name).to_owned() }).collect();
    let image = registry.image();
    pod(name)
        .restart("Never")
        .container("main", "true")
        .with(|container| {
            container.image = Some(image);
            container.image_pull_policy = Some("Always".into());
        })
        .spec(|spec| spec.image_pull_secrets = Some(references))
        .0
}

#[tokio::test]
async fn private_images_come_with_the_secrets_of_the_pod_or_of_the_node() {
    // A2.14, A14.1, A14.2, A14.4, A14.5, A14.6, A14.7, A21.1, A21.2
    let node = Node::start().await;
    let registry = Registry::start(&node).await;
    node.api.put_pull_secret(
        "good",
        "kubernetes.io/dockerconfigjson",
        ".dockerconfigjson",
        &registry.config_json("s3cret"),
    );
    node.api.put_pull_secret(
        "bad",
        "kubernetes.io/dockerconfigjson",
        ".dockerconfigjson",
        &registry.config_json("wrong"),
    );
    node.api.put_pull_secret("broken", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", "{");
    let old = serde_json::json!({ &registry.host: { "auth": "cm9ib3Q6czNjcmV0" } }).to_string();
    node.api.put_pull_secret("old", "kubernetes.io/dockercfg", ".dockercfg", &old);
    let succeeded = |p: &Pod| phase(p) == "Succeeded";

    let of_image = |name: &str, image: &str, policy: &str| {
        let mut pod = of(&registry, name, &[]);
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        (container.image, container.image_pull_policy) = (Some(image.to_owned()), Some(policy.to_owned()));
        pod
    };
    // A14.7: a short name is one of Docker Hub's.
    ctr(&node, &["images", "tag", BUSYBOX, "docker.io/library/normal:latest"]);
    let there = || async {
        let wanted = stoker::runtime::cri::ImageSpec { image: "normal".into(), ..Default::default() };
        node.lab.runtime.image_status(wanted).await.unwrap().is_some()
    };
    for _ in 0..100 {
        if there().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let short = node.api.create(of_image("short", "normal", "Never"));
    node.api.until(&short, "short", succeeded).await;

    let denied = node.api.create(of(&registry, "denied", &["absent", "", "bad", "gone"]));
    let waits = |p: &Pod| state(status(p, "main").state.as_ref()) == "waiting ErrImagePull";
    node.api.until(&denied, "denied", waits).await;
    let told = "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (absent, gone); attempting to pull the image may not succeed.";
    assert!(node.api.events().iter().any(|event| event.ends_with(told)), "{:#?}", node.api.events());

    // A secret that cannot be read is no reason to try without it.
    let broken = node.api.create(of(&registry, "broken", &["good", "broken"]));
    node.api.until(&broken, "broken", waits).await;
    let pulling = |event: &String| event.starts_with("broken ") && event.contains(" Pulling: ");
    assert!(!node.api.events().iter().any(pulling), "{:#?}", node.api.events());

    for (name, secrets) in [("new", vec!["bad", "good"]), ("legacy", vec!["old"]), ("mixed", vec!["absent", "good"])] {
        let uid = node.api.create(of(&registry, name, &secrets));
        node.api.until(&uid, name, succeeded).await;
    }
    // What is not to be had of a pod's secrets keeps nobody from trying (A14.5).
    let image = registry.image();
    let told = |name: &str, text: &str| {
        let begin = format!("{name} spec.containers{{main}} {text}");
        node.api.events().into_iter().find(|event| event.starts_with(&begin))
    };
    assert!(told("mixed", "Pulling: ").is_some() && told("denied", "Pulling: ").is_some());
    let mixed = "mixed  FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (absent); attempting to pull the image may not succeed.";
    assert!(node.api.is_warning(mixed), "{:#?}", node.api.events());

    // A14.2: what is told of a pull that succeeds, and of one that does not.
    assert!(told("new", &format!("Pulling: Pulling image \"{image}\"")).is_some());
    let pulled = told("new", &format!("Pulled: Successfully pulled image \"{image}\" in ")).expect("an event");
    assert!(pulled.contains(" including waiting). Image size: ") && pulled.ends_with(" bytes."), "{pulled}");
    assert!(!node.api.is_warning(&pulled));
    let failed = told("denied", &format!("Failed: Failed to pull image \"{image}\": ")).expect("an event");
    let error = failed.split_once(&format!("\"{image}\": ")).unwrap().1.to_owned();
    assert!(node.api.is_warning(&failed) && told("denied", "Failed: Error: ErrImagePull").is_some());
    let backs_off = |p: &Pod| state(status(p, "main").state.as_ref()) == "waiting ImagePullBackOff";
    let waiting = node.api.until(&denied, "backing off", backs_off).await;
    let message = status(&waiting, "main").state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, format!("Back-off pulling image \"{image}\": ErrImagePull: {error}"));
    let backed = told("denied", &format!("BackOff: Back-off pulling image \"{image}\"")).expect("an event");
    assert!(!node.api.is_warning(&backed) && told("denied", "Failed: Error: ImagePullBackOff").is_some());
    let nonsense = node.api.create(of_image("nonsense", "No/Such:Thing:", "IfNotPresent"));
    let invalid = |p: &Pod| state(status(p, "main").state.as_ref()) == "waiting InvalidImageName";
    let waiting = node.api.until(&nonsense, "refused", invalid).await;
    let message = status(&waiting, "main").state.unwrap().waiting.unwrap().message.unwrap();
    assert!(
        message.starts_with("Failed to apply default image tag \"No/Such:Thing:\": couldn't parse image name"),
        "{message}"
    );
    assert!(told("nonsense", "InspectFailed: Failed to apply default image tag").is_some());

    // A14.7: a class chooses who pulls.
    node.api.put_runtime_class("usual", "runc");
    let mut classy = of(&registry, "classy", &["good"]);
    classy.spec.as_mut().unwrap().runtime_class_name = Some("usual".into());
    let classy = node.api.create(classy);
    node.api.until(&classy, "classy", succeeded).await;

    // A14.6: what came with a secret is there for those who have it.
    let with_policy = |name: &str, secrets: &[&str], policy: &str| {
        let mut pod = of(&registry, name, secrets);
        pod.spec.as_mut().unwrap().containers[0].image_pull_policy = Some(policy.to_owned());
        node.api.create(pod)
    };
    let stranger = with_policy("stranger", &[], "IfNotPresent");
    node.api.until(&stranger, "pulled again, and denied", waits).await;
    let hidden = with_policy("hidden", &["bad"], "Never");
    let absent = |p: &Pod| state(status(p, "main").state.as_ref()) == "waiting ErrImageNeverPull";
    let waiting = node.api.until(&hidden, "as if it were not there", absent).await;
    let message = status(&waiting, "main").state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, format!("Container image \"{image}\" is not present with pull policy of Never"));
    let friend = with_policy("friend", &["good"], "IfNotPresent");
    node.api.until(&friend, "friend", succeeded).await;
    let told = "already present on machine and can be accessed by the pod";
    let events = node.api.events();
    assert!(events.iter().any(|event| event.starts_with("friend ") && event.ends_with(told)), "{events:#?}");

    fs::write(node.path("kubelet/config.json"), registry.config_json("s3cret")).unwrap();
    let uid = node.api.create(of(&registry, "node", &[]));
    node.api.until(&uid, "node", succeeded).await;
    node.api.until(&denied, "the denied one tries again, with what the node has now", succeeded).await;
    drop(registry);
    // A23.3
    let counted = stoker_model::metrics::text(0);
    for name in
        ["kubelet_image_pull_duration_seconds_count{", "kubelet_started_containers_total{container_type=\"container\"}"]
    {
        assert!(counted.contains(name), "{name}\n{counted}");
    }
    node.stop().await;
}
