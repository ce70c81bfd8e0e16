//! Puts a small image into containerd without a registry, through its own content, lease and image services.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteRequest, Image, WriteAction, WriteContentRequest,
};
use containerd_client::types::Descriptor;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::client::{Runtime, in_namespace};
use super::cri;
use super::error::RuntimeError;
use crate::clock::Clock;

/// What one message to the content service may hold: the server takes 16 MiB, and a smaller piece costs nothing.
const PIECE_BYTES: usize = 1 << 20;

/// containerd deletes content that nothing refers to; until the image does, the lease does, for this long.
const LEASE: Duration = Duration::from_secs(15 * 60);

/// Looks at CRI until it knows a new image, which it learns by an event: 5 s in all.
const LOOKS: u32 = 50;
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// An image of one layer.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// An uncompressed tar.
    pub layer: Bytes,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `uid:gid`; empty for root.
    pub user: String,
}

/// A blob as it is stored: its descriptor tells what it is.
#[derive(Debug)]
struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: Bytes,
}

impl Blob {
    fn new(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { media_type, digest: format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), bytes }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string())
    }

    fn describe(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// The three blobs of an OCI image. The same source gives the same digests.
#[derive(Debug)]
struct Pack {
    layer: Blob,
    config: Blob,
    manifest: Blob,
}

impl Pack {
    fn new(source: &ImageSource) -> Self {
        let layer = Blob::new("application/vnd.oci.image.layer.v1.tar", source.layer.clone());
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = Blob::json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": architecture,
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": {
                    "Entrypoint": source.entrypoint,
                    "Env": source.env,
                    "User": source.user,
                    "WorkingDir": "/",
                },
                "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
            }),
        );
        let manifest = Blob::json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.describe(),
                "layers": [layer.describe()],
            }),
        );
        Self { layer, config, manifest }
    }
}

/// Stores the image under `name`, pinned if wished, and waits until CRI knows it. Nothing happens where there is an image of that name.
///
/// # Errors
///
/// [`RuntimeError::Unsupported`] where the runtime is not containerd.
pub async fn import(runtime: &Runtime, name: &str, source: &ImageSource, pinned: bool) -> Result<(), RuntimeError> {
    let pack = Pack::new(source);
    let lease = Lease::take(runtime).await?;
    let stored = store(runtime, &lease, &pack, name, pinned).await;
    lease.give_back(runtime).await;
    stored?;
    let spec = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
    for _ in 0..LOOKS {
        if runtime.image_status(spec.clone()).await?.is_some() {
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
    Err(RuntimeError::Failed {
        call: "ImageStatus",
        message: format!("imported image {name} into containerd, but its CRI plugin does not show it"),
    })
}

async fn store(runtime: &Runtime, lease: &Lease, pack: &Pack, name: &str, pinned: bool) -> Result<(), RuntimeError> {
    let refers = |label: &str, blob: &Blob| (format!("containerd.io/gc.ref.content.{label}"), blob.digest.clone());
    let labels = HashMap::from([refers("config", &pack.config), refers("l.0", &pack.layer)]);
    write(runtime, lease, &pack.layer, HashMap::new()).await?;
    write(runtime, lease, &pack.config, HashMap::new()).await?;
    write(runtime, lease, &pack.manifest, labels).await?;

    let mut labels = HashMap::from([("io.cri-containerd.image".to_owned(), "managed".to_owned())]);
    if pinned {
        labels.insert("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
    }
    let target = Descriptor {
        media_type: pack.manifest.media_type.to_owned(),
        digest: pack.manifest.digest.clone(),
        size: size_of(&pack.manifest),
        annotations: HashMap::new(),
    };
    let image = Image { name: name.to_owned(), labels, target: Some(target), ..Default::default() };
    let request = lease.for_request(CreateImageRequest { image: Some(image), source_date_epoch: None });
    let mut client = ImagesClient::new(runtime.connection());
    let created = async { present_is_fine(client.create(request).await.map(drop)) };
    runtime.call("images.Create", created).await
}

/// Writes one blob, piece by piece; the last one commits.
async fn write(
    runtime: &Runtime,
    lease: &Lease,
    blob: &Blob,
    labels: HashMap<String, String>,
) -> Result<(), RuntimeError> {
    let total = size_of(blob);
    // A reference of its own: a write that an earlier try left half done would be continued otherwise.
    let reference = format!("stoker-{}-{}", lease.id, blob.digest);
    let mut messages = Vec::new();
    let mut offset = 0;
    while offset < blob.bytes.len() {
        let end = blob.bytes.len().min(offset + PIECE_BYTES);
        messages.push((offset, blob.bytes.slice(offset..end), end == blob.bytes.len()));
        offset = end;
    }
    let expected = blob.digest.clone();
    let pieces = messages.into_iter().map(move |(offset, data, last)| WriteContentRequest {
        action: if last { WriteAction::Commit } else { WriteAction::Write } as i32,
        r#ref: reference.clone(),
        total,
        expected: expected.clone(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data: data.to_vec(),
        labels: if last { labels.clone() } else { HashMap::new() },
    });
    let request = lease.for_request(tokio_stream::iter(pieces));
    let mut client = ContentClient::new(runtime.connection());
    let written = async {
        let outcome = async {
            let mut answers = client.write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        present_is_fine(outcome.await)
    };
    runtime.call("content.Write", written).await
}

fn size_of(blob: &Blob) -> i64 {
    i64::try_from(blob.bytes.len()).unwrap_or(i64::MAX)
}

/// Somebody else may have stored the same thing at the same time.
fn present_is_fine(outcome: Result<(), Status>) -> Result<tonic::Response<()>, Status> {
    match outcome {
        Err(status) if status.code() != Code::AlreadyExists => Err(status),
        _ => Ok(tonic::Response::new(())),
    }
}

/// Keeps containerd's garbage collection away from content that no image refers to yet.
#[derive(Debug)]
struct Lease {
    id: String,
    header: MetadataValue<Ascii>,
}

impl Lease {
    async fn take(runtime: &Runtime) -> Result<Self, RuntimeError> {
        let expires = Clock.now().plus(LEASE).wall;
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let id = format!("stoker-import-{}", uuid::Uuid::new_v4());
        let mut client = LeasesClient::new(runtime.connection());
        let request = in_namespace(CreateRequest { id: id.clone(), labels });
        runtime.call("leases.Create", client.create(request)).await?;
        let header = MetadataValue::try_from(id.as_str()).expect("made of letters, digits and dashes");
        Ok(Self { id, header })
    }

    fn for_request<T>(&self, message: T) -> Request<T> {
        let mut request = in_namespace(message);
        request.metadata_mut().insert("containerd-lease", self.header.clone());
        request
    }

    /// Not being able to is no error: it expires.
    async fn give_back(self, runtime: &Runtime) {
        let mut client = LeasesClient::new(runtime.connection());
        let request = in_namespace(DeleteRequest { id: self.id, sync: false });
        if let Err(error) = runtime.call("leases.Delete", client.delete(request)).await {
            tracing::debug!(%error, "could not give back a lease; it expires by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_source_gives_the_same_image() {
        let source = ImageSource {
            layer: Bytes::from_static(b"layer"),
            entrypoint: vec!["/pause".into()],
            env: Vec::new(),
            user: String::new(),
        };
        let (one, two) = (Pack::new(&source), Pack::new(&source));
        assert_eq!(one.manifest.digest, two.manifest.digest);
        let manifest: Value = serde_json::from_slice(&one.manifest.bytes).unwrap();
        assert_eq!(manifest["config"]["digest"], json!(one.config.digest));
        assert_eq!(manifest["layers"][0]["size"], json!(5));
        let config: Value = serde_json::from_slice(&one.config.bytes).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], json!(one.layer.digest));
    }
}
