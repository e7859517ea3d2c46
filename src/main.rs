//! The `cowhand` program. Everything is in the library; see its map.

fn main() -> std::process::ExitCode {
    if cowhand::appliance::init::is_here() {
        return cowhand::appliance::init::main();
    }
    cowhand::cli::main()
}
