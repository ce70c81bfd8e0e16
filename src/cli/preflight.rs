//! What must be so before the agent may start, and what it makes so.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::config::KubeletConfig;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum PreflightError {
    /// Containers need root.
    #[error("stoker run must be started as root: it makes cgroups, mounts and network rules")]
    NotRoot,
    /// A22.2e
    #[error("swap is on ({devices}) and failSwapOn is true: run swapoff -a, or set failSwapOn: false")]
    Swap { devices: String },
    /// A22.2e
    #[error(
        "this host has cgroup v1 and failCgroupV1 is true, which is the default since Kubernetes 1.35: \
         boot with cgroup v2, or set failCgroupV1: false in the file that --config names"
    )]
    CgroupV1,
    /// A22.1l
    #[error(
        "protectKernelDefaults is true, and {name} is {found}, not {wanted}: sysctl -w {name}={wanted}, and a line in /etc/sysctl.d, \
         or set protectKernelDefaults: false"
    )]
    KernelDefault { name: &'static str, found: String, wanted: &'static str },
    /// Two agents would fight.
    #[error("another agent holds {0}: stop it first")]
    Locked(PathBuf),
    /// A directory or file cannot be made.
    #[error("cannot prepare {path}: {source}")]
    Path { path: PathBuf, source: io::Error },
}

/// Refuses to start where kubelet does (A22.2e).
pub(super) fn check_host(config: &KubeletConfig) -> Result<(), PreflightError> {
    let host = Host {
        is_root: rustix::process::geteuid().is_root(),
        swaps: fs::read_to_string("/proc/swaps").unwrap_or_default(),
        // Hybrid hosts have controllers on v1 only.
        is_unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
    };
    host.fits(config)?;
    let switches = Path::new("/proc/sys");
    if config.protect_kernel_defaults {
        return protect_kernel_defaults(switches);
    }
    set_kernel_defaults(switches);
    Ok(())
}

/// What is looked at before anything starts.
struct Host {
    is_root: bool,
    /// `/proc/swaps`.
    swaps: String,
    /// All controllers are in one tree.
    is_unified: bool,
}

impl Host {
    fn fits(&self, config: &KubeletConfig) -> Result<(), PreflightError> {
        if !self.is_root {
            return Err(PreflightError::NotRoot);
        }
        let devices: Vec<_> = self.swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        if config.fail_swap_on && !devices.is_empty() {
            return Err(PreflightError::Swap { devices: devices.join(", ") });
        }
        if config.fail_cgroup_v1 && !self.is_unified {
            return Err(PreflightError::CgroupV1);
        }
        Ok(())
    }
}

/// Switches of the kernel that kubelet sets itself, or wants to find set.
pub(super) const KERNEL_DEFAULTS: &[(&str, &str)] = &[
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.keys.root_maxbytes", "25000000"),
];

fn protect_kernel_defaults(proc: &Path) -> Result<(), PreflightError> {
    for (name, wanted) in KERNEL_DEFAULTS.iter().copied() {
        let found = fs::read_to_string(proc.join(name.replace('.', "/"))).unwrap_or_default().trim().to_owned();
        if found != wanted {
            return Err(PreflightError::KernelDefault { name, found, wanted });
        }
    }
    Ok(())
}

/// Sets those that stand otherwise, as kubelet does. A wish: where they may not be written the agent works all the same (A22.1l).
fn set_kernel_defaults(proc: &Path) {
    for (name, wanted) in KERNEL_DEFAULTS.iter().copied() {
        let path = proc.join(name.replace('.', "/"));
        let Ok(found) = fs::read_to_string(&path) else { continue };
        let found = found.trim();
        if found == wanted {
            continue;
        }
        match fs::write(&path, wanted) {
            Ok(()) => tracing::info!(name, found, wanted, "a switch of the kernel was set"),
            Err(error) => tracing::warn!(name, found, wanted, %error, "a switch of the kernel stays as it is"),
        }
    }
}

/// Makes the kernel kill this process as late as the operator wants.
pub(super) fn kill_late(oom_score_adj: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", oom_score_adj.to_string()) {
        tracing::warn!(%error, oom_score_adj, "oomScoreAdj cannot be set");
    }
}

/// Makes the kernel kill this process as late, and open as many files, as the operator wants (A22.1f, A22.1j). A wish: where it may
/// not be, the agent works all the same.
pub(super) fn limit_process(config: &KubeletConfig) {
    kill_late(config.oom_score_adj);
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = u64::try_from(config.max_open_files).ok();
    let now = getrlimit(Resource::Nofile);
    let maximum = files.max(now.maximum.filter(|_| now.current.is_some()));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files, maximum }) {
        tracing::debug!(%error, max_open_files = config.max_open_files, "maxOpenFiles cannot be set");
    }
}

/// Holds the lock while it lives; the kernel lets go when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock and leaves our process number in it. Where another agent has it, `waits` says whether to wait for its end.
pub(super) fn lock(path: &Path, waits: bool) -> Result<Lock, PreflightError> {
    let error = |source| PreflightError::Path { path: path.to_path_buf(), source };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(error)?;
    }
    let mut file = File::options().create(true).write(true).truncate(false).open(path).map_err(error)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) if waits => {
            tracing::warn!(path = %path.display(), "another agent holds the lock file: waiting until it ends");
            flock(&file, FlockOperation::LockExclusive).map_err(|errno| error(errno.into()))?;
        }
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(PreflightError::Locked(path.to_path_buf())),
        Err(errno) => return Err(error(errno.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(error)?;
    Ok(Lock { _file: file })
}

/// Makes the root directory and lets mounts below it reach containers that are already running: it becomes a shared
/// mount, where its file system is not one already.
pub(super) fn prepare_root(root: &Path) -> Result<(), PreflightError> {
    let error = |source: io::Error| PreflightError::Path { path: root.to_path_buf(), source };
    for dir in [root.to_path_buf(), root.join("pods"), root.join("pki")] {
        fs::create_dir_all(&dir).map_err(|source| PreflightError::Path { path: dir.clone(), source })?;
    }
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join("pki"), fs::Permissions::from_mode(0o700)).map_err(error)?;
    let root = fs::canonicalize(root).map_err(error)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(error)?;
    let (mount, shared) = mount_of(&root, &mounts);
    if shared {
        return Ok(());
    }
    if mount != root {
        mount_bind(&root, &root).map_err(|errno| error(errno.into()))?;
    }
    mount_change(&root, MountPropagationFlags::SHARED).map_err(|errno| error(errno.into()))
}

/// The mount that holds `path`, and whether it is shared.
fn mount_of(path: &Path, mountinfo: &str) -> (PathBuf, bool) {
    let mut best = (PathBuf::from("/"), false);
    for line in mountinfo.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let Some(point) = words.get(4).map(|point| PathBuf::from(point.replace("\\040", " "))) else { continue };
        // Of several mounts on one point the last one counts.
        if path.starts_with(&point) && point.components().count() >= best.0.components().count() {
            let shared = words.iter().skip(6).take_while(|word| **word != "-").any(|word| word.starts_with("shared:"));
            best = (point, shared);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda rw
23 22 0:5 / /proc rw shared:2 - proc proc rw
24 22 8:1 /var/lib/kubelet /var/lib/kubelet rw shared:9 - ext4 /dev/sda rw
25 22 8:1 /x /var/lib rw master:1 - ext4 /dev/sda rw
";

    #[test]
    fn the_kernel_kills_agents_last() {
        // A12.8
        assert_eq!(KubeletConfig::default().oom_score_adj, -999);
        let read = || fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse::<i32>().unwrap();
        // Everybody may say that he is to be killed earlier; later, and back, takes more.
        let before = read();
        kill_late((before + 1).min(1000));
        assert_eq!(read(), (before + 1).min(1000));
        kill_late(before);
    }

    #[test]
    fn hosts_that_do_not_fit_are_refused() {
        // A22.2e, A12.9, A15.9
        let config = KubeletConfig::default;
        let host = |is_root, swaps: &str, is_unified| Host { is_root, swaps: swaps.to_owned(), is_unified };
        let (none, some) = ("Filename Type\n", "Filename Type\n/dev/sda2 partition 1 0 -2\n/swap file 1 0 -3\n");
        assert!(host(true, none, true).fits(&config()).is_ok());
        assert!(matches!(host(false, none, true).fits(&config()), Err(PreflightError::NotRoot)));
        let swap = host(true, some, true).fits(&config()).expect_err("swap").to_string();
        assert!(swap.contains("/dev/sda2, /swap") && swap.contains("swapoff"), "{swap}");
        assert!(host(true, some, true).fits(&KubeletConfig { fail_swap_on: false, ..config() }).is_ok());
        let old = host(true, none, false).fits(&config()).expect_err("cgroup v1").to_string();
        assert!(old.contains("failCgroupV1: false"), "{old}");
        assert!(host(true, none, false).fits(&KubeletConfig { fail_cgroup_v1: false, ..config() }).is_ok());
    }

    #[test]
    fn the_nearest_mount_decides() {
        for (path, mount, shared) in [
            ("/var/lib/kubelet/pods", "/var/lib/kubelet", true),
            ("/var/lib/kubelet", "/var/lib/kubelet", true),
            ("/var/lib/other", "/var/lib", false),
            ("/srv", "/", false),
        ] {
            assert_eq!(mount_of(Path::new(path), MOUNTS), (PathBuf::from(mount), shared), "{path}");
        }
    }

    #[test]
    fn switches_of_the_kernel_are_compared() {
        // A22.1l, the part about protectKernelDefaults: compared where it is true, and set where it is not.
        let proc = tempfile::tempdir().expect("a directory");
        for (name, value) in KERNEL_DEFAULTS {
            let path = proc.path().join(name.replace('.', "/"));
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, format!("{value}\n")).expect("written");
        }
        assert!(protect_kernel_defaults(proc.path()).is_ok());
        fs::write(proc.path().join("kernel/panic"), "0\n").expect("written");
        let error = protect_kernel_defaults(proc.path()).expect_err("another").to_string();
        assert!(error.contains("kernel.panic is 0, not 10"), "{error}");
        // One that this kernel has not is no switch.
        fs::remove_file(proc.path().join("kernel/panic_on_oops")).expect("removed");
        set_kernel_defaults(proc.path());
        assert_eq!(fs::read_to_string(proc.path().join("kernel/panic")).expect("there"), "10");
        assert!(!proc.path().join("kernel/panic_on_oops").exists());
    }

    #[test]
    fn only_one_holds_the_lock() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/stoker.lock");
        let first = lock(&path, false).expect("free");
        assert!(matches!(lock(&path, false), Err(PreflightError::Locked(_))));
        assert_eq!(fs::read_to_string(&path).expect("text").trim(), std::process::id().to_string());
        // A22.2d: with --lock-file the next one waits.
        let waits = std::thread::spawn({
            let path = path.clone();
            move || lock(&path, true).is_ok()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waits.is_finished());
        drop(first);
        assert!(waits.join().expect("it comes to its turn"));
        assert!(lock(&path, false).is_ok());
    }
}
