//! Slices: groups that systemd makes and limits, so that it does not undo what it does not know of (A12.2).
//!
//! `systemctl` is asked, which as root needs no bus daemon. A slice needs no file: it is started by its name.

use std::io;
use std::path::Path;
use std::process::Command;

/// A limit that is none, in the values of cgroup v1.
pub(super) const UNLIMITED: i64 = -1;

/// Where systemd keeps what is set for the time until the next boot.
const RUNTIME_SETTINGS: &str = "/run/systemd/system.control";

/// What a group may use; `None` leaves it as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Limits {
    /// CPU shares, in the values of cgroup v1.
    pub(super) shares: Option<u64>,
    /// Microseconds of CPU in each period of so many microseconds.
    pub(super) quota: Option<(i64, u128)>,
    pub(super) memory_bytes: Option<i64>,
    pub(super) pids: Option<u64>,
}

/// The slice of a path of names: `["kubepods", "burstable", "podab-c"]` is `kubepods-burstable-podab_c.slice`.
pub(super) fn slice(names: &[String]) -> String {
    let escaped: Vec<String> = names.iter().map(|name| name.replace('-', "_")).collect();
    format!("{}.slice", escaped.join("-"))
}

/// The directories of a slice, which lies in those of all its prefixes.
pub(super) fn path(names: &[String]) -> String {
    let prefixes: Vec<String> = (1..=names.len()).map(|count| slice(&names[..count])).collect();
    prefixes.join("/")
}

/// Starts a slice; one that runs already stays as it is.
pub(super) fn start(slice: &str) -> io::Result<()> {
    ask(&["start".to_owned(), slice.to_owned()])
}

/// Limits a slice.
pub(super) fn limit(slice: &str, limits: &Limits, v2: bool) -> io::Result<()> {
    let properties = properties(limits, v2);
    if properties.is_empty() {
        return Ok(());
    }
    let words = ["set-property".to_owned(), "--runtime".to_owned(), slice.to_owned()];
    ask(&words.into_iter().chain(properties).collect::<Vec<_>>())
}

/// Ends a slice and forgets its limits. Gone already is success.
pub(super) fn stop(slice: &str) -> io::Result<()> {
    let stopped = ask(&["stop".to_owned(), slice.to_owned()]);
    match std::fs::remove_dir_all(Path::new(RUNTIME_SETTINGS).join(format!("{slice}.d"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => stopped,
    }
}

fn properties(limits: &Limits, v2: bool) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(shares) = limits.shares {
        all.push("CPUAccounting=yes".to_owned());
        all.push(if v2 { format!("CPUWeight={}", super::cpu_weight(shares)) } else { format!("CPUShares={shares}") });
    }
    if let Some((UNLIMITED, _)) = limits.quota {
        all.push("CPUQuota=".to_owned());
    } else if let Some((quota, period)) = limits.quota {
        // In hundredths of a percent, rounded up: the files get the exact value.
        let share = (u128::try_from(quota).unwrap_or_default() * 10_000).div_ceil(period.max(1));
        all.push(format!("CPUQuota={}.{:02}%", share / 100, share % 100));
        all.push(format!("CPUQuotaPeriodSec={period}us"));
    }
    if let Some(bytes) = limits.memory_bytes {
        all.push("MemoryAccounting=yes".to_owned());
        let bytes = if bytes == UNLIMITED { "infinity".to_owned() } else { bytes.to_string() };
        all.push(if v2 { format!("MemoryMax={bytes}") } else { format!("MemoryLimit={bytes}") });
    }
    if let Some(pids) = limits.pids {
        all.push("TasksAccounting=yes".to_owned());
        all.push(format!("TasksMax={pids}"));
    }
    all
}

fn ask(words: &[String]) -> io::Result<()> {
    let output = Command::new("systemctl").arg("--quiet").args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("systemctl {}: {}", words.join(" "), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_slices() {
        // A12.2
        let names: Vec<String> = ["kubepods", "burstable", "podab-c"].map(String::from).into();
        assert_eq!(slice(&names), "kubepods-burstable-podab_c.slice");
        assert_eq!(path(&names), "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab_c.slice");
    }

    #[test]
    fn limits_become_properties() {
        // A12.3, A12.4
        let limits = Limits {
            shares: Some(1024),
            quota: Some((150_000, 100_000)),
            memory_bytes: Some(64 << 20),
            pids: Some(100),
        };
        let v2 = "CPUAccounting=yes CPUWeight=39 CPUQuota=150.00% CPUQuotaPeriodSec=100000us MemoryAccounting=yes \
                  MemoryMax=67108864 TasksAccounting=yes TasksMax=100";
        assert_eq!(properties(&limits, true).join(" "), v2);
        let v1 = properties(&limits, false).join(" ");
        assert!(v1.contains("CPUShares=1024") && v1.contains("MemoryLimit=67108864"), "{v1}");
        let tiny = Limits { quota: Some((1000, 100_000)), ..Limits::default() };
        assert!(properties(&tiny, true).contains(&"CPUQuota=1.00%".to_owned()));
        assert!(properties(&Limits::default(), true).is_empty());
    }
}
