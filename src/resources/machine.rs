//! Where the CPUs and the memory of the machine are, as `/sys` tells it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::cpu_set::CpuSet;

/// One CPU as the kernel counts them: a hardware thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Cpu {
    /// Its core: the number of the core's first CPU.
    pub(super) core: usize,
    pub(super) socket: usize,
    /// Memory node.
    pub(super) node: usize,
    /// Last-level cache.
    pub(super) cache: usize,
}

/// One memory (NUMA) node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct MemoryNode {
    /// To each node.
    pub(super) distances: Vec<u64>,
    pub(super) bytes: u64,
    /// Bytes by resource, such as `hugepages-2Mi`.
    pub(super) hugepages: BTreeMap<String, u64>,
}

/// CPUs and memory nodes by number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    pub(super) cpus: BTreeMap<usize, Cpu>,
    pub(super) nodes: BTreeMap<usize, MemoryNode>,
}

impl Machine {
    /// Reads `devices/system` below `sys`. Where the kernel tells of no memory nodes there is one.
    pub fn read(sys: &Path) -> Self {
        let system = sys.join("devices/system");
        let mut nodes = BTreeMap::new();
        let mut node_of = BTreeMap::new();
        for node in list(&system.join("node/online")).iter() {
            let dir = system.join(format!("node/node{node}"));
            node_of.extend(list(&dir.join("cpulist")).iter().map(|cpu| (cpu, node)));
            nodes.insert(node, memory_node(&dir));
        }
        if nodes.is_empty() {
            let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            nodes.insert(0, MemoryNode { distances: vec![10], bytes: total(&meminfo), ..MemoryNode::default() });
        }
        let cpu = |cpu: usize| {
            let dir = system.join(format!("cpu/cpu{cpu}"));
            let socket = number(&dir.join("topology/physical_package_id")).unwrap_or_default();
            let siblings = list(&dir.join("topology/thread_siblings_list"));
            let core = siblings.iter().next().unwrap_or(cpu);
            let node = node_of.get(&cpu).copied().unwrap_or_default();
            (cpu, Cpu { core, socket, node, cache: last_level_cache(&dir).unwrap_or(socket) })
        };
        Self { cpus: list(&system.join("cpu/online")).iter().map(cpu).collect(), nodes }
    }

    /// All CPUs.
    pub(super) fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// The numbers of the memory nodes.
    pub(super) fn node_numbers(&self) -> Vec<usize> {
        self.nodes.keys().copied().collect()
    }
}

fn number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn list(path: &Path) -> CpuSet {
    fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// `MemTotal` in bytes, of the whole machine or of a node.
fn total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.split_once("MemTotal:"));
    let kib = line.and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

fn memory_node(dir: &Path) -> MemoryNode {
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let mut hugepages = BTreeMap::new();
    for entry in fs::read_dir(dir.join("hugepages")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse().ok());
        let Some(kib) = size.filter(|kib: &u64| *kib > 0) else { continue };
        let resource = match kib {
            _ if kib % (1 << 20) == 0 => format!("hugepages-{}Gi", kib >> 20),
            _ if kib % 1024 == 0 => format!("hugepages-{}Mi", kib >> 10),
            _ => format!("hugepages-{kib}Ki"),
        };
        let pages = number(&entry.path().join("nr_hugepages")).unwrap_or_default();
        hugepages.insert(resource, u64::try_from(pages).unwrap_or_default() * kib * 1024);
    }
    let distances = text("distance").split_whitespace().filter_map(|word| word.parse().ok()).collect();
    MemoryNode { distances, bytes: total(&text("meminfo")), hugepages }
}

/// The cache of the highest level that is shared, by its lowest CPU: the kernel's own numbers are not there on all machines.
fn last_level_cache(cpu: &Path) -> Option<usize> {
    let caches = fs::read_dir(cpu.join("cache")).into_iter().flatten().flatten();
    let third = caches.filter(|cache| number(&cache.path().join("level")) == Some(3));
    third.filter_map(|cache| list(&cache.path().join("shared_cpu_list")).iter().next()).next()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A recorded tree: sockets, memory nodes each, cores each, threads each; numbered as Linux does, threads last.
    pub(in crate::resources) fn tree(sockets: usize, nodes: usize, cores: usize, threads: usize) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("devices/system");
        let write = |path: String, text: String| {
            let path = system.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        };
        let all_nodes = sockets * nodes;
        let all_cores = all_nodes * cores;
        write("cpu/online".into(), format!("0-{}", all_cores * threads - 1));
        write("node/online".into(), format!("0-{}", all_nodes - 1));
        let cpus = |of: &mut dyn Iterator<Item = usize>| {
            let of: Vec<usize> = of.collect();
            (0..threads).flat_map(|t| of.iter().map(move |core| t * all_cores + core)).collect::<CpuSet>().to_string()
        };
        for node in 0..all_nodes {
            let dir = format!("node/node{node}");
            write(format!("{dir}/cpulist"), cpus(&mut (node * cores..(node + 1) * cores)));
            let distance = |other: usize| match (other == node, other / nodes == node / nodes) {
                (true, _) => "10",
                (_, true) => "12",
                _ => "21",
            };
            write(format!("{dir}/distance"), (0..all_nodes).map(distance).collect::<Vec<_>>().join(" "));
            write(
                format!("{dir}/meminfo"),
                format!("Node {node} MemTotal:       8388608 kB\nNode {node} MemFree: 1 kB"),
            );
            write(format!("{dir}/hugepages/hugepages-2048kB/nr_hugepages"), "512".into());
            write(format!("{dir}/hugepages/hugepages-1048576kB/nr_hugepages"), "0".into());
        }
        for cpu in 0..all_cores * threads {
            let core = cpu % all_cores;
            let node = core / cores;
            let dir = format!("cpu/cpu{cpu}");
            write(format!("{dir}/topology/physical_package_id"), (node / nodes).to_string());
            write(format!("{dir}/topology/thread_siblings_list"), cpus(&mut std::iter::once(core)));
            write(format!("{dir}/cache/index3/level"), "3".into());
            write(format!("{dir}/cache/index3/shared_cpu_list"), cpus(&mut (node * cores..(node + 1) * cores)));
            write(format!("{dir}/cache/index0/level"), "1".into());
        }
        Machine::read(dir.path())
    }

    #[test]
    fn a_machine_of_two_sockets_is_read() {
        // A15.3
        let machine = tree(2, 1, 4, 2);
        assert_eq!(machine.all().to_string(), "0-15");
        assert_eq!(machine.cpus[&13], Cpu { core: 5, socket: 1, node: 1, cache: 4 });
        assert_eq!(machine.node_numbers(), [0, 1]);
        assert_eq!(machine.nodes[&1].distances, [21, 10]);
        assert_eq!(machine.nodes[&0].bytes, 8 << 30);
        assert_eq!(machine.nodes[&0].hugepages["hugepages-2Mi"], 1 << 30);
        assert_eq!(machine.nodes[&0].hugepages["hugepages-1Gi"], 0);
    }

    #[test]
    fn this_machine_is_read() {
        let machine = Machine::read(Path::new("/sys"));
        assert!(!machine.cpus.is_empty() && machine.nodes.values().any(|node| node.bytes > 0));
    }
}
