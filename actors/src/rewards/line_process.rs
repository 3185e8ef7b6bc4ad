//! A child process that is spoken to line by line, and that can neither hang its parent nor outlive it.
//!
//! Three threads move the bytes: one writes, so that a child that does not read blocks nobody; one reads the child's
//! answers, which are then waited for with a time limit; one keeps the last lines of its standard error.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

/// Lines of standard error that are kept for an error's message.
const N_ERROR_LINES: usize = 10;
/// A longer line is cut, and no answer is that long. Without a limit, a child that prints no line end fills the memory.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Answers that may wait; then the child has to.
const N_WAITING_LINES: usize = 1024;
/// A process closes its output just before it ends. So long it may take from the one to the other.
const END_LIMIT: Duration = Duration::from_secs(1);

/// What comes from the child.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// A line, without its end.
    Line(String),
    /// Nothing within the time limit.
    Late,
    /// Its standard output is closed, or can't be read.
    Closed,
}

/// See the module.
pub(super) struct LineProcess {
    child: Child,
    /// Text for the writer; `None` once there is nothing more to say.
    input: Option<Sender<String>>,
    output: Receiver<String>,
    error_lines: Arc<Mutex<VecDeque<String>>>,
    /// Disconnected once the child's standard error is closed.
    errors_open: Receiver<()>,
}

impl LineProcess {
    /// Starts `program` in a process group of its own, so that a Ctrl-C at the terminal is not for it, and so that what
    /// it starts ends with it.
    pub(super) fn start(program: &str, arguments: &[String]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("its pipes are missing"));
        };
        let (input, to_write) = unbounded();
        let (lines, output) = bounded(N_WAITING_LINES);
        let (errors_end, errors_open) = bounded(0);
        let error_lines = Arc::new(Mutex::new(VecDeque::new()));
        let process = Self { child, input: Some(input), output, error_lines: error_lines.clone(), errors_open };
        // Each thread ends when its pipe closes, which is at the latest when the child is killed.
        spawn("reward process: input", move || write_all(stdin, &to_write))?;
        spawn("reward process: output", move || read_lines(stdout, |line| lines.send(line).is_ok()))?;
        spawn("reward process: errors", move || {
            let _end: Sender<()> = errors_end;
            read_lines(stderr, |line| {
                tracing::debug!(target: "reward_process", "{line}");
                let mut kept = error_lines.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == N_ERROR_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
                true
            });
        })?;
        Ok(process)
    }

    /// Hands text to the child and waits for nothing. If the child is gone, its output tells.
    pub(super) fn write(&self, text: String) {
        if let Some(input) = &self.input {
            let _ = input.send(text);
        }
    }

    /// A line that has come already.
    pub(super) fn line_at_hand(&self) -> Option<String> {
        self.output.try_recv().ok()
    }

    /// The next line.
    pub(super) fn next_line(&self, limit: Duration) -> Output {
        match self.output.recv_timeout(limit) {
            Ok(line) => Output::Line(line),
            Err(RecvTimeoutError::Timeout) => Output::Late,
            Err(RecvTimeoutError::Disconnected) => Output::Closed,
        }
    }

    /// How a child whose output is closed ended; `None` if it had not, and had to be killed.
    pub(super) fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        self.input = None;
        let _ = self.errors_open.recv_timeout(END_LIMIT);
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        self.kill();
        let status = self.child.wait()?;
        // A child that was just ending keeps its own status; the signal means that it was not.
        Ok(Some(status).filter(|status| !is_killed(status)))
    }

    /// The last lines of its standard error.
    pub(super) fn error_lines(&self) -> Vec<String> {
        self.error_lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Kills the child and what it started. Only for a child that has not been waited for.
    fn kill(&mut self) {
        #[cfg(unix)]
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: kill takes any two integers. The group is the child's own: its number can't be another's, since
            // nobody has waited for the child yet.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        // It may have ended by itself, which is as well.
        let _ = self.child.kill();
    }
}

impl Drop for LineProcess {
    fn drop(&mut self) {
        // Once it has been waited for, its number may belong to another process.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(unix)]
fn is_killed(status: &ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(status) == Some(libc::SIGKILL)
}

#[cfg(not(unix))]
fn is_killed(_status: &ExitStatus) -> bool {
    true
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

fn write_all(mut stdin: ChildStdin, to_write: &Receiver<String>) {
    for text in to_write {
        // A child that no longer listens says so by its output, or by its silence.
        if stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// Hands on each line until the pipe ends, a line is too long, or `keep` has enough.
fn read_lines(pipe: impl Read, keep: impl Fn(String) -> bool) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        if !keep(text.trim_end_matches(['\n', '\r']).to_owned()) {
            return;
        }
    }
}
