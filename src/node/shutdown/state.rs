//! kubelet's file `graceful_node_shutdown_state`: when the last shutdown began and ended, for `/metrics`.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde_json::json;

/// As Go prints a time that is none.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Writes it as a whole.
pub(super) fn store(path: &Path, start: Timestamp, end: Option<Timestamp>) -> io::Result<()> {
    let end = end.map_or_else(|| NEVER.to_owned(), |end| end.to_string());
    let text = json!({ "startTime": start.to_string(), "endTime": end }).to_string();
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_kubelets() {
        // A15.10
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("graceful_node_shutdown_state");
        let start = Timestamp::from_second(1_700_000_000).expect("a time");
        store(&path, start, None).expect("written");
        let read = || fs::read_to_string(&path).expect("it is there");
        assert_eq!(read(), r#"{"endTime":"0001-01-01T00:00:00Z","startTime":"2023-11-14T22:13:20Z"}"#);
        store(&path, start, Some(start)).expect("written");
        assert_eq!(read(), r#"{"endTime":"2023-11-14T22:13:20Z","startTime":"2023-11-14T22:13:20Z"}"#);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }
}
