//! Files in which kubelet keeps what it assigned: JSON with a checksum over Go's own way of writing a value down, so that either
//! agent can take over from the other.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A value as Go's dump for checksums shows it.
#[derive(Clone, Debug)]
pub(super) enum Dump {
    /// A text or a number, with its type.
    Plain(&'static str, String),
    /// A structure: its type, and its fields in order.
    Struct(&'static str, Vec<(&'static str, Dump)>),
    /// The same behind a pointer.
    Pointer(Box<Dump>),
    /// A list; `None` where Go has nil.
    List(&'static str, Option<Vec<Dump>>),
    /// A map; `None` where Go has nil.
    Map(&'static str, Option<BTreeMap<String, Dump>>),
    /// A map with numbers as keys, which Go sorts as numbers.
    NumberMap(&'static str, BTreeMap<i64, Dump>),
}

impl Dump {
    /// A `string`.
    pub(super) fn text(text: &str) -> Self {
        Self::Plain("string", text.to_owned())
    }

    fn write(&self, typed: bool, out: &mut String) {
        let join = |out: &mut String, entries: &mut dyn Iterator<Item = (String, &Self)>| {
            for (index, (key, value)) in entries.enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                out.push_str(&key);
                value.write(false, out);
            }
        };
        let name = |out: &mut String, name: &str| {
            if typed {
                out.push_str(&format!("({name})"));
            }
        };
        match self {
            Self::Plain(kind, text) => {
                name(out, kind);
                out.push_str(text);
            }
            Self::Pointer(to) => {
                match &**to {
                    Self::Struct(kind, _) if typed => out.push_str(&format!("(*{kind})")),
                    _ => out.push_str("<*>"),
                }
                to.write(false, out);
            }
            Self::Struct(kind, fields) => {
                name(out, kind);
                out.push('{');
                for (index, (field, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    out.push_str(field);
                    out.push(':');
                    value.write(true, out);
                }
                out.push('}');
            }
            Self::List(kind, values) => {
                name(out, kind);
                match values {
                    None => out.push_str("<nil>"),
                    Some(values) => {
                        out.push('[');
                        join(out, &mut values.iter().map(|value| (String::new(), value)));
                        out.push(']');
                    }
                }
            }
            Self::Map(kind, values) => {
                name(out, kind);
                match values {
                    None => out.push_str("<nil>"),
                    Some(values) => {
                        out.push_str("map[");
                        join(out, &mut values.iter().map(|(key, value)| (format!("{key}:"), value)));
                        out.push(']');
                    }
                }
            }
            Self::NumberMap(kind, values) => {
                name(out, kind);
                out.push_str("map[");
                join(out, &mut values.iter().map(|(key, value)| (format!("{key}:"), value)));
                out.push(']');
            }
        }
    }

    /// kubelet's checksum: FNV-1a, 32 bits.
    pub(super) fn checksum(&self) -> u32 {
        let mut text = String::new();
        self.write(true, &mut text);
        text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }
}

/// Why what was assigned before is not known.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error("{path}: {source}; make it readable and writable")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The machine does not have what is to be kept back.
    #[error("cpuManagerPolicy: {0}; set reservedSystemCPUs, or cpu in kubeReserved or systemReserved")]
    Cpus(String),
    /// What is to be kept back does not fit.
    #[error(
        "memoryManagerPolicy: {0}; set reservedMemory to what kubeReserved, systemReserved and evictionHard keep back together"
    )]
    Memory(String),
    /// It is not what an agent wrote.
    #[error("{path}: {problem}; drain the node, remove the file, and start the agent again")]
    Content {
        /// Which file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// The text of the file, if there is one.
pub(super) fn read(path: &Path) -> Result<Option<String>, CheckpointError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::File { path: path.display().to_string(), source }),
    }
}

/// Writes the file as a whole or not at all.
pub(super) fn write(path: &Path, text: &str) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::File { path: path.display().to_string(), source };
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = parent.join(format!(".{name}.new"));
    std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, path)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_kubelet() {
        // A15.2; numbers of upstream's own tests
        let map = |pairs: &[(&str, &str)]| {
            let values = pairs.iter().map(|(k, v)| ((*k).to_owned(), Dump::text(v))).collect();
            Dump::Map("map[string]string", Some(values))
        };
        let dump = |cpus, entries| {
            let fields = vec![
                ("PolicyName", Dump::text("none")),
                ("DefaultCPUSet", Dump::text(cpus)),
                ("Entries", Dump::Map("map[string]map[string]string", Some(entries))),
                ("Checksum", Dump::Plain("checksum.Checksum", "0".to_owned())),
            ];
            Dump::Pointer(Box::new(Dump::Struct("state.CPUManagerCheckpoint", fields))).checksum()
        };
        assert_eq!(dump("4-6", BTreeMap::new()), 354_655_845);
        let entries = BTreeMap::from([("pod".to_owned(), map(&[("container1", "4-6"), ("container2", "1-3")]))]);
        assert_eq!(dump("1-3", entries), 3_610_638_499);
    }

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(std::fs::read_dir(dir.path().join("deep")).unwrap().count(), 1);
    }
}
