//! Reads a log file in large pieces and gives what users see. Blocking; [`super`] calls it where that is allowed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::LogOptions;
use super::line::{Since, end_of_line, parse};

/// Of the file, at a time. Larger gave no more speed: at this size the cost of a piece's way through the tasks is 1 % of its own.
const PIECE_BYTES: usize = 256 << 10;

/// Runtimes split lines at 16 KiB. What is longer than this is no line of theirs, and is not kept in memory for its end.
const LINE_LIMIT_BYTES: usize = 1 << 20;

/// When looking backwards for the last lines.
const BACKWARD_BYTES: u64 = 64 << 10;

/// The folder of a pod, that of a container and the file: what of a path pods might have been able to change.
const OF_PODS: usize = 3;

/// How far a step came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// There may be more at once.
    More,
    /// All that the file has now was read.
    AtEnd,
    /// A limit is reached: nothing more will come.
    Finished,
}

/// A place in a log file, and what is still wanted.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    /// What was read and not given yet: at most one line that has no end.
    kept: Vec<u8>,
    /// The line that `kept` began with was too long: leave the rest of it out.
    skipping: bool,
    options: LogOptions,
    since: Option<Since>,
    lines_left: Option<u64>,
    bytes_left: Option<u64>,
    /// The last line given was whole, so the next one begins with a time.
    at_line_start: bool,
}

impl Reader {
    /// Opens the file where the wanted lines begin.
    pub(super) fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let mut file = open_regular(path)?;
        if let Some(lines) = options.tail_lines {
            let start = start_of_last_lines(&file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        // Who follows wants what comes after the last lines, too.
        let lines_left = options.tail_lines.filter(|_| !options.follow);
        let bytes_left = options.limit_bytes;
        let since = options.since.map(Since::new);
        Ok(Self {
            file,
            kept: Vec::new(),
            skipping: false,
            options,
            since,
            lines_left,
            bytes_left,
            at_line_start: true,
        })
    }

    /// Goes on with the file that is at the same path now.
    pub(super) fn reopen(&mut self, path: &Path) -> io::Result<()> {
        self.file = open_regular(path)?;
        self.kept.clear();
        self.skipping = false;
        Ok(())
    }

    /// Whether another file has taken this one's place. One that only went away has not been replaced yet.
    pub(super) fn is_replaced(&self, path: &Path) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        match std::fs::metadata(path) {
            Ok(theirs) => Ok((theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the file has nothing that was not read.
    pub(super) fn is_at_end(&self) -> io::Result<bool> {
        Ok(!self.is_finished() && (&self.file).stream_position()? == self.file.metadata()?.len())
    }

    /// Reads one piece and appends what users see of it to `out`.
    pub(super) fn step(&mut self, out: &mut Vec<u8>) -> io::Result<Progress> {
        if self.is_finished() {
            return Ok(Progress::Finished);
        }
        let before = self.kept.len();
        self.kept.reserve(PIECE_BYTES);
        let read = (&self.file).take(PIECE_BYTES as u64).read_to_end(&mut self.kept)?;
        let piece = std::mem::take(&mut self.kept);
        out.reserve(piece.len());
        // The part before has no newline, so the search goes on where it ended.
        let (mut start, mut search) = (0, before);
        while let Some(length) = end_of_line(&piece[search..]) {
            let end = search + length;
            if !std::mem::take(&mut self.skipping) {
                self.give(&piece[start..end], out);
            }
            (start, search) = (end, end);
            if self.is_finished() {
                return Ok(Progress::Finished);
            }
        }
        self.kept = piece;
        self.kept.drain(..start);
        if self.kept.len() > LINE_LIMIT_BYTES {
            self.kept.clear();
            self.skipping = true;
        }
        if self.options.follow && self.kept.is_empty() && read == 0 {
            // Followers wait for long: hold nothing meanwhile.
            self.kept = Vec::new();
        }
        Ok(if read < PIECE_BYTES { Progress::AtEnd } else { Progress::More })
    }

    /// At the end for good: a line without its newline is given as it is.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.kept);
        if !rest.is_empty() && !self.skipping && !self.is_finished() {
            self.give(&rest, out);
        }
    }

    fn is_finished(&self) -> bool {
        self.lines_left == Some(0) || self.bytes_left == Some(0)
    }

    /// One line of the file.
    fn give(&mut self, line: &[u8], out: &mut Vec<u8>) {
        if let Some(left) = &mut self.lines_left {
            *left -= 1;
        }
        let Some(line) = parse(line) else { return };
        if self.since.as_ref().is_some_and(|since| !line.is_since(since)) {
            return;
        }
        let length_before = out.len();
        if self.options.timestamps && self.at_line_start {
            line.write_time(out);
            out.push(b' ');
        }
        out.extend_from_slice(&line.text);
        self.at_line_start = line.text.is_empty() || line.text.ends_with(b"\n");
        if let Some(left) = &mut self.bytes_left {
            let given = (out.len() - length_before) as u64;
            let cut = given.min(*left);
            // It fits: `cut` is at most `given`, which is the length of something in memory.
            out.truncate(length_before + usize::try_from(cut).unwrap_or(usize::MAX));
            *left -= cut;
        }
    }
}

/// Where the last `lines` lines begin, reading no more of the file than those.
fn start_of_last_lines(file: &File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    // The newline before the wanted lines is the one after as many others.
    let mut newlines_left = lines.saturating_add(1);
    let mut buffer = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(BACKWARD_BYTES);
        buffer.resize(usize::try_from(end - begin).expect("at most 64 KiB"), 0);
        file.read_exact_at(&mut buffer, begin)?;
        let mut upto = buffer.len();
        while let Some(position) = buffer[..upto].iter().rposition(|byte| *byte == b'\n') {
            newlines_left -= 1;
            if newlines_left == 0 {
                return Ok(begin + position as u64 + 1);
            }
            upto = position;
        }
        end = begin;
    }
    Ok(0)
}

/// Opens a log. A pod that can write where logs are (a hostPath volume) could put a link to any file of the machine in a log's place:
/// none is followed, and nothing but a file is read.
fn open_regular(path: &Path) -> io::Result<File> {
    let mut above = path;
    let mut below = PathBuf::new();
    for _ in 0..OF_PODS {
        let (Some(parent), Some(name)) = (above.parent(), above.file_name()) else { break };
        below = if below.as_os_str().is_empty() { name.into() } else { Path::new(name).join(below) };
        above = parent;
    }
    let above = File::open(if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
    // A pipe without writer must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(rustix::fs::openat2(&above, &below, flags, Mode::empty(), inside)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is no file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(lines: std::ops::Range<usize>) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for line in lines {
            writeln!(file, "2026-01-02T03:04:{:02}.5Z stdout F line {line}", line % 60).unwrap();
        }
        file
    }

    fn read(file: &tempfile::NamedTempFile, options: LogOptions) -> String {
        let mut reader = Reader::open(file.path(), options).unwrap();
        let mut out = Vec::new();
        while reader.step(&mut out).unwrap() == Progress::More {}
        reader.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        // A20.3
        let file = file_of(0..20_000);
        // What was rotated away is not counted.
        let mut rotated = file.path().as_os_str().to_owned();
        rotated.push(".20260102-030405");
        std::fs::copy(file.path(), &rotated).unwrap();
        for lines in [0, 1, 2, 500, 19_999, 20_000, 50_000] {
            let given = read(&file, LogOptions { tail_lines: Some(lines), ..Default::default() });
            let count = usize::try_from(lines).unwrap().min(20_000);
            let expected: String = (20_000 - count..20_000).map(|line| format!("line {line}\n")).collect();
            assert!(given == expected, "{lines} lines: {} bytes instead of {}", given.len(), expected.len());
        }
        std::fs::remove_file(&rotated).unwrap();
    }

    #[test]
    fn output_is_cut_at_the_very_byte() {
        // A20.3
        let file = file_of(0..100);
        let whole = read(&file, LogOptions { timestamps: true, ..Default::default() });
        assert!(whole.starts_with("2026-01-02T03:04:00.500000000Z line 0\n"));
        for limit in [1, 7, 38, 39, 1000, 1_000_000] {
            let given = read(&file, LogOptions { timestamps: true, limit_bytes: Some(limit), ..Default::default() });
            assert_eq!(given, whole[..whole.len().min(usize::try_from(limit).unwrap())]);
        }
    }

    #[test]
    fn only_what_was_written_since() {
        // A20.3
        let file = file_of(0..60);
        let since = Some("2026-01-02T03:04:58.5Z".parse().unwrap());
        assert_eq!(read(&file, LogOptions { since, ..Default::default() }), "line 58\nline 59\n");
    }

    #[test]
    fn parts_of_a_line_are_joined_and_have_one_time() {
        // A20.2
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "2026-01-02T03:04:05Z stdout P one \nrubbish\n2026-01-02T03:04:06Z stdout F line\n").unwrap();
        write!(file, "2026-01-02T03:04:07Z stdout F no newline").unwrap();
        let given = read(&file, LogOptions { timestamps: true, ..Default::default() });
        assert_eq!(given, "2026-01-02T03:04:05.000000000Z one line\n2026-01-02T03:04:07.000000000Z no newline");
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![b'x'; 3 << 20]).unwrap();
        writeln!(file, "\n2026-01-02T03:04:05Z stdout F after").unwrap();
        let mut reader = Reader::open(file.path(), LogOptions::default()).unwrap();
        let mut out = Vec::new();
        while reader.step(&mut out).unwrap() == Progress::More {
            assert!(reader.kept.len() <= LINE_LIMIT_BYTES + PIECE_BYTES);
        }
        assert_eq!(out, b"after\n");
    }

    #[test]
    fn links_and_pipes_in_the_place_of_a_log_are_not_read() {
        // A18.7
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("pods/ns_p_uid/c");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        std::fs::write(logs.join("0.log"), "").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), logs.join("1.log")).unwrap();
        std::os::unix::fs::symlink("0.log", logs.join("2.log")).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("pods/ns_p_uid/d")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            logs.join("3.log"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // The machine's own folders may be links.
        std::os::unix::fs::symlink(folder.path().join("pods"), folder.path().join("link")).unwrap();
        assert!(open_regular(&logs.join("0.log")).is_ok());
        assert!(open_regular(&folder.path().join("link/ns_p_uid/c/0.log")).is_ok());
        for bad in ["c/1.log", "c/2.log", "c/3.log", "d/secret", "c"] {
            assert!(open_regular(&folder.path().join("pods/ns_p_uid").join(bad)).is_err(), "{bad}");
        }
    }
}
