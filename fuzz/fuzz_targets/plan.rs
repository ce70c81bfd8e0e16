//! The planner and the status, on any pod in any state.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stoker::pod::fuzzing::plan(bytes));
