//! How little the agent keeps: of what was freed, and of its own program.
//!
//! By default each thread gets an arena of its own, and large blocks come from the heap once one of them was freed. A list of
//! thousands of Services is taken in by one thread and kept by another, and passes through tables of some megabytes: what is kept
//! then lies scattered among what was freed, in several arenas, and nothing of that goes back to the kernel.

use std::time::Duration;

use tokio::sync::watch;

/// From `malloc.h`.
#[cfg(target_env = "gnu")]
mod parameter {
    pub(super) const LONGEST_UNMERGED: i32 = 1;
    pub(super) const TRIM_THRESHOLD: i32 = -1;
    pub(super) const MMAP_THRESHOLD: i32 = -3;
    pub(super) const ARENA_MAX: i32 = -8;
}

/// The library's own first value of both thresholds, which it raises unless they are set.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 128 * 1024;

/// So much may lie free at the end of the heap. With less each pod's start took and gave back the same pages again and again, two
/// hundred times.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 8 * LARGE;

/// One arena, and large blocks that go when they are freed. Small ones are put together with their neighbours at once: left alone for a
/// while, they would lie between larger free ones, and to find those later takes more time. To be called before there are threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the one way to set this from within, declared as the C library's manual has it")]
pub(super) fn keep_little() {
    unsafe extern "C" {
        /// Takes any values, and answers 0 to those that it does not know.
        safe fn mallopt(parameter: i32, value: i32) -> i32;
    }
    for (parameter, value) in [
        (parameter::ARENA_MAX, 1),
        (parameter::LONGEST_UNMERGED, 0),
        (parameter::MMAP_THRESHOLD, LARGE),
        (parameter::TRIM_THRESHOLD, KEPT),
    ] {
        mallopt(parameter, value);
    }
}

/// So often it is asked whether there is something to give back.
const GIVEN_BACK: Duration = Duration::from_secs(10);

/// What it took to start, and to take in much at once, goes back to the kernel, every [`GIVEN_BACK`] in which there was news. The program
/// is let go of in each: what is done once a minute would stay mapped, and all of it in the end. Does not end.
pub(super) async fn tend(mut news: impl FnMut() -> bool) {
    // The start is some.
    let mut is_new = true;
    loop {
        tokio::time::sleep(GIVEN_BACK).await;
        if news() | std::mem::take(&mut is_new) {
            // It cannot fail, and if it did nothing would be lost.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
        let_go_of_program();
    }
}

/// Whether something new has come since this was asked before.
pub(super) fn has_news<T>(feed: &mut watch::Receiver<T>) -> bool {
    let has = feed.has_changed().unwrap_or_default();
    feed.mark_unchanged();
    has
}

/// Gives back pages between blocks that are in use, after much was taken in at once. Takes some milliseconds.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the one way to ask for this, declared as the C library's manual has it")]
fn give_back() {
    unsafe extern "C" {
        /// Takes any number of bytes to keep at the end of the heap.
        safe fn malloc_trim(keep: usize) -> i32;
    }
    malloc_trim(0);
}

/// Most of the program runs once, when the agent or its first pod starts, and stays mapped: with each page that is touched the kernel maps
/// fifteen around it. What is needed again comes back so, from the kernel's cache of the file. Takes less than half a millisecond.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the one way to ask for this")]
fn let_go_of_program() {
    unsafe extern "C" {
        /// Where the program begins in memory: both are made by the linker.
        static __executable_start: u8;
        /// Where its instructions end. Nothing is written between the two, and what is comes later: relocated tables and variables.
        static etext: u8;
    }
    let (start, end) = (&raw const __executable_start, &raw const etext);
    // The last page may be shared with something else.
    let length = (end.addr() & !(rustix::param::page_size() - 1)).saturating_sub(start.addr());
    // SAFETY: the pages are those of a file and nobody writes them, so that they read as before.
    let done = unsafe { rustix::mm::madvise(start.cast_mut().cast(), length, rustix::mm::Advice::LinuxDontNeed) };
    if let Err(error) = done {
        tracing::debug!(%error, "the program stays mapped");
    }
}

/// Other libraries have their own ways.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_little() {}

/// Other libraries have their own ways.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

/// Other linkers have their own names.
#[cfg(not(target_env = "gnu"))]
fn let_go_of_program() {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the program's instructions, in KiB.
    fn mapped() -> u64 {
        let all = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let program = all.split_once("r-xp").unwrap().1;
        let resident = program.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn the_program_is_let_go_of_and_goes_on() {
        // To measure needs some, too.
        mapped();
        let before = mapped();
        let_go_of_program();
        let after = mapped();
        assert!(after < before, "{before} KiB, then {after}");
        news_is_told_once();
    }

    #[test]
    fn news_is_told_once() {
        let (sender, mut receiver) = watch::channel(0);
        assert!(!has_news(&mut receiver));
        sender.send_replace(1);
        assert!(has_news(&mut receiver) && !has_news(&mut receiver));
        drop(sender);
        assert!(!has_news(&mut receiver));
    }
}
