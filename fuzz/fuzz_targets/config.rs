//! kubelet's and kube-proxy's configuration files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stoker::config::fuzzing::files(bytes));
