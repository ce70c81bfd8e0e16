//! The agent's systemd unit, asked through systemctl: started by `join`, stopped by `reset`.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

const UNIT: &str = "stoker.service";
/// What the unit reads flags from.
const DEFAULTS: &str = "/etc/default/stoker";

/// systemd did not do as told.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnitError {
    #[error("cannot run systemctl: {0}")]
    Program(#[source] io::Error),
    #[error("systemctl {arguments}: {message}")]
    Refused { arguments: String, message: String },
    #[error("cannot write {DEFAULTS}: {0}")]
    Defaults(#[source] io::Error),
}

/// Whether systemd runs this machine and knows the agent's unit.
pub(super) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir() && systemctl(&["cat", UNIT]).is_ok()
}

/// Now and at each boot.
pub(super) fn enable_and_start() -> Result<(), UnitError> {
    systemctl(&["enable", UNIT])?;
    systemctl(&["restart", UNIT])
}

/// Not now and at no boot.
pub(super) fn disable_and_stop() -> Result<(), UnitError> {
    systemctl(&["disable", "--now", UNIT])
}

/// Gives the agent its name at each start, in place of one that was given before.
pub(super) fn set_node_name(name: &str) -> Result<(), UnitError> {
    let text = match fs::read_to_string(DEFAULTS) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(UnitError::Defaults(error)),
        text => text.unwrap_or_default(),
    };
    fs::write(DEFAULTS, with_node_name(&text, Some(name))).map_err(UnitError::Defaults)
}

/// Takes the name away again.
pub(super) fn forget_node_name() -> Result<(), UnitError> {
    match fs::read_to_string(DEFAULTS) {
        Ok(text) => fs::write(DEFAULTS, with_node_name(&text, None)).map_err(UnitError::Defaults),
        Err(_) => Ok(()),
    }
}

/// The file with `--hostname-override=NAME` among the agent's flags, or without.
fn with_node_name(text: &str, name: Option<&str>) -> String {
    const KEY: &str = "STOKER_ARGS=";
    const FLAG: &str = "--hostname-override=";
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if !lines.iter().any(|line| line.starts_with(KEY)) && name.is_some() {
        lines.push(KEY.to_owned());
    }
    for line in lines.iter_mut().filter(|line| line.starts_with(KEY)) {
        let flags = line[KEY.len()..].trim_matches('"');
        let kept = flags.split_whitespace().filter(|flag| !flag.starts_with(FLAG)).map(str::to_owned);
        let all: Vec<String> = kept.chain(name.map(|name| format!("{FLAG}{name}"))).collect();
        *line = if all.len() > 1 { format!("{KEY}\"{}\"", all.join(" ")) } else { format!("{KEY}{}", all.join(" ")) };
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn systemctl(arguments: &[&str]) -> Result<(), UnitError> {
    let output = Command::new("systemctl").args(arguments).output().map_err(UnitError::Program)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(UnitError::Refused { arguments: arguments.join(" "), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_takes_the_place_of_another() {
        for (before, name, after) in [
            ("", Some("a"), "STOKER_ARGS=--hostname-override=a\n"),
            ("# x\nSTOKER_ARGS=\n", Some("a"), "# x\nSTOKER_ARGS=--hostname-override=a\n"),
            ("STOKER_ARGS=--hostname-override=b\n", Some("a"), "STOKER_ARGS=--hostname-override=a\n"),
            (
                "STOKER_ARGS=\"--v=2 --hostname-override=b\"\n",
                Some("a"),
                "STOKER_ARGS=\"--v=2 --hostname-override=a\"\n",
            ),
            ("STOKER_ARGS=\"--v=2 --hostname-override=b\"\n", None, "STOKER_ARGS=--v=2\n"),
            ("K=v\n", None, "K=v\n"),
        ] {
            assert_eq!(with_node_name(before, name), after, "{before}");
        }
    }
}
