//! `cpu_manager_state`: who has which CPUs, in kubelet's own format. Written as version 2; read as 1, 2 and 3.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_model::pod::PodUid;

use super::policy::State;
use crate::resources::checkpoint::{self, CheckpointError, Dump};

type Entries = BTreeMap<String, BTreeMap<String, String>>;
/// The runtime's containers by ID: their pod, and their name in it.
pub(in crate::resources) type Containers = BTreeMap<String, (PodUid, String)>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(alias = "defaultCPUSet")]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "is_empty")]
    entries: Value,
    /// Of pods as a whole: an alpha feature of kubelet's.
    #[serde(default, skip_serializing_if = "is_empty")]
    pod_entries: Value,
    checksum: u64,
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(serde_json::Map::is_empty)
}

impl File {
    /// The sum that an agent of a version writes; `None` where it would not write such entries.
    fn sum(&self, version: u8) -> Option<u32> {
        let entries = if version == 1 {
            map_of_texts(&texts(&self.entries)?)
        } else {
            let all = serde_json::from_value::<Option<Entries>>(self.entries.clone()).ok()?.unwrap_or_default();
            let all = all.into_iter().map(|(pod, containers)| (pod, map_of_texts(&containers)));
            Dump::Map("map[string]map[string]string", Some(all.collect()))
        };
        let mut fields = vec![
            ("PolicyName", Dump::text(&self.policy_name)),
            ("DefaultCPUSet", Dump::text(&self.default_cpu_set)),
            ("Entries", entries),
        ];
        if version == 3 {
            fields.push(("PodEntries", Dump::Map("state.PodCPUAssignments", Some(BTreeMap::new()))));
        }
        fields.push(("Checksum", Dump::Plain("checksum.Checksum", "0".to_owned())));
        Some(Dump::Pointer(Box::new(Dump::Struct("state.CPUManagerCheckpoint", fields))).checksum())
    }
}

fn texts(value: &Value) -> Option<BTreeMap<String, String>> {
    serde_json::from_value::<Option<BTreeMap<String, String>>>(value.clone()).ok().map(Option::unwrap_or_default)
}

fn map_of_texts(all: &BTreeMap<String, String>) -> Dump {
    Dump::Map("map[string]string", Some(all.iter().map(|(k, v)| (k.clone(), Dump::text(v))).collect()))
}

/// Whether the file is of version 1, which names containers by the runtime's IDs.
pub(in crate::resources) fn names_containers(path: &Path) -> bool {
    let text = checkpoint::read(path).ok().flatten().unwrap_or_default();
    serde_json::from_str::<File>(&text).is_ok_and(|file| !is_empty(&file.entries) && texts(&file.entries).is_some())
}

/// What the file tells; nothing where there is none. The policy has to be the one that wrote it. `containers`: those that a file of
/// version 1 may name.
pub(super) fn load(path: &Path, policy: &str, containers: &Containers) -> Result<State, CheckpointError> {
    let Some(text) = checkpoint::read(path)? else { return Ok(State::default()) };
    let wrong = |problem: String| CheckpointError::Content { path: path.display().to_string(), problem };
    let file: File = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    // Agents of old wrote none.
    if file.checksum != 0
        && ![1, 2, 3].into_iter().any(|version| file.sum(version).map(u64::from) == Some(file.checksum))
    {
        return Err(wrong("checkpoint is corrupted: its checksum is another one".to_owned()));
    }
    if file.policy_name != policy {
        return Err(wrong(format!(
            "configured policy \"{policy}\" differs from state checkpoint policy \"{}\"",
            file.policy_name
        )));
    }
    if !is_empty(&file.pod_entries) {
        return Err(wrong("podEntries: CPUs of pods as a whole are not supported".to_owned()));
    }
    let first = texts(&file.entries).filter(|_| !is_empty(&file.entries));
    let entries = match first {
        None => {
            let entries = serde_json::from_value::<Option<Entries>>(file.entries);
            entries.map_err(|error| wrong(error.to_string()))?.unwrap_or_default()
        }
        Some(first) => {
            let mut entries = Entries::new();
            for (id, cpus) in first {
                let missing = || wrong(format!("containerID '{id}' not found in initial containers list"));
                let (pod, name) = containers.get(&id).ok_or_else(missing)?;
                entries.entry(pod.to_string()).or_default().insert(name.clone(), cpus);
            }
            entries
        }
    };
    let parse =
        |text: &str, what: String| text.parse().map_err(|_| wrong(format!("could not parse {what} \"{text}\"")));
    let shared = parse(&file.default_cpu_set, "default cpu set".to_owned())?;
    let mut state = State { shared, ..State::default() };
    for (pod, containers) in entries {
        for (container, cpus) in containers {
            let cpus = parse(&cpus, format!("cpuset for container \"{container}\" in pod \"{pod}\""))?;
            state.given.entry(PodUid::new(&pod)).or_default().insert(container, cpus);
        }
    }
    Ok(state)
}

/// Writes it.
pub(super) fn save(path: &Path, policy: &str, state: &State) -> Result<(), CheckpointError> {
    let containers = |all: &BTreeMap<String, crate::resources::CpuSet>| {
        all.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect()
    };
    let entries: Entries = state.given.iter().map(|(pod, all)| (pod.to_string(), containers(all))).collect();
    let wrong = |error: serde_json::Error| CheckpointError::Content {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    let mut file = File {
        policy_name: policy.to_owned(),
        default_cpu_set: state.shared.to_string(),
        entries: serde_json::to_value(entries).map_err(wrong)?,
        pod_entries: Value::Null,
        checksum: 0,
    };
    file.checksum = file.sum(2).unwrap_or_default().into();
    checkpoint::write(path, &serde_json::to_string(&file).map_err(wrong)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<State, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, text).unwrap();
        let container = |name: &str| (PodUid::new("pod"), name.to_owned());
        let containers = [("containerID1", container("container1")), ("containerID2", container("container2"))];
        let containers = containers.map(|(id, of)| (id.to_owned(), of)).into();
        load(&path, "none", &containers).map_err(|error| error.to_string())
    }

    #[test]
    fn kubelets_files_are_read() {
        // A15.2; texts and sums of upstream's own tests
        let entries = r#""entries": {"pod": {"container1": "4-6", "container2": "1-3"}}"#;
        let state =
            read(&format!(r#"{{"policyName": "none", "defaultCPUSet": "1-3", {entries}, "checksum": 3610638499}}"#));
        assert_eq!(state.unwrap().given[&PodUid::new("pod")]["container1"].to_string(), "4-6");
        let first = r#"{"policyName": "none", "defaultCPUSet": "1-3", "checksum": 1694838852}"#;
        assert_eq!(read(first).unwrap().shared.to_string(), "1-3");
        // Version 1 names containers, and is migrated.
        let old = r#"{"policyName": "none", "defaultCPUSet": "1-3", "entries": {"containerID1": "4-6", "containerID2": "1-3"}, "checksum": 3680390589}"#;
        let migrated = read(old).unwrap();
        let given = migrated.given[&PodUid::new("pod")].iter().map(|(name, cpus)| format!("{name} {cpus}"));
        assert_eq!(given.collect::<Vec<_>>(), ["container1 4-6", "container2 1-3"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, old).unwrap();
        assert!(names_containers(&path));
        let refused = load(&path, "none", &Containers::new()).unwrap_err().to_string();
        assert!(refused.contains("containerID 'containerID1' not found in initial containers list"), "{refused}");
        save(&path, "none", &migrated).unwrap();
        assert!(!names_containers(&path) && !names_containers(&dir.path().join("absent")));
        assert_eq!(load(&path, "none", &Containers::new()).unwrap(), migrated, "it is of version 2 now");
        for (text, problem) in [
            (
                r#"{"policyName": "none", "defaultCPUSet": "4-6", "entries": {}, "checksum": 1337}"#,
                "checkpoint is corrupted",
            ),
            (
                r#"{"policyName": "other", "defaultCPUSet": "1-3", "entries": {}, "checksum": 1394507217}"#,
                "differs from",
            ),
            (
                r#"{"policyName": "none", "defaultCPUSet": "1.3", "entries": {}, "checksum": 3021697696}"#,
                "default cpu set \"1.3\"",
            ),
            ("{", "EOF"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(problem), "{text}: {refused}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_is_kubelets() {
        // A15.2
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        save(&path, "none", &State::default()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#);
        let given = [(PodUid::new("pod"), [("c".to_owned(), "4-6".parse().unwrap())].into())].into();
        let state = State { shared: "0-3".parse().unwrap(), given };
        save(&path, "static", &state).unwrap();
        assert_eq!(load(&path, "static", &Containers::new()).unwrap(), state);
    }
}
