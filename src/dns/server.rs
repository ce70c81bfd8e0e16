//! Sockets: datagrams, streams, and the metrics page.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{Answerer, Step, Transport};
use super::wire::Key;

/// Datagrams taken at one wake before others get their turn.
const AT_ONCE: usize = 64;
/// Questions that may wait for other servers at a time.
const MOST_PENDING: usize = 4096;
/// Open streams.
const MOST_STREAMS: usize = 512;
/// A stream on which nothing happens is closed.
const IDLE: Duration = Duration::from_secs(10);
/// No question is longer; what is, is cut and then unreadable.
const LONGEST_QUESTION: usize = 4096;
const BACKLOG: i32 = 1024;
/// Datagrams that the kernel may hold for us, so that a burst is not lost.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A socket of the kind, bound; also where the address is ours by a route only.
fn bound(address: SocketAddr, kind: SocketType) -> io::Result<rustix::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    if kind == SocketType::DGRAM {
        sockopt::set_socket_reuseport(&socket, true)?;
        // The kernel takes what it allows.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
    } else {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// A socket for datagrams; several may share an address, and the kernel spreads clients over them.
pub(super) fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(bound(address, SocketType::DGRAM)?.into())
}

/// A socket for streams.
pub(super) fn streams(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(bound(address, SocketType::STREAM)?.into())
}

/// Answers datagrams for ever.
pub(super) async fn serve_datagrams(socket: UdpSocket, answerer: Arc<Answerer>, pending: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut packet = vec![0; LONGEST_QUESTION];
    let (mut key, mut out) = (Key::new(), Vec::new());
    loop {
        if let Err(error) = socket.readable().await {
            tracing::warn!(%error, "the DNS socket");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for _ in 0..AT_ONCE {
            let (length, peer) = match socket.try_recv_from(&mut packet) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What an earlier answer met; the next datagram may be fine.
                Err(_) => continue,
            };
            match answerer.answer(&packet[..length], Transport::Udp, &mut key, &mut out) {
                // A full send buffer is like a datagram lost on the way.
                Step::Reply => drop(socket.try_send_to(&out, peer)),
                Step::Ignore => {}
                Step::Ask(question) => {
                    let Ok(permit) = pending.clone().try_acquire_owned() else {
                        answerer.metrics().dropped.inc();
                        continue;
                    };
                    let (socket, answerer) = (socket.clone(), answerer.clone());
                    tokio::spawn(async move {
                        if let Some(out) = answerer.finish(question, Transport::Udp).await {
                            let _ = socket.send_to(&out, peer).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Answers streams for ever.
pub(super) async fn serve_streams(listener: TcpListener, answerer: Arc<Answerer>) {
    let open = Arc::new(Semaphore::new(MOST_STREAMS));
    loop {
        // It is never closed.
        let Ok(permit) = open.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answerer = answerer.clone();
                tokio::spawn(async move {
                    // Clients come and go as they like.
                    let _ = serve_stream(stream, &answerer).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, answerer: &Arc<Answerer>) -> io::Result<()> {
    let (mut key, mut out) = (Key::new(), Vec::new());
    let mut packet = Vec::new();
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > LONGEST_QUESTION {
            return Ok(());
        }
        packet.resize(length, 0);
        timeout(IDLE, stream.read_exact(&mut packet)).await??;
        match answerer.answer(&packet, Transport::Tcp, &mut key, &mut out) {
            Step::Reply => {}
            Step::Ignore => return Ok(()),
            Step::Ask(question) => match answerer.finish(question, Transport::Tcp).await {
                Some(answer) => out = answer,
                None => return Ok(()),
            },
        }
        let length = u16::try_from(out.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let framed = [&length.to_be_bytes(), out.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// Serves `/metrics`, and `/ready` for whether names of the cluster are answered.
pub(super) async fn serve_metrics(listener: TcpListener, answerer: Arc<Answerer>) {
    let router = Router::new().route("/metrics", get(metrics)).route("/ready", get(ready)).with_state(answerer);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(%error, "DNS metrics are not served any more");
    }
}

async fn metrics(State(answerer): State<Arc<Answerer>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], answerer.metrics().text())
}

async fn ready(State(answerer): State<Arc<Answerer>>) -> impl IntoResponse {
    if answerer.is_ready() {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for Services and EndpointSlices")
    }
}

/// Room for questions that wait.
pub(super) fn pending() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MOST_PENDING))
}
