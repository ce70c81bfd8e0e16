//! `stoker reset`: takes this machine out of its cluster again, as far as the machine goes. Says what it will remove, and drains nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::mount::{UnmountFlags, unmount};

use super::join::{BOOTSTRAP, CA, CONFIGURATION, CONFIGURATION_BEFORE, KUBECONFIG, directory_argument, is_ours};
use super::preflight::lock;
use super::{cleanup, unit};
use crate::config::{KubeletConfig, StokerConfig, load, load_stoker_config};
use crate::runtime::Runtime;

/// For one answer of the runtime: stopping a sandbox waits for its processes.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(60);
/// What was being made when the agent ended appears only when the runtime is done with it.
const POD_ROUNDS: usize = 5;
/// Between two looks at the runtime.
const POD_REST: Duration = Duration::from_millis(500);
/// A mount may stand on another.
const UNMOUNT_ROUNDS: usize = 3;

/// Why the machine is not as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResetError {
    #[error("stoker reset must be started as root: it removes pods, mounts and rules")]
    NotRoot,
    #[error("nothing was removed: say yes, or give --yes")]
    Declined,
    #[error("an agent that systemd does not know still runs: stop it first ({0})")]
    Running(String),
    #[error("{0} things are left behind, see above; stoker reset again goes on")]
    Left(usize),
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// The command.
pub(super) fn command() -> Command {
    let text = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("PATH").default_value(default).help(help)
    };
    Command::new("reset")
        .about("Remove the node from this machine: pods, their directories and logs, rules, credentials")
        .after_help(
            "Drains nothing: kubectl drain first, and kubectl delete node afterwards. Images and packages stay, and so does what \
             another program has put into /etc/kubernetes.",
        )
        .arg(Arg::new("yes").long("yes").short('y').action(ArgAction::SetTrue).help("Do not ask"))
        .arg(
            Arg::new("only-pods")
                .long("only-pods")
                .action(ArgAction::SetTrue)
                .help("Remove nothing but the pods from the runtime, with their networks: what the package's removal does"),
        )
        .arg(directory_argument())
        .arg(text("root-dir", "/var/lib/kubelet", "Where pods live"))
        .arg(
            Arg::new("container-runtime-endpoint")
                .long("container-runtime-endpoint")
                .value_name("URL")
                .help("[default: as kubelet.yaml says]"),
        )
}

/// Where everything is that goes.
struct Places {
    directory: PathBuf,
    root: PathBuf,
    endpoint: String,
    pod_logs: PathBuf,
    container_logs: PathBuf,
    cgroup_root: String,
    stoker: StokerConfig,
    systemd: bool,
}

impl Places {
    fn of(matches: &ArgMatches) -> Self {
        let path = |name: &str| PathBuf::from(matches.get_one::<String>(name).cloned().unwrap_or_default());
        let directory = path("directory");
        let file = directory.join(CONFIGURATION);
        // What cannot be read leads nowhere else than the defaults do.
        let kubelet = load(file.exists().then_some(&*file), None, &serde_json::json!({}), false);
        let kubelet = kubelet.map_or_else(|_| KubeletConfig::default(), |loaded| loaded.kubelet);
        let own = directory.join("stoker.yaml");
        let said = matches.get_one::<String>("container-runtime-endpoint").cloned();
        let pod_logs = PathBuf::from(&kubelet.pod_logs_dir);
        Self {
            root: path("root-dir"),
            endpoint: said.unwrap_or(kubelet.container_runtime_endpoint),
            container_logs: pod_logs.parent().unwrap_or(Path::new("/")).join("containers"),
            pod_logs,
            cgroup_root: kubelet.cgroup_root,
            stoker: if own.exists() {
                load_stoker_config(Some(&own)).unwrap_or_default()
            } else {
                StokerConfig::default()
            },
            systemd: unit::has_systemd(),
            directory,
        }
    }

    /// In words, one line each.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.systemd {
            lines.push("stop the unit stoker.service, and start it at no boot".to_owned());
        }
        lines.push(self.line_of_pods());
        for directory in [&self.root, &self.pod_logs, &self.container_logs] {
            lines.push(format!("unmount and remove all below {}", directory.display()));
        }
        lines.push(
            "remove the pods' cgroups, the rules of services and policies, the routes of the pod network".to_owned(),
        );
        for file in self.files() {
            lines.push(format!("remove {}", file.display()));
        }
        let before = self.directory.join(CONFIGURATION_BEFORE);
        if before.exists() {
            lines.push(format!("put {} back in the place of {CONFIGURATION}", before.display()));
        }
        lines
    }

    fn line_of_pods(&self) -> String {
        format!("remove every pod from the runtime at {}; running ones are killed", self.endpoint)
    }

    /// Files of ours that are there.
    fn files(&self) -> Vec<PathBuf> {
        let own = [KUBECONFIG, BOOTSTRAP, CA].map(|name| self.directory.join(name));
        let cni = &self.stoker.cni;
        let network = [cni.conf_dir.join("05-stoker.conflist"), cni.bin_dir.join("stoker-cni"), cni.state_dir.clone()];
        let before = self.directory.join(CONFIGURATION_BEFORE);
        let written = Some(self.directory.join(CONFIGURATION)).filter(|path| !before.exists() && is_ours(path));
        own.into_iter().chain(network).chain(written).filter(|path| fs::symlink_metadata(path).is_ok()).collect()
    }
}

/// Removes all of it; one failure keeps nothing else from being removed.
pub(super) fn run(matches: &ArgMatches) -> Result<(), ResetError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ResetError::NotRoot);
    }
    let places = Places::of(matches);
    let only_pods = matches.get_flag("only-pods");
    println!("This will");
    for line in if only_pods { vec![places.line_of_pods()] } else { places.lines() } {
        println!("  - {line}");
    }
    println!("It does not drain the node, and leaves the Node object for kubectl delete node.");
    if !matches.get_flag("yes") && !confirmed() {
        return Err(ResetError::Declined);
    }
    let mut left = Left::default();
    if places.systemd && !only_pods {
        left.note("stop the unit", unit::disable_and_stop());
        left.note("forget the node's name", unit::forget_node_name());
    }
    let _lock = if places.root.exists() {
        let held = lock(&places.root.join("stoker.lock"), false);
        Some(held.map_err(|error| ResetError::Running(error.to_string()))?)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ResetError::Start)?;
    runtime.block_on(remove_pods(&places.endpoint, &mut left));
    drop(runtime);
    if only_pods {
        return left.told();
    }
    for directory in [&places.root, &places.pod_logs, &places.container_logs] {
        remove_tree(directory, &mut left);
    }
    remove_cgroups(&places.cgroup_root, &mut left);
    for file in places.files() {
        let gone = if file.is_dir() && !file.is_symlink() { fs::remove_dir_all(&file) } else { fs::remove_file(&file) };
        left.note(&format!("remove {}", file.display()), gone);
    }
    let before = places.directory.join(CONFIGURATION_BEFORE);
    if before.exists() {
        left.note("put the configuration back", fs::rename(&before, places.directory.join(CONFIGURATION)));
    }
    left.note("remove rules and routes", cleanup::cleanup());
    left.told()?;
    println!("this machine is no node any more");
    Ok(())
}

/// Counts what stays.
#[derive(Default)]
struct Left(usize);

impl Left {
    fn note(&mut self, what: &str, result: Result<(), impl std::fmt::Display>) {
        if let Err(error) = result {
            eprintln!("stoker: cannot {what}: {error}");
            self.0 += 1;
        }
    }

    const fn told(&self) -> Result<(), ResetError> {
        if self.0 == 0 { Ok(()) } else { Err(ResetError::Left(self.0)) }
    }
}

fn confirmed() -> bool {
    if !io::stdin().is_terminal() {
        eprintln!("stoker: nobody can be asked here");
        return false;
    }
    print!("Go on? [y/N] ");
    let mut answer = String::new();
    let heard = io::stdout().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
    heard.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

async fn remove_pods(endpoint: &str, left: &mut Left) {
    let runtime = match Runtime::connect(endpoint, RUNTIME_TIMEOUT) {
        Ok(runtime) => runtime,
        Err(error) => return left.note("reach the runtime", Err(error)),
    };
    // Each is tried once: a runtime that cannot end one would be waited for again and again.
    let mut tried = BTreeSet::new();
    for round in 0..POD_ROUNDS {
        let sandboxes = match runtime.list_pod_sandbox(None).await {
            Ok(sandboxes) => sandboxes,
            Err(error) => return left.note("list the pods of the runtime", Err(error)),
        };
        let new: Vec<_> = sandboxes.into_iter().filter(|sandbox| tried.insert(sandbox.id.clone())).collect();
        if new.is_empty() && round > 0 {
            return;
        }
        for sandbox in new {
            let name = sandbox.metadata.map(|is| format!("{}/{}", is.namespace, is.name)).unwrap_or_default();
            left.note(&format!("stop pod {name}"), runtime.stop_pod_sandbox(&sandbox.id).await);
            left.note(&format!("remove pod {name}"), runtime.remove_pod_sandbox(&sandbox.id).await);
        }
        tokio::time::sleep(POD_REST).await;
    }
}

/// Unmounts what is mounted below, and removes the directory; leaves it where a mount stays, whose content is not ours.
fn remove_tree(directory: &Path, left: &mut Left) {
    let Ok(directory) = fs::canonicalize(directory) else { return };
    for _ in 0..UNMOUNT_ROUNDS {
        let mut mounts = mounts_below(&directory);
        // The deepest first.
        mounts.sort();
        for mount in mounts.iter().rev() {
            if unmount(mount, UnmountFlags::empty()).is_err() {
                let _ = unmount(mount, UnmountFlags::DETACH);
            }
        }
    }
    match mounts_below(&directory).first() {
        None => left.note(&format!("remove {}", directory.display()), fs::remove_dir_all(&directory)),
        Some(mount) => {
            left.note(&format!("remove {}", directory.display()), Err(format!("{} is mounted", mount.display())))
        }
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescaped(point)));
    points.filter(|point| point.starts_with(directory)).collect()
}

/// Blanks and the like are octal there.
fn unescaped(point: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(point.to_owned(), |text, (code, sign)| text.replace(code, sign))
}

/// Removes the groups of pods in every hierarchy; the kernel keeps one in which something still runs.
fn remove_cgroups(root: &str, left: &mut Left) {
    let mut trees = vec![PathBuf::from("/sys/fs/cgroup")];
    trees.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    for tree in trees {
        for name in ["kubepods", "kubepods.slice"] {
            let top = tree.join(root.trim_start_matches('/')).join(name);
            if top.is_dir() {
                left.note(&format!("remove the cgroups {}", top.display()), remove_groups(&top));
            }
        }
    }
}

fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_go_is_said() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in [KUBECONFIG, CA, CONFIGURATION_BEFORE] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        let line = ["reset", "--directory", dir.path().to_str().expect("UTF-8"), "--root-dir", "/nonexistent/root"];
        let matches = command().try_get_matches_from(line).expect("a command line");
        let places = Places::of(&matches);
        let text = places.lines().join("\n");
        for part in ["node.kubeconfig", "ca.crt", "put ", "/nonexistent/root", "/var/log/pods", "containerd.sock"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains(BOOTSTRAP), "what is not there does not go: {text}");
        assert_eq!(unescaped("/a\\040b"), "/a b");
    }
}
