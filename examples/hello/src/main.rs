//! The web server of the example image: answers on port 8080 with who it is, and ends at once on TERM. `hello lookup NAME`
//! asks for a name's addresses instead.

mod lookup;

use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

const PORT: u16 = 8080;
/// More than any client's request head that this server is meant for.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// A client that sends nothing must not keep its task for ever.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, name] = arguments.as_slice()
        && verb == "lookup"
    {
        return lookup::lookup(name);
    }
    // As PID 1 of its container the process would not even notice a TERM for which it has no handler.
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", PORT)).await?, // a kernel without IPv6
    };
    println!("hello: listening on port {PORT}");
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(tokio::spawn(serve(client))),
                Err(error) => eprintln!("hello: a connection could not be accepted: {error}"),
            },
        }
    }
    println!("hello: told to stop");
    Ok(())
}

async fn serve(mut client: TcpStream) {
    if let Ok(Err(error)) = timeout(PATIENCE, answer(&mut client)).await {
        eprintln!("hello: {error}");
    }
}

async fn answer(client: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_REQUEST_BYTES || client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or("/");
    let (status, body) = reply(path, &who(client)?);
    println!("hello: {path} {status}");
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(response.as_bytes()).await?;
    client.shutdown().await
}

/// The host name and the address that the client reached, which in a pod are the pod's.
fn who(client: &TcpStream) -> io::Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(format!("{} ({})", host.trim(), client.local_addr()?.ip().to_canonical()))
}

fn reply(path: &str, who: &str) -> (&'static str, String) {
    match path {
        "/" => ("200 OK", format!("hello from {who}\n")),
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", format!("there is no {path} here; try / or /healthz\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_paths_answer() {
        assert_eq!(reply("/", "web-1 (10.0.0.2)"), ("200 OK", "hello from web-1 (10.0.0.2)\n".to_owned()));
        assert_eq!(reply("/healthz", "").0, "200 OK");
        assert_eq!(reply("/nothing", "").0, "404 Not Found");
    }
}
