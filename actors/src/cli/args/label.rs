//! What `label` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::label::server::DEFAULT_PORT;
use crate::label::transfer::Export;

/// What `label` takes.
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// The project's database.
    #[arg(required = true)]
    pub db: Option<PathBuf>,
    /// Settings, a TOML file with a table `[label]`; `collimate config label` prints one. Its relative paths are relative
    /// to it.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Change a setting, as in label.lease_minutes=10. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Add a file's tasks: `prompt` and `responses` to rank, or `prompt` alone to write a response. Can be given several
    /// times, and with the same file again: nothing is doubled.
    #[arg(long, value_name = "FILE")]
    pub tasks: Vec<PathBuf>,
    /// Try labelers with a file's rankings first. Can be given several times.
    #[arg(long, value_name = "FILE")]
    pub screening: Vec<PathBuf>,
    /// Add a labeler. Can be given several times.
    #[arg(long, value_name = "NAME")]
    pub labeler: Vec<String>,
    /// How many labelers answer each task. [default: 1]
    #[arg(long, value_name = "N")]
    pub overlap: Option<u32>,
    /// Serve at this port of the loopback interface, or at ADDRESS:PORT; 0 takes a free port.
    #[arg(long, value_name = "PORT", default_value = DEFAULT_PORT)]
    pub addr: String,
    /// Where people reach the page, if not there: https://NAME of a proxy.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<LabelCommand>,
}

/// What `label` does beside serving.
#[derive(Debug, Subcommand)]
pub enum LabelCommand {
    /// Add tasks from files; and answers, where rows name their `labeler`, as exports do.
    Import {
        /// The project's database; made if it is absent.
        db: PathBuf,
        /// JSON lines, a JSON array or Parquet.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The files' rankings are right: labelers are tried with them.
        #[arg(long)]
        screening: bool,
        /// How many labelers answer each task.
        #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "screening")]
        overlap: u32,
    },
    /// Write answers to a file, as JSON lines or Parquet.
    Export {
        /// The project's database.
        db: PathBuf,
        /// The file: a name that ends in .jsonl or .parquet.
        file: PathBuf,
        /// Which answers, in which form.
        #[arg(long, value_enum, default_value = "comparisons")]
        what: Export,
        /// Every revision, with hidden repeats and the screening's: to keep, not to train on.
        #[arg(long)]
        all: bool,
    },
    /// Print progress, and how far labelers agree.
    Agreement {
        /// The project's database.
        db: PathBuf,
        /// Print one JSON object, disagreements included.
        #[arg(long)]
        json: bool,
    },
    /// Give labelers new links; their old ones are then good for nothing.
    Link {
        /// The project's database.
        db: PathBuf,
        /// Names of labelers, or `admin`.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Where people reach the page.
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9470")]
        url: String,
    },
}
