//! One request and its answer over HTTP/1.1, on a connection that serves nothing else (A5.8).
//!
//! Not hyper's client, which is made for requests to come: its channels, buffers and maps took a fourth of a probe's processor time. What goes
//! wrong is told in the words of Go's client, which users search for.

use std::io::{self, Write};
use std::net;

use http::{HeaderMap, HeaderValue, header};
use httparse::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dial;
use super::reply::Reply;

/// A longer head is refused, with those that come before it.
const LONGEST_HEAD: usize = 64 << 10;
/// A head with more lines is refused.
const MOST_HEADERS: usize = 100;
/// A longer line before a chunk is refused.
const LONGEST_CHUNK_LINE: usize = 4 << 10;
/// So much of a line that makes no sense is shown.
const LONGEST_SHOWN: usize = 128;
/// Room for what comes next.
const ROOM: usize = 4 << 10;

/// A GET request, after which the connection is closed.
pub(super) fn message(target: &str, host: &HeaderValue, headers: &HeaderMap) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    message.extend_from_slice(b"GET ");
    message.extend_from_slice(target.as_bytes());
    message.extend_from_slice(b" HTTP/1.1");
    let mut add = |name: &str, value: &HeaderValue| {
        message.extend_from_slice(b"\r\n");
        // As Go writes them: there are servers to which it matters.
        let mut before = b'-';
        message.extend(name.bytes().map(|byte| {
            let starts = std::mem::replace(&mut before, byte) == b'-';
            if starts { byte.to_ascii_uppercase() } else { byte }
        }));
        message.extend_from_slice(b": ");
        message.extend_from_slice(value.as_bytes());
    };
    add("host", host);
    for (name, value) in headers.iter().filter(|(name, _)| **name != header::HOST && **name != header::CONNECTION) {
        add(name.as_str(), value);
    }
    message.extend_from_slice(b"\r\nConnection: close\r\n\r\n");
    message
}

/// Asks over a connection that the runtime does not know yet, and does not block.
pub(super) async fn ask_plain(message: &[u8], mut stream: net::TcpStream) -> Result<Reply, String> {
    // Nearly always it takes all of it: the runtime is asked to wait for the answer alone.
    let sent = stream.write(message).unwrap_or_default();
    let mut stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
    ask(&message[sent..], &mut stream).await
}

/// Asks, and takes the answer.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(message: &[u8], stream: &mut S) -> Result<Reply, String> {
    let sent = async {
        stream.write_all(message).await?;
        stream.flush().await
    };
    let sent = sent.await;
    let mut answer = Answer { stream, bytes: Vec::new(), taken: 0 };
    let read = answer.reply().await;
    // A server may answer before it has read everything, and hang up.
    match (read, sent) {
        (Err(_), Err(error)) => Err(format!("write: {}", dial::text(&error))),
        (read, _) => read,
    }
}

/// An answer on its way.
struct Answer<'a, S> {
    stream: &'a mut S,
    /// What came, of which so much has been looked through.
    bytes: Vec<u8>,
    taken: usize,
}

/// What a head says.
struct Head {
    reply: Reply,
    body: Body,
    /// Its own length.
    size: usize,
}

/// Where a body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Body {
    Sized(u64),
    Chunked,
    /// With the connection.
    Open,
}

impl<S: AsyncRead + Unpin> Answer<'_, S> {
    async fn reply(&mut self) -> Result<Reply, String> {
        let Head { mut reply, body, .. } = self.head().await?;
        match body {
            Body::Sized(size) => self.keep(size, &mut reply).await?.then_some(()).ok_or("unexpected EOF")?,
            // Whether the connection ended or there was enough.
            Body::Open => drop(self.keep(u64::MAX, &mut reply).await?),
            Body::Chunked => self.chunks(&mut reply).await?,
        }
        Ok(reply)
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Waits for more; `false`: the connection has ended.
    async fn more(&mut self) -> Result<bool, String> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.reserve(ROOM);
        match self.stream.read_buf(&mut self.bytes).await {
            Ok(read) => Ok(read > 0),
            // TLS that ended without saying so; Go takes that, too.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(format!("read: {}", dial::text(&error))),
        }
    }

    /// The head of the answer; those before it (1xx) are passed over.
    async fn head(&mut self) -> Result<Head, String> {
        let (mut passed, mut seen) = (0, 0);
        loop {
            // Only at the end of a line there can be something new, and lines are few: who sends byte by byte gets no more of our time.
            let news = seen == 0 || self.rest()[seen..].contains(&b'\n');
            seen = self.rest().len();
            if news
                && seen > 0
                && let Some(head) = parsed(self.rest()).map_err(|why| broken(&why))?
            {
                self.taken += head.size;
                if !matches!(head.reply.status, 100 | 102..200) {
                    return Ok(head);
                }
                (passed, seen) = (passed + head.size, 0);
                continue;
            }
            if passed + seen > LONGEST_HEAD {
                return Err(format!("net/http: server response headers exceeded {LONGEST_HEAD} bytes; aborted"));
            }
            if !self.more().await? {
                return Err(if passed + seen == 0 { "EOF".to_owned() } else { broken("unexpected EOF") });
            }
        }
    }

    /// Moves so much into the reply, or what there is room for; `false`: there was less.
    async fn keep(&mut self, mut size: u64, reply: &mut Reply) -> Result<bool, String> {
        loop {
            let rest = self.rest();
            let here = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
            reply.keep(&rest[..here]);
            self.taken += here;
            size -= here as u64;
            if size == 0 || reply.is_full() {
                return Ok(true);
            }
            if !self.more().await? {
                return Ok(false);
            }
        }
    }

    /// What comes after the last chunk is of no interest.
    async fn chunks(&mut self, reply: &mut Reply) -> Result<(), String> {
        loop {
            let size = self.chunk_size().await?;
            if size == 0 {
                return Ok(());
            }
            if !self.keep(size, reply).await? {
                return Err("unexpected EOF".to_owned());
            }
            if reply.is_full() {
                return Ok(());
            }
            while self.rest().len() < 2 {
                if !self.more().await? {
                    return Err("unexpected EOF".to_owned());
                }
            }
            if !self.rest().starts_with(b"\r\n") {
                return Err("malformed chunked encoding".to_owned());
            }
            self.taken += 2;
        }
    }

    async fn chunk_size(&mut self) -> Result<u64, String> {
        loop {
            match httparse::parse_chunk_size(self.rest()) {
                Ok(Status::Complete((line, size))) => {
                    self.taken += line;
                    return Ok(size);
                }
                Ok(Status::Partial) if self.rest().len() > LONGEST_CHUNK_LINE => {
                    return Err("header line too long".to_owned());
                }
                Ok(Status::Partial) => {}
                Err(_) => return Err("invalid byte in chunk length".to_owned()),
            }
            if !self.more().await? {
                return Err("unexpected EOF".to_owned());
            }
        }
    }
}

fn broken(why: &str) -> String {
    format!("net/http: HTTP/1.x transport connection broken: {why}")
}

/// The head with which bytes begin, where all of it is there.
fn parsed(bytes: &[u8]) -> Result<Option<Head>, String> {
    let malformed = || {
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        format!("malformed HTTP response \"{}\"", line[..line.len().min(LONGEST_SHOWN)].escape_ascii())
    };
    // The parser would pass over empty lines.
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(malformed());
    }
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let size = match head.parse(bytes) {
        Ok(Status::Complete(size)) => size,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err("malformed MIME header line".to_owned());
        }
        Err(httparse::Error::TooManyHeaders) => return Err(format!("more than {MOST_HEADERS} header lines")),
        Err(_) => return Err(malformed()),
    };
    let status = head.code.unwrap_or_default();
    let location = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("location")).map(|h| h.value);
    let body = body_of(status, head.version == Some(1), head.headers)?;
    Ok(Some(Head { reply: Reply::new(status, location), body, size }))
}

/// Where the body ends: the status decides, then the transfer encoding, then the length.
fn body_of(status: u16, chunks: bool, headers: &[httparse::Header<'_>]) -> Result<Body, String> {
    if matches!(status, 100..200 | 204 | 304) {
        return Ok(Body::Sized(0));
    }
    let all = |name: &'static str| {
        let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    };
    // HTTP/1.0 has no such thing.
    let mut encodings = all("transfer-encoding").filter(|_| chunks);
    if let Some(encoding) = encodings.next() {
        if encodings.next().is_some() {
            return Err("too many transfer encodings".to_owned());
        }
        if !encoding.eq_ignore_ascii_case(b"chunked") {
            return Err(format!("unsupported transfer encoding: \"{}\"", encoding.escape_ascii()));
        }
        return Ok(Body::Chunked);
    }
    let mut lengths = all("content-length");
    let Some(length) = lengths.next() else { return Ok(Body::Open) };
    if lengths.any(|other| other != length) {
        return Err("http: message cannot contain multiple Content-Length headers".to_owned());
    }
    let digits = str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(size) => Ok(Body::Sized(size)),
        None => Err(format!("bad Content-Length \"{}\"", length.escape_ascii())),
    }
}

#[cfg(test)]
#[path = "http1/tests.rs"]
mod tests;
