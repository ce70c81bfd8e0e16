//! The addresses of the node (A16.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

/// So long DNS may take to say what the host's own name stands for. Static pods and the health port wait for it.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);

/// Why `--node-ip` cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// Not an address.
    #[error("--node-ip: {0:?} is not an IP address")]
    NotAnAddress(String),
    /// More than one of a family.
    #[error("--node-ip: {0:?} must hold one address, or one of each family")]
    TooMany(String),
    /// An address that no other machine can use.
    #[error("--node-ip: {0} cannot be a node's address: it is loopback, multicast or link-local")]
    Unusable(IpAddr),
}

/// One address of each family, primary first: `node_ip` (`--node-ip`), else what the host's name resolves to, else the
/// address that leads to the default route; a host's name that is an address is the address. `0.0.0.0` and `::` choose a family only.
///
/// # Errors
/// When `node_ip` makes no sense.
pub fn choose_addresses(node_ip: Option<&str>, hostname: &str) -> Result<Vec<IpAddr>, AddressError> {
    let wanted = parse(node_ip.unwrap_or_default())?;
    let fixed: Vec<_> = wanted.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    if !fixed.is_empty() {
        return Ok(fixed);
    }
    let six_first = wanted.first().is_some_and(IpAddr::is_ipv6);
    // Somebody gave an address as the node's name.
    if let Ok(ip) = hostname.parse() {
        return Ok(vec![ip]);
    }
    let name = hostname.to_owned();
    let named = within(LOOKUP_LIMIT, move || resolve(&name)).unwrap_or_else(|| {
        tracing::warn!(
            hostname,
            "nobody says in time which address the host's name stands for: the one towards the default route is used"
        );
        Vec::new()
    });
    let primary = first_of(six_first, &named).or_else(|| first_of(six_first, &routed()));
    // A machine without any network still runs pods for itself.
    let loopback = if six_first { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    Ok(vec![primary.unwrap_or(loopback)])
}

/// The first of the family that is wanted, else the first.
fn first_of(six_first: bool, found: &[IpAddr]) -> Option<IpAddr> {
    found.iter().find(|ip| ip.is_ipv6() == six_first).or(found.first()).copied()
}

fn parse(text: &str) -> Result<Vec<IpAddr>, AddressError> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let ip: IpAddr = part.parse().map_err(|_| AddressError::NotAnAddress(part.to_owned()))?;
        if addresses.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err(AddressError::TooMany(text.to_owned()));
        }
        if !ip.is_unspecified() && !usable(ip) && !ip.is_loopback() {
            return Err(AddressError::Unusable(ip));
        }
        addresses.push(ip);
    }
    Ok(addresses)
}

fn usable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local)
}

/// What `ask` answers, if it does so in time. It goes on by itself where it is late.
fn within<T: Send + 'static>(limit: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::spawn(move || tell.send(ask()));
    told.recv_timeout(limit).ok()
}

/// What the host's own name stands for, if that is an address of this machine.
fn resolve(hostname: &str) -> Vec<IpAddr> {
    use std::net::ToSocketAddrs;
    let addresses = (hostname, 0).to_socket_addrs().into_iter().flatten().map(|address| address.ip());
    addresses.filter(|ip| usable(*ip) && UdpSocket::bind(SocketAddr::new(*ip, 0)).is_ok()).collect()
}

/// The source addresses that the kernel would use towards the default routes. Connecting a UDP socket sends nothing.
fn routed() -> Vec<IpAddr> {
    let source = |local: &str, remote: &str| -> Option<IpAddr> {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| usable(*ip))
    };
    // Addresses for documentation (RFC 5737, RFC 3849): no route of its own leads there.
    [source("0.0.0.0:0", "192.0.2.1:9"), source("[::]:0", "[2001:db8::1]:9")].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let (ask, asked) = mpsc::sync_channel::<()>(0);
        assert_eq!(within(Duration::from_millis(20), move || asked.recv().is_ok()), None, "DNS is gone");
        drop(ask);
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
    }

    #[test]
    fn node_ip_is_one_address_of_each_family() {
        // A16.5
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(choose_addresses(Some("10.1.2.3"), "x"), Ok(vec![ip("10.1.2.3")]));
        assert_eq!(choose_addresses(Some("fd00::1, 10.1.2.3"), "x"), Ok(vec![ip("fd00::1"), ip("10.1.2.3")]));
        assert!(matches!(choose_addresses(Some("10.1.2.3,10.1.2.4"), "x"), Err(AddressError::TooMany(_))));
        assert!(matches!(choose_addresses(Some("web"), "x"), Err(AddressError::NotAnAddress(_))));
        assert!(matches!(choose_addresses(Some("224.0.0.1"), "x"), Err(AddressError::Unusable(_))));
    }

    #[test]
    fn without_node_ip_there_is_always_an_address() {
        // A16.5
        assert_eq!(choose_addresses(None, "no-such-host.invalid").map(|found| found.len()), Ok(1));
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(choose_addresses(None, "192.0.2.9"), Ok(vec![ip("192.0.2.9")]), "a name that is an address");
        // What the host's name stands for goes before the default route, of whichever family it is.
        let (four, six) = (ip("192.0.2.1"), ip("2001:db8::1"));
        for (six_first, found, expected) in [
            (false, vec![six, four], Some(four)),
            (true, vec![four, six], Some(six)),
            (false, vec![six], Some(six)),
            (true, vec![four], Some(four)),
            (false, vec![], None),
        ] {
            assert_eq!(first_of(six_first, &found), expected, "{six_first} {found:?}");
        }
        // The unspecified address chooses a family only.
        assert!(resolve("localhost").is_empty(), "no other machine finds this one there");
        let routes = routed();
        for (node_ip, is_six) in [("0.0.0.0", false), ("::", true)] {
            let found = choose_addresses(Some(node_ip), "no-such-host.invalid").expect("an address");
            let has_family = routes.is_empty() || routes.iter().any(|ip| ip.is_ipv6() == is_six);
            assert_eq!(found[0].is_ipv6() == is_six, has_family, "{node_ip} {found:?}");
        }
    }
}
