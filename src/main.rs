//! The `stoker` binary.

fn main() -> std::process::ExitCode {
    // Before anything else: a runtime starts the plugin for every sandbox, and waits for it.
    if stoker::network::plugin::is_called() {
        return stoker::network::plugin::main();
    }
    stoker::cli::main()
}
