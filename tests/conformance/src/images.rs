//! Gives the node the images of the tests: from a folder of archives, or from a registry of the user.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// Imports each `*.tar` of the folder into the namespace that Kubernetes uses.
pub(crate) fn import(folder: &Path, containerd: &Path) -> Result<(), Error> {
    let entries = std::fs::read_dir(folder).map_err(Error::file(folder))?;
    let mut archives: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|tar| tar == "tar"))
        .collect();
    archives.sort();
    for path in archives {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(containerd)
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&path)
            .output()
            .map_err(Error::file(Path::new("ctr")))?;
        if !output.status.success() {
            return Err(Error::Import { path, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
        }
    }
    Ok(())
}

/// Writes the list of registries that the e2e binary reads from `KUBE_TEST_REPO_LIST`, with `registry` in place of each
/// public one. The registries that must fail, or ask for a password, stay what they are.
pub(crate) fn registries(registry: &str, reports: &Path) -> Result<PathBuf, Error> {
    let path = reports.join("registries.yaml");
    std::fs::write(&path, registry_list(registry)).map_err(Error::file(&path))?;
    Ok(path)
}

fn registry_list(registry: &str) -> String {
    [
        ("promoterE2eRegistry", "e2e-test-images"),
        ("buildImageRegistry", "build-image"),
        ("gcEtcdRegistry", ""),
        ("gcRegistry", ""),
        ("sigStorageRegistry", "sig-storage"),
        ("dockerLibraryRegistry", "library"),
        ("cloudProviderGcpRegistry", "cloud-provider-gcp"),
    ]
    .iter()
    .map(|(key, folder)| format!("{key}: {}\n", format!("{registry}/{folder}").trim_end_matches('/')))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_registries_are_replaced() {
        let list = registry_list("127.0.0.1:5000");
        assert!(list.contains("promoterE2eRegistry: 127.0.0.1:5000/e2e-test-images\n"));
        assert!(list.contains("gcRegistry: 127.0.0.1:5000\n"));
        assert!(!list.contains("invalid"));
    }
}
