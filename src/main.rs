//! The `cowhand` program. Everything is in the library; see its map.

fn main() -> std::process::ExitCode {
    if cowhand::appliance::init::is_here(std::env::args_os().next().as_deref()) {
        return cowhand::appliance::init::main();
    }
    cowhand::cli::main()
}
