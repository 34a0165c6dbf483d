//! The `hibernet` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    hibernet::cli::main()
}
