//! Targets of requests to the node's API: `cargo +nightly fuzz run requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stoker::server::fuzz::request(bytes));
