//! A pod's attachment: a veth pair, addresses, routes and host ports; made, taken away and checked.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::answer::{Interface, result};
use super::request::{
    DIFFERENT, Failure, INVALID_ENVIRONMENT, IO_FAILURE, NOT_AVAILABLE, NodeCall, NodeCommand, PodCall, PodCommand,
};
use super::sandbox::Sandbox;
use crate::network::cidr::Cidr;
use crate::network::leases::{LeaseError, Leases, Owner};
use crate::network::rtnl::{Hop, Mac, NEW, POD_ROUTE, PUT, Rtnl, address, mac_from, neighbour, route, up, veth};
use crate::network::table::{self, Element, PortMapping};

/// The pods' gateways. No interface has these addresses: a permanent neighbour entry says where they are.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// What Ethernet carries where nobody says otherwise.
const DEFAULT_MTU: u32 = 1500;

fn gateway(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { GATEWAY4.into() } else { GATEWAY6.into() }
}

impl From<LeaseError> for Failure {
    fn from(error: LeaseError) -> Self {
        Self::new(IO_FAILURE, error.to_string())
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::new(IO_FAILURE, format!("cannot {what}: {error}"))
}

/// The names that follow from an owner.
struct Names {
    /// The node's end of the pair.
    link: String,
    near: Mac,
    far: Mac,
}

impl Names {
    fn of(owner: &Owner) -> Self {
        let digest = Sha256::digest(format!("{}/{}", owner.container, owner.interface));
        Self {
            link: format!("{}{}", crate::network::LINK_PREFIX, hex::encode(&digest[..5])),
            near: mac_from(&digest[5..]),
            far: mac_from(&digest[11..]),
        }
    }
}

/// ADD, DEL and CHECK.
pub(super) fn pod(call: &PodCall) -> Result<String, Failure> {
    match call.command {
        PodCommand::Add => add(call),
        PodCommand::Del => remove(&call.config.state_dir, &call.owner).map(|()| String::new()),
        PodCommand::Check => check(call).map(|()| String::new()),
    }
}

/// STATUS and GC.
pub(super) fn node(call: &NodeCall) -> Result<String, Failure> {
    let state = &call.config.state_dir;
    match &call.command {
        NodeCommand::Status => {
            let not_available = |message: String| Failure::new(NOT_AVAILABLE, message);
            if call.config.ranges.is_empty() {
                return Err(not_available("the node has no spec.podCIDRs yet".to_owned()));
            }
            Leases::open(state).map_err(|error| not_available(error.to_string()))?;
        }
        NodeCommand::Gc(valid) => collect(state, |owner| valid.contains(owner))?,
    }
    Ok(String::new())
}

fn add(call: &PodCall) -> Result<String, Failure> {
    let config = &call.config;
    let Some(path) = &call.namespace else {
        return Err(Failure::new(INVALID_ENVIRONMENT, "the variable CNI_NETNS is missing"));
    };
    let ipv6 = config.ranges.iter().any(|range| !range.is_ipv4());
    let mut sandbox = Sandbox::open(path, ipv6)?;
    let names = Names::of(&call.owner);
    let mut node = Rtnl::open().map_err(failed("open a netlink socket"))?;
    let leases = Leases::open(&config.state_dir)?;
    let mtu = if config.mtu == 0 { DEFAULT_MTU } else { config.mtu };
    let pair = veth(&names.link, names.near, &call.owner.interface, names.far, sandbox.namespace.as_raw_fd(), mtu);
    node.send(vec![(RouteNetlinkMessage::NewLink(pair), NEW)]).map_err(|(_, error)| {
        // The kernel says the same for either end.
        let message = if error.kind() == io::ErrorKind::AlreadyExists {
            format!("{} in {} exists already: DEL must come before another ADD", call.owner.interface, path.display())
        } else {
            format!("cannot make a veth pair: {error}")
        };
        Failure::new(IO_FAILURE, message)
    })?;
    let made = leases.lease(&config.ranges, &call.owner).map_err(Failure::from).and_then(|addresses| {
        configure(&mut node, &mut sandbox, &names, &call.owner, &addresses)?;
        open_ports(&config.state_dir, &call.owner, &names, &addresses, &config.runtime_config.port_mappings)?;
        Ok(addresses)
    });
    let addresses = match made {
        Ok(addresses) => addresses,
        Err(failure) => {
            // The runtime calls DEL too; this is for those that do not.
            let _ = remove(&config.state_dir, &call.owner);
            return Err(failure);
        }
    };
    let interfaces = [
        Interface { name: &names.link, mac: names.near, sandbox: None, mtu },
        Interface { name: &call.owner.interface, mac: names.far, sandbox: path.to_str(), mtu },
    ];
    let addresses: Vec<_> = addresses.into_iter().map(|address| (address, Some(gateway(address)))).collect();
    Ok(result(&config.cni_version, &interfaces, &addresses))
}

fn configure(
    node: &mut Rtnl,
    sandbox: &mut Sandbox,
    names: &Names,
    owner: &Owner,
    addresses: &[IpAddr],
) -> Result<(), Failure> {
    let index = |rtnl: &mut Rtnl, name: &str| match rtnl.link(name) {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(Failure::new(IO_FAILURE, format!("{name} is gone as soon as it was made"))),
        Err(error) => Err(failed("find a new interface")(error)),
    };
    let (near, far) = (index(node, &names.link)?, index(&mut sandbox.rtnl, &owner.interface)?);
    let mut link = up();
    link.header.index = far;
    let (mut outside, mut inside) = (Vec::new(), vec![(RouteNetlinkMessage::SetLink(link), 0)]);
    for &ip in addresses {
        let everywhere = if ip.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let everywhere: Cidr = format!("{everywhere}/0").parse().expect("it is a range");
        let way_out =
            route(everywhere, Hop::OnLink(far, gateway(ip)), netlink_packet_route::route::RouteProtocol::Boot);
        outside.push((RouteNetlinkMessage::NewNeighbour(neighbour(near, ip, names.far)), PUT));
        outside.push((RouteNetlinkMessage::NewRoute(route(Cidr::single(ip), Hop::Link(near), POD_ROUTE)), PUT));
        inside.push((RouteNetlinkMessage::NewAddress(address(far, ip)), NEW));
        inside.push((RouteNetlinkMessage::NewNeighbour(neighbour(far, gateway(ip), names.near)), PUT));
        inside.push((RouteNetlinkMessage::NewRoute(way_out), NEW));
    }
    let inner = ["add the pod's address", "add the pod's gateway", "add the pod's default route"];
    sandbox.rtnl.send(inside).map_err(|(at, error)| match at {
        0 => failed("set the pod's interface up")(error),
        _ => failed(inner[(at - 1) % inner.len()])(error),
    })?;
    let outer = ["say where the pod is", "add the route to the pod"];
    node.send(outside).map_err(|(at, error)| failed(outer[at % outer.len()])(error))
}

/// Where the host ports of an attachment are noted, before they are opened.
fn port_file(state: &Path, owner: &Owner) -> PathBuf {
    state.join("ports").join(format!("{}@{}", owner.container, owner.interface))
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Noted {
    addresses: Vec<IpAddr>,
    mappings: Vec<PortMapping>,
}

fn open_ports(
    state: &Path,
    owner: &Owner,
    names: &Names,
    addresses: &[IpAddr],
    mappings: &[PortMapping],
) -> Result<(), Failure> {
    let elements = table::elements(addresses, mappings).map_err(|wrong| Failure::new(7, wrong))?;
    if elements.is_empty() {
        return Ok(());
    }
    let file = port_file(state, owner);
    let new = file.with_extension("new");
    let noted = Noted { addresses: addresses.to_vec(), mappings: mappings.to_vec() };
    let text = serde_json::to_vec(&noted).expect("addresses and numbers are JSON");
    fs::create_dir_all(state.join("ports"))
        .and_then(|()| fs::write(&new, text))
        .and_then(|()| fs::rename(&new, &file))
        .map_err(failed("note the host ports"))?;
    // So that the node's own loopback addresses lead to the pod as well.
    let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", names.link);
    if addresses.iter().any(IpAddr::is_ipv4) {
        fs::write(&path, "1").map_err(failed("allow host ports on 127.0.0.1"))?;
    }
    let script = table::add(&elements);
    // The table is there unless somebody flushed it.
    table::run_nft(&script).or_else(|_| table::run_nft(&format!("{}{script}", table::fixed()))).map_err(|error| {
        Failure::new(DIFFERENT, format!("cannot open the host ports, which another pod may have: {error}"))
    })
}

/// Closes the host ports that are noted; none are fine, and so are those that another pod has by now.
fn close_ports(state: &Path, owner: &Owner) -> Result<(), Failure> {
    let file = port_file(state, owner);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read the host ports")(error)),
    };
    let elements = serde_json::from_slice::<Noted>(&text)
        .ok()
        .and_then(|noted| table::elements(&noted.addresses, &noted.mappings).ok())
        .unwrap_or_default();
    let close = |elements: &[Element]| table::run_nft(&table::delete(elements));
    if close(&elements).is_err() {
        for element in elements {
            // One that leads elsewhere is not ours; without the table there is nothing to close.
            let _ = close(&[element]);
        }
    }
    fs::remove_file(&file).map_err(failed("forget the host ports"))
}

/// Takes everything away that an owner has; what is not there is fine. Goes on when a part fails, and tells of the first.
fn remove(state: &Path, owner: &Owner) -> Result<(), Failure> {
    let ports = close_ports(state, owner);
    let link = Rtnl::open().map_err(failed("open a netlink socket")).and_then(|mut node| {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(Names::of(owner).link));
        match node.send(vec![(RouteNetlinkMessage::DelLink(link), 0)]) {
            Err((_, error)) if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) => {
                Err(failed("delete the pod's interface")(error))
            }
            _ => Ok(()),
        }
    });
    // Only when nothing uses it any more is an address free.
    ports.and(link)?;
    match Leases::open(state).and_then(|leases| leases.release(owner)) {
        Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes every attachment that is not to be kept.
pub(in crate::network) fn collect(state: &Path, keep: impl Fn(&Owner) -> bool) -> Result<(), Failure> {
    let mut owners: BTreeSet<Owner> = Leases::open(state)?.all()?.into_iter().map(|(_, owner)| owner).collect();
    for entry in fs::read_dir(state.join("ports")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((container, interface)) = name.rsplit_once('@') {
            owners.insert(Owner { container: container.to_owned(), interface: interface.to_owned() });
        }
    }
    let mut first = Ok(());
    for owner in owners.iter().filter(|owner| !keep(owner)) {
        first = first.and(remove(state, owner));
    }
    first
}

fn check(call: &PodCall) -> Result<(), Failure> {
    let different = |message: String| Err(Failure::new(DIFFERENT, message));
    let Some(path) = &call.namespace else {
        return Err(Failure::new(INVALID_ENVIRONMENT, "the variable CNI_NETNS is missing"));
    };
    let names = Names::of(&call.owner);
    let leased = Leases::open(&call.config.state_dir)?.of(&call.owner)?;
    let told = told_addresses(call.config.prev_result.as_ref());
    if let Some(missing) = told.iter().find(|address| !leased.contains(address)) {
        return different(format!("{missing} is not leased to this container"));
    }
    let mut sandbox = Sandbox::open(path, false)?;
    let Some(far) = sandbox.rtnl.link(&call.owner.interface).map_err(failed("look into the sandbox"))? else {
        return different(format!("{} is not in the sandbox", call.owner.interface));
    };
    let mut node = Rtnl::open().map_err(failed("open a netlink socket"))?;
    if node.link(&names.link).map_err(failed("look at the node's interfaces"))?.is_none() {
        return different(format!("{} is not on the node", names.link));
    }
    let dump = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let present: Vec<IpAddr> = sandbox
        .rtnl
        .dump(dump)
        .map_err(failed("read the sandbox's addresses"))?
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == far.header.index => Some(message),
            _ => None,
        })
        .flat_map(|message| message.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(address),
            _ => None,
        })
        .collect();
    match leased.iter().find(|address| !present.contains(address)) {
        Some(missing) => different(format!("{} lacks its address {missing}", call.owner.interface)),
        None => Ok(()),
    }
}

fn told_addresses(result: Option<&serde_json::Value>) -> Vec<IpAddr> {
    let ips = result.and_then(|result| result["ips"].as_array()).into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}
