//! The `collimate` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { collimate::process::tune() };
    collimate::cli::main()
}
