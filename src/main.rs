//! The `remit` command, also `kubectl remit`.
fn main() -> std::process::ExitCode {
    remit::cli::main()
}
