//! A reward function in any language: a process that reads requests and prints scores, one JSON value a line.
//!
//! It is given one line for each response:
//!
//! ```json
//! {"prompt": "It was", "response": " a truth.", "prompt_tokens": [11, 7], "response_tokens": [5, 29, 0], "finish": "end"}
//! ```
//!
//! `finish` is `end` where the policy ended the response (its last token is then the end token, which is no part of the
//! text), or `length` where it was cut off. For each line it prints one, in order: `{"score": 0.5}` (other keys are
//! ignored) or just `0.5`. It should flush its output after each line, may read ahead, and ends when its input does.

use std::io;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use collimate_protocol::roles::{RewardFunction, RewardRequest};
use collimate_protocol::{FinishReason, RoleError};

use super::line_process::{LineProcess, Output};

/// How much of a line an error quotes, in characters.
const N_QUOTED: usize = 200;

/// A process that gives the scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SubprocessConfig {
    /// The program, then its arguments: ["python3", "reward.py"]. No shell is between.
    pub command: Vec<String>,
    /// Seconds to wait for an answer, the time that the process takes to start included.
    pub timeout_s: f64,
}

impl Default for SubprocessConfig {
    fn default() -> Self {
        Self { command: Vec::new(), timeout_s: 120.0 }
    }
}

/// What can go wrong with a reward process. Requests are counted from 1 within a batch.
#[derive(Debug, thiserror::Error)]
pub enum SubprocessError {
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),

    /// It could not be started, or not be waited for.
    #[error("the reward process `{command}` can't be run: {source}")]
    Run {
        /// The command.
        command: String,
        /// What the operating system said.
        source: io::Error,
    },

    /// It ended before it had answered.
    #[error("the reward process `{command}` {how} before it answered request {request} of {n_requests}{stderr}")]
    Ended {
        /// The command.
        command: String,
        /// With which status.
        how: String,
        /// The request without an answer.
        request: usize,
        /// Requests in the batch.
        n_requests: usize,
        /// The last lines of its standard error.
        stderr: ErrorLines,
    },

    /// It did not answer in time.
    #[error(
        "the reward process `{command}` has not answered request {request} of {n_requests} within {timeout_s} s (does \
         it flush its output after each line?){stderr}"
    )]
    Late {
        /// The command.
        command: String,
        /// The request without an answer.
        request: usize,
        /// Requests in the batch.
        n_requests: usize,
        /// The time limit, in seconds.
        timeout_s: f64,
        /// The last lines of its standard error.
        stderr: ErrorLines,
    },

    /// Its answer is no score.
    #[error(
        "the reward process `{command}` answered request {request} of {n_requests} with {line:?}, expected one finite \
         number, or an object that holds it under `score`{stderr}"
    )]
    BadAnswer {
        /// The command.
        command: String,
        /// The request that was answered.
        request: usize,
        /// Requests in the batch.
        n_requests: usize,
        /// What it printed.
        line: String,
        /// The last lines of its standard error.
        stderr: ErrorLines,
    },

    /// It printed more lines than it was sent requests, so that answers and requests no longer match.
    #[error("the reward process `{command}` printed {line:?}, which answers no request{stderr}")]
    Unasked {
        /// The command.
        command: String,
        /// What it printed.
        line: String,
        /// The last lines of its standard error.
        stderr: ErrorLines,
    },

    /// It was given up after an earlier error.
    #[error("the reward process `{command}` has been given up after an error")]
    GivenUp {
        /// The command.
        command: String,
    },
}

/// The last lines of a process's standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorLines(pub Vec<String>);

impl std::fmt::Display for ErrorLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; the end of its standard error:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n    {}", quoted(line)))
    }
}

/// A reward function that asks a process. The process is killed when this is dropped, or after an error.
pub struct SubprocessReward {
    command: String,
    timeout: Duration,
    process: Option<LineProcess>,
}

#[derive(Serialize)]
struct Request<'a> {
    prompt: &'a str,
    response: &'a str,
    prompt_tokens: &'a [u32],
    response_tokens: &'a [u32],
    finish: FinishReason,
}

impl SubprocessReward {
    /// Starts the process.
    ///
    /// # Errors
    /// It can't be started, or a setting makes no sense.
    pub fn start(config: &SubprocessConfig) -> Result<Self, SubprocessError> {
        let Some((program, arguments)) = config.command.split_first() else {
            return Err(SubprocessError::Config("the reward process has no `command`".to_owned()));
        };
        let timeout = Duration::try_from_secs_f64(config.timeout_s).ok().filter(|timeout| !timeout.is_zero());
        let timeout = timeout.ok_or_else(|| {
            SubprocessError::Config(format!("`timeout_s` is {}, expected a positive number", config.timeout_s))
        })?;
        let command = quoted(&config.command.join(" "));
        match LineProcess::start(program, arguments) {
            Ok(process) => Ok(Self { command, timeout, process: Some(process) }),
            Err(source) => Err(SubprocessError::Run { command, source }),
        }
    }

    fn ask(&self, process: &mut LineProcess, requests: &[RewardRequest]) -> Result<Vec<f32>, SubprocessError> {
        let command = || self.command.clone();
        if let Some(line) = process.line_at_hand() {
            let stderr = ErrorLines(process.error_lines());
            return Err(SubprocessError::Unasked { command: command(), line: quoted(&line), stderr });
        }
        process.write(
            lines_of(requests)
                .map_err(|error| SubprocessError::Run { command: command(), source: io::Error::other(error) })?,
        );
        let n_requests = requests.len();
        let mut scores = Vec::with_capacity(n_requests);
        for request in 1..=n_requests {
            let line = match process.next_line(self.timeout) {
                Output::Line(line) => line,
                Output::Late => {
                    let (timeout_s, stderr) = (self.timeout.as_secs_f64(), ErrorLines(process.error_lines()));
                    return Err(SubprocessError::Late { command: command(), request, n_requests, timeout_s, stderr });
                }
                Output::Closed => {
                    let ended = process.end().map_err(|source| SubprocessError::Run { command: command(), source })?;
                    let how = ended.map_or("closed its output".to_owned(), |status| format!("ended ({status})"));
                    let stderr = ErrorLines(process.error_lines());
                    return Err(SubprocessError::Ended { command: command(), how, request, n_requests, stderr });
                }
            };
            let Some(score) = score_in(&line) else {
                let (line, stderr) = (quoted(&line), ErrorLines(process.error_lines()));
                return Err(SubprocessError::BadAnswer { command: command(), request, n_requests, line, stderr });
            };
            scores.push(score);
        }
        Ok(scores)
    }
}

impl RewardFunction for SubprocessReward {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        // After an error, answers and requests no longer match: the process stays taken, and is killed as it is dropped.
        let Some(mut process) = self.process.take() else {
            return Err(SubprocessError::GivenUp { command: self.command.clone() }.into());
        };
        let scores = self.ask(&mut process, requests)?;
        self.process = Some(process);
        Ok(scores)
    }
}

fn lines_of(requests: &[RewardRequest]) -> serde_json::Result<String> {
    let mut lines = String::new();
    for request in requests {
        lines.push_str(&serde_json::to_string(&Request {
            prompt: &request.prompt,
            response: &request.response,
            prompt_tokens: &request.prompt_tokens,
            response_tokens: &request.response_tokens,
            finish: request.finish,
        })?);
        lines.push('\n');
    }
    Ok(lines)
}

fn score_in(line: &str) -> Option<f32> {
    let answer: Value = serde_json::from_str(line).ok()?;
    let number = answer.as_f64().or_else(|| answer.get("score")?.as_f64())?;
    // What is beyond f32 becomes infinite here.
    Some(number as f32).filter(|score| score.is_finite())
}

/// The line, or its beginning where it is long.
fn quoted(line: &str) -> String {
    match line.char_indices().nth(N_QUOTED) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(all(test, unix))]
mod tests;
