//! What `label` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use collimate_models::feedback::acquisition::{AcquireBy, LEAST_RANDOM_SHARE};

use crate::label::prioritize::{DEFAULT_HEADS, DEFAULT_MOST};
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
    /// Show the admin what became of labels in this run: which reward model read them, and what followed. Can be given several
    /// times.
    #[arg(long, value_name = "RUN_DIR")]
    pub run: Vec<PathBuf>,
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
        /// What labelers said of settled tasks too, beside what the admin settled them by.
        #[arg(long, conflicts_with = "all")]
        overruled: bool,
        /// Every revision, with hidden repeats and the screening's: to keep, not to train on.
        #[arg(long)]
        all: bool,
    },
    /// Choose which tasks labelers get first, by a reward model.
    #[command(
        long_about = "Gives every task that is still open its place: some are drawn at random, the others are chosen by a \
            reward model, and both are asked in turns. Agreement is then told of the random ones alone, and exports say in \
            `arm` which a label came from. A server that is running goes by the new places at once. Do it again with each \
            new reward model.",
        after_long_help = "Examples:\n  \
            collimate label prioritize answers.db --model runs/mine/reward/model\n  \
            collimate label prioritize answers.db --by random"
    )]
    Prioritize {
        /// The project's database.
        db: PathBuf,
        /// The reward model's directory.
        #[arg(long, value_name = "DIR")]
        model: Option<PathBuf>,
        /// By what.
        #[arg(long, value_enum, default_value = "disagreement")]
        by: By,
        /// The share of tasks that is drawn at random, 0.2 to 1.
        #[arg(long, value_name = "SHARE", default_value_t = LEAST_RANDOM_SHARE)]
        random_share: f64,
        /// Small heads that may disagree.
        #[arg(long, value_name = "N", default_value_t = DEFAULT_HEADS)]
        heads: usize,
        /// The reward model looks at no more than so many tasks, drawn at random; the others come after them.
        #[arg(long, value_name = "N", default_value_t = DEFAULT_MOST)]
        most: usize,
        /// Where the random numbers come from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Where to compute: cpu or cuda:N.
        #[arg(long, default_value = "cpu")]
        device: String,
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

/// By what tasks are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// All at random.
    Random,
    /// What the reward model scores most alike.
    Margin,
    /// What many small heads on the reward model disagree on most, and nothing twice.
    Disagreement,
}

impl From<By> for AcquireBy {
    fn from(by: By) -> Self {
        match by {
            By::Random => Self::Random,
            By::Margin => Self::Margin,
            By::Disagreement => Self::Disagreement,
        }
    }
}
