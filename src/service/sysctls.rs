//! The kernel's settings of connection tracking (B2.4), and the one that NodePorts on loopback need (B1.4).

use std::path::Path;
use std::time::Duration;

use tracing::{debug, warn};

/// How connections are tracked; zero and `false` leave the kernel's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConntrackSettings {
    /// Entries for each core.
    pub max_per_core: u32,
    /// As many entries at least.
    pub min: u32,
    /// Idle established TCP connections are forgotten after this.
    pub tcp_established: Duration,
    /// The same where one side has closed.
    pub tcp_close_wait: Duration,
    /// Packets outside of the TCP window are let through.
    pub tcp_be_liberal: bool,
    /// UDP without an answer.
    pub udp: Duration,
    /// UDP with answers.
    pub udp_stream: Duration,
}

/// Above this a table would take more memory than many-core machines want to give.
const MOST_BY_CORES: u32 = 1 << 20;

impl ConntrackSettings {
    /// Entries in all; 0: as the kernel has it.
    fn max(&self, cores: u32) -> u32 {
        match self.max_per_core.saturating_mul(cores) {
            0 => 0,
            scaled if scaled > MOST_BY_CORES => MOST_BY_CORES,
            scaled => scaled.max(self.min),
        }
    }

    /// Names and values to set.
    fn values(&self, cores: u32) -> Vec<(&'static str, u64)> {
        [
            ("nf_conntrack_max", u64::from(self.max(cores))),
            ("nf_conntrack_tcp_timeout_established", self.tcp_established.as_secs()),
            ("nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait.as_secs()),
            ("nf_conntrack_tcp_be_liberal", u64::from(self.tcp_be_liberal)),
            ("nf_conntrack_udp_timeout", self.udp.as_secs()),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream.as_secs()),
        ]
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .collect()
    }

    /// Sets them in the calling thread's network namespace. What cannot be set is warned of: in a container, and in any namespace but
    /// the first, some are read-only, and services work without.
    pub fn apply(&self) {
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        for (name, value) in self.values(cores) {
            set(Path::new("/proc/sys/net/netfilter").join(name).as_path(), value, |now| now == value);
            if name == "nf_conntrack_max" {
                // The hash table grows with it, or look-ups would take longer.
                let buckets = value / 4;
                set(Path::new("/sys/module/nf_conntrack/parameters/hashsize"), buckets, |now| now >= buckets);
            }
        }
    }
}

/// Lets packets from loopback addresses leave this machine and their answers return.
pub(super) fn let_loopback_leave() {
    set(Path::new("/proc/sys/net/ipv4/conf/all/route_localnet"), 1, |now| now == 1);
}

fn set(path: &Path, value: u64, good: impl Fn(u64) -> bool) {
    let now = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    if now.is_some_and(good) {
        return;
    }
    match std::fs::write(path, value.to_string()) {
        Ok(()) => debug!(?path, ?now, value, "set"),
        Err(error) => warn!(%error, ?path, ?now, value, "a setting of the kernel stays as it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_grows_with_the_cores() {
        // B2.4
        let settings = |max_per_core, min| ConntrackSettings { max_per_core, min, ..ConntrackSettings::default() };
        for (per_core, min, cores, max) in [
            (32768, 131_072, 2, 131_072),
            (32768, 131_072, 8, 262_144),
            (32768, 131_072, 64, 1_048_576),
            (0, 131_072, 8, 0),
        ] {
            assert_eq!(settings(per_core, min).max(cores), max);
        }
        assert!(settings(0, 5).values(4).is_empty(), "zero leaves everything");
        let some = ConntrackSettings {
            tcp_established: Duration::from_secs(86400),
            udp: Duration::from_secs(7),
            ..settings(0, 0)
        };
        let expected = [("nf_conntrack_tcp_timeout_established", 86400), ("nf_conntrack_udp_timeout", 7)];
        assert_eq!(some.values(4), expected);
    }
}
