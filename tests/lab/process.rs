//! What a process takes of the machine, and what the machine's host takes.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The kernel's unit of processor time in `/proc`.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process so far, with all its threads, in steps of 10 ms.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The name may hold blanks; utime and stime are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks: u32 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u32>().expect("a number")).sum();
    TICK * ticks
}

/// Memory of its own in KiB, without the program's text: that is shared with whoever runs the same program, and so is what a process
/// seems to take of it (PSS) when another one ends.
pub(crate) fn memory_kib(pid: u32) -> u64 {
    rolled_up(pid, "Anonymous:")
}

/// All its memory in KiB; of what others have mapped too, its share (PSS).
pub(crate) fn proportional_kib(pid: u32) -> u64 {
    rolled_up(pid, "Pss:")
}

fn rolled_up(pid: u32, kind: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix(kind)).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// A moment in the life of this machine's processors.
#[derive(Debug)]
pub(crate) struct Machine {
    stolen: u64,
    all: u64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").expect("/proc is mounted");
        let ticks = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).expect("all processors come first");
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests take comes after and is part of the user's.
        let ticks: Vec<u64> = ticks.split_whitespace().take(8).map(|field| field.parse().expect("a number")).collect();
        Self { stolen: ticks[7], all: ticks.iter().sum() }
    }

    /// The share of the processors that the host gave to others since then, from 0 to 1. Nothing where the machine is no virtual one.
    pub(crate) fn stolen_since(&self) -> f64 {
        let now = Self::now();
        (now.stolen - self.stolen) as f64 / (now.all - self.all).max(1) as f64
    }
}

/// A process that does nothing until this is dropped.
#[derive(Debug)]
pub(crate) struct Paused {
    pid: Pid,
    /// nsenter stops itself when its child stops, and would then not hear of the child's end.
    parent: Pid,
}

impl Paused {
    pub(crate) fn new(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("the kernel tells it");
        let [pid, parent] = [&pid.to_string(), parent.trim()]
            .map(|number| number.parse().ok().and_then(Pid::from_raw).expect("it was started from here"));
        kill_process(pid, Signal::STOP).expect("the process lives");
        Self { pid, parent }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for pid in [self.parent, self.pid] {
            // It may have been killed meanwhile.
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}
