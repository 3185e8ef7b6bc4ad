//! The command line: what it takes, and what its exit code says.
//!
//! - [`args`]: commands and flags, and their help.
//! - [`run`]: `pretrain`, `sft`, `collect`, `reward`, `ppo`, `run`. [`iterate`]: rounds of them.
//! - [`generate`], [`score`]: a model at work.
//! - [`status`], [`view`], [`replay`]: a run of PPO, looked at, in a browser too, and done again.
//! - [`plan`]: a run of PPO, simulated.
//! - [`chat`]: a dialogue with a policy.
//! - [`data`]: files of records, checked.
//! - [`config`]: a stage's settings, explained.
//! - [`import`]: models of llama.cpp, adapters of PEFT.
//! - [`label`]: where people rank responses.
//! - [`interrupt`]: what Ctrl-C does.

pub mod args;
pub mod chat;
pub mod config;
pub mod data;
pub mod generate;
pub mod import;
pub mod interrupt;
pub mod iterate;
pub mod label;
pub mod plan;
pub mod replay;
pub mod run;
pub mod score;
pub mod status;
pub mod view;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::report;
use crate::rundir::{RunDir, RunDirError, summary};
use args::{Command, CommandLine, DataCommand};

/// Exit code of a run that was told to stop by Ctrl-C: 128 + SIGINT, as shells have it.
pub const STOPPED: u8 = 130;

/// How a command ended, when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All done.
    Complete,
    /// Told to stop; what was finished is kept.
    Stopped,
}

/// Parses the command line, does what it says, and tells how that went: 0 done, 1 failed, 2 wrong usage,
/// [`STOPPED`] stopped by Ctrl-C.
pub fn main() -> ExitCode {
    // Wrong usage ends here, with code 2.
    let CommandLine { command } = CommandLine::parse();
    match dispatch(command) {
        Ok(Ended::Complete) => ExitCode::SUCCESS,
        Ok(Ended::Stopped) => ExitCode::from(STOPPED),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may read standard error either; the exit code says it.
            let _ = writeln!(io::stderr(), "error: {}", in_words(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<Ended> {
    match command {
        Command::Run(args) => return run::run(&args, None),
        Command::Pretrain(args) => return run::run(&args, Some(crate::rundir::Stage::Pretrain)),
        Command::Sft(args) => return run::run(&args, Some(crate::rundir::Stage::Sft)),
        Command::Collect(args) => return run::run(&args, Some(crate::rundir::Stage::Collect)),
        Command::Iterate(args) => return iterate::run(&args),
        Command::Reward(args) => return run::run(&args, Some(crate::rundir::Stage::Reward)),
        Command::Ppo(args) => return run::run(&args, Some(crate::rundir::Stage::Ppo)),
        Command::Replay(args) => return replay::run(&args),
        Command::Label(args) => return label::run(args),
        Command::Status(args) => status::run(&args)?,
        Command::View(args) => view::run(&args)?,
        Command::Plan(args) => plan::run(&args)?,
        Command::Generate(args) => generate::run(&args)?,
        Command::Score(args) => score::run(&args)?,
        Command::Chat(args) => chat::run(&args)?,
        Command::Data(DataCommand::Check(args)) => data::run(&args)?,
        Command::Merge { base, adapter, out } => print(&import::merge(&base, &adapter, &out)?)?,
        Command::Import { file, out } => print(&import::run(&file, &out)?)?,
        Command::Config { stage } => print(&config::text(stage)?)?,
        Command::Report { dir } => {
            let run = RunDir::existing(&dir)?;
            report::write(&run)?;
            print(&report::text(&summary::read(&run)?, &dir))?;
        }
    }
    Ok(Ended::Complete)
}

/// Writes to standard output, as an error rather than a panic where that fails.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The error with what caused it. The libraries' errors quote their causes themselves; those are not said twice.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the error is only that nobody reads any more, as in `collimate config ppo | head`.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    let run_dir = error.downcast_ref::<RunDirError>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) && run_dir.is_none()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let quoted = RunDirError::Io { path: "x".into(), source: io::Error::other("full") };
        let error = Err::<(), _>(quoted).context("writing").unwrap_err();
        assert_eq!(in_words(&error), "writing: x: full");
    }
}
