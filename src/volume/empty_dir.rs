//! `emptyDir`: a directory, or memory (A9.4).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use stoker_model::quantity::Milli;

use super::error::VolumeError;
use super::kernel;

/// Makes the directory with its mode, whatever the umask; again is harmless. `memory_limit_bytes`: the pod's.
pub(super) fn set_up(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    memory_limit_bytes: Option<i64>,
) -> Result<(), VolumeError> {
    let fresh = !dir.exists();
    fs::create_dir_all(dir).map_err(VolumeError::file("make", dir))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            if kernel::is_mount_point(dir).map_err(VolumeError::file("look at", dir))? {
                return Ok(());
            }
            let limit = source.size_limit.as_ref().map(|q| Milli::of(q).units()).filter(|l| *l > 0);
            let size = [limit, memory_limit_bytes].into_iter().flatten().min();
            kernel::mount_tmpfs(dir, size).map_err(VolumeError::file("mount a tmpfs at", dir))?;
        }
        _ => return Err(VolumeError::Unsupported),
    }
    let memory = source.medium.as_deref() == Some("Memory");
    if fresh || memory {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(VolumeError::file("chmod", dir))?;
    }
    Ok(())
}
