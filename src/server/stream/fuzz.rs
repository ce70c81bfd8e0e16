//! What must hold for the queries and frames of streams.

use futures::StreamExt;
use stoker_model::streams::spdy::{Event, Reader};
use stoker_model::streams::websocket::{Streams, take};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::server::query::Query;

/// All that a client may ask for.
const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: true };

pub(in crate::server) fn query(query: &Query) {
    if let Ok(streams) = super::streams(query) {
        assert!(streams.stdin || streams.stdout || streams.stderr);
        assert!(!(streams.tty && streams.stderr), "a terminal has no stderr of its own");
    }
    if let Ok(ports) = super::ports(query) {
        assert!(!ports.is_empty() && ports.iter().all(|port| (1..=65535).contains(port)));
    }
}

pub(in crate::server) async fn frames(bytes: &[u8]) {
    // Of a runtime: each event takes at least one byte, or is the end of a stream that a byte began.
    events(bytes).await;
    // Of a client.
    let (mut there, here) = tokio::io::duplex(bytes.len() + 1);
    let sent = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        there.write_all(bytes).await.expect("there is room");
        there.shutdown().await.expect("it is open");
        // Answers to pings and closes are taken.
        let mut answers = Vec::new();
        let _ = there.read_to_end(&mut answers).await;
    };
    let read = async {
        let config = WebSocketConfig::default().max_message_size(Some(1 << 20)).max_frame_size(Some(1 << 20));
        let mut client = WebSocketStream::from_raw_socket(here, Role::Server, Some(config)).await;
        let mut passed = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            if message.is_binary() || message.is_text() {
                take(ALL, &message.into_data(), &mut passed).await.expect("memory takes it");
            }
        }
        for stream in events(&passed).await {
            assert!(matches!(stream, 3 | 9), "only stdin and sizes come from a client");
        }
    };
    tokio::join!(sent, read);
}

/// The streams that something came for.
async fn events(mut bytes: &[u8]) -> Vec<u32> {
    let most = 2 * bytes.len();
    let mut reader = Reader::new(&mut bytes);
    let (mut data, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..=most {
        match reader.next(&mut data, 7).await {
            Ok(Event::Closed) | Err(_) => return streams,
            Ok(Event::Data { stream } | Event::End { stream }) => streams.push(stream),
            Ok(Event::Ping { .. }) => {}
        }
    }
    panic!("it goes on after its end");
}
