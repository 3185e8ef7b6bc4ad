//! A home for tests of the command line: a folder with a little text, a word list and a recipe that takes seconds.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use collimate_protocol::records::Summary;

use crate::fakes::hash;

/// A recipe of all four stages on the home's text.
pub const RECIPE: &str = r#"
seed = 3

[corpus]
paths = ["text"]
heldout_share = 0.2
prompt_tokens = 4
response_tokens = 12

[pretrain]
vocab_size = 300
seq_len = 16
batch_size = 4
n_steps = 6

[pretrain.model]
n_layers = 1
hidden_dim = 16
n_heads = 2
n_kv_heads = 1
mlp_dim = 24
context_len = 32

[sft]
max_steps = 3
batch_size = 4

[reward]
batch_size = 4

[reward.labeler]
n_prompts = 16
k = 3
max_new_tokens = 8
gold = { kind = "lexicon", path = "words.tsv" }

[ppo]
mode = "deterministic"
n_updates = 3
batch_size = 8
minibatch_size = 4
max_new_tokens = 8
n_slots = 4
ptx_seq_len = 16
ptx_coef = 1.0
ptx_examples_per_episode = 0.5
lr = 1e-3
gold = { kind = "lexicon", path = "words.tsv" }

[ppo.evaluate]
n_prompts = 12
n_sequences = 6
"#;

/// A folder that lasts as long as this.
pub struct Home {
    dir: tempfile::TempDir,
    binary: PathBuf,
}

impl Home {
    /// A new home for this binary.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let home = Self { dir: tempfile::tempdir().expect("a temporary folder"), binary: binary.into() };
        std::fs::create_dir(home.path("text")).expect("a new folder");
        home.write("text/story.txt", story(120));
        home.write("words.tsv", "happy\t2.5\nkind\t1.5\nsad\t-2.0\ncold\t-1.0\n");
        home.write("recipe.toml", RECIPE);
        home
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).expect("a file in a temporary folder");
    }

    /// Reads a file in it.
    pub fn read(&self, name: impl AsRef<Path>) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `collimate` with these arguments, to be started in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        // Tests run side by side: each process takes one thread.
        command.args(arguments).current_dir(self.dir.path()).env("RAYON_NUM_THREADS", "1");
        command
    }

    /// Runs `collimate` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().expect("the binary starts"))
    }

    /// Runs it, and expects it to succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        ran.stdout
    }

    /// Runs it, and expects it to fail with code 1 and one clear error; returns that.
    pub fn fail(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(1), "{arguments:?}: {} {}", ran.stdout, ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
        ran.stderr
    }

    /// A run's `summary.json`.
    pub fn summary(&self, run: &str) -> Summary {
        serde_json::from_str(&self.read(Path::new(run).join("summary.json"))).expect("a summary")
    }
}

/// What a process did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
}

impl Ran {
    /// Of a process that has ended.
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Paragraphs of a made-up story.
fn story(n_paragraphs: u64) -> String {
    const WORDS: [&str; 16] = [
        "the", "happy", "sad", "house", "was", "kind", "cold", "and", "old", "man", "walked", "to", "a", "sea",
        "green", "hill",
    ];
    let mut text = String::new();
    for paragraph in 0..n_paragraphs {
        let n_words = 10 + hash(&[paragraph]) % 20;
        for word in 0..n_words {
            let chosen = WORDS[(hash(&[paragraph, word]) % 16) as usize];
            let end = if word % 7 == 6 || word + 1 == n_words { "." } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{chosen}{end}", if word > 0 { " " } else { "" });
        }
        text.push_str("\n\n");
    }
    text
}
