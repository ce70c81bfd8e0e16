//! Static pods of an address (A7.1): the whole set comes with each answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stoker_model::handle::DesiredPods;
use stoker_model::names;
use stoker_model::pod::PodRef;
use tokio::sync::watch;

use super::fetch::fetch;
use super::manifest::{Origin, pods};
use super::{Statics, seen_now};
use crate::clock::Clock;

/// Asks each `every`. An answer that cannot be used changes nothing.
pub(super) async fn run(
    url: String,
    headers: BTreeMap<String, Vec<String>>,
    node: String,
    every: Duration,
    out: watch::Sender<Statics>,
) {
    let mut last: Option<Vec<u8>> = None;
    let mut told = String::new();
    let mut period = tokio::time::interval(every.max(Duration::from_millis(100)));
    loop {
        period.tick().await;
        let before = out.borrow().clone();
        let problem = match fetch(&url, &headers).await {
            Ok(content) if last.as_ref() == Some(&content) => continue,
            Ok(content) => match take(&content, &url, &node, before.as_deref()) {
                Ok(found) => {
                    tracing::info!(pods = found.len(), "static pods came from staticPodURL");
                    last = Some(content);
                    told.clear();
                    out.send_replace(Some(Arc::new(found)));
                    continue;
                }
                Err(problem) => problem,
            },
            Err(error) => error.to_string(),
        };
        if told != problem {
            tracing::warn!(url = %without_secrets(&url), problem, "static pods: what was read before stays; it is asked again");
            told = problem;
        }
    }
}

/// The pods of an answer. One that did not change stays the same object.
fn take(content: &[u8], url: &str, node: &str, before: Option<&DesiredPods>) -> Result<DesiredPods, String> {
    if content.is_empty() {
        return Ok(DesiredPods::new());
    }
    let (found, _) = pods(content, Origin::Url(url), node).map_err(|error| error.to_string())?;
    let made = found.into_iter().map(|mut pod| {
        let uid = PodRef::of(&pod).uid;
        let old = before.and_then(|before| before.get(&uid));
        let annotations = pod.metadata.annotations.get_or_insert_default();
        let seen = old.and_then(|old| super::annotation(old, names::CONFIG_SEEN)).map(str::to_owned);
        annotations.insert(names::CONFIG_SEEN.into(), seen.unwrap_or_else(|| seen_now(Clock)));
        let pod = old.filter(|old| ***old == pod).cloned().unwrap_or_else(|| Arc::new(pod));
        (uid, pod)
    });
    Ok(made.collect())
}

/// The address without a password that it may carry.
fn without_secrets(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;

    /// Answers each question with the next of `answers`, the last one again and again; sends what was asked.
    async fn server(answers: Vec<(u16, &'static str)>) -> (String, tokio::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/pods?x=1", listener.local_addr().unwrap());
        let (asked, questions) = tokio::sync::mpsc::channel(100);
        tokio::spawn(async move {
            let mut turn = 0;
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = vec![0; 4096];
                let read = stream.read(&mut question).await.unwrap_or_default();
                let _ = asked.try_send(String::from_utf8_lossy(&question[..read]).into_owned());
                let (status, body) = answers[turn.min(answers.len() - 1)];
                turn += 1;
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        (url, questions)
    }

    #[tokio::test]
    async fn the_address_is_asked_again_and_again_with_the_headers() {
        // A1.1, A7.1
        let (url, mut questions) = server(vec![(500, ""), (200, POD), (200, "{{{"), (200, "")]).await;
        let headers = BTreeMap::from([("X-Key".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
        let (out, mut seen) = watch::channel(None);
        let task = tokio::spawn(run(url, headers, "n".into(), Duration::from_millis(100), out));
        let mut wait = async |count: usize| {
            let wait = seen.wait_for(|s: &Statics| s.as_deref().is_some_and(|s| s.len() == count));
            let found = tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it is seen").unwrap();
            let pod = found.as_deref().unwrap().values().next()?;
            assert_eq!(super::super::annotation(pod, names::CONFIG_SOURCE), Some("http"));
            let seen = super::super::annotation(pod, names::CONFIG_SEEN).unwrap();
            assert!(seen.parse::<jiff::Timestamp>().is_ok() && seen.contains('.') && seen.ends_with('Z'), "{seen}");
            pod.metadata.name.clone()
        };
        assert_eq!(wait(1).await.as_deref(), Some("web-n"), "a refusal is not an answer");
        let question = questions.recv().await.unwrap().to_lowercase();
        assert!(
            question.starts_with("get /pods?x=1 http/1.1") && question.contains("x-key: a\r\nx-key: b"),
            "{question}"
        );
        assert_eq!(wait(0).await, None, "what cannot be read changed nothing; an empty answer takes all away");
        task.abort();
    }

    #[test]
    fn a_password_is_not_logged() {
        assert_eq!(without_secrets("https://me:secret@h/p"), "https://h/p");
        assert_eq!(without_secrets("https://h/p"), "https://h/p");
    }
}
