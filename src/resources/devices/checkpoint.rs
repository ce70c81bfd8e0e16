//! `kubelet_internal_checkpoint`: who has which devices, in kubelet's own format.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use serde::{Deserialize, Serialize};
use stoker_model::pod::PodUid;

use super::pool::{Pool, Resource, Share};
use super::proto::ContainerAllocateResponse;
use crate::resources::checkpoint::{self, CheckpointError, Dump};

/// The file's name.
pub(super) const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    #[serde(rename = "ContainerName")]
    container_name: String,
    #[serde(rename = "ResourceName")]
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<i64, Vec<String>>,
    #[serde(rename = "AllocResp")]
    alloc_resp: String,
}

impl Data {
    fn dump(&self) -> Dump {
        let texts = |list: &[String]| Dump::List("[]string", Some(list.iter().map(|id| Dump::text(id)).collect()));
        let entry = |entry: &Entry| {
            let bytes = BASE64_STANDARD.decode(&entry.alloc_resp).unwrap_or_default();
            let ids = entry.device_ids.iter().map(|(node, ids)| (*node, texts(ids))).collect();
            let fields = vec![
                ("PodUID", Dump::text(&entry.pod_uid)),
                ("ContainerName", Dump::text(&entry.container_name)),
                ("ResourceName", Dump::text(&entry.resource_name)),
                ("DeviceIDs", Dump::NumberMap("checkpoint.DevicesPerNUMA", ids)),
                ("AllocResp", Dump::List("[]uint8", Some(bytes.iter().map(|b| Dump::text(&b.to_string())).collect()))),
            ];
            Dump::Struct("checkpoint.PodDevicesEntry", fields)
        };
        let entries = self.pod_device_entries.as_ref().map(|all| all.iter().map(entry).collect());
        let of_resource = |ids: &Option<Vec<String>>| match ids {
            Some(ids) => texts(ids),
            None => Dump::List("[]string", None),
        };
        let registered = self.registered_devices.as_ref();
        let registered = registered.map(|all| all.iter().map(|(name, ids)| (name.clone(), of_resource(ids))).collect());
        let fields = vec![
            ("PodDeviceEntries", Dump::List("[]checkpoint.PodDevicesEntry", entries)),
            ("RegisteredDevices", Dump::Map("map[string][]string", registered)),
        ];
        Dump::Struct("checkpoint.checkpointData", fields)
    }
}

/// Takes over what the file tells: assignments, and resources whose plugins have to come back.
pub(super) fn load(path: &Path) -> Result<Pool, CheckpointError> {
    let Some(text) = checkpoint::read(path)? else { return Ok(Pool::default()) };
    let wrong = |problem: String| CheckpointError::Content { path: path.display().to_string(), problem };
    let file: File = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if u64::from(file.data.dump().checksum()) != file.checksum {
        return Err(wrong("checkpoint is corrupted: its checksum is another one".to_owned()));
    }
    let mut pool = Pool::default();
    for entry in file.data.pod_device_entries.into_iter().flatten() {
        let bytes = BASE64_STANDARD.decode(&entry.alloc_resp).map_err(|error| wrong(error.to_string()))?;
        let answer = ContainerAllocateResponse::decode(&*bytes).map_err(|error| wrong(error.to_string()))?;
        let containers = pool.given.entry(PodUid::new(&entry.pod_uid)).or_default();
        let shares = containers.entry(entry.container_name).or_default();
        shares.insert(entry.resource_name, Share { by_node: entry.device_ids, answer });
    }
    let registered = file.data.registered_devices.into_iter().flatten();
    pool.resources = registered.map(|(name, _)| (name, Resource::default())).collect();
    Ok(pool)
}

/// Writes it.
pub(super) fn save(path: &Path, pool: &Pool) -> Result<(), CheckpointError> {
    let mut entries = Vec::new();
    for (pod, containers) in &pool.given {
        for (container, shares) in containers {
            entries.extend(shares.iter().map(|(resource, share)| Entry {
                pod_uid: pod.to_string(),
                container_name: container.clone(),
                resource_name: resource.clone(),
                device_ids: share.by_node.clone(),
                alloc_resp: BASE64_STANDARD.encode(share.answer.encode_to_vec()),
            }));
        }
    }
    let healthy = |r: &Resource| r.devices.iter().filter(|(_, d)| d.healthy).map(|(id, _)| id.clone()).collect();
    let registered = pool.resources.iter().map(|(name, resource)| (name.clone(), Some(healthy(resource)))).collect();
    // Go reads an empty list back as another value than none.
    let entries = Some(entries).filter(|entries| !entries.is_empty());
    let data = Data { pod_device_entries: entries, registered_devices: Some(registered) };
    let checksum = data.dump().checksum().into();
    let text = serde_json::to_string(&File { data, checksum });
    let text = text
        .map_err(|error| CheckpointError::Content { path: path.display().to_string(), problem: error.to_string() })?;
    checkpoint::write(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::devices::pool::Device;

    #[test]
    fn what_was_given_is_read_back() {
        // A15.5
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(load(&path).unwrap().given.is_empty());
        let mut pool = Pool::default();
        pool.update("example.com/gpu", [("g0".to_owned(), Device { healthy: true, nodes: vec![1] })].into());
        let answer = ContainerAllocateResponse { envs: [("A".into(), "b".into())].into(), ..Default::default() };
        let share = Share { by_node: [(1, vec!["g0".to_owned()])].into(), answer };
        let shares = [("example.com/gpu".to_owned(), share)].into();
        pool.given.insert(PodUid::new("u"), [("c".to_owned(), shares)].into());
        save(&path, &pool).unwrap();
        let read = load(&path).unwrap();
        assert_eq!(read.given, pool.given);
        assert!(read.resources["example.com/gpu"].devices.is_empty(), "its plugin has to come back");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("g0", "g1")).unwrap();
        assert!(load(&path).is_err(), "a changed file is not believed");
    }

    #[test]
    fn the_file_is_laid_out_as_kubelet_does() {
        // A15.5
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        save(&path, &Pool::default()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":"#), "{text}");
        let data = Data {
            pod_device_entries: Some(vec![Entry {
                pod_uid: "p".into(),
                container_name: "c".into(),
                resource_name: "r".into(),
                device_ids: [(-1, vec!["a".into(), "b".into()])].into(),
                alloc_resp: "CgM=".into(),
            }]),
            registered_devices: Some([("r".into(), Some(vec![]))].into()),
        };
        // As Go's dump shows it, written by hand.
        let dump = "(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)[{PodUID:(string)p \
                    ContainerName:(string)c ResourceName:(string)r DeviceIDs:(checkpoint.DevicesPerNUMA)map[-1:[a b]] \
                    AllocResp:([]uint8)[10 3]}] RegisteredDevices:(map[string][]string)map[r:[]]}";
        let sum = dump.bytes().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
        assert_eq!(data.dump().checksum(), sum);
    }
}
