//! The network namespace of a sandbox: a socket in it, and its loopback interface.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::answer::{Interface, result};
use super::request::{Failure, INVALID_ENVIRONMENT, IO_FAILURE, PodCall, PodCommand, UNKNOWN_CONTAINER};
use crate::network::rtnl::{Rtnl, up};

const OWN: &str = "/proc/self/ns/net";

/// A namespace and a socket in it.
pub(super) struct Sandbox {
    pub(super) namespace: File,
    pub(super) rtnl: Rtnl,
}

impl Sandbox {
    /// Opens it; the calling thread is in its own namespace before and after.
    pub(super) fn open(path: &Path, ipv6: bool) -> Result<Self, Failure> {
        let failed = |source: io::Error| {
            let code = if source.kind() == io::ErrorKind::NotFound { UNKNOWN_CONTAINER } else { IO_FAILURE };
            Failure::new(code, format!("the network namespace {}: {source}", path.display()))
        };
        let own = File::open(OWN).map_err(failed)?;
        let namespace = File::open(path).map_err(failed)?;
        let same = own.metadata().and_then(|own| namespace.metadata().map(|its| own.ino() == its.ino()));
        if same.map_err(failed)? && std::env::var_os("CNI_NETNS_OVERRIDE").is_none() {
            let message = format!("CNI_NETNS {} is the node's own network namespace", path.display());
            return Err(Failure::new(INVALID_ENVIRONMENT, message));
        }
        let enter = |to: &File| move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network));
        enter(&namespace).map_err(|error| failed(error.into()))?;
        let rtnl = Rtnl::open();
        if ipv6 {
            // Some runtimes make namespaces without IPv6. If it cannot be switched on, adding the address tells.
            let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0");
        }
        enter(&own).map_err(|error| failed(error.into()))?;
        Ok(Self { namespace, rtnl: rtnl.map_err(failed)? })
    }
}

/// What the plugin `loopback` does: `lo` is up while the sandbox lives.
pub(super) fn loopback(call: &PodCall) -> Result<String, Failure> {
    const LO: u32 = 1;
    let Some(path) = call.namespace.as_deref().filter(|_| call.command != PodCommand::Del) else {
        return Ok(String::new());
    };
    let mut sandbox = Sandbox::open(path, false)?;
    if call.command == PodCommand::Add {
        let mut link = up();
        link.header.index = LO;
        sandbox
            .rtnl
            .send(vec![(RouteNetlinkMessage::SetLink(link), 0)])
            .map_err(|(_, error)| Failure::new(IO_FAILURE, format!("cannot set lo up: {error}")))?;
        let lo = Interface { name: "lo", mac: [0; 6], sandbox: path.to_str(), mtu: 65536 };
        let addresses = [(Ipv4Addr::LOCALHOST.into(), None), (Ipv6Addr::LOCALHOST.into(), None)];
        return Ok(result(&call.config.cni_version, &[lo], &addresses));
    }
    Ok(String::new())
}
