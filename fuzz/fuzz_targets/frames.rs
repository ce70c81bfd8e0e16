//! Frames of websockets and of SPDY: `cargo +nightly fuzz run frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stoker::server::fuzz::frames(bytes));
