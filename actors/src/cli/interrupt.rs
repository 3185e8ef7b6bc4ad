//! Ctrl-C: once to stop in good order, twice to stop at once.

use std::io::{self, Write};

use crate::stages::context::StopFlag;

/// Raises the flag at the first Ctrl-C and ends the process at the second. Listens until the process ends.
pub fn on_ctrl_c(stop: StopFlag) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("ctrl-c".into()).spawn(move || {
        runtime.block_on(async move {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            stop.stop();
            let _ = writeln!(io::stderr(), "\nstopping after the step in progress; Ctrl-C again ends at once");
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(i32::from(super::STOPPED));
            }
        });
    })?;
    Ok(())
}
