//! What the runtime reads: the conf list, and the plugin in its folder. And the kernel's switches for forwarding.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::cidr::Cidr;
use super::plugin::TYPE;

/// Sorts before what distributions and other plugins install: runtimes take the first.
const CONF_LIST: &str = "05-stoker.conflist";
/// containerd calls this one too, for every sandbox.
const LOOPBACK: &str = "loopback";

fn path_error(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Puts the plugin where the runtime looks for it: links to the agent's own binary. A `loopback` that is there stays.
pub(super) fn install_plugin(folder: &Path, binary: &Path) -> io::Result<()> {
    fs::create_dir_all(folder).map_err(path_error(folder))?;
    for name in [TYPE, LOOPBACK] {
        let link = folder.join(name);
        let there = fs::symlink_metadata(&link);
        if fs::read_link(&link).is_ok_and(|target| target == binary) {
            continue;
        }
        // A link that leads nowhere is one to a binary that was moved.
        if name == LOOPBACK && there.is_ok() && link.exists() {
            continue;
        }
        let new = folder.join(format!(".{name}.new"));
        let _ = fs::remove_file(&new);
        symlink(binary, &new).and_then(|()| fs::rename(&new, &link)).map_err(path_error(&link))?;
    }
    Ok(())
}

/// Writes the conf list where it differs; whether it did. It is never removed: pods may need it to be taken away.
pub(super) fn write_conf_list(folder: &Path, state: &Path, ranges: &[Cidr], mtu: u32) -> io::Result<bool> {
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    let list = json!({
        // Runtimes that know only one version take the first, newer ones the highest that both know.
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "stoker",
        "plugins": [{
            "type": TYPE, "ranges": ranges, "mtu": mtu, "stateDir": state, "capabilities": {"portMappings": true},
        }],
    });
    let text = format!("{list:#}\n");
    let path = folder.join(CONF_LIST);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    fs::create_dir_all(folder).map_err(path_error(folder))?;
    let new = folder.join(format!(".{CONF_LIST}.new"));
    fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(path_error(&path))?;
    Ok(true)
}

/// Other configurations that the runtime would take instead of ours.
pub(super) fn shadowing(folder: &Path) -> Vec<PathBuf> {
    let is_conf = |name: &str| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
    let mut before: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| is_conf(name) && name < CONF_LIST))
        .map(|entry| entry.path())
        .collect();
    before.sort();
    before
}

/// Lets the kernel forward packets of the families that pods have.
pub(super) fn allow_forwarding(ranges: &[Cidr]) -> io::Result<()> {
    let put = |path: &str, value: &str| {
        let path = Path::new("/proc/sys/net").join(path);
        match fs::read_to_string(&path) {
            Ok(old) if old.trim() == value => Ok(()),
            _ => fs::write(&path, value).map_err(path_error(&path)),
        }
    };
    if ranges.iter().any(|range| range.is_ipv4()) {
        put("ipv4/ip_forward", "1")?;
    }
    if ranges.iter().any(|range| !range.is_ipv4()) {
        // A router ignores router advertisements unless told not to: a node that has its default route from one would
        // lose it.
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf")?.flatten() {
            let path = entry.path().join("accept_ra");
            if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
                fs::write(&path, "2").map_err(path_error(&path))?;
            }
        }
        put("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conf_list_is_written_once_and_others_before_it_are_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let ranges = ["10.244.0.0/24".parse().expect("a range")];
        let write = |mtu| write_conf_list(dir.path(), Path::new("/run/x"), &ranges, mtu).expect("written");
        assert!(write(1500) && !write(1500) && write(1450));
        let text = fs::read_to_string(dir.path().join(CONF_LIST)).expect("there");
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(list["plugins"][0]["ranges"][0], "10.244.0.0/24");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing is left over");
        fs::write(dir.path().join("10-other.conflist"), "{}").expect("written");
        assert!(shadowing(dir.path()).is_empty());
        fs::write(dir.path().join("00-other.conf"), "{}").expect("written");
        assert_eq!(shadowing(dir.path()).len(), 1);
    }

    #[test]
    fn the_plugin_is_linked_and_somebody_elses_loopback_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(LOOPBACK), "theirs").expect("written");
        for binary in ["/usr/bin/stoker", "/usr/bin/stoker", "/opt/stoker"] {
            install_plugin(dir.path(), Path::new(binary)).expect("linked");
            assert_eq!(fs::read_link(dir.path().join(TYPE)).expect("a link"), Path::new(binary));
        }
        assert_eq!(fs::read_to_string(dir.path().join(LOOPBACK)).expect("there"), "theirs");
        let empty = tempfile::tempdir().expect("a folder");
        install_plugin(empty.path(), Path::new("/gone/stoker")).expect("linked");
        install_plugin(empty.path(), Path::new("/opt/stoker")).expect("linked");
        assert_eq!(fs::read_link(empty.path().join(LOOPBACK)).expect("a link"), Path::new("/opt/stoker"));
    }
}
