//! `/logs`: the files below /var/log, and nothing that lies elsewhere (A18.6).

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::StatusCode;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use tokio_util::io::ReaderStream;

use super::reply::{self, Reply};

/// A file below the directory, where there is one of that name.
pub(super) async fn answer_file(directory: &Path, path: &str) -> Option<Reply> {
    let (directory, path) = (directory.to_owned(), path.to_owned());
    match tokio::task::spawn_blocking(move || open(&directory, &path)).await {
        Ok(Ok(Opened::File(file, length))) => Some(reply::file(content(file, length))),
        _ => None,
    }
}

/// Answers for a path below the directory; an empty one is the directory itself.
pub(super) async fn answer(directory: &Path, path: &str) -> Reply {
    let (directory, path) = (directory.to_owned(), path.to_owned());
    let opened = tokio::task::spawn_blocking(move || open(&directory, &path)).await;
    match opened {
        Ok(Ok(Opened::Directory(names))) => reply::html(listing(&names)),
        Ok(Ok(Opened::File(file, length))) => reply::file(content(file, length)),
        // Nobody learns whether there is something that he may not read.
        _ => reply::text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

enum Opened {
    Directory(Vec<String>),
    File(File, u64),
}

/// Opens below the directory only: the kernel itself refuses `..` and links that lead out, also when they change in this moment.
fn open(directory: &Path, path: &str) -> io::Result<Opened> {
    let root = File::open(directory)?;
    let path = path.trim_matches('/');
    let path = if path.is_empty() { "." } else { path };
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // A pipe without writer must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), inside)?;
    let found = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            let mut names = Vec::new();
            for entry in Dir::read_from(&file)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != "." && name != ".." {
                    let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
                    names.push(format!("{name}{slash}"));
                }
            }
            names.sort();
            Ok(Opened::Directory(names))
        }
        FileType::RegularFile => Ok(Opened::File(file.into(), u64::try_from(found.st_size).unwrap_or_default())),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// As much as the file had when it was opened: a log that grows would never end.
fn content(file: File, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    use tokio::io::AsyncReadExt;
    ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(length), 64 << 10).boxed()
}

fn listing(names: &[String]) -> String {
    let mut page = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        let shown: String = name
            .chars()
            .map(|sign| match sign {
                '&' => "&amp;".to_owned(),
                '<' => "&lt;".to_owned(),
                '>' => "&gt;".to_owned(),
                '"' => "&#34;".to_owned(),
                '\'' => "&#39;".to_owned(),
                other => other.to_string(),
            })
            .collect();
        let mut link = String::new();
        for byte in name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => link.push(char::from(byte)),
                other => {
                    let _ = write!(link, "%{other:02X}");
                }
            }
        }
        let _ = writeln!(page, "<a href=\"{link}\">{shown}</a>");
    }
    page + "</pre>\n"
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_lies_below_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("log");
        fs::create_dir_all(logs.join("pods/a")).unwrap();
        fs::write(logs.join("pods/a/0.log"), "text").unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        symlink("pods/a/0.log", logs.join("inside")).unwrap();
        symlink("../secret", logs.join("outside")).unwrap();
        symlink(directory.path().join("secret"), logs.join("absolute")).unwrap();
        symlink(directory.path(), logs.join("up")).unwrap();
        for good in ["pods/a/0.log", "/pods/a/0.log", "inside", "pods/../pods/a/0.log"] {
            assert!(matches!(open(&logs, good), Ok(Opened::File(_, 4))), "{good}");
        }
        // A18.6
        for bad in ["../secret", "pods/../../secret", "outside", "absolute", "up/secret", "nothing", "pods/a/0.log/x"] {
            assert!(open(&logs, bad).is_err(), "{bad}");
        }
        let Ok(Opened::Directory(names)) = open(&logs, "") else { panic!("a directory") };
        assert_eq!(names, ["absolute", "inside", "outside", "pods/", "up"]);
        assert!(listing(&["a<b&\"".to_owned()]).contains("<a href=\"a%3Cb%26%22\">a&lt;b&amp;&#34;</a>"));
    }
}
