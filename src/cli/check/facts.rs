//! What `stoker check` looks at: reads, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::preflight::KERNEL_DEFAULTS;
use crate::clock::Clock;
use crate::config::{Credentials, KubeletConfig, StokerConfig, read_kubeconfig};
use crate::runtime::{Runtime, cri};
use crate::upstream::ApiServer;

/// For the runtime's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the runtime said of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct RuntimeFacts {
    pub(super) version: String,
    /// Conditions that are not true: type and message.
    pub(super) troubles: Vec<(String, String)>,
    /// `cgroupfs` or `systemd`, where it tells.
    pub(super) cgroup_driver: Option<&'static str>,
}

/// This machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) root: bool,
    pub(super) kernel: String,
    /// `Err`: why there is no answer.
    pub(super) runtime: Option<Result<RuntimeFacts, String>>,
    /// Controllers of the unified hierarchy; `None` where there is none with controllers.
    pub(super) unified: Option<Vec<String>>,
    /// Controllers that have a hierarchy of version 1.
    pub(super) legacy: Vec<String>,
    pub(super) swaps: Vec<String>,
    pub(super) sysctls: BTreeMap<&'static str, String>,
    /// Ports of this node that something else has, with the reason.
    pub(super) taken: Vec<(u16, String)>,
    /// An agent of this root directory runs: the ports are its own.
    pub(super) agent_runs: bool,
    /// What `nft` says; `Err`: why it cannot be used.
    pub(super) nftables: Option<Result<(), String>>,
    pub(super) ip_vs: bool,
    pub(super) filesystems: Vec<String>,
    pub(super) conntrack: bool,
    pub(super) pressure: bool,
    pub(super) now: Timestamp,
    /// Whether the clock is kept by a time server, where systemd tells.
    pub(super) synchronized: Option<bool>,
    /// Seconds by which this clock is ahead of the API server's.
    pub(super) ahead: Option<i64>,
    pub(super) hostname: String,
    pub(super) machine_id: bool,
    /// Whether there is a configuration for CNI.
    pub(super) cni: bool,
    /// Bytes free and in all where pods live.
    pub(super) disk: Option<(u64, u64)>,
}

/// Switches that the agent's rules need; those that it sets itself are in [`KERNEL_DEFAULTS`].
const SYSCTLS: [&str; 2] = ["net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"];

impl Facts {
    pub(super) async fn gather(
        kubelet: &KubeletConfig,
        stoker: &StokerConfig,
        kubeconfig: Option<&Path>,
        root_dir: &Path,
    ) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
        let existing = root_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let agent_runs = is_locked(&root_dir.join("stoker.lock"));
        Self {
            root: rustix::process::geteuid().is_root(),
            kernel: read("/proc/sys/kernel/osrelease"),
            runtime: Some(runtime(&kubelet.container_runtime_endpoint).await),
            unified: controllers.map(|text| text.split_whitespace().map(str::to_owned).collect()),
            legacy: legacy_controllers(&read("/proc/self/mountinfo")),
            swaps: swaps(&read("/proc/swaps")),
            sysctls: SYSCTLS
                .into_iter()
                .chain(KERNEL_DEFAULTS.iter().map(|(name, _)| *name))
                .map(|name| (name, read(&format!("/proc/sys/{}", name.replace('.', "/")))))
                .collect(),
            taken: if agent_runs { Vec::new() } else { taken(kubelet) },
            agent_runs,
            nftables: Some(nftables()),
            ip_vs: Path::new("/proc/net/ip_vs").exists() || has_module("ip_vs"),
            filesystems: read("/proc/filesystems")
                .lines()
                .filter_map(|line| line.split_whitespace().last())
                .map(str::to_owned)
                .collect(),
            conntrack: Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() || has_module("nf_conntrack"),
            pressure: Path::new("/proc/pressure/cpu").exists(),
            now: Clock.now().wall,
            synchronized: synchronized(),
            ahead: match kubeconfig {
                Some(path) => ahead(path).await,
                None => None,
            },
            hostname: read("/proc/sys/kernel/hostname"),
            machine_id: !read("/etc/machine-id").is_empty(),
            cni: fs::read_dir(&stoker.cni.conf_dir).is_ok_and(|mut entries| {
                let is_list = |name: &str| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
                entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_list)))
            }),
            disk: rustix::fs::statvfs(existing).ok().map(|fs| (fs.f_bavail * fs.f_frsize, fs.f_blocks * fs.f_frsize)),
        }
    }
}

async fn runtime(endpoint: &str) -> Result<RuntimeFacts, String> {
    let runtime = Runtime::connect(endpoint, PATIENCE).map_err(|error| error.to_string())?;
    let version = runtime.version().await.map_err(|error| error.to_string())?;
    let status = runtime.status(false).await.map_err(|error| error.to_string())?;
    let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
    let driver = runtime.runtime_config().await.ok().and_then(|config| config.linux);
    Ok(RuntimeFacts {
        version: format!("{} {}", version.runtime_name, version.runtime_version),
        troubles: conditions
            .into_iter()
            .filter(|condition| !condition.status)
            .map(|condition| (condition.r#type, condition.message))
            .collect(),
        cgroup_driver: driver.map(|linux| match linux.cgroup_driver() {
            cri::CgroupDriver::Systemd => "systemd",
            cri::CgroupDriver::Cgroupfs => "cgroupfs",
        }),
    })
}

/// Controllers of mounted hierarchies of version 1: they are among the options of the mount.
fn legacy_controllers(mountinfo: &str) -> Vec<String> {
    let known = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "hugetlb", "devices", "freezer"];
    let lines = mountinfo.lines().filter_map(|line| line.split_once(" - cgroup ")).map(|(_, rest)| rest);
    let options = lines.filter_map(|rest| rest.rsplit(' ').next()).flat_map(|options| options.split(','));
    options.filter(|option| known.contains(option)).map(str::to_owned).collect()
}

fn swaps(text: &str) -> Vec<String> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn taken(kubelet: &KubeletConfig) -> Vec<(u16, String)> {
    let address = |text: &str| text.parse::<IpAddr>().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let ports = [
        (kubelet.port, address(&kubelet.address)),
        (kubelet.read_only_port, address(&kubelet.address)),
        (kubelet.healthz_port, address(&kubelet.healthz_bind_address)),
    ];
    let ports = ports.into_iter().filter_map(|(port, address)| Some((u16::try_from(port).ok()?, address)));
    ports
        .filter(|(port, _)| *port != 0)
        .filter_map(|(port, address)| {
            let error = TcpListener::bind(SocketAddr::new(address, port)).err()?;
            Some((port, error.to_string()))
        })
        .collect()
}

/// Whether somebody holds the lock; it is not taken where it is free.
fn is_locked(path: &Path) -> bool {
    use rustix::fs::{FlockOperation, flock};
    let Ok(file) = fs::File::open(path) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
}

fn nftables() -> Result<(), String> {
    match Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("the program nft: {error}")),
    }
}

/// Whether the kernel could load it.
fn has_module(name: &str) -> bool {
    let tried = Command::new("modprobe").args(["--dry-run", "--quiet", name]).stdin(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

fn synchronized() -> Option<bool> {
    let output = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output().ok()?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

async fn ahead(kubeconfig: &Path) -> Option<i64> {
    let credentials = read_kubeconfig(Some(kubeconfig), None, |_| true).await.ok()?;
    let Credentials::Cluster(config) = credentials else { return None };
    let theirs = ApiServer::anonymous(&config).ok()?.clock().await?;
    Some(Clock.now().wall.as_second() - theirs.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                      32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        assert_eq!(legacy_controllers(mounts), ["cpu", "cpuacct"]);
        assert_eq!(swaps("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2"), ["/dev/sda2"]);
        assert!(swaps("").is_empty());
    }

    #[test]
    fn a_port_that_is_in_use_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let kubelet =
            KubeletConfig { healthz_port: port.into(), port: 0, read_only_port: 0, ..KubeletConfig::default() };
        assert_eq!(taken(&kubelet).first().map(|(port, _)| *port), Some(port));
        drop(listener);
        assert!(taken(&kubelet).is_empty());
    }
}
