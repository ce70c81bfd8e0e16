//! Opens connections. Addresses are taken as they are; a resolver is asked for names only.

use std::io;
use std::net::{self, IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect as begin, getpeername, ipproto, socket_with};
use tokio::net::TcpStream;

/// `host:port`, with brackets where the host is an IPv6 address.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Connects. The socket does not block, and the runtime does not know it.
pub(super) async fn connect(host: &str, port: u16) -> Result<net::TcpStream, String> {
    let connected = match host.parse::<IpAddr>() {
        Ok(ip) => connect_to(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host, port)).await.and_then(TcpStream::into_std),
    };
    connected.map_err(|error| format!("dial tcp {}: connect: {}", join(host, port), text(&error)))
}

async fn connect_to(address: SocketAddr) -> io::Result<net::TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match begin(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // On one node the kernel has done all of it by now: that spares telling the runtime of the socket, and a waking.
    let connected = getpeername(&socket).is_ok();
    let stream = net::TcpStream::from(socket);
    if connected {
        return Ok(stream);
    }
    let stream = TcpStream::from_std(stream)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => stream.into_std(),
    }
}

/// The system's text without its number, as Go prints it.
pub(super) fn text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        io::ErrorKind::BrokenPipe => "broken pipe".to_owned(),
        _ => error.to_string(),
    }
}
