//! The cluster DNS address as an address of this node: a local route, so that what pods and programs of the node send there is
//! delivered here.
//!
//! A route and not an address on an interface: it needs no interface that a kernel may lack, no list of the node's addresses
//! shows it, and its protocol number tells that it is ours. It stays while the agent is restarted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

/// The table that the kernel asks first.
const LOCAL_TABLE: u8 = 255;
/// Marks routes as ours. Numbers above those of `/etc/iproute2/rt_protos` are free.
const OURS: RouteProtocol = RouteProtocol::Other(83);
const LOOPBACK: &str = "lo";

/// What the kernel would not do.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// A request failed.
    #[error("the kernel refused to {what}; the agent needs CAP_NET_ADMIN: {source}")]
    Refused {
        /// What was tried.
        what: String,
        /// Its answer.
        source: rtnetlink::Error,
    },
}

/// Makes exactly these addresses ours; others that were are given up.
pub(super) async fn claim(addresses: &[IpAddr]) -> Result<(), AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(AddressError::Open)?;
    let connection = tokio::spawn(connection);
    let result = async {
        give_up(&handle, |address| !addresses.contains(&address)).await?;
        if addresses.is_empty() {
            return Ok(());
        }
        let index = loopback(&handle).await?;
        for address in addresses {
            let refused = |source| AddressError::Refused { what: format!("deliver {address} here"), source };
            handle.route().add(local_route(*address, index)).replace().execute().await.map_err(refused)?;
        }
        Ok(())
    }
    .await;
    connection.abort();
    result
}

async fn loopback(handle: &Handle) -> Result<u32, AddressError> {
    let refused = |source| AddressError::Refused { what: "show the loopback interface".into(), source };
    let link = handle.link().get().match_name(LOOPBACK.to_owned()).execute().try_next().await.map_err(refused)?;
    // Every network namespace has it, as its first.
    Ok(link.map_or(1, |link| link.header.index))
}

fn local_route(address: IpAddr, interface: u32) -> RouteMessage {
    let mut route = match address {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
    };
    route.attributes.push(RouteAttribute::Oif(interface));
    route.header.table = LOCAL_TABLE;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.header.protocol = OURS;
    route
}

async fn give_up(handle: &Handle, unwanted: impl Fn(IpAddr) -> bool) -> Result<(), AddressError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let refused = |source| AddressError::Refused { what: "list local routes".into(), source };
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let mut routes = handle.route().get(filter).execute();
        let mut gone = Vec::new();
        while let Some(route) = routes.try_next().await.map_err(refused)? {
            if route.header.table == LOCAL_TABLE
                && route.header.protocol == OURS
                && destination(&route).is_some_and(&unwanted)
            {
                gone.push(route);
            }
        }
        for route in gone {
            let refused = |source| AddressError::Refused { what: "remove a local route".into(), source };
            handle.route().del(route).execute().await.map_err(refused)?;
        }
    }
    Ok(())
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}
