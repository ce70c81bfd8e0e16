//! Websockets to SPDY: exec and attach in the protocol `v5.channel.k8s.io`, and port-forward's SPDY within websocket messages (A19.3, A19.4).
//!
//! A runtime's own server knows neither; older websocket protocols it does know. A node translates for its runtime, and an API server for
//! nodes that do not.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::spdy::{self, Event, Reader, Writer};

/// exec and attach with an end of single channels.
pub const V5: &str = "v5.channel.k8s.io";
/// port-forward as kubectl sends it since 1.31.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Upstream's limit of a message.
const MESSAGE_BYTES: usize = 32 << 20;
/// What is sent in one message.
const CHUNK_BYTES: usize = 32 << 10;
/// After our close, a client has so long to answer it.
const CLOSE: Duration = Duration::from_secs(10);
/// Pings of the runtime that wait for their answer.
const PINGS: usize = 4;

/// Channels of a message, by its first byte.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// The second byte names a channel on which nothing more comes.
const END: u8 = 255;

/// The streams that both sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// The client writes to it.
    pub stdin: bool,
    /// The client hears it.
    pub stdout: bool,
    /// The client hears it.
    pub stderr: bool,
    /// There is a terminal, and its size may change.
    pub tty: bool,
}

impl Streams {
    /// Channels with the number and name of their SPDY stream, in the order of opening.
    fn channels(self) -> impl Iterator<Item = (u8, u32, &'static str)> {
        let all = [
            (ERROR, "error", true),
            (STDIN, "stdin", self.stdin),
            (STDOUT, "stdout", self.stdout),
            (STDERR, "stderr", self.stderr),
            (RESIZE, "resize", self.tty),
        ];
        // A client's streams have odd numbers.
        all.into_iter()
            .filter(|(.., wanted)| *wanted)
            .zip((1..).step_by(2))
            .map(|((channel, name, _), id)| (channel, id, name))
    }

    fn stream(self, channel: u8) -> Option<u32> {
        self.channels().find(|(known, ..)| *known == channel).map(|(_, id, _)| id)
    }

    fn channel(self, stream: u32) -> Option<u8> {
        self.channels().find(|(_, id, _)| *id == stream).map(|(channel, ..)| channel)
    }

    /// The lowest channel on which the client hears something.
    fn lowest(self) -> u8 {
        match (self.stdout, self.stderr) {
            (true, _) => STDOUT,
            (false, true) => STDERR,
            (false, false) => ERROR,
        }
    }
}

/// Whether a client speaks websockets, and offers this protocol.
pub fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let is_websocket = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    is_websocket && offered.flat_map(|text| text.split(',')).any(|one| one.trim() == protocol)
}

/// The headers of a websocket's 101; `None` where the client's key is missing.
pub fn accepted(asked: &HeaderMap, protocol: &'static str) -> Option<HeaderMap> {
    let key = derive_accept_key(asked.get(SEC_WEBSOCKET_KEY)?.as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&key).ok()?);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Some(headers)
}

/// What a client is connected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bridge {
    /// exec or attach.
    Streams(Streams),
    /// port-forward: SPDY goes through as it is.
    Tunnel,
}

impl Bridge {
    /// The protocol that the other side is asked for, after the upgrade to `SPDY/3.1`.
    pub const fn stream_protocol(self) -> &'static str {
        match self {
            Self::Streams(_) => "v4.channel.k8s.io",
            Self::Tunnel => "portforward.k8s.io",
        }
    }

    /// And the one that the client offered.
    pub const fn websocket_protocol(self) -> &'static str {
        match self {
            Self::Streams(_) => V5,
            Self::Tunnel => TUNNEL,
        }
    }

    /// Serves one client, whose connection has left HTTP, with such a connection of the runtime's.
    ///
    /// # Errors
    /// The connection of either breaks, or the client sends what is no websocket's.
    pub async fn run<C, R>(self, client: C, runtime: R) -> Result<(), Error>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        R: AsyncRead + AsyncWrite + Unpin,
    {
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES)).max_frame_size(Some(MESSAGE_BYTES));
        let client = WebSocketStream::from_raw_socket(client, Role::Server, Some(config)).await;
        match self {
            Self::Streams(streams) => join(streams, client, runtime).await,
            Self::Tunnel => tunnel(client, runtime).await,
        }
    }
}

/// Runs until the runtime has ended every stream of its own, or the client has gone.
async fn join<C, R>(streams: Streams, client: WebSocketStream<C>, runtime: R) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = client.split();
    let (from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let mut writer = Writer::default();
    for (_, stream, kind) in streams.channels() {
        to_runtime.write_all(&writer.open(stream, &[("streamtype", kind)])).await?;
    }
    to_runtime.flush().await?;
    if let Some(stream) = streams.stream(ERROR) {
        // Only the runtime writes there.
        spdy::finish(&mut to_runtime, stream).await?;
    }
    let (pings, mut waiting) = mpsc::channel(PINGS);
    let down = async {
        to_client.send(Message::binary(vec![streams.lowest()])).await?;
        let mut reader = Reader::new(tokio::io::BufReader::with_capacity(CHUNK_BYTES, from_runtime));
        let mut open: Vec<u8> = streams
            .channels()
            .map(|(channel, ..)| channel)
            .filter(|it| matches!(*it, STDOUT | STDERR | ERROR))
            .collect();
        let mut is_told = false;
        while !open.is_empty() {
            // Room for the channel's number in front.
            let mut message = Vec::with_capacity(1 + CHUNK_BYTES);
            message.push(0);
            let event = match reader.next(&mut message, CHUNK_BYTES).await {
                Ok(event) => event,
                // A runtime that closes with input unread resets its connection. Where it has told how it ended, that is all.
                Err(_) if is_told => break,
                Err(error) => return Err(error.into()),
            };
            match event {
                Event::Data { stream } => {
                    if let Some(channel) = streams.channel(stream) {
                        is_told |= channel == ERROR;
                        message[0] = channel;
                        to_client.send(Message::Binary(message.into())).await?;
                    }
                }
                Event::End { stream } => open.retain(|channel| streams.channel(stream) != Some(*channel)),
                // Odd ones are answers to pings that we never sent.
                Event::Ping { id } if id % 2 == 0 => drop(pings.try_send(id)),
                Event::Ping { .. } => {}
                Event::Closed => break,
            }
        }
        Ok::<_, Error>(())
    };
    let up = async {
        // A runtime that takes nothing more may still have something to say.
        let mut is_open = true;
        loop {
            let written = tokio::select! {
                message = from_client.next() => match message.transpose()? {
                    None | Some(Message::Close(_)) => return Ok::<_, Error>(()),
                    Some(Message::Binary(data)) if is_open => take(streams, &data, &mut to_runtime).await,
                    Some(Message::Text(text)) if is_open => take(streams, text.as_bytes(), &mut to_runtime).await,
                    Some(_) => Ok(()),
                },
                Some(id) = waiting.recv() => pong(id, &mut to_runtime).await,
            };
            is_open = is_open && written.is_ok();
        }
    };
    tokio::select! {
        result = down => result?,
        // Dropping the connection tells the runtime.
        result = up => return result,
    }
    end(to_client, from_client).await
}

async fn pong(id: u32, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    to.write_all(&Writer::pong(id)).await?;
    to.flush().await
}

/// Passes one message of the client on. What is for no channel of his is left out.
///
/// # Errors
/// The runtime takes nothing more.
pub async fn take(streams: Streams, message: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let writable = |channel: u8| matches!(channel, STDIN | RESIZE).then(|| streams.stream(channel)).flatten();
    match message {
        [END, channel] => match writable(*channel) {
            Some(stream) => spdy::finish(to, stream).await,
            None => Ok(()),
        },
        [channel, data @ ..] if !data.is_empty() => match writable(*channel) {
            Some(stream) => spdy::send(to, stream, data).await,
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Closes, and takes what the client still sends: a connection that is dropped with bytes unread is reset, and then the client may
/// lose what it had not read yet.
async fn end<S, R>(mut to_client: S, mut from_client: R) -> Result<(), Error>
where
    S: SinkExt<Message, Error = Error> + Unpin,
    R: Stream<Item = Result<Message, Error>> + Unpin,
{
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    to_client.send(Message::Close(Some(close))).await?;
    let rest = async { while let Some(Ok(_)) = from_client.next().await {} };
    let _ = timeout(CLOSE, rest).await;
    Ok(())
}

async fn tunnel<C, R>(client: WebSocketStream<C>, runtime: R) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = client.split();
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let down = async {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            if from_runtime.read_buf(&mut chunk).await? == 0 {
                return Ok::<_, Error>(());
            }
            to_client.send(Message::Binary(Bytes::from(chunk))).await?;
        }
    };
    let up = async {
        let mut is_open = true;
        while let Some(message) = from_client.next().await.transpose()? {
            match message {
                Message::Binary(data) if is_open => {
                    let written = async {
                        to_runtime.write_all(&data).await?;
                        to_runtime.flush().await
                    };
                    is_open = written.await.is_ok();
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok::<_, Error>(())
    };
    tokio::select! {
        result = down => result?,
        result = up => return result,
    }
    end(to_client, from_client).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: true };

    #[tokio::test]
    async fn only_stdin_and_resize_go_to_the_runtime() {
        let data = |stream: u32, data: &'static [u8]| async move {
            let mut bytes = Vec::new();
            spdy::send(&mut bytes, stream, data).await.unwrap();
            bytes
        };
        let mut ended = Vec::new();
        spdy::finish(&mut ended, 3).await.unwrap();
        for (message, expected) in [
            (&b"\0hi"[..], data(3, b"hi").await),
            (b"\x04{}", data(9, b"{}").await),
            (b"\xff\0", ended),
            (b"\xff\x01", vec![]),
            (b"\xff", vec![]),
            (b"\x01hi", vec![]),
            (b"\x03hi", vec![]),
            (b"\x07hi", vec![]),
            (b"\0", vec![]),
            (b"", vec![]),
        ] {
            let mut bytes = Vec::new();
            take(ALL, message, &mut bytes).await.unwrap();
            assert_eq!(bytes, expected, "{message:?}");
        }
        let mut bytes = Vec::new();
        take(Streams { stdin: false, ..ALL }, b"\0hi", &mut bytes).await.unwrap();
        assert!(bytes.is_empty());
    }

    #[test]
    fn streams_are_opened_in_the_order_that_runtimes_expect() {
        let names: Vec<_> = ALL.channels().map(|(_, id, name)| (id, name)).collect();
        assert_eq!(names, [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr"), (9, "resize")]);
        assert_eq!(Streams { stdout: false, ..ALL }.lowest(), STDERR);
    }

    #[test]
    fn protocols_are_found_in_lists() {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io, v5.channel.k8s.io"));
        assert!(!offers(&headers, V5), "no websocket");
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        assert!(offers(&headers, V5) && !offers(&headers, TUNNEL));
    }

    proptest! {
        #[test]
        fn a_message_never_reaches_a_stream_of_the_runtimes(message in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = Vec::new();
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(take(ALL, &message, &mut bytes)).unwrap();
            prop_assert!(bytes.is_empty() || matches!(bytes[3], 3 | 9));
        }
    }
}
