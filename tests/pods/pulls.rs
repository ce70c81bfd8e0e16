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
    // A14.4, A14.5, A14.6
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

    for (name, secrets) in [("new", vec!["bad", "good"]), ("legacy", vec!["old"])] {
        let uid = node.api.create(of(&registry, name, &secrets));
        node.api.until(&uid, name, succeeded).await;
    }

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
    node.api.until(&hidden, "as if it were not there", absent).await;
    let friend = with_policy("friend", &["good"], "IfNotPresent");
    node.api.until(&friend, "friend", succeeded).await;
    let told = "already present on machine and can be accessed by the pod";
    let events = node.api.events();
    assert!(events.iter().any(|event| event.starts_with("friend ") && event.ends_with(told)), "{events:#?}");

    // A14.2: the image of a volume is pulled as that of a container is, and tells of itself on the pod.
    node.change_node(|node| node.runtime_version = "containerd://1.6.20".into());
    let with_volume = |name: &str, secrets: &[&str]| {
        let references = secrets.iter().map(|name| LocalObjectReference { name: (*name).to_owned() }).collect();
        let volume =
            serde_json::json!({ "name": "v", "image": { "reference": registry.image(), "pullPolicy": "Always" } });
        let builder = pod(name).container("main", "true").volume(serde_json::from_value(volume).unwrap(), "/v");
        node.api.create(builder.spec(|spec| spec.image_pull_secrets = Some(references)).0)
    };
    let volume = with_volume("volume", &["good"]);
    let text = format!(
        "failed to mount image \"{}\" for volume \"v\": containerd://1.6.20 cannot mount images",
        registry.image()
    );
    let refused = |p: &Pod| {
        let waiting = status(p, "main").state.and_then(|state| state.waiting).unwrap_or_default();
        waiting.message.unwrap_or_default().starts_with(&text)
    };
    node.api.until(&volume, "an old runtime cannot mount it", refused).await;
    let pulled = format!("volume  Pulled: Successfully pulled image \"{}\"", registry.image());
    assert!(node.api.events().iter().any(|event| event.starts_with(&pulled)), "{:#?}", node.api.events());
    let poor = with_volume("poor", &["bad"]);
    node.api.until(&poor, "denied", waits).await;

    fs::write(node.path("kubelet/config.json"), registry.config_json("s3cret")).unwrap();
    let uid = node.api.create(of(&registry, "node", &[]));
    node.api.until(&uid, "node", succeeded).await;
    node.api.until(&denied, "the denied one tries again, with what the node has now", succeeded).await;
    drop(registry);
    node.stop().await;
}
