//! Reads configuration files and puts the layers on top of each other.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::kubelet::{KubeletAsWritten, KubeletConfig, default_eviction_hard};
use super::settings::{Key, Resolved};
use super::validate::{Invalid, validate};
use super::without_effect;

/// What came of the configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The resolved configuration.
    pub kubelet: KubeletConfig,
    /// What was written and does not count; to be logged.
    pub warnings: Vec<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or may not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{path}: {source}{place}")]
    Decode {
        /// Which file.
        path: PathBuf,
        /// What is wrong; mostly names the field and the line itself.
        source: serde_yaml_ng::Error,
        /// The field and the line where `source` does not name them, or empty.
        place: String,
    },
    /// The file is for something else.
    #[error("{path}: apiVersion and kind are {found}, must be {expected}")]
    WrongKind {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it must say.
        expected: &'static str,
    },
    /// A flag's value does not fit its field.
    #[error("a flag does not fit: {0}")]
    Flag(serde_json::Error),
    /// A value makes no sense.
    #[error("{origin}: {invalid}")]
    Invalid {
        /// Where it was written.
        origin: String,
        /// Names the field.
        invalid: Invalid,
    },
}

const KIND: &str = "kubelet.config.k8s.io/v1beta1 KubeletConfiguration";

/// Resolves `file`, the drop-ins `*.conf` of `drop_ins` in the order of their names (A22.2c), and `flags`, which are
/// fields as JSON. `insecure_without_file` are kubelet's old defaults when it is called by flags only (A22.1a).
///
/// # Errors
/// Names the file, and the field and line where possible.
pub fn load(
    file: Option<&Path>,
    drop_ins: Option<&Path>,
    flags: &Value,
    insecure_without_file: bool,
) -> Result<Loaded, ConfigError> {
    let mut warnings = Vec::new();
    let mut layers = json!({});
    let files = file.iter().map(|f| Ok(f.to_path_buf())).chain(drop_in_files(drop_ins)?.into_iter().map(Ok));
    for path in files {
        let path: PathBuf = path?;
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        lay_over(&mut layers, read::<KubeletConfig>(&path, &text, KIND, &mut warnings)?);
    }
    if file.is_none() && drop_ins.is_none() && insecure_without_file {
        layers = json!({
            "readOnlyPort": 10255,
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
        });
    }
    lay_flags_over(&mut layers, flags);
    let kubelet = resolve(layers).map_err(ConfigError::Flag)?;
    let origin = file.map_or_else(|| "the flags".to_owned(), |path| path.display().to_string());
    validate(&kubelet).map_err(|invalid| ConfigError::Invalid { origin, invalid })?;
    warnings.extend(without_effect::warnings(&kubelet));
    Ok(Loaded { kubelet, warnings })
}

/// What [`load`] does with the text of one file.
#[cfg(feature = "fuzzing")]
pub(super) fn of_text(text: &str) {
    let mut warnings = Vec::new();
    let written = read::<KubeletConfig>(Path::new("config"), text, KIND, &mut warnings);
    if let Ok(kubelet) = written.map_err(drop).and_then(|layers| resolve(layers).map_err(drop)) {
        // Whether it is valid does not matter here, only that it can be said.
        let _ = validate(&kubelet);
    }
}

fn drop_in_files(dir: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let Some(dir) = dir else { return Ok(Vec::new()) };
    let error = |source| ConfigError::Read { path: dir.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads strictly; where only unknown or repeated fields are in the way, reads again without them and warns, as
/// upstream does for v1beta1.
pub(super) fn read<R: Resolved<Written: DeserializeOwned>>(
    path: &Path,
    text: &str,
    kind: &'static str,
    warnings: &mut Vec<String>,
) -> Result<Value, ConfigError> {
    let decode = |source, place| ConfigError::Decode { path: path.to_path_buf(), source, place };
    // serde_json's map takes the last of repeated keys where YAML's own value would refuse them.
    let Some(fields) =
        serde_yaml_ng::from_str::<Option<Map<String, Value>>>(text).map_err(|e| decode(e, String::new()))?
    else {
        return Ok(json!({}));
    };
    let said =
        ["apiVersion", "kind"].map(|name| fields.get(name).and_then(Value::as_str).unwrap_or("missing")).join(" ");
    if said != kind {
        return Err(ConfigError::WrongKind { path: path.to_path_buf(), found: said, expected: kind });
    }
    let strict = serde_yaml_ng::from_str::<R::Written>(text).err();
    let mut fields = Value::Object(fields);
    let mut unknown = Vec::new();
    keep_known(&mut fields, R::KEYS, "", &mut unknown);
    if let Some(reason) = strict {
        // It has a location for every error, and shows it for some.
        let place = if reason.to_string().contains("line ") { String::new() } else { place::<R>(&fields, text) };
        if serde_json::from_value::<R::Written>(fields.clone()).is_err() {
            return Err(decode(reason, place));
        }
        let fields = if unknown.is_empty() { String::new() } else { format!(" (ignored: {})", unknown.join(", ")) };
        warnings.push(format!("{}: {reason}{place}{fields}; reading it leniently", path.display()));
    }
    Ok(fields)
}

/// Where the mistake is, for errors that do not tell: the first field that is there twice or cannot be read alone.
fn place<R: Resolved<Written: DeserializeOwned>>(fields: &Value, text: &str) -> String {
    let lines = |name: &str| -> Vec<usize> {
        let begins = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(':'));
        text.lines().enumerate().filter(|(_, line)| begins(line)).map(|(index, _)| index + 1).collect()
    };
    for (name, value) in fields.as_object().into_iter().flatten() {
        let found = lines(name);
        let unreadable = serde_json::from_value::<R::Written>(json!({ name: value })).is_err();
        if let Some(line) = found.last().filter(|_| unreadable || found.len() > 1) {
            return format!(" (field {name} at line {line})");
        }
    }
    String::new()
}

/// Takes away absent values (`null`) and what upstream does not know.
fn keep_known(value: &mut Value, keys: &[Key], path: &str, unknown: &mut Vec<String>) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, value| {
        let known = keys.iter().any(|key| key.name == name);
        if !known {
            unknown.push(format!("{path}{name}"));
        }
        known && !value.is_null()
    });
    for key in keys.iter().filter(|key| !key.inside.is_empty()) {
        if let Some(inside) = fields.get_mut(key.name) {
            keep_known(inside, key.inside, &format!("{path}{}.", key.name), unknown);
        }
    }
}

/// Objects are merged field by field, everything else is replaced: as Go decodes one file over another.
fn lay_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                lay_over(below.entry(name).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

/// A flag replaces its field as a whole, also a map; only feature gates add up.
fn lay_flags_over(below: &mut Value, flags: &Value) {
    for (name, value) in flags.as_object().into_iter().flatten() {
        let merges =
            name == "featureGates" || KubeletConfig::KEYS.iter().any(|key| key.name == name && !key.inside.is_empty());
        if merges {
            lay_over(&mut below[name], value.clone());
        } else {
            below[name] = value.clone();
        }
    }
}

fn resolve(layers: Value) -> Result<KubeletConfig, serde_json::Error> {
    let mut written: KubeletAsWritten = serde_json::from_value(layers)?;
    // Those defaults that depend on another field.
    let given = |d: &Option<super::GoDuration>| d.is_some_and(|d| !d.0.is_zero());
    if given(&written.node_status_update_frequency) && !given(&written.node_status_report_frequency) {
        written.node_status_report_frequency = written.node_status_update_frequency;
    }
    if written.serialize_image_pulls.is_none() && written.max_parallel_image_pulls.is_some_and(|n| n >= 2) {
        written.serialize_image_pulls = Some(false);
    }
    if written.merge_default_eviction_settings == Some(true)
        && let Some(hard) = &mut written.eviction_hard
    {
        for (signal, threshold) in default_eviction_hard() {
            hard.entry(signal).or_insert(threshold);
        }
    }
    Ok(KubeletConfig::resolve(written))
}
