//! What pods left behind that only files tell of: log directories, and links to logs (A14.9).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use stoker_model::pod::PodUid;

use crate::runtime::{Runtime, RuntimeError, cri};

/// The pods that have a log directory: `namespace_name_uid`.
pub(super) fn pods_with_logs(log_dir: &Path) -> BTreeSet<PodUid> {
    let entries = fs::read_dir(log_dir).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    names
        .filter_map(|name| {
            let mut parts = name.to_str()?.splitn(3, '_');
            let (_namespace, _name, uid) = (parts.next()?, parts.next()?, parts.next()?);
            (!uid.is_empty()).then(|| PodUid::new(uid))
        })
        .collect()
}

/// Links that lead to no log any more, with the containers that they are named for.
fn dead_links(link_dir: &Path) -> Vec<(PathBuf, String)> {
    let links = fs::read_dir(link_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    links
        .filter(|link| link.is_symlink() && !link.exists())
        .filter_map(|link| {
            let (_, container) = link.file_name()?.to_str()?.strip_suffix(".log")?.rsplit_once('-')?;
            let container = container.to_owned();
            Some((link, container))
        })
        .collect()
}

/// Removes links that lead nowhere. While a log is being rotated its link leads nowhere too, so those of running containers stay.
///
/// # Errors
/// When the runtime does not answer.
pub(super) async fn remove_dead_links(link_dir: &Path, runtime: &Runtime) -> Result<(), RuntimeError> {
    let dead = dead_links(link_dir);
    if dead.is_empty() {
        return Ok(());
    }
    let exited = i32::from(cri::ContainerState::ContainerExited);
    let containers = runtime.list_containers(None).await?;
    let live: BTreeSet<&str> = containers
        .iter()
        .filter(|container| container.state != exited)
        .map(|container| container.id.as_str())
        .collect();
    for (link, _) in dead.into_iter().filter(|(_, container)| !live.contains(container.as_str())) {
        tracing::debug!(link = %link.display(), "removing a link to a log that is gone");
        // Somebody else may have been quicker, and one that stays harms nobody.
        let _ = fs::remove_file(link);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_links_tell_whose_they_were() {
        // A14.9
        let folder = tempfile::tempdir().unwrap();
        let (logs, links) = (folder.path().join("pods"), folder.path().join("containers"));
        for name in ["default_web_uid-1", "kube-system_a_uid-2", "lost+found"] {
            fs::create_dir_all(logs.join(name)).unwrap();
        }
        fs::create_dir(&links).unwrap();
        assert_eq!(pods_with_logs(&logs), [PodUid::new("uid-1"), PodUid::new("uid-2")].into());
        assert!(pods_with_logs(&folder.path().join("absent")).is_empty());
        fs::write(logs.join("default_web_uid-1/0.log"), "").unwrap();
        for (link, to) in [("web_default_main-aaa.log", "0.log"), ("web_default_main-bbb.log", "1.log")] {
            std::os::unix::fs::symlink(logs.join("default_web_uid-1").join(to), links.join(link)).unwrap();
        }
        fs::write(links.join("notes"), "").unwrap();
        assert_eq!(dead_links(&links), [(links.join("web_default_main-bbb.log"), "bbb".to_owned())]);
    }
}
