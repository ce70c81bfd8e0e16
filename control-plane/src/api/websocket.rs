//! Logs as websocket messages, for clients that cannot read a plain answer bit by bit (A19.7).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::respond::{self, Answer, Body};
use crate::resources::status::StatusError;

/// Upstream's limit of a message.
const MESSAGE_BYTES: usize = 2048;

/// How bytes become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Base64,
}

/// Names that a client may offer.
const PROTOCOLS: [(&str, Form); 2] = [("binary.k8s.io", Form::Binary), ("base64.binary.k8s.io", Form::Base64)];

pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers with the same body in messages: an empty one first, then at most 2048 bytes each.
pub(super) fn wrap(
    answer: Answer,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    stop: CancellationToken,
) -> Result<Answer, StatusError> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| StatusError::bad_request("Sec-WebSocket-Key is missing"))?;
    let chosen = choose(headers)?;
    let mut switched = Response::new(respond::full(Bytes::new()));
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| StatusError::internal("the websocket key has no answer"))?;
    let answered = switched.headers_mut();
    answered.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answered.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answered.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some((name, _)) = chosen {
        answered.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    let form = chosen.map_or(Form::Binary, |(_, form)| form);
    tokio::spawn(async move {
        let sent = async {
            let stream = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            send(WebSocketStream::from_raw_socket(stream, Role::Server, None).await, answer.into_body(), form).await
        };
        tokio::select! {
            () = stop.cancelled() => {}
            result = sent => if let Err(error) = result {
                tracing::debug!(%error, "a log's websocket ended early");
            },
        }
    });
    Ok(switched)
}

/// The first protocol of the client that is known; none where it offers none.
fn choose(headers: &HeaderMap) -> Result<Option<(&'static str, Form)>, StatusError> {
    let lists = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offers: Vec<&str> =
        lists.flat_map(|list| list.split(',')).map(str::trim).filter(|one| !one.is_empty()).collect();
    if offers.is_empty() {
        return Ok(None);
    }
    let known = offers.iter().find_map(|offer| PROTOCOLS.into_iter().find(|(name, _)| name == offer));
    known.map(Some).ok_or_else(|| {
        StatusError::new(403, "Forbidden", format!("unable to negotiate protocol: client supports {offers:?}"))
    })
}

async fn send<S>(mut socket: WebSocketStream<S>, mut body: Body, form: Form) -> Result<(), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(message(Bytes::new(), form)).await?;
    loop {
        tokio::select! {
            frame = body.frame() => match frame {
                Some(Ok(frame)) => {
                    let Ok(mut bytes) = frame.into_data() else { continue };
                    while !bytes.is_empty() {
                        let part = bytes.split_to(bytes.len().min(MESSAGE_BYTES));
                        socket.send(message(part, form)).await?;
                    }
                }
                Some(Err(error)) => return Err(Error::Io(std::io::Error::other(error))),
                None => break,
            },
            // Clients have nothing to say but that they go.
            came = socket.next() => match came {
                Some(Ok(message)) if !message.is_close() => {}
                _ => return Ok(()),
            },
        }
    }
    socket.close(None).await
}

fn message(part: Bytes, form: Form) -> Message {
    match form {
        Form::Binary => Message::Binary(part),
        Form::Base64 => Message::Text(BASE64_STANDARD.encode(part).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_protocol_is_chosen_or_none_is_named() {
        // A19.7
        let offering = |list: &str| HeaderMap::from_iter([(SEC_WEBSOCKET_PROTOCOL, list.parse().expect("a header"))]);
        assert_eq!(choose(&HeaderMap::new()).expect("allowed"), None);
        assert_eq!(choose(&offering("x, binary.k8s.io")).expect("known"), Some(("binary.k8s.io", Form::Binary)));
        let base64 = choose(&offering("base64.binary.k8s.io,binary.k8s.io")).expect("known");
        assert_eq!(base64, Some(("base64.binary.k8s.io", Form::Base64)));
        assert_eq!(choose(&offering("v4.channel.k8s.io")).expect_err("unknown").code, 403);
    }

    #[tokio::test]
    async fn a_body_is_sent_in_small_messages_after_an_empty_one() {
        // A19.7
        let (here, there) = tokio::io::duplex(1 << 16);
        let body = respond::full(Bytes::from(vec![b'x'; MESSAGE_BYTES + 1]));
        let server = WebSocketStream::from_raw_socket(here, Role::Server, None).await;
        let sending = tokio::spawn(send(server, body, Form::Binary));
        let mut client = WebSocketStream::from_raw_socket(there, Role::Client, None).await;
        let mut sizes = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            if message.is_binary() {
                sizes.push(message.len());
            }
        }
        assert_eq!(sizes, [0, MESSAGE_BYTES, 1]);
        sending.await.expect("no panic").expect("it was sent");
    }
}
