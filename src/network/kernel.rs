//! The agent's side of the kernel: reads the routes, neighbours and tunnel ends that are ours, and writes the difference.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use futures::StreamExt as _;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::cidr::Cidr;
use super::rtnl::{Hop, Mac, NEW, NODE_ROUTE, PUT, Rtnl, address, mac_of, neighbour, numbered, route, up};
use super::ways::Ways;

/// The tunnel device.
pub(super) const TUNNEL: &str = "stoker-vxlan";
/// The number that its packets carry.
const VNI: u32 = 0x5707;
/// IANA's port for VXLAN.
const VXLAN_PORT: u16 = 4789;

/// Deletes our routes to other nodes and the tunnel device; blocks.
pub(super) fn remove_all() -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let mut gone = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let ours = rtnl.dump(RouteNetlinkMessage::GetRoute(request))?.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => our_route(&message),
            _ => None,
        });
        gone.extend(ours.map(|(to, hop)| (RouteNetlinkMessage::DelRoute(route(to, hop, NODE_ROUTE)), 0)));
    }
    if let Some(tunnel) = rtnl.link(TUNNEL)? {
        let mut link = LinkMessage::default();
        link.header.index = tunnel.header.index;
        gone.push((RouteNetlinkMessage::DelLink(link), 0));
    }
    rtnl.send(gone).map_err(|(_, error)| error)
}

/// A connection to the kernel.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    handle: rtnetlink::Handle,
}

/// What could not be written; the rest was.
pub(super) type Refusals = Vec<String>;

impl Kernel {
    /// Connects in the network namespace of the calling thread; needs a Tokio runtime, on which the connection runs.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let request = numbered(message, flags, 0);
        let mut answers = self.handle.clone().request(request).map_err(io::Error::other)?;
        let mut all = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => all.push(answer),
                NetlinkPayload::Error(error) if error.raw_code() != 0 => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(all)
    }

    async fn tell(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK).await.map(drop)
    }

    async fn links(&self) -> io::Result<Vec<LinkMessage>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP).await?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// The link that has the address, and its MTU.
    pub(super) async fn link_with(&self, ip: IpAddr) -> io::Result<Option<(u32, u32)>> {
        let answers = self.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP).await?;
        let has = |message: &AddressMessage| {
            message.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Address(its) | AddressAttribute::Local(its) if *its == ip)
            })
        };
        let index = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if has(&message) => Some(message.header.index),
            _ => None,
        });
        let Some(index) = index else { return Ok(None) };
        let mtu = |link: &LinkMessage| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        };
        let links = self.links().await?;
        Ok(links.iter().find(|link| link.header.index == index).and_then(|link| Some((index, mtu(link)?))))
    }

    /// Makes the tunnel device, or finds the one that an agent before us made; its index.
    pub(super) async fn tunnel(&self, underlay: IpAddr, mac: Mac, mtu: u32) -> io::Result<u32> {
        if let Some(old) = self.named(TUNNEL).await? {
            let same_mtu = old.attributes.contains(&LinkAttribute::Mtu(mtu));
            if mac_of(&old) == Some(mac) && has_local(&old, underlay) && same_mtu {
                return Ok(old.header.index);
            }
            // Of another node address: what leads through it is written again.
            let mut gone = LinkMessage::default();
            gone.header.index = old.header.index;
            self.tell(RouteNetlinkMessage::DelLink(gone), 0).await?;
        }
        let local = match underlay {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        };
        let mut link = up();
        link.attributes = vec![
            LinkAttribute::IfName(TUNNEL.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::Id(VNI),
                    local,
                    InfoVxlan::Port(VXLAN_PORT),
                    InfoVxlan::Learning(false),
                ])),
            ]),
        ];
        self.tell(RouteNetlinkMessage::NewLink(link), NEW).await?;
        let made = self.named(TUNNEL).await?;
        made.map(|link| link.header.index).ok_or_else(|| io::Error::other("the tunnel device is gone at once"))
    }

    async fn named(&self, name: &str) -> io::Result<Option<LinkMessage>> {
        let is_it = |link: &LinkMessage| {
            link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(its) if its == name))
        };
        Ok(self.links().await?.into_iter().find(is_it))
    }

    /// Writes what differs, and says what was refused. `tunnel` is the index of the tunnel device.
    pub(super) async fn write(&self, ways: &Ways, tunnel: Option<u32>) -> io::Result<(usize, Refusals)> {
        let mut writing = Writing { kernel: self, written: 0, refusals: Vec::new() };
        if let Some(link) = tunnel {
            for range in &ways.own {
                let ip = super::ways::node_address(*range);
                let known = self.link_with(ip).await?.is_some_and(|(index, _)| index == link);
                if !known {
                    writing.tell(&ip, RouteNetlinkMessage::NewAddress(address(link, ip)), PUT).await;
                }
            }
            self.write_neighbours(link, ways, &mut writing).await?;
        }
        let present = self.routes().await?;
        for (range, hop) in present.iter().filter(|(range, _)| !ways.routes.contains_key(range)) {
            writing.tell(range, RouteNetlinkMessage::DelRoute(route(*range, *hop, NODE_ROUTE)), 0).await;
        }
        for (range, hop) in ways.routes.iter().filter(|(range, hop)| present.get(range) != Some(hop)) {
            if let Some(old) = present.get(range).filter(|_| !range.is_ipv4()) {
                // A route of IPv6 to nowhere is not replaced by one to somewhere.
                writing.tell(range, RouteNetlinkMessage::DelRoute(route(*range, *old, NODE_ROUTE)), 0).await;
            }
            writing.tell(range, RouteNetlinkMessage::NewRoute(route(*range, *hop, NODE_ROUTE)), PUT).await;
        }
        Ok((writing.written, writing.refusals))
    }

    async fn write_neighbours(&self, link: u32, ways: &Ways, writing: &mut Writing<'_>) -> io::Result<()> {
        let (neighbours, forwarding) = self.neighbours(link).await?;
        for (ip, mac) in neighbours.iter().filter(|(ip, mac)| ways.neighbours.get(ip) != Some(mac)) {
            writing.tell(ip, RouteNetlinkMessage::DelNeighbour(neighbour(link, *ip, *mac)), 0).await;
        }
        for (mac, ip) in forwarding.iter().filter(|(mac, ip)| ways.forwarding.get(*mac) != Some(ip)) {
            writing.tell(ip, RouteNetlinkMessage::DelNeighbour(tunnel_end(link, *mac, *ip)), 0).await;
        }
        for (mac, ip) in ways.forwarding.iter().filter(|(mac, ip)| forwarding.get(*mac) != Some(ip)) {
            writing.tell(ip, RouteNetlinkMessage::NewNeighbour(tunnel_end(link, *mac, *ip)), PUT).await;
        }
        for (ip, mac) in ways.neighbours.iter().filter(|(ip, mac)| neighbours.get(ip) != Some(mac)) {
            writing.tell(ip, RouteNetlinkMessage::NewNeighbour(neighbour(link, *ip, *mac)), PUT).await;
        }
        Ok(())
    }

    /// Our routes to other nodes.
    async fn routes(&self) -> io::Result<BTreeMap<Cidr, Hop>> {
        let mut routes = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answers = self.ask(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP).await?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => our_route(&message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Permanent neighbours on a link, and the ends of its tunnels.
    async fn neighbours(&self, link: u32) -> io::Result<(BTreeMap<IpAddr, Mac>, BTreeMap<Mac, IpAddr>)> {
        let (mut neighbours, mut forwarding) = (BTreeMap::new(), BTreeMap::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for answer in self.ask(RouteNetlinkMessage::GetNeighbour(request), NLM_F_DUMP).await? {
                let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
                if message.header.ifindex != link || message.header.state != NeighbourState::Permanent {
                    continue;
                }
                let Some((ip, mac)) = ip_and_mac(&message) else { continue };
                if family == AddressFamily::Bridge {
                    forwarding.insert(mac, ip);
                } else {
                    neighbours.insert(ip, mac);
                }
            }
        }
        Ok((neighbours, forwarding))
    }
}

struct Writing<'a> {
    kernel: &'a Kernel,
    written: usize,
    refusals: Refusals,
}

impl Writing<'_> {
    async fn tell(&mut self, what: &impl std::fmt::Display, message: RouteNetlinkMessage, flags: u16) {
        match self.kernel.tell(message, flags).await {
            Ok(()) => self.written += 1,
            Err(error) => self.refusals.push(format!("{what}: {error}")),
        }
    }
}

fn has_local(link: &LinkMessage, ip: IpAddr) -> bool {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(|info| {
        let LinkInfo::Data(InfoData::Vxlan(data)) = info else { return false };
        data.iter().any(|item| match item {
            InfoVxlan::Local(its) => ip == *its,
            InfoVxlan::Local6(its) => ip == *its,
            _ => false,
        })
    })
}

fn our_route(message: &RouteMessage) -> Option<(Cidr, Hop)> {
    let header = &message.header;
    if header.protocol != NODE_ROUTE || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let (mut to, mut gateway, mut link) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let to: Cidr = format!("{}/{}", to?, header.destination_prefix_length).parse().ok()?;
    let hop = match (header.kind, gateway, link) {
        (RouteType::Unreachable, ..) => Hop::Unreachable,
        (_, Some(gateway), Some(link)) if header.flags.contains(RouteFlags::Onlink) => Hop::OnLink(link, gateway),
        (_, Some(gateway), _) => Hop::Gateway(gateway),
        (_, None, Some(link)) => Hop::Link(link),
        _ => return None,
    };
    Some((to, hop))
}

fn tunnel_end(link: u32, mac: Mac, ip: IpAddr) -> NeighbourMessage {
    let mut message = neighbour(link, ip, mac);
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message
}

fn ip_and_mac(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(its)) => ip = Some(IpAddr::V4(*its)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(its)) => ip = Some(IpAddr::V6(*its)),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice())
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                    .ok();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((ip?, mac?))
}
