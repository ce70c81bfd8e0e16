//! Fresh pid, network, mount and cgroup namespaces, in which a whole node can run without anybody outside noticing.
//!
//! The first process in them ends when its standard input does, and the kernel then ends all others: so nothing survives the
//! test, not even one that is killed. What namespaces do not cover (a folder, empty cgroups) is removed on drop, or by
//! the next start ([`sweep`]).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Where enclosures live: a short path, because sockets stand below it.
fn home() -> PathBuf {
    std::env::var_os("STOKER_LAB_DIR").map_or_else(|| "/tmp".into(), PathBuf::from)
}

/// Part of every name that we give: of folders and of cgroups.
const PREFIX: &str = "stoker-lab-";

/// Joins a cgroup of its own in each hierarchy, then makes the namespaces. `$1`: the enclosure's name.
const OUTSIDE: &str = r#"
set -e
for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$tree/cgroup.procs" ] || continue
  mkdir -p "$tree/$1"
  # A v1 cpuset is empty until told otherwise.
  for file in cpuset.cpus cpuset.mems; do
    [ ! -e "$tree/$file" ] || [ -e "$tree/cgroup.controllers" ] || cat "$tree/$file" > "$tree/$1/$file"
  done
  echo $$ > "$tree/$1/cgroup.procs"
done
exec unshare --mount --net --pid --cgroup --uts --propagation private --fork --kill-child bash -c "$2" enclosure "$1"
"#;

/// Makes the machine that the namespaces show: its own /proc, cgroup tree, /run and address. Then waits for the end of input.
const INSIDE: &str = r#"
set -e
mount -t proc proc /proc
hostname "$1"
while read -r _ _ _ _ point _ rest; do
  kind=${rest##*- }; kind=${kind%% *}
  options=${rest##* }
  case "$kind" in
    cgroup) options=$(echo "$options" | tr , '\n' | grep -vx -e rw -e ro | paste -sd,)
      case "$options" in name=*) options="none,$options" ;; esac
      umount "$point"; mount -t cgroup -o "$options" cgroup "$point" ;;
    cgroup2) umount "$point"; mount -t cgroup2 cgroup2 "$point"
      # Controllers can be handed down only by a group without processes of its own.
      mkdir -p "$point/init"
      for pid in $(cat "$point/cgroup.procs"); do echo "$pid" > "$point/init/cgroup.procs"; done 2> /dev/null || true
      for controller in $(cat "$point/cgroup.controllers"); do
        echo "+$controller" > "$point/cgroup.subtree_control" 2> /dev/null || true
      done ;;
  esac
done < <(grep -E ' - cgroup2? ' /proc/self/mountinfo)
mkdir -p /var/lib/cni /var/log/pods
for folder in /run /var/lib/cni /var/log; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/netns /var/log/pods /run/switches
# An agent sets these for the whole machine: it gets files that say what the machine has.
for switch in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$switch" ] || continue
  cat "/proc/sys/$switch" > "/run/switches/${switch##*/}"
  mount --bind "/run/switches/${switch##*/}" "/proc/sys/$switch"
done
ip link set lo up
ip link add node0 type bridge
ip address add 198.51.100.2/24 dev node0
ip link set node0 up
ip route add default via 198.51.100.1
echo 1 > /proc/sys/net/ipv4/ip_forward
[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
echo ready
cat > /dev/null
"#;

/// The node's address in its network.
pub(crate) const NODE_IP: &str = "198.51.100.2";

/// Its address of the other family, where a test gives it one.
pub(crate) const NODE_IP6: &str = "fd00:198::2";

/// The namespaces, and the folder for all that stands in files.
#[derive(Debug)]
pub(crate) struct Enclosure {
    /// Unique on this machine.
    pub(crate) name: String,
    /// Empty at first; removed at the end.
    pub(crate) dir: PathBuf,
    holder: Child,
    /// The first process inside, by its pid outside.
    init: u32,
}

impl Enclosure {
    /// Makes a new one.
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests make namespaces and mounts: run them as root");
        sweep();
        let dir =
            tempfile::Builder::new().prefix(PREFIX).rand_bytes(5).tempdir_in(home()).expect("a new folder").keep();
        let name = dir.file_name().expect("it has a name").to_string_lossy().to_lowercase();
        fs::write(dir.join("owner"), format!("{} {}", std::process::id(), started(std::process::id()).unwrap()))
            .expect("the folder is ours");
        let mut holder = Command::new("bash")
            .args(["-c", OUTSIDE, "enclosure", &name, INSIDE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("it was piped")).read_line(&mut line).expect("it can be read");
        assert_eq!(line, "ready\n", "the namespaces could not be made; what is wrong stands above");
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).expect("unshare runs");
        let init = children.trim().parse().expect("unshare has one child");
        Self { name, dir, holder, init }
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--cgroup", "--uts", "--"]);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// Moves the calling thread into the network namespace.
    pub(crate) fn enter_network(&self) {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.init)).expect("the first process inside runs");
        rustix::thread::move_into_link_name_space(network.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
            .expect("root may");
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        remove(&self.name, &self.dir);
    }
}

/// Removes what enclosures left whose test was killed.
fn sweep() {
    for entry in fs::read_dir(home()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(owner) = fs::read_to_string(entry.path().join("owner")) else { continue };
        let Some((pid, start)) = owner.split_once(' ') else { continue };
        let lives = pid.parse().is_ok_and(|pid| started(pid).as_deref() == Some(start));
        if name.starts_with(PREFIX) && !lives {
            remove(&name.to_lowercase(), &entry.path());
        }
    }
}

/// When a process started, in ticks since boot: with it a pid means one process for ever.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// Removes the cgroups and the folder. The kernel needs a moment for the processes, so this tries for a while.
fn remove(name: &str, dir: &Path) {
    let mut trees = vec![PathBuf::from("/sys/fs/cgroup")];
    trees.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    for top in trees.iter().map(|tree| tree.join(name)).filter(|top| top.is_dir()) {
        for _ in 0..100 {
            if remove_cgroup(&top) {
                break;
            }
            sleep(Duration::from_millis(50));
        }
    }
    let _ = fs::remove_dir_all(dir);
}

/// Depth first; whether all is gone.
fn remove_cgroup(group: &Path) -> bool {
    let below = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    for child in below.filter(|path| path.is_dir()) {
        remove_cgroup(&child);
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}
