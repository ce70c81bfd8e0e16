//! What another proxy, or another mode of ours, has left in the kernel (B2.8): kube-proxy's chains of iptables, its nftables tables,
//! ipsets, virtual servers and `kube-ipvs0`.
//!
//! Programs that are not installed have left nothing that they could remove. Every step is tried, whatever became of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::config::Mode;
use super::ipvs::{self, IpvsError};
use super::kubelet_chains;

/// Beginnings of the names of chains that only kube-proxy makes.
const CHAINS: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-MARK-DROP",
    "KUBE-FORWARD",
    "KUBE-PROXY-",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-XLB-",
    "KUBE-IPVS-",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
];

/// Both ways by which iptables reaches the kernel, for both families.
const IPTABLES: &[(&str, &str)] = &[
    ("iptables-legacy-save", "iptables-legacy-restore"),
    ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
    ("iptables-nft-save", "iptables-nft-restore"),
    ("ip6tables-nft-save", "ip6tables-nft-restore"),
];

/// What was found and removed.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// In words, for the log.
    pub removed: Vec<String>,
    /// What could not be.
    pub errors: Vec<LeftoverError>,
}

/// Something is still there.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// A program failed.
    #[error("{program} could not remove what kube-proxy left: {message}")]
    Program {
        /// Which one.
        program: String,
        /// Its own words.
        message: String,
    },
    /// IPVS.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
}

/// Removes what others left and `keep` does not use; nothing there is success. With `None` the chains of a kubelet go, too.
pub fn remove(keep: Option<Mode>) -> Leftovers {
    let mut found = Leftovers::default();
    remove_iptables(keep.is_none(), &mut found);
    remove_nft_tables(&mut found);
    if keep.is_none() {
        remove_bare_tables(&mut found);
    }
    if keep != Some(Mode::Ipvs) {
        match ipvs::remove_everything() {
            Ok(removed) => {
                if removed.interface {
                    found.removed.push("interface kube-ipvs0".to_owned());
                }
                if removed.servers > 0 {
                    found.removed.push(format!("{} virtual servers of IPVS", removed.servers));
                }
            }
            Err(error) => found.errors.push(error.into()),
        }
    }
    // Chains refer to sets, so that these can only go now.
    remove_ipsets(&mut found);
    found
}

fn remove_iptables(all: bool, found: &mut Leftovers) {
    for (save, restore) in IPTABLES {
        let Some(saved) = output(save, &[], found) else { continue };
        let (text, chains) = without_chains(&saved, all);
        if chains == 0 {
            continue;
        }
        if input(restore, &["--noflush"], &text, found) {
            found.removed.push(format!("{chains} chains by {restore}"));
        }
    }
}

/// What `iptables-restore --noflush` removes kube-proxy's chains with, and how many they are: first the rules of other chains that
/// jump to them, then their rules, then themselves.
fn without_chains(saved: &str, all: bool) -> (String, usize) {
    let is_ours = |chain: &str| {
        CHAINS.iter().any(|name| chain.starts_with(name)) || (all && kubelet_chains::CHAINS.contains(&chain))
    };
    let mut tables: BTreeMap<&str, (BTreeSet<&str>, Vec<String>)> = BTreeMap::new();
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            if is_ours(chain) {
                tables.entry(table).or_default().0.insert(chain);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = rule.split(' ');
            let from = words.next().unwrap_or_default();
            let goes = words.clone().zip(words.skip(1)).any(|(flag, to)| (flag == "-j" || flag == "-g") && is_ours(to));
            if goes && !is_ours(from) {
                tables.entry(table).or_default().1.push(format!("-D {rule}"));
            }
        }
    }
    let (mut text, mut count) = (String::new(), 0);
    for (table, (chains, jumps)) in tables {
        count += chains.len();
        text.push_str(&format!("*{table}\n"));
        // Naming a chain empties it, which takes the rules of the chains among themselves.
        chains.iter().for_each(|chain| text.push_str(&format!(":{chain} - [0:0]\n")));
        jumps.iter().for_each(|jump| text.push_str(&format!("{jump}\n")));
        chains.iter().for_each(|chain| text.push_str(&format!("-X {chain}\n")));
        text.push_str("COMMIT\n");
    }
    (text, count)
}

fn remove_nft_tables(found: &mut Leftovers) {
    let Some(tables) = output("nft", &["list", "tables"], found) else { return };
    for table in ["ip kube-proxy", "ip6 kube-proxy"] {
        let there = tables.lines().any(|line| line.trim() == format!("table {table}"));
        if there && input("nft", &["-f", "-"], &format!("delete table {table}\n"), found) {
            found.removed.push(format!("nftables table {table}"));
        }
    }
}

/// Tables that iptables makes for whoever asks it for a chain, where nothing is left in them: it makes them again when it needs them.
fn remove_bare_tables(found: &mut Leftovers) {
    let Some(tables) = output("nft", &["list", "tables"], found) else { return };
    for table in tables.lines().filter_map(|line| line.trim().strip_prefix("table ")) {
        let Some((family @ ("ip" | "ip6"), name @ ("mangle" | "nat" | "filter"))) = table.split_once(' ') else {
            continue;
        };
        let Some(listed) = output("nft", &["list", "table", family, name], found) else { continue };
        if is_bare(&listed) && input("nft", &["-f", "-"], &format!("delete table {table}\n"), found) {
            found.removed.push(format!("empty nftables table {table}"));
        }
    }
}

/// Whether a table, as `nft list` prints it, does nothing: it has at most hooks without a rule that let all through.
fn is_bare(listed: &str) -> bool {
    let mut lines = listed.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).skip(1);
    while let Some(line) = lines.next() {
        let is_hook = |line: &str| line.starts_with("type ") && line.ends_with("policy accept;");
        let fits = line == "}" || line.starts_with("chain ") && lines.next().is_some_and(is_hook);
        if !fits {
            return false;
        }
    }
    true
}

fn remove_ipsets(found: &mut Leftovers) {
    let Some(sets) = output("ipset", &["list", "-n"], found) else { return };
    let ours: Vec<&str> = sets.lines().filter(|set| is_kube_set(set)).collect();
    let text: String = ours.iter().map(|set| format!("destroy {set}\n")).collect();
    if !ours.is_empty() && input("ipset", &["restore"], &text, found) {
        found.removed.push(format!("{} ipsets", ours.len()));
    }
}

/// The sets of kube-proxy's mode ipvs (B2.10).
fn is_kube_set(set: &str) -> bool {
    let Some(rest) = set.strip_prefix("KUBE-") else { return false };
    let rest = rest.strip_prefix("6-").unwrap_or(rest);
    ["LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "LOAD-BALANCER", "NODE-PORT", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS"]
        .iter()
        .any(|name| rest.starts_with(name))
}

/// What a program prints; `None` where it is not installed, or the kernel has not what it asks for.
fn output(program: &str, arguments: &[&str], found: &mut Leftovers) -> Option<String> {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        // Legacy iptables and ipset fail where their modules are not there: then there is nothing of theirs either.
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            found.errors.push(LeftoverError::Program { program: program.to_owned(), message: error.to_string() });
            None
        }
    }
}

/// Gives a program text to read; whether it liked it.
fn input(program: &str, arguments: &[&str], text: &str, found: &mut Leftovers) -> bool {
    let run = || -> io::Result<std::process::Output> {
        let mut command = Command::new(program);
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A broken pipe means that it ended early; its exit status and message say why.
            let _ = stdin.write_all(text.as_bytes());
        }
        child.wait_with_output()
    };
    let message = match run() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    found.errors.push(LeftoverError::Program { program: program.to_owned(), message });
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_proxys_chains_go() {
        let saved = "\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [5:300]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A KUBE-SERVICES -d 10.96.0.10/32 -j KUBE-SVC-TCOU7JCQXEZGVUNU
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
";
        let (text, chains) = without_chains(saved, false);
        let expected = "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-TCOU7JCQXEZGVUNU
COMMIT
";
        assert_eq!((text.as_str(), chains), (expected, 2));
        assert_eq!(without_chains("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", true), (String::new(), 0));
        let (text, chains) = without_chains(saved, true);
        assert!(
            text.contains("*filter\n:KUBE-FIREWALL - [0:0]\n-D INPUT -j KUBE-FIREWALL\n-X KUBE-FIREWALL\n"),
            "{text}"
        );
        assert_eq!(chains, 4, "the node's chains too, where all goes");
    }

    #[test]
    fn only_tables_that_do_nothing_are_bare() {
        let hook = "\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n";
        let table = |content: &str| {
            format!("# Warning: table ip filter is managed by iptables-nft\ntable ip filter {{\n{content}}}\n")
        };
        assert!(is_bare(&table("")) && is_bare(&table(hook)) && is_bare(&table(&format!("{hook}\n{hook}"))));
        for content in [
            hook.replace("accept", "drop"),
            hook.replace("\t}", "\t\tcounter drop\n\t}"),
            "\tchain MINE {\n\t}\n".to_owned(),
            "\tset mine {\n\t\ttype ipv4_addr\n\t}\n".to_owned(),
        ] {
            assert!(!is_bare(&table(&content)), "{content}");
        }
    }

    #[test]
    fn sets_of_others_stay() {
        for (set, ours) in [
            ("KUBE-CLUSTER-IP", true),
            ("KUBE-6-NODE-PORT-LOCAL-TCP", true),
            ("KUBE-IPVS-IPS", true),
            ("KUBE-ROUTER-X", false),
            ("cali40masq", false),
        ] {
            assert_eq!(is_kube_set(set), ours, "{set}");
        }
    }
}
