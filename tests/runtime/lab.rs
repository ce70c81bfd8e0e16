//! A containerd of its own for one test: root, state, socket and cgroup parent; nothing of it outlives the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stoker::runtime::cri::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use stoker::runtime::{ImageSource, Runtime, import};
use stoker_model::names;
use tempfile::TempDir;

/// The image that [`Lab::with_busybox`] has.
pub const BUSYBOX: &str = "127.0.0.1:1/stoker/busybox:1"; // where no registry is

/// The sandbox image that containerd is told of.
pub const PAUSE: &str = "127.0.0.1:1/stoker/pause:9";

pub struct Lab {
    dir: TempDir,
    containerd: Option<Child>,
    pub runtime: Runtime,
}

impl Lab {
    /// A containerd with no image at all.
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("stoker-runtime-").tempdir().unwrap();
        let path = dir.path();
        fs::create_dir_all(path.join("cni")).unwrap();
        let config = format!(
            r#"version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{0}/c.sock"
[ttrpc]
address = "{0}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
disable_apparmor = true
sandbox_image = "127.0.0.1:1/stoker/pause:9"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{0}/cni"
conf_template = "{0}/cni.template"
"#,
            path.display()
        );
        fs::write(path.join("config.toml"), config).unwrap();
        // Used only when somebody tells the range of pod addresses.
        let ranges = r#"{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}[{"subnet": "{{$r}}"}]{{end}}"#;
        let plugin = format!(r#"{{"type": "ptp", "ipam": {{"type": "host-local", "ranges": [{ranges}]}}}}"#);
        let template = format!(r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{plugin}]}}"#);
        fs::write(path.join("cni.template"), template).unwrap();
        let endpoint = format!("unix://{}/c.sock", path.display());
        let runtime = Runtime::connect(&endpoint, Duration::from_secs(30)).unwrap();
        let mut lab = Self { dir, containerd: None, runtime };
        lab.start_containerd().await;
        lab
    }

    /// The same with our pause image and a busybox.
    pub async fn with_busybox() -> Self {
        let lab = Self::start().await;
        stoker::runtime::pause::ensure(&lab.runtime).await.unwrap();
        let source = ImageSource {
            layer: busybox_layer().into(),
            entrypoint: vec!["/bin/busybox".into()],
            env: vec!["PATH=/bin".into()],
            user: String::new(),
        };
        import(&lab.runtime, BUSYBOX, &source, false).await.unwrap();
        lab
    }

    pub async fn start_containerd(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path().join("log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed");
        self.containerd = Some(child);
        for _ in 0..300 {
            if self.runtime.version().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("containerd does not answer: {}", fs::read_to_string(self.path().join("log")).unwrap());
    }

    /// Containers go on without it.
    pub fn kill_containerd(&mut self) {
        if let Some(mut child) = self.containerd.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A sandbox in the host's network, so that no CNI is needed.
    pub fn sandbox(&self, name: &str, pid: NamespaceMode) -> PodSandboxConfig {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: pid.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            log_directory: self.path().join("logs").join(name).to_str().unwrap().into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.path().file_name().unwrap().to_str().unwrap()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A container of busybox that runs a shell script.
    pub fn container(&self, name: &str, pid: NamespaceMode, script: &str) -> ContainerConfig {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: pid.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
            command: ["/bin/busybox", "sh", "-c", script].map(String::from).into(),
            envs: vec![KeyValue { key: "A".into(), value: "b".into() }],
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a sandbox with one container: their IDs, and the container's log file.
    pub async fn run(&self, name: &str, script: &str) -> (String, String, PathBuf) {
        let sandbox_config = self.sandbox(name, NamespaceMode::Container);
        let sandbox = self.runtime.run_pod_sandbox(sandbox_config.clone(), "").await.unwrap();
        let mut config = self.container("main", NamespaceMode::Container, script);
        // As the agent names what it makes.
        config.labels = [(names::POD_UID, name), (names::CONTAINER_NAME, "main")]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into();
        let container = self.runtime.create_container(&sandbox, config, sandbox_config).await.unwrap();
        self.runtime.start_container(&container).await.unwrap();
        let log = self.path().join("logs").join(name).join("main.log");
        (sandbox, container, log)
    }

    /// Removes everything that runs, and ends containerd.
    pub async fn stop(mut self) {
        for sandbox in self.runtime.list_pod_sandbox(None).await.unwrap() {
            self.runtime.stop_pod_sandbox(&sandbox.id).await.unwrap();
            self.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
        self.clean_up();
        let left = processes_naming(self.path());
        assert!(left.is_empty(), "processes {left:?} are left");
    }

    fn clean_up(&mut self) {
        self.kill_containerd();
        // Of a test that failed: shims carry the socket's path in their arguments, and what they run ends with them.
        for pid in processes_naming(self.path()) {
            for child in children_of(pid) {
                kill(child);
            }
            kill(pid);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let ours: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        for mount in ours.into_iter().rev().filter(|mount| Path::new(mount).starts_with(self.path())) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
        self.remove_cgroups();
    }

    /// The runtime leaves the parent that it was given, an agent its tree below that, and the kernel may need a moment to see that the last process has gone.
    fn remove_cgroups(&self) {
        let name = self.path().file_name().unwrap();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        for parent in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|hierarchy| hierarchy.join(name)) {
            for _ in 0..50 {
                remove_cgroup(&parent);
                if !parent.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// One that nothing is in, and those below it.
fn remove_cgroup(group: &Path) {
    let children = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    children.filter(|child| child.is_dir()).for_each(|child| remove_cgroup(&child));
    let _ = fs::remove_dir(group);
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.clean_up();
    }
}

/// Processes other than this one whose arguments name `path`.
fn processes_naming(path: &Path) -> Vec<i32> {
    let path = path.to_str().unwrap();
    pids().filter(|pid| *pid != std::process::id() as i32 && arguments(*pid).contains(path)).collect()
}

pub fn arguments(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

pub fn children_of(parent: i32) -> Vec<i32> {
    pids().filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// State letter and parent.
pub fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn kill(pid: i32) {
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
}

pub fn busybox_layer() -> Vec<u8> {
    let program = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut archive = tar::Builder::new(Vec::new());
    for directory in ["bin/", "tmp/"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o1777);
        header.set_size(0);
        archive.append_data(&mut header, directory, std::io::empty()).unwrap();
    }
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    archive.append_data(&mut header, "bin/busybox", program.as_slice()).unwrap();
    archive.into_inner().unwrap()
}
