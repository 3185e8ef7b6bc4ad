//! What the terminal shows: progress bars for people, one JSON object an event for machines, nothing when piped.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use collimate_protocol::records::{Summary, UpdateMetrics};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use crate::rundir::Stage;

/// What `--json` prints, one object a line, each with its kind under `event`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ConsoleEvent<'a> {
    /// A round of `collimate iterate` begins, or is continued.
    RoundStarted {
        /// Which, from 1.
        round: usize,
        /// Of how many.
        n_rounds: usize,
        /// Its run directory.
        dir: &'a Path,
    },
    /// A stage begins.
    StageStarted {
        /// Which.
        stage: Stage,
    },
    /// A stage was complete already.
    StageSkipped {
        /// Which.
        stage: Stage,
    },
    /// A part of a stage begins.
    Phase {
        /// Of which stage.
        stage: Stage,
        /// What it does.
        phase: &'a str,
        /// How many steps it will take.
        n_steps: u64,
    },
    /// A step of a phase is done.
    Step {
        /// Of which stage.
        stage: Stage,
        /// Of which phase.
        phase: &'a str,
        /// How many steps of the phase are done.
        step: u64,
        /// Its numbers, by name.
        metrics: &'a serde_json::Map<String, serde_json::Value>,
    },
    /// A PPO update is done.
    Updated {
        /// Mean gold score of the batch, where the run has a gold scorer.
        #[serde(skip_serializing_if = "Option::is_none")]
        gold: Option<f64>,
        /// Labels that the reward model in force has learnt from, where that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        n_labels: Option<u64>,
        /// The update.
        #[serde(flatten)]
        update: &'a UpdateMetrics,
    },
    /// A stage is complete.
    StageFinished {
        /// Which.
        stage: Stage,
        /// What it came to; the type depends on the stage.
        summary: &'a serde_json::Value,
    },
    /// Something that the user should know of, and that stops nothing.
    Warning {
        /// What.
        message: &'a str,
    },
    /// The run is complete.
    Finished {
        /// The run directory.
        dir: &'a Path,
        /// The whole `summary.json`.
        summary: &'a Summary,
    },
    /// The run was told to stop, and has.
    Stopped {
        /// The run directory.
        dir: &'a Path,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Bars,
    Quiet,
    Json,
}

/// Where events go. Clones share it.
#[derive(Clone)]
pub struct Console {
    mode: Mode,
    bars: MultiProgress,
    out: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Console {
    /// Bars on standard error where it is a terminal; with `json`, events on standard output instead.
    pub fn new(json: bool) -> Self {
        let mode = match json {
            true => Mode::Json,
            false if io::stderr().is_terminal() => Mode::Bars,
            false => Mode::Quiet,
        };
        Self::with(mode, Box::new(io::stdout()))
    }

    /// Shows nothing: for library calls.
    pub fn silent() -> Self {
        Self::with(Mode::Quiet, Box::new(io::sink()))
    }

    /// Writes events as JSON lines to `out`.
    pub fn json_to(out: Box<dyn Write + Send>) -> Self {
        Self::with(Mode::Json, out)
    }

    fn with(mode: Mode, out: Box<dyn Write + Send>) -> Self {
        let target = if mode == Mode::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { mode, bars: MultiProgress::with_draw_target(target), out: Arc::new(Mutex::new(out)) }
    }

    /// Whether events are printed as JSON.
    pub fn is_json(&self) -> bool {
        self.mode == Mode::Json
    }

    /// Prints the event where JSON is asked for.
    pub fn event(&self, event: &ConsoleEvent<'_>) {
        if self.mode != Mode::Json {
            return;
        }
        let Ok(line) = serde_json::to_string(event) else { return };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // Who reads may have gone; that is no reason for a run to end.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    /// A line for people, above the bars; nothing where no terminal looks.
    pub fn line(&self, text: &str) {
        if self.mode == Mode::Bars {
            let _ = self.bars.println(text);
        }
    }

    /// What people must see, whether a terminal looks or not; on standard error.
    pub fn tell(&self, text: &str) {
        match self.mode {
            Mode::Bars => self.line(text),
            Mode::Json | Mode::Quiet => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }

    /// A warning: to people in any case, since it may be the only sign of what goes wrong.
    pub fn warn(&self, message: &str) {
        match self.mode {
            Mode::Json => self.event(&ConsoleEvent::Warning { message }),
            Mode::Bars => self.line(&format!("warning: {message}")),
            Mode::Quiet => {
                let _ = writeln!(io::stderr(), "warning: {message}");
            }
        }
    }

    /// A bar with rate and time left.
    pub fn bar(&self, name: &str, n_steps: u64) -> ProgressBar {
        const TEMPLATE: &str = "{prefix:<10} {wide_bar} {pos}/{len}  {rate}  {eta} left  {msg}";
        let bar = self.bars.add(ProgressBar::new(n_steps));
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let rate = state.per_sec();
            let _ = if rate < 10.0 { write!(out, "{rate:.2}/s") } else { write!(out, "{rate:.0}/s") };
        });
        bar.set_style(style.progress_chars("━╸ "));
        bar.set_prefix(name.to_owned());
        bar
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A writer that the test reads too.
    #[derive(Clone, Default)]
    pub(crate) struct Shared(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_event_is_one_json_object_with_its_kind() {
        let out = Shared::default();
        let console = Console::json_to(Box::new(out.clone()));
        console.event(&ConsoleEvent::StageStarted { stage: Stage::Sft });
        console.event(&ConsoleEvent::Updated { gold: Some(0.5), n_labels: None, update: &UpdateMetrics::default() });
        console.warn("look out");
        let lines = out.lines();
        assert_eq!(lines[0], serde_json::json!({"event": "stage_started", "stage": "sft"}));
        assert_eq!((&lines[1]["event"], &lines[1]["version"]), (&"updated".into(), &0.into()));
        assert!(lines[1]["batch"]["score"].is_number());
        assert_eq!(lines[2], serde_json::json!({"event": "warning", "message": "look out"}));
    }

    #[test]
    fn a_silent_console_prints_no_event() {
        let console = Console::silent();
        console.event(&ConsoleEvent::StageStarted { stage: Stage::Sft });
        assert!(console.bar("sft", 10).is_hidden());
    }
}
