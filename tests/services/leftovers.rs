//! What kube-proxy leaves behind is found and removed, and nothing else is.

use std::io::Write as _;
use std::process::{Command, Stdio};

use stoker::service::{kubelet_chains, leftovers};

use super::lab::{Lab, eventually};

/// As kube-proxy in mode iptables and kubelet write, in short; and what a CNI plugin has there.
const CHAINS: &str = "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-SEP-6E7XQMQ4RAYOWTTM - [0:0]
:CNI-OTHER - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -s 10.1.0.0/16 -j CNI-OTHER
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SVC-TCOU7JCQXEZGVUNU -j KUBE-SEP-6E7XQMQ4RAYOWTTM
-A KUBE-SEP-6E7XQMQ4RAYOWTTM -s 10.244.0.2/32 -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
COMMIT
";

/// Whether the program took the text; not where the kernel has no such tables.
fn feed(lab: &Lab, program: &'static str, text: &'static str) -> bool {
    let feed = move || {
        let mut child = Command::new(program).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait().unwrap().success()
    };
    lab.within("node", feed).join().unwrap()
}

#[test]
fn what_kube_proxy_left_is_removed_and_nothing_else() {
    // B2.8
    let lab = Lab::with_pods(0);
    assert!(feed(&lab, "iptables-nft-restore", CHAINS), "iptables over nftables");
    let legacy = feed(&lab, "iptables-legacy-restore", CHAINS);
    lab.run("nft add table ip kube-proxy");
    lab.run("nft add chain ip kube-proxy services");
    lab.run("nft add table ip6 kube-proxy");
    lab.run("nft add table ip other");

    let found = lab.within("node", || leftovers::remove(None)).join().unwrap();
    assert!(found.errors.is_empty(), "{:?}", found.errors);
    let text = found.removed.join("\n");
    for part in ["7 chains by iptables-nft-restore", "nftables table ip kube-proxy", "nftables table ip6 kube-proxy"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.contains("7 chains by iptables-legacy-restore"), legacy, "{text}");

    let mut saves = vec![lab.run("iptables-nft-save")];
    saves.extend(legacy.then(|| lab.run("iptables-legacy-save")));
    for saved in saves {
        assert!(
            !saved.contains("KUBE-SE") && !saved.contains("KUBE-POSTROUTING") && !saved.contains("MASQ"),
            "{saved}"
        );
        assert!(saved.contains("-A POSTROUTING -s 10.1.0.0/16 -j CNI-OTHER"), "another's chain stays: {saved}");
    }
    let tables = lab.nft_command("list tables");
    assert!(tables.contains("table ip other") && !tables.contains("kube-proxy"), "{tables}");

    let again = lab.within("node", || leftovers::remove(None)).join().unwrap();
    assert!(again.removed.is_empty() && again.errors.is_empty(), "{again:?}");
}

/// B2.11: what others look for, and the rule that drops what strangers send to loopback addresses.
#[test]
fn the_chains_of_a_kubelet_are_made_and_made_again() {
    let lab = Lab::with_pods(0);
    let ensure = || lab.within("node", kubelet_chains::ensure).join().unwrap().unwrap();
    assert!(ensure(), "they were not there");
    let saved = lab.run("iptables-save");
    for line in
        [":KUBE-IPTABLES-HINT - ", ":KUBE-KUBELET-CANARY - ", "-A INPUT -j KUBE-FIREWALL", "-A OUTPUT -j KUBE-FIREWALL"]
    {
        assert!(saved.contains(line), "{line}: {saved}");
    }
    let drop = saved.lines().find(|line| line.starts_with("-A KUBE-FIREWALL ")).unwrap();
    for part in ["! -s 127.0.0.0/8", "-d 127.0.0.0/8", "! --ctstate", "RELATED,ESTABLISHED,DNAT", "-j DROP"] {
        assert!(drop.contains(part), "{part}: {drop}");
    }
    let mangle = saved.split("*mangle").nth(1).and_then(|rest| rest.split("COMMIT").next()).unwrap();
    assert!(mangle.contains("KUBE-IPTABLES-HINT"), "{saved}");
    let six = lab.run("ip6tables-save");
    assert!(six.contains("KUBE-IPTABLES-HINT") && !six.contains("KUBE-FIREWALL"), "{six}");
    for chain in ["KUBE-MARK-MASQ", "KUBE-MARK-DROP", "KUBE-POSTROUTING"] {
        assert!(!saved.contains(chain), "{chain} is kube-proxy's alone: {saved}");
    }

    assert!(!ensure(), "all is there");
    lab.run("iptables -F");
    lab.run("iptables -X");
    eventually("what was flushed comes back", || {
        ensure();
        lab.run("iptables-save").contains("-A INPUT -j KUBE-FIREWALL")
    });
    assert!(!ensure());
    let removed = lab.within("node", || leftovers::remove(None)).join().unwrap();
    assert!(removed.errors.is_empty(), "{removed:?}");
    assert!(!lab.run("iptables-save").contains("KUBE-"), "cleaning up takes them along");
    let tables = lab.nft_command("list tables");
    for table in ["mangle", "nat", "filter"] {
        assert!(!tables.contains(&format!(" {table}")), "and the tables that iptables made for them: {tables}");
    }
}
