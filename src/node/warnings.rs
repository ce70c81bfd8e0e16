//! What about this machine may surprise its operator: told as events about the node when the agent starts (A21.2).

use std::path::Path;

use stoker_model::handle::{EventSink, EventSubject, EventType};

/// What a `search` line may have: domains, letters of each, letters of all.
const DOMAINS: usize = 32;
const DOMAIN_LENGTH: usize = 253;
const LIST_LENGTH: usize = 2048;
/// The cluster's own ones, which come before those of the machine.
const OWN_DOMAINS: usize = 3;
/// The first kernel that can keep a tmpfs out of swap.
const NOSWAP: (u32, u32) = (6, 4);

/// Publishes what there is to say. `resolv_conf`: kubelet's `resolvConf`, where there is one.
pub fn warn_of_machine(events: &dyn EventSink, is_v1: bool, resolv_conf: Option<&Path>, cluster_domain: &str) {
    let warn = |reason, message| events.publish(EventSubject::Node, EventType::Warning, reason, message);
    if is_v1 {
        let text = "cgroup v1 detected. cgroup v1 support is deprecated and will be removed in a future release. Please migrate to \
                    cgroup v2. More information at https://git.k8s.io/enhancements/keps/sig-node/5573-remove-cgroup-v1";
        warn("CgroupV1", text.to_owned());
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if secrets_may_be_swapped(&swaps, &release) {
        let text = "The tmpfs noswap option is not supported. Memory-backed volumes (e.g. secrets, emptyDirs, etc.) might be \
                    swapped to disk and should no longer be considered secure.";
        warn("PossibleMemoryBackedVolumesOnDisk", text.to_owned());
    }
    if let Some(path) = resolv_conf {
        let problem = match std::fs::read_to_string(path) {
            Ok(text) => too_much_to_search(path, &text, !cluster_domain.is_empty()),
            Err(error) => Some(format!("open {}: {error}", path.display())),
        };
        if let Some(problem) = problem {
            warn("CheckLimitsForResolvConf", problem);
        }
    }
}

/// There is swap, and the kernel is too old to keep anything from it.
fn secrets_may_be_swapped(swaps: &str, release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    let kernel = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    swaps.lines().count() > 1 && kernel < NOSWAP
}

/// In upstream's words.
fn too_much_to_search(path: &Path, text: &str, has_domain: bool) -> Option<String> {
    let path = path.display();
    let searched = text.lines().filter_map(|line| line.trim().strip_prefix("search")).next_back().unwrap_or_default();
    let domains: Vec<&str> = searched.split_whitespace().collect();
    let most = if has_domain { DOMAINS - OWN_DOMAINS } else { DOMAINS };
    if domains.len() > most {
        return Some(format!("Resolv.conf file '{path}' contains search line consisting of more than {most} domains!"));
    }
    if domains.iter().any(|domain| domain.len() > DOMAIN_LENGTH) {
        return Some(format!(
            "Resolv.conf file \"{path}\" contains a search path which length is more than allowed {DOMAIN_LENGTH} chars!"
        ));
    }
    (domains.join(" ").len() > LIST_LENGTH).then(|| {
        format!("Resolv.conf file '{path}' contains search line which length is more than allowed {LIST_LENGTH} chars!")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_lines_have_limits() {
        // A21.2
        let of = |domains: &[String], own| {
            too_much_to_search(Path::new("/r"), &format!("nameserver 192.0.2.1\nsearch {}\n", domains.join(" ")), own)
        };
        let short = |count: usize| (0..count).map(|number| format!("d{number}.example")).collect::<Vec<_>>();
        assert_eq!(of(&short(29), true), None);
        assert_eq!(of(&short(32), false), None);
        let many = "Resolv.conf file '/r' contains search line consisting of more than 29 domains!";
        assert_eq!(of(&short(30), true).as_deref(), Some(many));
        let long = "Resolv.conf file \"/r\" contains a search path which length is more than allowed 253 chars!";
        assert_eq!(of(&["a".repeat(254)], true).as_deref(), Some(long));
        let whole = "Resolv.conf file '/r' contains search line which length is more than allowed 2048 chars!";
        assert_eq!(of(&vec!["a".repeat(200); 11], true).as_deref(), Some(whole));
        assert_eq!(too_much_to_search(Path::new("/r"), "", true), None);
    }

    #[test]
    fn old_kernels_swap_what_lies_in_memory() {
        // A21.2
        let swap = "Filename Type\n/dev/sda2 partition\n";
        assert!(secrets_may_be_swapped(swap, "6.1.0-13-amd64") && secrets_may_be_swapped(swap, "5.15.0"));
        assert!(!secrets_may_be_swapped(swap, "6.4.0") && !secrets_may_be_swapped(swap, "6.12.3-x"));
        assert!(!secrets_may_be_swapped("Filename Type\n", "5.15.0"));
    }
}
