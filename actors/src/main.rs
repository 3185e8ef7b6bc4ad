//! The `collimate` binary.
fn main() {}
