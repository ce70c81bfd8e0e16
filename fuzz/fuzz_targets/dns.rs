//! DNS packets of strangers: `cargo +nightly fuzz run dns`.
#![no_main]

libfuzzer_sys::fuzz_target!(|packet: &[u8]| stoker::dns::fuzz::packet(packet));
