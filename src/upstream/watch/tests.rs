//! A watch against a server that answers from a script.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::*;

#[derive(Deserialize, Debug)]
struct Thing {
    metadata: ThingMeta,
}
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct ThingMeta {
    resource_version: String,
}

#[test]
fn trouble_is_told_once_and_other_trouble_again() {
    let mut trouble = Trouble::default();
    let told = ["refused", "refused", "forbidden", "forbidden", "refused"].map(|reason| trouble.is_news(reason));
    assert_eq!(told, [true, false, true, false, true]);
}

#[test]
fn a_page_without_items_is_empty() {
    let page: Page = serde_json::from_str(r#"{"metadata":{"resourceVersion":"9"},"items":null}"#).expect("a page");
    assert!(page.items.is_empty());
    assert_eq!(page.metadata.resource_version, "9");
}

impl Watchable for Thing {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// What a watch told, in words, until there is nothing more to be heard.
struct Heard {
    changes: Vec<String>,
    enough: usize,
}

impl Sink<Thing> for Heard {
    async fn take(&mut self, change: Change<Thing>) -> bool {
        self.changes.push(match change {
            Change::Listing => "listing".to_owned(),
            Change::Present(thing) => format!("present at {}", thing.metadata.resource_version),
            Change::Gone(thing) => format!("gone at {}", thing.metadata.resource_version),
            Change::Unreadable { meta, .. } => format!("unreadable {}", meta.name),
            Change::Listed => "listed".to_owned(),
        });
        self.changes.len() < self.enough
    }
}

/// What a server that answers like this, once each in turn, is asked, and what the watch tells of it.
async fn watched(answers: &[(&str, &str)], enough: usize) -> (Vec<String>, Vec<String>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
    let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
    let watched = Watched { path: "/api/v1/things", fields: "spec.place=here".to_owned(), labels: String::new() };
    let mut heard = Heard { changes: Vec::new(), enough };
    let mut asked = Vec::new();
    let serve = async {
        for (code, body) in answers {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut stream = BufReader::new(stream);
            let (mut target, mut line) = (String::new(), String::new());
            while stream.read_line(&mut line).await.expect("a request") > 2 {
                if target.is_empty() {
                    target = line.split(' ').nth(1).expect("a target").to_owned();
                }
                line.clear();
            }
            asked.push(target);
            // Without a length the answer ends with its connection, as a watch does.
            let answer =
                format!("HTTP/1.1 {code}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}");
            stream.get_mut().write_all(answer.as_bytes()).await.expect("it is read");
        }
        std::future::pending().await
    };
    let both = async {
        tokio::select! {
            () = run(&api, &watched, &mut heard) => {}
            () = serve => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("the script is played to its end");
    (asked, heard.changes)
}

const THREE: &str = r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"3"}}}
"#;
const FIVE: &str = r#"{"type":"MODIFIED","object":{"metadata":{"resourceVersion":"5"}}}
"#;
const END: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"4","annotations":{"k8s.io/initial-events-end":"true"}}}}
"#;

/// The parts of a question that say how is listed.
fn manner(target: &str) -> Vec<&str> {
    assert!(target.starts_with("/api/v1/things?") && target.contains("fieldSelector=spec.place%3Dhere"), "{target}");
    let parts = target.split_once('?').map_or("", |(_, query)| query).split('&');
    parts.filter(|part| !part.starts_with("fieldSelector") && !part.starts_with("timeoutSeconds")).collect()
}

const STREAMED: [&str; 5] = [
    "watch=true",
    "allowWatchBookmarks=true",
    "sendInitialEvents=true",
    "resourceVersionMatch=NotOlderThan",
    "resourceVersion=",
];

#[tokio::test]
async fn lists_are_streamed_and_followed_from_their_end() {
    // A16.12
    let list = format!("{THREE}{END}");
    let (asked, heard) = watched(&[("200 OK", &list), ("200 OK", FIVE)], 4).await;
    assert_eq!(heard, ["listing", "present at 3", "listed", "present at 5"]);
    assert_eq!(manner(&asked[0]), STREAMED);
    assert_eq!(manner(&asked[1]), ["watch=true", "allowWatchBookmarks=true", "resourceVersion=4"]);
    assert_eq!(asked.len(), 2);
}

#[tokio::test]
async fn events_are_told_apart_wherever_their_kind_stands() {
    let list = format!("{THREE}{END}");
    let events = r#"{"object":{"metadata":{"resourceVersion":"6"}},"type":"DELETED"}
{"type":"STRANGE","object":{}}
{"type":"ADDED","object":{"metadata":{"resourceVersion":"7"}}}
"#;
    let (_, heard) = watched(&[("200 OK", &list), ("200 OK", events)], 5).await;
    assert_eq!(heard, ["listing", "present at 3", "listed", "gone at 6", "present at 7"]);
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_asked_for_pages() {
    // A16.12
    let refusal = r#"{"kind":"Status","code":422,"reason":"Invalid","message":"sendInitialEvents is forbidden"}"#;
    let first =
        r#"{"metadata":{"resourceVersion":"6","continue":"on"},"items":[{"metadata":{"resourceVersion":"1"}}]}"#;
    let second = r#"{"metadata":{"resourceVersion":"6"},"items":[{"metadata":{"resourceVersion":"2"}}]}"#;
    let script = [("422 Unprocessable Entity", refusal), ("200 OK", first), ("200 OK", second), ("200 OK", FIVE)];
    let (asked, heard) = watched(&script, 5).await;
    assert_eq!(heard, ["listing", "present at 1", "present at 2", "listed", "present at 5"]);
    assert_eq!(manner(&asked[0]), STREAMED);
    assert_eq!(manner(&asked[1]), ["limit=500"]);
    assert_eq!(manner(&asked[2]), ["limit=500", "continue=on"]);
    assert_eq!(manner(&asked[3]), ["watch=true", "allowWatchBookmarks=true", "resourceVersion=6"]);
}

#[tokio::test]
async fn what_fell_too_far_behind_lists_again() {
    // A16.12
    let list = format!("{THREE}{END}");
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
    let (asked, heard) = watched(&[("200 OK", &list), ("200 OK", gone), ("200 OK", &list)], 6).await;
    assert_eq!(heard, ["listing", "present at 3", "listed", "listing", "present at 3", "listed"]);
    assert_eq!(manner(&asked[2]), STREAMED);
}

#[tokio::test]
async fn requests_wait_their_turn_and_watches_do_not() {
    // A16.11: three at once, then one each 50 ms
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
    let api = ApiServer::new(&kube::Config::new(url)).expect("a connection").paced((20, 3));
    let serve = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            assert!(stream.read(&mut [0; 2048]).await.is_ok_and(|read| read > 0), "a request");
            let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}";
            stream.write_all(answer).await.expect("it is read");
        }
    });
    let took = async |count: usize, watches: bool| {
        let start = crate::clock::Clock.now().monotonic;
        for _ in 0..count {
            match watches {
                true => _ = api.clone().stream("/x?watch=true").await.expect("an answer"),
                false => _ = api.clone().get::<serde::de::IgnoredAny>("/x").await.expect("an answer"),
            }
        }
        crate::clock::Clock.now().monotonic.saturating_sub(start)
    };
    assert!(took(7, false).await >= Duration::from_millis(200), "four of seven wait");
    assert!(took(1, false).await >= Duration::from_millis(40));
    assert!(took(100, true).await < Duration::from_secs(4), "a hundred turns are five seconds");
    serve.abort();
}
