//! Manifests of static pods, as a file and as an address may hold them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stoker::pod::fuzzing::manifest(bytes));
