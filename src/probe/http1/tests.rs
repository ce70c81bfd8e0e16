//! Answers good and bad, whole and in pieces, from the other end of a pipe.

use std::time::Duration;

use http::HeaderName;
use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;

const BROKEN: &str = "net/http: HTTP/1.x transport connection broken: ";
const FULL: usize = 10 << 10;

/// What is made of an answer that comes in pieces of so many bytes, and then ends.
async fn taken(answer: &[u8], piece: usize) -> Result<Reply, String> {
    let (mut ours, theirs) = tokio::io::duplex(256 << 10);
    let sending = async move {
        let (mut asked, mut theirs) = (vec![0; 5], theirs);
        theirs.read_exact(&mut asked).await.unwrap();
        for piece in answer.chunks(piece) {
            if theirs.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(ask(b"GET /", &mut ours), sending).0
}

fn reply(status: u16, body: &str) -> Result<Reply, String> {
    Ok(Reply { status, location: None, body: body.into() })
}

#[test]
fn a_request_is_written_as_go_writes_it() {
    // A5.8
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("user-agent", "a/1"), ("x-a", "1"), ("x-a", "\u{e9}"), ("connection", "keep-alive"), ("host", "h")]
    {
        headers.append(HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
    }
    let message = message("/a?b", &HeaderValue::from_static("10.0.0.1:80"), &headers);
    let expected = "GET /a?b HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUser-Agent: a/1\r\nX-A: 1\r\nX-A: \u{e9}\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(message).unwrap(), expected);
}

#[tokio::test]
async fn good_answers_are_understood() {
    // A5.8
    let long = "x".repeat(FULL + 1);
    let cases: &[(&str, (u16, &str))] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore", (200, "ok")),
        ("HTTP/1.1 200 OK\r\ncontent-length:2\r\ncontent-length: 2 \r\n\r\nok", (200, "ok")),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", (200, "until the end")),
        ("HTTP/1.1 200\r\nX: y\r\n\r\n", (200, "")),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok", (200, "ok")),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
            (404, ""),
        ),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nxx", (101, "")),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", (204, "")),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", (304, "")),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 99\r\n\r\n2;a=b\r\nok\r\nA \r\n0123456789\r\n0\r\nT: v\r\n\r\n",
            (200, "ok0123456789"),
        ),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok", (200, "ok")),
    ];
    for (answer, (status, body)) in cases {
        for piece in [answer.len(), 7, 1] {
            assert_eq!(taken(answer.as_bytes(), piece).await, reply(*status, body), "{answer:?} by {piece}");
        }
    }
    for head in ["Content-Length: 99999\r\n\r\n", "\r\n", "Transfer-Encoding: chunked\r\n\r\n2801\r\n"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}{long}");
        for piece in [answer.len(), 100] {
            assert_eq!(taken(answer.as_bytes(), piece).await, reply(200, &long[..FULL]), "{head:?} by {piece}");
        }
    }
    let moved = taken(b"HTTP/1.1 302 Found\r\nlocation: /a\r\nContent-Length: 0\r\n\r\n", 99).await.unwrap();
    assert_eq!(moved.location.as_deref(), Some("/a"));
}

#[tokio::test]
async fn bad_answers_are_told_as_go_tells_them() {
    // A5.8
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
    let ok = |head: &str| format!("HTTP/1.1 200 OK\r\n{head}");
    let cases = [
        (String::new(), "EOF".to_owned()),
        ("HTTP/1.1 200 OK\r\nContent-".into(), format!("{BROKEN}unexpected EOF")),
        ("HTTP/1.1 100 Continue\r\n\r\n".into(), format!("{BROKEN}unexpected EOF")),
        (
            "\x15\x03\x01\0\x02\x02P".into(),
            format!("{BROKEN}malformed HTTP response \"\\x15\\x03\\x01\\x00\\x02\\x02P\""),
        ),
        ("SSH-2.0-\"x\"\r\n".into(), format!("{BROKEN}malformed HTTP response \"SSH-2.0-\\\"x\\\"\"")),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n".into(), format!("{BROKEN}malformed HTTP response \"\"")),
        ("HTTP/1.1 20 OK\r\n\r\n".into(), format!("{BROKEN}malformed HTTP response \"HTTP/1.1 20 OK\"")),
        ("HTTP/3.0 200 OK\r\n\r\n".into(), format!("{BROKEN}malformed HTTP response \"HTTP/3.0 200 OK\"")),
        ("y".repeat(999), format!("{BROKEN}malformed HTTP response \"{}\"", "y".repeat(LONGEST_SHOWN))),
        (ok("a b: c\r\n\r\n"), format!("{BROKEN}malformed MIME header line")),
        (ok("a: \0\r\n\r\n"), format!("{BROKEN}malformed MIME header line")),
        (many, format!("{BROKEN}more than 100 header lines")),
        (ok("Content-Length: -1\r\n\r\n"), format!("{BROKEN}bad Content-Length \"-1\"")),
        (ok("Content-Length: +1\r\n\r\n"), format!("{BROKEN}bad Content-Length \"+1\"")),
        (ok("Content-Length:\r\n\r\n"), format!("{BROKEN}bad Content-Length \"\"")),
        (
            ok("Content-Length: 99999999999999999999\r\n\r\n"),
            format!("{BROKEN}bad Content-Length \"99999999999999999999\""),
        ),
        (
            ok("Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            format!("{BROKEN}http: message cannot contain multiple Content-Length headers"),
        ),
        (ok("Transfer-Encoding: gzip\r\n\r\n"), format!("{BROKEN}unsupported transfer encoding: \"gzip\"")),
        (
            ok("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"),
            format!("{BROKEN}too many transfer encodings"),
        ),
        (ok("Content-Length: 3\r\n\r\nok"), "unexpected EOF".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\n"), "unexpected EOF".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\n5\r\nok"), "unexpected EOF".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\n2\r\nok"), "unexpected EOF".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n"), "malformed chunked encoding".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\nx\r\n"), "invalid byte in chunk length".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\n11112222333344445\r\n"), "invalid byte in chunk length".into()),
        (ok("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nok"), "unexpected EOF".into()),
    ];
    for (answer, why) in cases {
        assert_eq!(taken(answer.as_bytes(), answer.len().max(1)).await, Err(why), "{answer:?}");
        assert!(taken(answer.as_bytes(), 1).await.is_err(), "{answer:?}");
    }
}

#[tokio::test]
async fn what_has_no_end_is_refused() {
    let head = "net/http: server response headers exceeded 65536 bytes; aborted";
    for (begin, again, why) in [
        ("HTTP/1.1 200 OK\r\nA: ", "a", head),
        ("HTTP/1.1 200 ", "a", head),
        ("", "HTTP/1.1 100 Continue\r\n\r\n", head),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "a", "header line too long"),
    ] {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 10);
        let endless = async {
            let _ = theirs.write_all(begin.as_bytes()).await;
            while theirs.write_all(again.repeat(99).as_bytes()).await.is_ok() {}
        };
        let asked = tokio::spawn(async move { ask(b"", &mut ours).await });
        endless.await;
        assert_eq!(asked.await.unwrap(), Err(why.to_owned()), "{begin:?}");
    }
}

/// A server that does something with one connection.
async fn server<F: Future<Output = ()> + Send>(
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> std::net::TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
    dial::connect("127.0.0.1", port).await.unwrap()
}

#[tokio::test]
async fn a_request_may_be_longer_than_the_socket_takes() {
    let long = vec![b'x'; 8 << 20];
    let size = long.len();
    let stream = server(move |mut stream| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.read_exact(&mut vec![0; size]).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    assert_eq!(ask_plain(&long, stream).await, reply(200, ""));
}

#[tokio::test]
async fn who_answers_and_hangs_up_at_once_is_heard() {
    let stream = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ask_plain(b"GET / HTTP/1.1\r\n\r\n", stream).await, reply(503, ""));
}

#[tokio::test]
async fn who_breaks_off_is_told_of() {
    let stream = server(|stream| async move {
        stream.set_zero_linger().unwrap();
        stream.readable().await.unwrap();
    })
    .await;
    let why = ask_plain(b"GET / HTTP/1.1\r\n\r\n", stream).await.unwrap_err();
    assert_eq!(why, "read: connection reset by peer");
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known: &[&str] = &[
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.0 302 X\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Location: /\r\n",
        "\r\n",
        "5\r\nhello\r\n",
        "ffffffffffffffff\r\n",
        "0\r\n\r\n",
    ];
    prop_oneof![
        4 => prop::sample::select(known).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
        1 => (0..20_000_usize).prop_map(|length| vec![b'x'; length]),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_there_is_an_end(pieces in prop::collection::vec(piece(), 0..12), size in 1..5000_usize) {
        let answer = pieces.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        if let Ok(reply) = runtime.block_on(taken(&answer, size)) {
            prop_assert!(reply.body.len() <= FULL);
        }
    }
}
