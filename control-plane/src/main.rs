//! The control plane's binary.

/// Most of its processor time goes into trees of JSON, made and freed whole: a sixth less of it, and a fifth less memory after a burst, than with the C
/// library's allocator (`benches/many_pods.rs`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    stoker_control_plane::cli::main()
}
