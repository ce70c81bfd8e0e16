//! The control plane's binary.

fn main() -> std::process::ExitCode {
    stoker_control_plane::cli::main()
}
