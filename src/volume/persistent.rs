//! The plugins behind claims that need no driver: local, hostPath and NFS (A9.17).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NFSVolumeSource, NodeSelectorTerm, PersistentVolumeSpec};
use stoker_model::handle::NodeSnapshot;
use tokio::process::Command;

use super::aside::aside;
use super::error::VolumeError;
use super::kernel;

/// What mounting over the network may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(120);

/// Whether the volume may be used on this node; upstream's words when not.
pub(super) fn check_node(spec: &PersistentVolumeSpec, node: &NodeSnapshot) -> Result<(), VolumeError> {
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    match required {
        Some(selector) if !selector.node_selector_terms.iter().any(|term| matches(term, node)) => {
            Err(VolumeError::Other("no matching NodeSelectorTerms".to_owned()))
        }
        _ => Ok(()),
    }
}

fn matches(term: &NodeSelectorTerm, node: &NodeSnapshot) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let (labels, fields) = (labels.unwrap_or_default(), fields.unwrap_or_default());
    let holds = |r: &k8s_openapi::api::core::v1::NodeSelectorRequirement, value: Option<&str>| {
        let values = r.values.as_deref().unwrap_or_default();
        let number =
            || value.and_then(|v| v.parse::<i64>().ok()).zip(values.first().and_then(|v| v.parse::<i64>().ok()));
        match r.operator.as_str() {
            "In" => value.is_some_and(|value| values.iter().any(|v| v == value)),
            "NotIn" => value.is_none_or(|value| values.iter().all(|v| v != value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => number().is_some_and(|(a, b)| a > b),
            "Lt" => number().is_some_and(|(a, b)| a < b),
            _ => false,
        }
    };
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|r| holds(r, node.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| holds(r, (r.key == "metadata.name").then_some(node.name.as_str())))
}

/// Binds a directory of the node. Whether nothing was there before.
pub(super) async fn mount_local(source: String, target: PathBuf, read_only: bool) -> Result<bool, VolumeError> {
    aside(move || bind_local(&source, &target, read_only)).await
}

fn bind_local(source: &str, target: &Path, read_only: bool) -> Result<bool, VolumeError> {
    if kernel::is_mount_point(target).map_err(VolumeError::file("look at", target))? {
        return Ok(false);
    }
    let back = Path::new(source).components().any(|part| part == std::path::Component::ParentDir);
    if source.is_empty() || back {
        return Err(VolumeError::Other(format!("invalid path: {source} must not contain '..'")));
    }
    let found = fs::metadata(source).map_err(|_| VolumeError::Other(format!("path \"{source}\" does not exist")))?;
    if !found.is_dir() {
        return Err(VolumeError::Other("only directory and block device are supported".to_owned()));
    }
    make_dir(target)?;
    kernel::bind(Path::new(source), target).map_err(VolumeError::file("bind", target))?;
    if read_only {
        kernel::make_read_only(target).map_err(VolumeError::file("make read-only", target))?;
    }
    Ok(true)
}

/// Whether a local volume is what it must be to be used as a device.
pub(super) async fn check_device(source: String) -> Result<(), VolumeError> {
    aside(move || is_device(&source)).await
}

fn is_device(source: &str) -> Result<(), VolumeError> {
    use std::os::unix::fs::FileTypeExt;
    let found = fs::metadata(source).map_err(|_| VolumeError::Other(format!("path \"{source}\" does not exist")))?;
    if found.file_type().is_block_device() {
        return Ok(());
    }
    Err(VolumeError::Other(format!("path \"{source}\" is no block device")))
}

/// Mounts an NFS export with the system's mount program.
pub(super) async fn mount_nfs(
    source: &NFSVolumeSource,
    options: &[String],
    target: &Path,
    read_only: bool,
) -> Result<(), VolumeError> {
    if kernel::is_mount_point(target).map_err(VolumeError::file("look at", target))? {
        return Ok(());
    }
    let helpers = ["/sbin/mount.nfs", "/usr/sbin/mount.nfs"];
    if !helpers.iter().any(|helper| Path::new(helper).exists()) {
        let text = format!(
            "mount failed: mount -t nfs {}:{}: bad option; for several filesystems (e.g. nfs, cifs) you might need a /sbin/mount.<type> helper program: install nfs-common",
            source.server, source.path
        );
        return Err(VolumeError::Other(text));
    }
    make_dir(target)?;
    let mut command = Command::new("mount");
    command.args(nfs_arguments(source, options, read_only)).arg(target);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let result = match tokio::time::timeout(MOUNT_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => return Ok(()),
        Ok(Ok(output)) => {
            format!("mount failed: {}\nOutput: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
        }
        Ok(Err(error)) => format!("mount cannot be run: {error}"),
        Err(_) => format!("mount did not end within {MOUNT_LIMIT:?}"),
    };
    // What is left would look like a volume.
    let _ = fs::remove_dir(target);
    Err(VolumeError::Other(result))
}

/// How the system's mount program is called, but for the place.
fn nfs_arguments(source: &NFSVolumeSource, options: &[String], read_only: bool) -> Vec<String> {
    let mut options = options.to_vec();
    if read_only || source.read_only.unwrap_or_default() {
        options.push("ro".to_owned());
    }
    let server = if source.server.contains(':') { format!("[{}]", source.server) } else { source.server.clone() };
    let mut all = vec!["-t".to_owned(), "nfs".to_owned()];
    if !options.is_empty() {
        all.extend(["-o".to_owned(), options.join(",")]);
    }
    all.push(format!("{server}:{}", source.path));
    all
}

/// Makes a directory where there is none; on one that is there a driver may have mounted what does not answer.
pub(super) fn make_dir(dir: &Path) -> Result<(), VolumeError> {
    use std::os::unix::fs::DirBuilderExt;
    if kernel::is_there(dir) {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(VolumeError::file("make", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_mounted_as_the_claim_says() {
        // A9.17
        let source = |server: &str, read_only| NFSVolumeSource {
            server: server.into(),
            path: "/export".into(),
            read_only: Some(read_only),
        };
        let options = ["vers=4.2".to_owned(), "hard".to_owned()];
        let call = |source: &NFSVolumeSource, options: &[String], ro| nfs_arguments(source, options, ro).join(" ");
        assert_eq!(call(&source("nfs.example", false), &[], false), "-t nfs nfs.example:/export");
        assert_eq!(call(&source("fd00::1", false), &options, false), "-t nfs -o vers=4.2,hard [fd00::1]:/export");
        assert_eq!(
            call(&source("nfs.example", true), &options, false),
            "-t nfs -o vers=4.2,hard,ro nfs.example:/export"
        );
        assert_eq!(call(&source("nfs.example", false), &[], true), "-t nfs -o ro nfs.example:/export");
    }
}
