//! `memory_manager_state`: who was promised memory of which nodes, in kubelet's own format, version 1.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_model::pod::PodUid;

use super::policy::{Block, Given, NodeState, Nodes, Table};
use crate::resources::checkpoint::{self, CheckpointError, Dump};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    machine_state: BTreeMap<i64, FileNode>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, Vec<FileBlock>>>,
    /// Of pods as a whole: an alpha feature of kubelet's.
    #[serde(default, skip_serializing)]
    pod_entries: Value,
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileNode {
    number_of_assignments: u64,
    memory_map: BTreeMap<String, FileTable>,
    cells: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileTable {
    total: u64,
    system_reserved: u64,
    allocatable: u64,
    reserved: u64,
    free: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileBlock {
    numa_affinity: Vec<usize>,
    #[serde(rename = "type")]
    resource: String,
    size: u64,
}

impl File {
    fn checksum(&self) -> u64 {
        let number = |kind, n: u64| Dump::Plain(kind, n.to_string());
        let numbers =
            |list: &[usize]| Dump::List("[]int", Some(list.iter().map(|n| Dump::text(&n.to_string())).collect()));
        let table = |t: &FileTable| {
            let fields = vec![
                ("TotalMemSize", number("uint64", t.total)),
                ("SystemReserved", number("uint64", t.system_reserved)),
                ("Allocatable", number("uint64", t.allocatable)),
                ("Reserved", number("uint64", t.reserved)),
                ("Free", number("uint64", t.free)),
            ];
            Dump::Pointer(Box::new(Dump::Struct("state.MemoryTable", fields)))
        };
        let node = |n: &FileNode| {
            let tables = n.memory_map.iter().map(|(name, t)| (name.clone(), table(t))).collect();
            let fields = vec![
                ("NumberOfAssignments", number("int", n.number_of_assignments)),
                ("MemoryMap", Dump::Map("map[v1.ResourceName]*state.MemoryTable", Some(tables))),
                ("Cells", numbers(&n.cells)),
            ];
            Dump::Pointer(Box::new(Dump::Struct("state.NUMANodeState", fields)))
        };
        let block = |b: &FileBlock| {
            let fields = vec![
                ("NUMAAffinity", numbers(&b.numa_affinity)),
                ("Type", Dump::Plain("v1.ResourceName", b.resource.clone())),
                ("Size", number("uint64", b.size)),
            ];
            Dump::Struct("state.Block", fields)
        };
        let blocks = |list: &Vec<FileBlock>| Dump::List("[]state.Block", Some(list.iter().map(block).collect()));
        let containers = |all: &BTreeMap<String, Vec<FileBlock>>| {
            let all = all.iter().map(|(name, list)| (name.clone(), blocks(list))).collect();
            Dump::Map("map[string][]state.Block", Some(all))
        };
        let entries = self.entries.iter().map(|(pod, all)| (pod.clone(), containers(all))).collect();
        let nodes = self.machine_state.iter().map(|(number, n)| (*number, node(n))).collect();
        let fields = vec![
            ("PolicyName", Dump::text(&self.policy_name)),
            ("MachineState", Dump::NumberMap("state.NUMANodeMap", nodes)),
            ("Entries", Dump::Map("state.ContainerMemoryAssignments", Some(entries))),
            ("Checksum", Dump::Plain("checksum.Checksum", "0".to_owned())),
        ];
        Dump::Pointer(Box::new(Dump::Struct("state.MemoryManagerCheckpoint", fields))).checksum().into()
    }
}

/// What the file tells, also of the machine; nothing where there is none. The policy has to be the one that wrote it.
pub(super) fn load(path: &Path, policy: &str) -> Result<(Given, Nodes), CheckpointError> {
    let Some(text) = checkpoint::read(path)? else { return Ok(Default::default()) };
    let wrong = |problem: String| CheckpointError::Content { path: path.display().to_string(), problem };
    let file: File = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if file.policy_name != policy {
        return Err(wrong(format!(
            "configured policy \"{policy}\" differs from state checkpoint policy \"{}\"",
            file.policy_name
        )));
    }
    if file.pod_entries.as_object().is_some_and(|entries| !entries.is_empty()) {
        return Err(wrong("podEntries: memory of pods as a whole is not supported".to_owned()));
    }
    if file.checksum != 0 && file.checksum() != file.checksum {
        return Err(wrong("checkpoint is corrupted: its checksum is another one".to_owned()));
    }
    let block = |b: FileBlock| Block { nodes: b.numa_affinity, resource: b.resource, size: b.size };
    let of_pod = |all: BTreeMap<String, Vec<FileBlock>>| {
        all.into_iter().map(|(name, list)| (name, list.into_iter().map(block).collect())).collect()
    };
    let given = file.entries.into_iter().map(|(pod, all)| (PodUid::new(&pod), of_pod(all))).collect();
    let table = |t: FileTable| Table {
        total: t.total,
        system_reserved: t.system_reserved,
        allocatable: t.allocatable,
        reserved: t.reserved,
        free: t.free,
    };
    let node = |n: FileNode| NodeState {
        assignments: n.number_of_assignments,
        tables: n.memory_map.into_iter().map(|(name, t)| (name, table(t))).collect(),
        cells: n.cells,
    };
    let nodes = file.machine_state.into_iter().filter_map(|(number, n)| Some((usize::try_from(number).ok()?, node(n))));
    Ok((given, nodes.collect()))
}

/// Writes it.
pub(super) fn save(path: &Path, policy: &str, given: &Given, nodes: &Nodes) -> Result<(), CheckpointError> {
    let block = |b: &Block| FileBlock { numa_affinity: b.nodes.clone(), resource: b.resource.clone(), size: b.size };
    let of_pod = |all: &BTreeMap<String, Vec<Block>>| {
        all.iter().map(|(name, list)| (name.clone(), list.iter().map(block).collect())).collect()
    };
    let table = |t: &Table| FileTable {
        total: t.total,
        system_reserved: t.system_reserved,
        allocatable: t.allocatable,
        reserved: t.reserved,
        free: t.free,
    };
    let node = |n: &NodeState| FileNode {
        number_of_assignments: n.assignments,
        memory_map: n.tables.iter().map(|(name, t)| (name.clone(), table(t))).collect(),
        cells: n.cells.clone(),
    };
    let machine_state = nodes.iter().filter_map(|(number, n)| Some((i64::try_from(*number).ok()?, node(n)))).collect();
    let mut file = File {
        policy_name: policy.to_owned(),
        machine_state,
        entries: given.iter().map(|(pod, all)| (pod.to_string(), of_pod(all))).collect(),
        pod_entries: Value::Null,
        checksum: 0,
    };
    file.checksum = file.checksum();
    let text = serde_json::to_string(&file)
        .map_err(|error| CheckpointError::Content { path: path.display().to_string(), problem: error.to_string() })?;
    checkpoint::write(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_file_is_read() {
        // A15.4; text and sum of upstream's own test
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let text = r#"{"policyName":"static","machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,
            "systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},
            "entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}},"checksum":4215593881}"#;
        std::fs::write(&path, text).unwrap();
        let (given, nodes) = load(&path, "static").unwrap();
        assert_eq!(given[&PodUid::new("pod")]["container1"][0].size, 512);
        assert_eq!(nodes[&0].tables["memory"].free, 1024);
        save(&path, "static", &given, &nodes).unwrap();
        let again = std::fs::read_to_string(&path).unwrap();
        assert!(again.ends_with("\"checksum\":4215593881}"), "{again}");
        std::fs::write(&path, text.replace("2048", "4096")).unwrap();
        assert!(load(&path, "static").unwrap_err().to_string().contains("checkpoint is corrupted"));
        assert!(load(&path, "Static").unwrap_err().to_string().contains("differs from state checkpoint policy"));
    }
}
