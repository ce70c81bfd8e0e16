//! `/stats/summary` (A18.5).

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};
use stoker_model::handle::{PodUsage, Stall, StallTime, Usage, UsageReader};
use stoker_model::pod::LocalPod;

use super::volumes::{VolumeStats, Volumes};
use super::{Filesystem, Snapshot, Stats, below, containers, has_own_network};

impl Stats {
    /// The whole; or processor and memory alone, which needs no file system.
    pub(in crate::server) async fn summary(&self, only_cpu_and_memory: bool) -> Value {
        let (now, before) = self.look().await;
        let pods = self.pods.pods();
        let volumes = if only_cpu_and_memory { Volumes::default() } else { self.volumes.volumes(&pods).await };
        let logs = self.places.logs.clone();
        let (node, started, reader) = (self.node.clone(), self.started, self.usage.clone());
        let build = move || {
            let report = Report {
                now: &now,
                before: before.as_deref(),
                only_cpu_and_memory,
                logs: &logs,
                volumes: &volumes,
                reader: reader.as_ref(),
            };
            let known = Self::known(&pods, &now);
            let pods: Vec<Value> = known.iter().map(|(pod, usage)| report.pod(pod, usage)).collect();
            let mut node_part = report.usage(
                &now.node.usage,
                before.as_ref().map(|it| &it.node.usage),
                now.node.usage.memory_limit_bytes,
                "/",
            );
            let system: Vec<Value> = now.system.iter().map(|group| report.system(group)).collect();
            node_part.insert("systemContainers".to_owned(), json!(system));
            node_part.insert("nodeName".to_owned(), json!(node));
            node_part.insert("startTime".to_owned(), json!(started.wall.to_string()));
            if !only_cpu_and_memory {
                node_part.insert("network".to_owned(), report.network(&now.node));
                if let Some(fs) = now.nodefs {
                    let used = fs.capacity.saturating_sub(fs.available);
                    node_part
                        .insert("fs".to_owned(), report.filesystem(fs, used, fs.inodes.saturating_sub(fs.inodes_free)));
                }
                if let Some((used, inodes, place)) = &now.images
                    && let Some(fs) = Filesystem::read(place)
                {
                    let images = report.filesystem(fs, *used, *inodes);
                    node_part.insert("runtime".to_owned(), json!({ "imageFs": images, "containerFs": images }));
                }
                node_part.insert("rlimit".to_owned(), rlimit(&report.time()));
            }
            json!({ "node": node_part, "pods": pods })
        };
        // Logs are measured by walking their directories.
        tokio::task::spawn_blocking(build).await.unwrap_or_default()
    }
}

struct Report<'a> {
    now: &'a Snapshot,
    before: Option<&'a Snapshot>,
    only_cpu_and_memory: bool,
    logs: &'a std::path::Path,
    reader: &'a dyn UsageReader,
    volumes: &'a Volumes,
}

impl Report<'_> {
    fn time(&self) -> String {
        self.now.now.wall.to_string()
    }

    fn pod(&self, pod: &LocalPod, usage: &PodUsage) -> Value {
        let before = self.before.and_then(|before| before.pods.iter().find(|pod| pod.uid == usage.uid));
        let mut part =
            self.usage(&usage.usage, before.map(|it| &it.usage), usage.usage.memory_limit_bytes, &usage.group);
        let metadata = &pod.pod().metadata;
        part.insert(
            "podRef".to_owned(),
            json!({ "name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid }),
        );
        part.insert("startTime".to_owned(), json!(pod.status().and_then(|status| status.start_time.as_ref())));
        part.insert("process_stats".to_owned(), json!({ "process_count": usage.usage.processes }));
        let mut written = (0, 0);
        let mut list = Vec::new();
        for it in containers(pod, usage) {
            let earlier = before.and_then(|before| before.containers.get(it.id));
            let mut one = self.usage(it.usage, earlier, it.usage.memory_limit_bytes, it.group);
            one.insert("name".to_owned(), json!(it.status.name));
            let started = it.status.state.as_ref().and_then(|state| state.running.as_ref()?.started_at.as_ref());
            one.insert("startTime".to_owned(), json!(started));
            if let Some(fs) = self.now.nodefs.filter(|_| !self.only_cpu_and_memory) {
                let layer = self.now.layers.get(it.id).copied().unwrap_or_default();
                let logs = below(&self.log_dir(pod.pod()).join(&it.status.name));
                one.insert("rootfs".to_owned(), self.filesystem(fs, layer.0, layer.1));
                one.insert("logs".to_owned(), self.filesystem(fs, logs.0, logs.1));
                written = (written.0 + layer.0 + logs.0, written.1 + layer.1 + logs.1);
            }
            list.push(Value::Object(one));
        }
        part.insert("containers".to_owned(), Value::Array(list));
        if !self.only_cpu_and_memory {
            if has_own_network(pod.pod()) {
                part.insert("network".to_owned(), self.network(usage));
            }
            let volumes = self.volumes.get(usage.uid.as_str()).map(Vec::as_slice).unwrap_or_default();
            for (bytes, inodes) in volumes.iter().map(VolumeStats::local) {
                written = (written.0 + bytes, written.1 + inodes);
            }
            if !volumes.is_empty() {
                let all: Vec<Value> = volumes.iter().map(|volume| volume.report(pod.pod())).collect();
                part.insert("volume".to_owned(), json!(all));
            }
            if let Some(fs) = self.now.nodefs {
                part.insert("ephemeral-storage".to_owned(), self.filesystem(fs, written.0, written.1));
            }
        }
        Value::Object(part)
    }

    fn log_dir(&self, pod: &Pod) -> std::path::PathBuf {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let metadata = &pod.metadata;
        self.logs.join(format!("{}_{}_{}", text(&metadata.namespace), text(&metadata.name), text(&metadata.uid)))
    }

    /// A group that is no pod.
    fn system(&self, (name, group, usage): &(&'static str, String, Usage)) -> Value {
        let earlier = self.before.and_then(|before| before.system.iter().find(|(known, ..)| known == name));
        let mut part = self.usage(usage, earlier.map(|(_, _, usage)| usage), usage.memory_limit_bytes, group);
        part.insert("name".to_owned(), json!(name));
        part.insert("startTime".to_owned(), Value::Null);
        Value::Object(part)
    }

    /// cpu, memory, swap, and io where the kernel tells how long that was waited for.
    fn usage(&self, usage: &Usage, before: Option<&Usage>, limit: Option<u64>, group: &str) -> Map<String, Value> {
        let time = self.time();
        let stalls = self.reader.stalls(group);
        let mut cpu = json!({ "time": time, "usageCoreNanoSeconds": usage.cpu_nanoseconds });
        let passed = self.before.map(|before| self.now.now.monotonic.saturating_sub(before.now.monotonic));
        if let (Some(before), Some(passed)) = (before, passed.filter(|passed| !passed.is_zero())) {
            let used = u128::from(usage.cpu_nanoseconds.saturating_sub(before.cpu_nanoseconds));
            cpu["usageNanoCores"] = json!(u64::try_from(used * 1_000_000_000 / passed.as_nanos()).unwrap_or(u64::MAX));
        }
        let mut memory = json!({
            "time": time,
            "usageBytes": usage.memory_bytes,
            "workingSetBytes": usage.working_set_bytes,
            "rssBytes": usage.rss_bytes,
            "pageFaults": usage.page_faults,
            "majorPageFaults": usage.major_page_faults,
        });
        if let Some(limit) = limit {
            memory["availableBytes"] = json!(limit.saturating_sub(usage.working_set_bytes));
        }
        if let Some(stall) = stalls.cpu {
            cpu["psi"] = psi(stall);
        }
        if let Some(stall) = stalls.memory {
            memory["psi"] = psi(stall);
        }
        let swap = json!({ "time": time, "swapUsageBytes": usage.swap_bytes });
        let mut parts =
            Map::from_iter([("cpu".to_owned(), cpu), ("memory".to_owned(), memory), ("swap".to_owned(), swap)]);
        if let Some(stall) = stalls.io {
            parts.insert("io".to_owned(), json!({ "time": time, "psi": psi(stall) }));
        }
        parts
    }

    fn network(&self, usage: &PodUsage) -> Value {
        let interface = |it: &stoker_model::handle::InterfaceUsage| {
            json!({
                "name": it.name, "rxBytes": it.received[0], "rxErrors": it.received[2],
                "txBytes": it.sent[0], "txErrors": it.sent[2],
            })
        };
        let all: Vec<Value> = usage.interfaces.iter().map(interface).collect();
        // The default one is named again on top.
        let default = usage.interfaces.iter().find(|it| it.name == "eth0").or(usage.interfaces.first());
        let mut network = default.map_or_else(|| json!({}), interface);
        network["time"] = json!(self.time());
        network["interfaces"] = Value::Array(all);
        network
    }

    fn filesystem(&self, fs: Filesystem, used: u64, inodes: u64) -> Value {
        json!({
            "time": self.time(), "availableBytes": fs.available, "capacityBytes": fs.capacity, "usedBytes": used,
            "inodesFree": fs.inodes_free, "inodes": fs.inodes, "inodesUsed": inodes,
        })
    }
}

/// Pressure as the API has it (A23.4).
fn psi(stall: Stall) -> Value {
    let time = |time: StallTime| {
        let [avg10, avg60, avg300] = time.averages;
        json!({ "total": time.total, "avg10": avg10, "avg60": avg60, "avg300": avg300 })
    };
    json!({ "full": time(stall.full), "some": time(stall.some) })
}

/// How many processes there may be and are.
fn rlimit(time: &str) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let number = |path: &str| read(path).trim().parse::<i64>().unwrap_or(i64::MAX);
    let most = number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max"));
    let load = read("/proc/loadavg");
    let now: Option<i64> = load.split_whitespace().nth(3).and_then(|word| word.split('/').nth(1)?.parse().ok());
    json!({ "time": time, "maxpid": most, "curproc": now.unwrap_or_default() })
}
