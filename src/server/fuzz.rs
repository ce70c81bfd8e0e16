//! What must hold for whatever comes to the node's API, for the fuzzer (`fuzz/`) and the tests.

use super::logs::LogRequest;
use super::query::Query;
use super::{route, stream};
use crate::clock::Clock;

/// Reads bytes as the target of a request: a path, and a query behind `?`.
///
/// # Panics
/// When a name comes of it that is none, or a query says what no handler takes.
pub fn request(target: &[u8]) {
    let Ok(target) = std::str::from_utf8(target) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    route::fuzz(path);
    if let Ok(log) = LogRequest::parse(query, Clock.now().wall) {
        assert!(log.options.limit_bytes.is_none_or(|bytes| bytes > 0));
    }
    if let Some(query) = Query::parse(query) {
        stream::fuzz::query(&query);
    }
}

/// Reads bytes as what a websocket's client sends, as what a runtime answers, and joins both.
///
/// # Panics
/// When something of the client's gets to a stream that is not his, or the reader goes on after the end.
pub fn frames(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("one thread can be had");
    runtime.block_on(stream::fuzz::frames(bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(files.len() > 3, "{files:?}");
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    fn changed(corpus: &[Vec<u8>], which: usize, changes: Vec<(usize, u8)>) -> Vec<u8> {
        let mut bytes = corpus[which % corpus.len()].clone();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes
    }

    #[test]
    fn recorded_input_holds() {
        corpus("requests").iter().for_each(|target| super::request(target));
        corpus("frames").iter().for_each(|bytes| super::frames(bytes));
    }

    proptest! {
        #[test]
        fn any_target_holds(
            path in "/(exec|attach|portForward|run|containerLogs|logs|healthz)(/[a-z.%0-9A-F]{0,6}){0,5}",
            query in "([a-zA-Z]{0,8}(=[-a-z0-9%+.:T&]{0,12})?&){0,6}",
        ) {
            super::request(format!("{path}?{query}").as_bytes());
        }

        #[test]
        fn any_frames_hold(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::frames(&bytes);
        }

        /// Recorded ones with some bytes of others.
        #[test]
        fn changed_input_holds(which in any::<usize>(), changes in proptest::collection::vec(any::<(usize, u8)>(), 1..6)) {
            super::request(&changed(&corpus("requests"), which, changes.clone()));
            super::frames(&changed(&corpus("frames"), which, changes));
        }
    }
}
