//! The sandbox image: the pause program that is part of the agent, under the name that the runtime asks for.
//!
//! So a node with no registry runs pods. Where there is an image of that name already, it is left alone.

use std::io;

use bytes::Bytes;
use serde_json::Value;
use tracing::info;

use super::client::Runtime;
use super::cri;
use super::error::RuntimeError;
use super::import::{ImageSource, import};

/// `packaging/pause/pause.rs`, compiled by `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// What containerd 2 asks for where its configuration does not say: its status does not tell.
const DEFAULT_NAME: &str = "registry.k8s.io/pause:3.10.1";

/// The sandbox image of this runtime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SandboxImage {
    name: String,
    imported: bool,
}

impl SandboxImage {
    /// Names of images that no garbage collection may remove (A14.8).
    pub fn pinned(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str())
    }

    /// Whether it was this call that put it there.
    pub fn imported(&self) -> bool {
        self.imported
    }
}

/// Makes sure that the runtime has its sandbox image.
///
/// # Errors
///
/// [`RuntimeError::Unsupported`] where the runtime is not containerd: it has to pull the image. [`RuntimeError::Failed`] where it is
/// asked for by digest, which our image cannot have.
pub async fn ensure(runtime: &Runtime) -> Result<SandboxImage, RuntimeError> {
    let name = full_name(&sandbox_image(&runtime.status(true).await?));
    let spec = cri::ImageSpec { image: name.clone(), ..Default::default() };
    if runtime.image_status(spec).await?.is_some() {
        return Ok(SandboxImage { name, imported: false });
    }
    if name.contains('@') {
        let message = format!(
            "the runtime's sandbox image {name} is not present, and being named by digest it can only be pulled; \
             name it by tag to use the one that is part of stoker"
        );
        return Err(RuntimeError::Failed { call: "Status", message });
    }
    let source = ImageSource {
        layer: layer().map_err(|error| RuntimeError::Failed { call: "pause", message: error.to_string() })?,
        entrypoint: vec!["/pause".to_owned()],
        env: Vec::new(),
        // Nobody: it needs no right.
        user: "65535:65535".to_owned(),
    };
    import(runtime, &name, &source, true).await?;
    info!(image = name, "imported the sandbox image");
    Ok(SandboxImage { name, imported: true })
}

/// The name that the runtime has in its configuration.
fn sandbox_image(status: &cri::StatusResponse) -> String {
    let config: Option<Value> = status.info.get("config").and_then(|config| serde_json::from_str(config).ok());
    let name = config.as_ref().and_then(|config| {
        let pinned = || config.pointer("/pinnedImages/sandbox").or_else(|| config.pointer("/pinned_images/sandbox"));
        config.get("sandboxImage").or_else(pinned)?.as_str()
    });
    name.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAME).to_owned()
}

/// The name as the runtime stores it: with a registry, and with a tag or digest.
fn full_name(name: &str) -> String {
    let full = match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    let last = full.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { full } else { format!("{full}:latest") }
}

/// A tar with nothing but the program.
fn layer() -> io::Result<Bytes> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(PROGRAM.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "pause", PROGRAM)?;
    Ok(archive.into_inner()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_the_runtime_does() {
        for (given, full) in [
            ("registry.k8s.io/pause:3.6", "registry.k8s.io/pause:3.6"),
            ("localhost/pause", "localhost/pause:latest"),
            ("127.0.0.1:5000/pause", "127.0.0.1:5000/pause:latest"),
            ("rancher/pause:3.6", "docker.io/rancher/pause:3.6"),
            ("pause", "docker.io/library/pause:latest"),
            ("quay.io/pause@sha256:00", "quay.io/pause@sha256:00"),
        ] {
            assert_eq!(full_name(given), full);
        }
    }

    #[test]
    fn the_runtime_says_which_image_it_wants() {
        let status = |config: &str| cri::StatusResponse {
            info: [("config".to_owned(), config.to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(sandbox_image(&status(r#"{"sandboxImage":"a/b:1"}"#)), "a/b:1");
        assert_eq!(sandbox_image(&status(r#"{"pinnedImages":{"sandbox":"c:2"}}"#)), "c:2");
        assert_eq!(sandbox_image(&status("no JSON")), DEFAULT_NAME);
    }

    #[test]
    fn the_program_is_a_few_kilobytes() {
        assert!(PROGRAM.starts_with(b"\x7fELF") && PROGRAM.len() < 8 << 10, "{} bytes", PROGRAM.len());
    }
}
