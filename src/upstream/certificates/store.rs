//! Where a certificate and its key lie: `<name>-<time>.pem` with both in it, and the link `<name>-current.pem` to the newest, as
//! kubelet and kubeadm know them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A directory for certificates, and the name of one in it.
#[derive(Clone, Debug)]
pub struct CertificateStore {
    directory: PathBuf,
    name: &'static str,
}

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; is --cert-dir writable?")]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

impl CertificateStore {
    /// `kubelet-client-….pem`
    pub fn client(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), name: "kubelet-client" }
    }

    /// `kubelet-server-….pem`
    pub fn serving(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), name: "kubelet-server" }
    }

    /// The link to the newest: what a kubeconfig names (A17.1).
    pub fn current(&self) -> PathBuf {
        self.directory.join(format!("{}-current.pem", self.name))
    }

    /// What the link leads to.
    pub(super) fn read(&self) -> io::Result<String> {
        fs::read_to_string(self.current())
    }

    /// Keeps a new one, from now on the current. At no moment is there none.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, chain: &str, key: &str, now: Timestamp) -> Result<PathBuf, StoreError> {
        let time = now.to_zoned(TimeZone::system()).strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let path = self.directory.join(format!("{}-{time}.pem", self.name));
        self.make_directory()?;
        write_private(&path, &format!("{}\n{}\n", chain.trim_end(), key.trim_end()))?;
        let (link, beside) = (self.current(), self.directory.join(format!("{}-updated.pem", self.name)));
        let failed = |source| StoreError { path: link.clone(), source };
        remove(&beside).map_err(failed)?;
        symlink(&path, &beside).and_then(|()| fs::rename(&beside, &link)).map_err(failed)?;
        Ok(path)
    }

    /// The key of a request that was not answered when the agent ended.
    pub(super) fn pending_key(&self) -> Option<String> {
        fs::read_to_string(self.pending()).ok()
    }

    /// Keeps the key of a request until it is answered.
    pub(super) fn keep_pending_key(&self, key: &str) -> Result<(), StoreError> {
        self.make_directory()?;
        write_private(&self.pending(), key)
    }

    /// The request was answered.
    pub(super) fn forget_pending_key(&self) {
        if let Err(error) = remove(&self.pending()) {
            tracing::warn!(%error, path = %self.pending().display(), "a key that is not needed any more stays");
        }
    }

    fn make_directory(&self) -> Result<(), StoreError> {
        fs::create_dir_all(&self.directory).map_err(|source| StoreError { path: self.directory.clone(), source })
    }

    fn pending(&self) -> PathBuf {
        self.directory.join(format!("{}.key.tmp", self.name))
    }
}

/// Writes a file that only root can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), StoreError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        remove(&beside)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| StoreError { path: path.to_owned(), source })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_newest_is_the_current_and_private() {
        // A17.1
        let directory = tempfile::tempdir().expect("a directory");
        let store = CertificateStore::client(&directory.path().join("pki"));
        assert!(store.read().is_err());
        for (seconds, text) in [(0, "one"), (60, "two")] {
            let now = Timestamp::from_second(1_700_000_000 + seconds).expect("a moment");
            let path = store.save(text, "key", now).expect("written");
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            assert!(name.starts_with("kubelet-client-2023-11-1") && name.ends_with(".pem"), "{name}");
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
            assert_eq!(store.read().expect("there"), format!("{text}\nkey\n"));
            assert_eq!(fs::read_link(store.current()).expect("a link"), path);
        }
        store.keep_pending_key("secret").expect("written");
        assert_eq!(store.pending_key().as_deref(), Some("secret"));
        store.forget_pending_key();
        assert_eq!(store.pending_key(), None);
    }
}
