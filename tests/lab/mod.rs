//! A whole cluster for one test: containerd, control plane and agent, the shipped binaries, in namespaces of their own.
//!
//! `Lab::start()` returns when the node is ready. `lab.kubectl("get pods")` is stock kubectl as admin. `lab.finish()` deletes
//! everything through the API and fails the test when something is left in the kernel. Whatever happens, nothing
//! survives the test: see [`enclosure`].

#![allow(dead_code, reason = "each test target uses another part of the lab")]

pub(crate) mod enclosure;
pub(crate) mod manifest;
pub(crate) mod node_api;
pub(crate) mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use enclosure::{Enclosure, NODE_IP, NODE_IP6};
use serde_json::Value;

/// The node's name.
pub(crate) const NODE: &str = "lab";
/// How long a step may take on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A running cluster of one node.
#[derive(Debug)]
pub(crate) struct Lab {
    enclosure: Enclosure,
    containerd: Part,
    control_plane: Part,
    agent: Part,
}

/// One of the programs: how it is started, and the process while it runs.
#[derive(Debug)]
struct Part {
    name: &'static str,
    command: Vec<String>,
    process: Option<Child>,
}

/// What a command printed, and whether it succeeded.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code was 0.
    pub(crate) success: bool,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Lab {
    /// Starts everything, and waits until the node is ready.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let mut lab = Self::new();
        lab.start_containerd();
        lab.start_control_plane();
        lab.start_agent();
        lab.eventually("the node is ready", |lab| lab.node_is_ready());
        lab
    }

    /// As [`Lab::start`], with a node, pods and Services of both address families.
    #[track_caller]
    pub(crate) fn start_dual_stack() -> Self {
        let mut lab = Self::new();
        for command in [
            format!("ip address add {NODE_IP6}/64 dev node0 nodad"),
            "ip -6 route add default via fd00:198::1".to_owned(),
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            lab.run(words[0], &words[1..]).expect_success(&command);
        }
        for (flag, ranges) in
            [("--service-cidr", "10.96.0.0/16,fd00:96::/112"), ("--cluster-cidr", "10.244.0.0/16,fd00:244::/56")]
        {
            lab.control_plane.command.extend([flag.to_owned(), ranges.to_owned()]);
        }
        lab.agent_flag("--node-ip", &format!("{NODE_IP},{NODE_IP6}"));
        let config = lab.dir().join("stoker.yaml");
        let text = fs::read_to_string(&config).expect("it was written");
        fs::write(&config, text.replace(r#"["10.244.0.0/16"]"#, r#"["10.244.0.0/16", "fd00:244::/56"]"#))
            .expect("the folder is ours");
        lab.start_containerd();
        lab.start_control_plane();
        lab.start_agent();
        lab.eventually("the node is ready", |lab| lab.node_is_ready());
        lab
    }

    /// The namespaces and the configuration, nothing started yet.
    pub(crate) fn new() -> Self {
        let enclosure = Enclosure::new();
        let dir = enclosure.dir.to_str().expect("an ASCII path").to_owned();
        for folder in ["cni", "log"] {
            fs::create_dir(enclosure.dir.join(folder)).expect("the folder is ours");
        }
        for (template, file) in
            [("containerd.toml", "containerd.toml"), ("kubelet.yaml", "kubelet.yaml"), ("stoker.yaml", "stoker.yaml")]
        {
            fs::write(enclosure.dir.join(file), filled(template, &dir)).expect("the folder is ours");
        }
        let strings = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
        let control_plane = binary("stoker-control-plane");
        let agent = binary("stoker");
        Self {
            containerd: Part {
                name: "containerd",
                command: strings(&["containerd", "--config", &format!("{dir}/containerd.toml"), "--log-level", "warn"]),
                process: None,
            },
            control_plane: Part {
                name: "control-plane",
                command: strings(&[
                    control_plane.to_str().expect("an UTF-8 path"),
                    "run",
                    "--data-dir",
                    &format!("{dir}/control-plane"),
                    "--advertise-address",
                    NODE_IP,
                    "--node-name",
                    NODE,
                ]),
                process: None,
            },
            agent: Part {
                name: "agent",
                command: strings(&[
                    agent.to_str().expect("an UTF-8 path"),
                    "run",
                    "--config",
                    &format!("{dir}/kubelet.yaml"),
                    "--stoker-config",
                    &format!("{dir}/stoker.yaml"),
                    "--kubeconfig",
                    &format!("{dir}/control-plane/node-{NODE}.kubeconfig"),
                    "--root-dir",
                    &format!("{dir}/kubelet"),
                    "--cert-dir",
                    &format!("{dir}/kubelet/pki"),
                    "--hostname-override",
                    NODE,
                    "--node-ip",
                    NODE_IP,
                    "--container-runtime-endpoint",
                    &format!("unix://{dir}/containerd/containerd.sock"),
                ]),
                process: None,
            },
            enclosure,
        }
    }

    /// The folder of this lab: `log/`, `control-plane/`, `kubelet/`, `kubelet.yaml`, …
    pub(crate) fn dir(&self) -> &Path {
        &self.enclosure.dir
    }

    /// Starts containerd, and imports the images.
    pub(crate) fn start_containerd(&mut self) {
        self.containerd.start(&self.enclosure);
        self.eventually("containerd answers", |lab| lab.ctr("version").success);
        for image in ["hello", "busybox"] {
            let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/images/{image}.tar"));
            assert!(archive.is_file(), "{} is missing: run make/images", archive.display());
            self.ctr(&format!("images import {}", archive.display())).expect_success("ctr images import");
        }
    }

    /// Starts the control plane, and waits until it is ready.
    pub(crate) fn start_control_plane(&mut self) {
        self.control_plane.start(&self.enclosure);
        self.eventually("the API server is ready", |lab| {
            lab.kubeconfig().is_file() && lab.try_kubectl("get --raw /readyz").success
        });
        let rights = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pod-network.yaml");
        self.kubectl(&format!("apply -f {}", rights.display()));
    }

    /// Starts the agent.
    pub(crate) fn start_agent(&mut self) {
        self.agent.start(&self.enclosure);
    }

    /// Starts the agent with this value of a flag from now on; an empty one: the flag alone.
    pub(crate) fn agent_flag(&mut self, flag: &str, value: &str) {
        let command = &mut self.agent.command;
        match command.iter().position(|word| word == flag) {
            Some(place) => value.clone_into(&mut command[place + 1]),
            None => command.extend([flag, value].into_iter().filter(|word| !word.is_empty()).map(str::to_owned)),
        }
    }

    /// Starts this in the agent's place from now on.
    pub(crate) fn agent_is(&mut self, command: Vec<String>) {
        self.agent.command = command;
    }

    /// Starts the agent as systemd would that listens at this socket and watches over it, from now on.
    pub(crate) fn agent_is_watched(&mut self, socket: &Path, microseconds: u64) {
        let (socket, watched) =
            (format!("NOTIFY_SOCKET={}", socket.display()), format!("WATCHDOG_USEC={microseconds}"));
        let shell = ["sh", "-c", "export WATCHDOG_PID=$$; exec \"$0\" \"$@\"", "env"].map(str::to_owned);
        self.agent.command.splice(0..0, shell.into_iter().chain([socket, watched]));
    }

    /// Kills the agent with SIGKILL.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.kill(&self.enclosure);
    }

    /// Kills the control plane with SIGKILL.
    pub(crate) fn kill_control_plane(&mut self) {
        self.control_plane.kill(&self.enclosure);
    }

    /// Kills containerd with SIGKILL; its containers go on.
    pub(crate) fn kill_containerd(&mut self) {
        self.containerd.kill(&self.enclosure);
    }

    /// Starts containerd again after [`Lab::kill_containerd`].
    pub(crate) fn restart_containerd(&mut self) {
        self.containerd.start(&self.enclosure);
        self.eventually("containerd answers", |lab| lab.ctr("version").success);
    }

    /// Whether the agent's process still runs.
    pub(crate) fn agent_lives(&mut self) -> bool {
        self.agent.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Waits until the agent ended by itself.
    pub(crate) fn eventually_ends(&mut self) {
        for _ in 0..PATIENCE.as_millis() / LOOK_AGAIN.as_millis() {
            if !self.agent_lives() {
                return;
            }
            sleep(LOOK_AGAIN);
        }
        panic!("the agent goes on\n{}", self.story());
    }

    /// Whether nothing answers kubectl.
    #[track_caller]
    pub(crate) fn kubectl_is_refused(&self) {
        assert!(!self.try_kubectl("get nodes").success, "something answers in the control plane's place");
    }

    /// The agent's process, by its pid outside.
    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.pid_outside()
    }

    /// containerd's process, by its pid outside.
    pub(crate) fn containerd_pid(&self) -> u32 {
        self.containerd.pid_outside()
    }

    /// Writes more of kubelet's configuration, before the agent starts.
    pub(crate) fn configure(&self, yaml: &str) {
        let file = self.dir().join("kubelet.yaml");
        let text = fs::read_to_string(&file).expect("it was written");
        fs::write(&file, format!("{text}{yaml}")).expect("the folder is ours");
    }

    /// The control plane's process, by its pid outside.
    pub(crate) fn control_plane_pid(&self) -> u32 {
        self.control_plane.pid_outside()
    }

    /// Moves the calling thread, and those that it starts from now on, into the node's network.
    pub(crate) fn enter_network(&self) {
        self.enclosure.enter_network();
    }

    /// The file with the administrator's access.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.enclosure.dir.join("control-plane/admin.kubeconfig")
    }

    /// A kubectl of which a test wants more than its outcome, such as one that follows a log.
    pub(crate) fn kubectl_command(&self, arguments: &str) -> Command {
        let mut command = self.enclosure.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg(format!("--cache-dir={}/kubectl", self.dir().display()));
        command.args(arguments.split_whitespace());
        command
    }

    /// Runs kubectl as admin. The arguments are split at blanks.
    pub(crate) fn try_kubectl(&self, arguments: &str) -> Outcome {
        Outcome::of(&mut self.kubectl_command(arguments))
    }

    /// Runs kubectl as admin, and returns what it printed; fails the test when it fails.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &str) -> String {
        self.try_kubectl(arguments).expect_success(&format!("kubectl {arguments}"))
    }

    /// The object, or the list of objects, that `kubectl get` returns.
    #[track_caller]
    pub(crate) fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("get {what} -o json"))).expect("kubectl prints JSON")
    }

    /// Applies a manifest.
    #[track_caller]
    pub(crate) fn apply(&self, object: &Value) -> String {
        let file = self.dir().join("manifest.json");
        fs::write(&file, object.to_string()).expect("the folder is ours");
        self.kubectl(&format!("apply -f {}", file.display()))
    }

    /// Fetches a URL from the node itself.
    pub(crate) fn curl(&self, url: &str) -> Outcome {
        self.run("curl", &["-sS", "--fail", "--max-time", "3", url])
    }

    /// Runs any program inside.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        Outcome::of(self.enclosure.command(program).args(arguments))
    }

    /// Where the agent's program is.
    pub(crate) fn stoker(&self) -> String {
        binary("stoker").to_string_lossy().into_owned()
    }

    /// Runs `ctr`, in the namespace of Kubernetes.
    pub(crate) fn ctr(&self, arguments: &str) -> Outcome {
        let socket = self.dir().join("containerd/containerd.sock");
        let mut command = self.enclosure.command("ctr");
        command.arg("--address").arg(socket).args(["--namespace", "k8s.io"]).args(arguments.split_whitespace());
        Outcome::of(&mut command)
    }

    /// Waits until it is true, and fails the test when that takes too long.
    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, mut is_true: impl FnMut(&Self) -> bool) {
        let looks = PATIENCE.as_millis() / LOOK_AGAIN.as_millis();
        for _ in 0..looks {
            if is_true(self) {
                return;
            }
            sleep(LOOK_AGAIN);
        }
        panic!("not within {PATIENCE:?}: {what}\n{}", self.story());
    }

    /// Whether the Node's condition says so.
    pub(crate) fn node_is_ready(&self) -> bool {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.try_kubectl(&format!("get node {NODE} -o {path}")).out == "True"
    }

    /// How many pods of the label are ready, and not about to go.
    pub(crate) fn ready_pods(&self, app: &str) -> usize {
        let outcome = self.try_kubectl(&format!("get pods -l app={app} -o json"));
        let Ok(list) = serde_json::from_str::<Value>(&outcome.out) else { return 0 };
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            pod["metadata"]["deletionTimestamp"].is_null()
                && conditions.into_iter().any(|is| is["type"] == "Ready" && is["status"] == "True")
        };
        list["items"].as_array().into_iter().flatten().filter(ready).count()
    }

    /// The running containers of pods, by ID, with the time of their start.
    #[track_caller]
    pub(crate) fn running_containers(&self) -> Vec<(String, String)> {
        let list = self.get("pods -A");
        let statuses = |pod: &Value| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let mut running: Vec<_> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(statuses)
            .filter(|status| status["state"]["running"].is_object())
            .map(|status| (text(&status["containerID"]), text(&status["state"]["running"]["startedAt"])))
            .collect();
        running.sort();
        running
    }

    /// The ends of the logs and what the cluster holds, for a test that failed.
    fn story(&self) -> String {
        let mut story = self.try_kubectl("get nodes,pods,services,deployments,events -A -o wide").out;
        for part in ["control-plane", "agent", "containerd"] {
            let log = fs::read_to_string(self.dir().join(format!("log/{part}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            story += &format!("--- {part}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
        story
    }

    /// Deletes every workload through the API, and fails the test when something of a pod is left on the node.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.kubectl("delete deployments,replicasets,pods --all -A --wait=false");
        self.eventually("all pods are gone", |lab| lab.get("pods -A")["items"].as_array().is_some_and(Vec::is_empty));
        self.eventually("nothing of a pod is left on the node", |lab| lab.leftovers().is_empty());
    }

    /// What pods leave behind when they are not cleaned up.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let script = format!(
            "ls -d /run/netns/* 2>/dev/null
             ip -o link | grep -oE '(veth|stk)[^@:]*'
             awk '$2 ~ \"^{dir}/kubelet/pods/\" {{ print $2 }}' /proc/mounts
             find /sys/fs/cgroup -type d -name '*pod*-*-*-*' 2>/dev/null
             ls -d {dir}/kubelet/pods/* 2>/dev/null",
            dir = self.dir().display()
        );
        let mut found: Vec<String> = self.run("sh", &["-c", &script]).out.lines().map(str::to_owned).collect();
        found.extend(self.ctr("containers ls -q").out.lines().map(|id| format!("container {id}")));
        found
    }
}

impl Part {
    fn start(&mut self, enclosure: &Enclosure) {
        let log = enclosure.dir.join(format!("log/{}.log", self.name));
        let log = fs::File::options().create(true).append(true).open(log).expect("the folder is ours");
        // nsenter's own pid is outside: the shell notes the one inside.
        let pid_file = enclosure.dir.join(format!("{}.pid", self.name));
        let mut command = enclosure.command("sh");
        command.args(["-c", "echo $$ > \"$0\"; exec \"$@\""]).arg(pid_file).args(&self.command);
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        self.process = Some(command.spawn().expect("nsenter starts"));
    }

    /// nsenter waits for the one child that it has.
    fn pid_outside(&self) -> u32 {
        let nsenter = self.process.as_ref().expect("it was started").id();
        let children = fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children")).expect("nsenter runs");
        children.trim().parse().expect("nsenter has one child")
    }

    fn kill(&mut self, enclosure: &Enclosure) {
        let pid = fs::read_to_string(enclosure.dir.join(format!("{}.pid", self.name))).expect("it was started");
        Outcome::of(enclosure.command("kill").args(["-KILL", pid.trim()])).expect_success("kill");
        if let Some(mut process) = self.process.take() {
            process.wait().expect("it is our child");
        }
    }
}

impl Outcome {
    fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            success: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it printed; fails the test when it failed.
    #[track_caller]
    pub(crate) fn expect_success(self, what: &str) -> String {
        assert!(self.success, "{what} failed:\n{}{}", self.out, self.err);
        self.out
    }
}

/// A JSON string's content, empty for anything else.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A binary of ours: those beside this one, or those in the folder `STOKER_BINARIES`, such as what a release ships.
fn binary(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_stoker")).with_file_name(name);
    let path = std::env::var_os("STOKER_BINARIES").map_or(beside, |folder| Path::new(&folder).join(name));
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace`", path.display());
    path
}

/// A template of `make/templates`, for this lab.
fn filled(template: &str, dir: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("make/templates").join(template);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .replace("@DIR@", dir)
        .replace("@CNI_CONF@", &format!("{dir}/cni"))
        .replace("@CNI_BIN@", &format!("{dir}/cni-bin"))
        .replace("@RESTRICT_OOM@", "true")
        .replace("@CA@", &format!("{dir}/control-plane/pki/ca.crt"))
}
