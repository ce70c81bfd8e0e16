//! What IPVS needs of the kernel's settings.

use tracing::warn;

/// Sets what kube-proxy sets for IPVS; what cannot be set is warned of, for a machine may have it set otherwise for a reason.
pub(super) fn set_sysctls(strict_arp: bool) {
    let always = [
        // Without connection tracking nothing that IPVS forwards could be masqueraded.
        ("net/ipv4/vs/conntrack", "1"),
        // Flows to a backend that is gone end with their next packet.
        ("net/ipv4/vs/expire_nodest_conn", "1"),
        // So does the affinity of a client to a backend that takes no new connections.
        ("net/ipv4/vs/expire_quiescent_template", "1"),
        ("net/ipv4/ip_forward", "1"),
    ];
    // Only the interface that has an address answers for it, so that no node answers for service IPs.
    let strict = [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];
    for (name, value) in always.into_iter().chain(strict.into_iter().filter(|_| strict_arp)) {
        let path = format!("/proc/sys/{name}");
        if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
            continue;
        }
        if let Err(error) = std::fs::write(&path, value) {
            warn!(%error, setting = name.replace('/', "."), value, "cannot set what IPVS needs");
        }
    }
}
