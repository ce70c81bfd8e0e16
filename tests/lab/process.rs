//! What a process takes of the machine.

use std::fs;
use std::time::Duration;

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
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}
