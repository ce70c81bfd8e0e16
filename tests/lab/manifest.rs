//! A fluent builder for manifests: `pod("web").image(HELLO).port(8080)`.

use serde_json::{Map, Value, json};

/// The example's web server, on port 8080.
pub(crate) const HELLO: &str = "localhost/hello:1";
/// busybox, with all its names.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";

/// A pod with one container of the pod's name; of busybox, sleeping, unless told otherwise.
#[derive(Clone, Debug)]
pub(crate) struct PodManifest {
    name: String,
    labels: Map<String, Value>,
    container: Map<String, Value>,
    spec: Map<String, Value>,
}

/// Starts a pod's manifest.
pub(crate) fn pod(name: &str) -> PodManifest {
    let container = json!({
        "name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]
    });
    PodManifest {
        name: name.to_owned(),
        labels: Map::from_iter([("app".to_owned(), json!(name))]),
        container: object(container),
        // Busybox's sleep as PID 1 does not hear TERM, and no test should wait for that.
        spec: object(json!({ "terminationGracePeriodSeconds": 1 })),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

impl PodManifest {
    /// Another image, started as it says itself.
    pub(crate) fn image(mut self, image: &str) -> Self {
        self.container.remove("command");
        self.container("image", json!(image))
    }

    /// What the container runs.
    pub(crate) fn command(self, command: &[&str]) -> Self {
        self.container("command", json!(command))
    }

    /// A shell script as what the container runs.
    pub(crate) fn script(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    /// One more field of the container.
    pub(crate) fn container(mut self, field: &str, value: Value) -> Self {
        self.container.insert(field.to_owned(), value);
        self
    }

    /// One more field of the spec.
    pub(crate) fn spec(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.to_owned(), value);
        self
    }

    /// One more label.
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), json!(value));
        self
    }

    fn template(&self) -> Value {
        let mut spec = self.spec.clone();
        spec.insert("containers".to_owned(), json!([self.container]));
        json!({ "metadata": { "name": self.name, "labels": self.labels }, "spec": spec })
    }

    /// The pod as an object.
    pub(crate) fn build(&self) -> Value {
        let mut pod = self.template();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod
    }

    /// A Deployment of such pods.
    pub(crate) fn deployment(&self, replicas: u32) -> Value {
        let mut template = self.template();
        template["metadata"] = json!({ "labels": self.labels });
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": self.name, "labels": self.labels },
            "spec": { "replicas": replicas, "selector": { "matchLabels": self.labels }, "template": template },
        })
    }
}
