//! How much of what was freed the C library's allocator keeps.
//!
//! By default each thread gets an arena of its own, and large blocks come from the heap once one of them was freed. A list of
//! thousands of Services is taken in by one thread and kept by another, and passes through tables of some megabytes: what is kept
//! then lies scattered among what was freed, in several arenas, and nothing of that goes back to the kernel.

/// From `malloc.h`.
#[cfg(target_env = "gnu")]
mod parameter {
    pub(super) const TRIM_THRESHOLD: i32 = -1;
    pub(super) const MMAP_THRESHOLD: i32 = -3;
    pub(super) const ARENA_MAX: i32 = -8;
}

/// The library's own first value of both thresholds, which it raises unless they are set.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 128 * 1024;

/// One arena, and large blocks that go when they are freed. To be called before there are threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the one way to set this from within, declared as the C library's manual has it")]
pub(super) fn keep_little() {
    unsafe extern "C" {
        /// Takes any values, and answers 0 to those that it does not know.
        safe fn mallopt(parameter: i32, value: i32) -> i32;
    }
    for (parameter, value) in
        [(parameter::ARENA_MAX, 1), (parameter::MMAP_THRESHOLD, LARGE), (parameter::TRIM_THRESHOLD, LARGE)]
    {
        mallopt(parameter, value);
    }
}

/// Gives back pages between blocks that are in use: after much was taken in at once. Takes some milliseconds.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the one way to ask for this, declared as the C library's manual has it")]
pub(super) fn give_back() {
    unsafe extern "C" {
        /// Takes any number of bytes to keep at the end of the heap.
        safe fn malloc_trim(keep: usize) -> i32;
    }
    malloc_trim(0);
}

/// Other libraries have their own ways.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_little() {}

/// Other libraries have their own ways.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
