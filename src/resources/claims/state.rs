//! Which claims are prepared on this node, for which pods, and kubelet's file that remembers it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::resources::checkpoint::{self, CheckpointError};

const KIND: &str = "DRACheckpoint";
const VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

/// A claim that pods here use, laid out as kubelet's file has it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Claim {
    #[serde(rename = "ClaimUID")]
    pub(super) uid: String,
    #[serde(rename = "ClaimName")]
    pub(super) name: String,
    pub(super) namespace: String,
    /// A set, as Go writes one.
    #[serde(rename = "PodUIDs")]
    pub(super) pods: BTreeMap<String, Member>,
    #[serde(rename = "DriverState")]
    pub(super) drivers: BTreeMap<String, DriverState>,
    /// Its drivers have prepared it since the agent started.
    #[serde(skip)]
    pub(super) prepared: bool,
    /// Its drivers are being asked to undo it: nobody may join meanwhile.
    #[serde(skip)]
    pub(super) leaving: bool,
}

/// That a pod is in the set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Member {}

/// What one driver has prepared of a claim.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DriverState {
    /// Go writes an empty list that was never filled as `null`.
    devices: Option<Vec<Device>>,
}

impl DriverState {
    pub(super) fn of(devices: Vec<Device>) -> Self {
        Self { devices: Some(devices).filter(|devices| !devices.is_empty()) }
    }

    pub(super) fn devices(&self) -> &[Device] {
        self.devices.as_deref().unwrap_or_default()
    }
}

/// A device that was prepared.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Device {
    pub(super) pool_name: String,
    pub(super) device_name: String,
    #[serde(rename = "ShareID")]
    pub(super) share_id: Option<String>,
    pub(super) request_names: Option<Vec<String>>,
    #[serde(rename = "CDIDeviceIDs")]
    pub(super) cdi_device_ids: Option<Vec<String>>,
}

impl Device {
    /// Whether it is of this request of its claim; of every one where it does not say.
    pub(super) fn is_of(&self, request: &str) -> bool {
        let requests = self.request_names.as_deref().unwrap_or_default();
        request.is_empty() || requests.is_empty() || requests.iter().any(|name| name == request)
    }

    pub(super) fn cdi(&self) -> &[String] {
        self.cdi_device_ids.as_deref().unwrap_or_default()
    }
}

/// By namespace and name.
pub(super) type Claims = BTreeMap<(String, String), Claim>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: String,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Data {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    #[serde(rename = "ClaimInfoStateList")]
    claims: Option<Vec<Claim>>,
}

/// Reads the file; nothing where there is none.
pub(super) fn load(path: &Path) -> Result<Claims, CheckpointError> {
    let Some(text) = checkpoint::read(path)? else { return Ok(Claims::new()) };
    let wrong = |problem: String| CheckpointError::Content { path: path.display().to_string(), problem };
    let file: File = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if crc32(file.data.as_bytes()) != file.checksum {
        return Err(wrong("checkpoint is corrupted".to_owned()));
    }
    let data: Data = serde_json::from_str(&file.data).map_err(|error| wrong(error.to_string()))?;
    let keyed = |claim: Claim| ((claim.namespace.clone(), claim.name.clone()), claim);
    Ok(data.claims.into_iter().flatten().map(keyed).collect())
}

/// Writes it.
pub(super) fn save(path: &Path, claims: &Claims) -> Result<(), CheckpointError> {
    let data = Data {
        kind: KIND.to_owned(),
        api_version: VERSION.to_owned(),
        claims: Some(claims.values().cloned().collect()),
    };
    let wrong = |error: serde_json::Error| CheckpointError::Content {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    let data = serde_json::to_string(&data).map_err(wrong)?;
    let file = File { checksum: crc32(data.as_bytes()), data };
    checkpoint::write(path, &serde_json::to_string(&file).map_err(wrong)?)
}

/// The checksum of IEEE 802.3, as Go's `crc32.ChecksumIEEE`.
fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_kubelets() {
        // A15.8
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the checksum's own check value");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dra_manager_state");
        assert!(load(&path).unwrap().is_empty());
        let device = Device {
            pool_name: "worker".into(),
            device_name: "dev-1".into(),
            share_id: None,
            request_names: Some(vec!["one".into()]),
            cdi_device_ids: Some(vec!["example.com/class=dev-1".into()]),
        };
        let claim = Claim {
            uid: "claim-uid".into(),
            name: "example".into(),
            namespace: "default".into(),
            pods: [("pod-uid".to_owned(), Member {})].into(),
            drivers: [
                ("a.example.com".to_owned(), DriverState::of(vec![device])),
                ("b.example.com".to_owned(), DriverState::default()),
            ]
            .into(),
            prepared: true,
            leaving: false,
        };
        let claims: Claims = [(("default".to_owned(), "example".to_owned()), claim.clone())].into();
        save(&path, &claims).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let file: File = serde_json::from_str(&text).unwrap();
        assert_eq!(
            file.data,
            r#"{"kind":"DRACheckpoint","apiVersion":"checkpoint.dra.kubelet.k8s.io/v1","ClaimInfoStateList":[{"ClaimUID":"claim-uid","ClaimName":"example","Namespace":"default","PodUIDs":{"pod-uid":{}},"DriverState":{"a.example.com":{"Devices":[{"PoolName":"worker","DeviceName":"dev-1","ShareID":null,"RequestNames":["one"],"CDIDeviceIDs":["example.com/class=dev-1"]}]},"b.example.com":{"Devices":null}}}]}"#
        );
        let read = load(&path).unwrap();
        let expected = Claim { prepared: false, ..claim };
        assert_eq!(read.values().collect::<Vec<_>>(), [&expected], "its drivers have to prepare it anew");
        std::fs::write(&path, text.replace("dev-1", "dev-2")).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("corrupted"));
    }

    #[test]
    fn devices_belong_to_requests() {
        // A15.8
        let named = Device { request_names: Some(vec!["gpu".into()]), ..Device::default() };
        assert_eq!([named.is_of(""), named.is_of("gpu"), named.is_of("nic")], [true, true, false]);
        assert!(Device::default().is_of("nic"), "it does not say");
    }
}
