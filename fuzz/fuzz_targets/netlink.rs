//! What a kernel, or something that says so, sends over netlink: `cargo +nightly fuzz run netlink`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stoker::service::fuzz::datagram(bytes));
