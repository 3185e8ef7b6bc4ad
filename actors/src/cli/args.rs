//! Commands and flags, and the help that teaches them.

mod label;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use label::{LabelArgs, LabelCommand};

/// Takes a language model through SFT, reward model and PPO-ptx.
#[derive(Debug, Parser)]
#[command(
    name = "collimate",
    version,
    about,
    long_about = "Takes a causal language model through InstructGPT's recipe (Ouyang et al. 2022): supervised \
        fine-tuning, a reward model from rankings, and PPO with pretraining gradients mixed in.\n\n\
        A recipe file lists the stages; `collimate run` does them one after another and continues where an earlier \
        attempt left off. Everything lands in one run directory.",
    after_long_help = "Examples:\n  \
        collimate run examples/instructgpt.toml\n  \
        collimate run examples/instructgpt.toml --out runs/no-ptx --set ppo.ptx_coef=0\n  \
        collimate config ppo\n  \
        collimate generate runs/instructgpt/ppo/model --prompt \"It was\"\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.\n\
        Ctrl-C once: the step in progress is finished and everything is written. Twice: the process ends at once."
)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `collimate` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Do every stage that a recipe lists, and continue an earlier attempt.
    #[command(after_long_help = "Examples:\n  \
        collimate run recipe.toml\n  \
        collimate run recipe.toml --out runs/second --set seed=2\n  \
        collimate run recipe.toml --json | jq 'select(.event == \"updated\") | .batch.score'")]
    Run(RunArgs),
    /// Train a tokenizer and a base model from raw text: the recipe's `pretrain` table.
    Pretrain(RunArgs),
    /// Fine-tune the base model on demonstrations: the recipe's `sft` table.
    Sft(RunArgs),
    /// Sample a policy's responses and have them ranked: the recipe's `collect` table.
    #[command(
        long_about = "Samples K responses of the SFT model, or of `collect.policy`, to each of some prompts, and has them \
            ranked: by people on the page of `collimate label`, which is served until enough rankings are in, by whoever \
            writes rankings.jsonl beside the stage's tasks.jsonl, or by simulated labelers. The reward stage reads them."
    )]
    Collect(RunArgs),
    /// Train the reward model on rankings: the recipe's `reward` table.
    Reward(RunArgs),
    /// Optimise the SFT model against the reward: the recipe's `ppo` table.
    Ppo(RunArgs),
    /// Do rounds of rankings, reward model and PPO, each from the policy of the round before.
    #[command(
        long_about = "Each round samples K responses of the current policy to some prompts, has them ranked (the recipe's \
            `collect` table: by people on a page, from a file, or by simulated labelers), trains a reward model on the \
            rankings of all rounds (`reward`), and goes on with PPO from the current policy (`ppo`), which is held near the \
            SFT model throughout. `iterate.n_rounds` says how many; the recipe's `sft` stage, or `ppo.sft`, gives the model \
            to start from.\n\n\
            A round is a run directory of its own, OUT/round-1 and so on, with a recipe of its own: `collimate view`, \
            `report` and `replay` take it, and `collimate view OUT` shows all of them. The same command continues where an \
            earlier attempt left off, also with a larger `iterate.n_rounds`.",
        after_long_help = "Examples:\n  \
            collimate iterate examples/iterate.toml\n  \
            collimate iterate recipe.toml --set iterate.n_rounds=5\n  \
            collimate iterate recipe.toml --set collect.source=page --set 'collect.page.label.labelers=[\"anna\"]'\n  \
            collimate view runs/iterate\n  \
            collimate config iterate"
    )]
    Iterate(RunArgs),
    /// Show how a run of PPO is: roles, queues, tickets, checkpoints.
    #[command(after_long_help = "Examples:\n  collimate status runs/mine\n  collimate status 9464")]
    Status(StatusArgs),
    /// Show a run in a browser: curves, pipeline, rollouts token by token. Follows it while it goes on.
    #[command(
        long_about = "Serves a page with the run's curves, its pipeline, its rollouts, and what was answered before PPO and \
            after it, and prints the link that opens it. A run that goes on in another process is followed; of the rounds \
            of `collimate iterate` the newest in which PPO has begun, and the others by choice. To command a run (pause, \
            checkpoint, change settings), start it with --serve and open the link that it prints.",
        after_long_help = "Examples:\n  collimate view runs/mine\n  collimate view runs/mine --addr 8080"
    )]
    View(ViewArgs),
    /// Do a run of PPO again from its journal, on one thread, and compare every weight.
    #[command(
        long_about = "Does a run of PPO again from its journal, on one thread: every rollout is sampled again under the \
            weights that sampled each of its tokens, every score and every update is worked out again. Compares the \
            checksum of the weights after each update. The first thing that differs is named, and the exit code is 1.",
        after_long_help = "Examples:\n  collimate replay runs/mine\n  collimate replay runs/mine --from 10 --until 20"
    )]
    Replay(ReplayArgs),
    /// Simulate PPO for a range of staleness bounds and generators, and recommend one of them.
    #[command(
        long_about = "Runs the roles of PPO with fake models in virtual time, for each bound on staleness and each number \
            of generators: what throughput, how busy each role, how stale the tokens and how many dropped. How long the \
            models' work takes is assumed in a file, or was measured in a run: any run of PPO will do, and one with \
            max_staleness = 0 measures best, since its roles are seldom in each other's way.",
        after_long_help = "Examples:\n  \
            collimate plan --from runs/mine\n  \
            collimate plan --from runs/mine --set n_generators=[1,8] --set n_slots=64\n  \
            collimate plan --from runs/mine --toml > plan.toml; collimate plan plan.toml\n  \
            collimate config plan > plan.toml"
    )]
    Plan(PlanArgs),
    /// Continue prompts with a policy.
    #[command(after_long_help = "Examples:\n  \
        collimate generate runs/mine/ppo/model --prompt \"It was\"\n  \
        collimate generate runs/mine/sft/model --prompts prompts.jsonl --n-samples 4 --json\n  \
        collimate generate runs/mine/sft/model --prompt \"It was\" --greedy")]
    Generate(GenerateArgs),
    /// Talk with a policy; its answers appear as they are sampled.
    #[command(after_long_help = "Examples:\n  \
        collimate chat --model models/smollm2\n  \
        collimate chat --model hf:HuggingFaceTB/SmolLM2-135M-Instruct --system \"Be brief.\"\n  \
        echo 'What is the capital of France?' | collimate chat --model models/smollm2 --temperature 0\n  \
        collimate chat --model runs/mine/ppo/model --save-prompts prompts.jsonl\n  \
        collimate label import answers.db prompts.jsonl")]
    Chat(ChatArgs),
    /// Give the log-probability of each token under a policy, or the score under a reward model.
    #[command(
        long_about = "Reads JSON lines, each {\"text\": …} or {\"prompt\": …, \"response\": …}, and writes one JSON \
            object for each. Under a policy: tokens, and the log-probability (nats) of each; of a response, its end \
            token included, or of a text, whose first token has none. Under a reward model: the score, read at the \
            end token of the response or at the last token of the text.",
        after_long_help = "Example:\n  \
            echo '{\"prompt\": \"It was\", \"response\": \" a happy day.\"}' | collimate score runs/mine/reward/model"
    )]
    Score(ScoreArgs),
    /// Open a page where people rank responses and write demonstrations; bring tasks in and answers out.
    #[command(
        args_conflicts_with_subcommands = true,
        subcommand_negates_reqs = true,
        long_about = "Serves a page on which labelers rank 2 to 9 responses (with ties, flags and scores), compare two, and \
            write demonstrations. Everything is kept in one SQLite file, DB, which is made if it is absent. Each labeler \
            gets a link, which is printed once: the file holds a hash of it alone. An answer is acknowledged when the disk \
            has it. The page is for this machine unless --addr says otherwise; for others, put a proxy that speaks HTTPS \
            before it and name it by --url.\n\n\
            What labelers did comes out in the files that the SFT and reward stages read.",
        after_long_help = "Examples:\n  \
            collimate label answers.db --tasks responses.jsonl --labeler anna --labeler ben\n  \
            collimate label answers.db --config label.toml --overlap 3\n  \
            collimate label export answers.db comparisons.jsonl\n  \
            collimate label export answers.db demonstrations.parquet --what demonstrations\n  \
            collimate label agreement answers.db\n  \
            collimate config label > label.toml"
    )]
    Label(LabelArgs),
    /// Look at data before training on it.
    #[command(subcommand)]
    Data(DataCommand),
    /// Make a model directory in HuggingFace's layout from a GGUF file of llama.cpp.
    #[command(
        long_about = "Writes config.json, model.safetensors (f32), the tokenizer and the chat template of a GGUF file to \
            a directory that every command here takes, and transformers too. Takes Llama (SmolLM, TinyLlama, Mistral), \
            Qwen 2 and Qwen 3, with tensors of the types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K.",
        after_long_help = "Example:\n  collimate import SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2"
    )]
    Import {
        /// The GGUF file.
        file: PathBuf,
        /// The directory to write; it must not hold a model yet.
        out: PathBuf,
    },
    /// Merge an adapter that PEFT wrote into its model.
    #[command(
        long_about = "Writes the model with a LoRA adapter in its weights to a directory that every command here takes. The \
            adapter is a directory with adapter_config.json and adapter_model.safetensors, as PEFT writes it. One that \
            brings a scalar head (SEQ_CLS) makes a reward model of a language model.",
        after_long_help = "Example:\n  collimate merge models/smollm2 adapters/mine models/mine"
    )]
    Merge {
        /// The model that the adapter was trained on: a directory, or hf:OWNER/NAME@REVISION.
        base: PathBuf,
        /// The adapter's directory.
        adapter: PathBuf,
        /// The directory to write; it must not hold a model yet.
        out: PathBuf,
    },
    /// Print a stage's settings: every key with its default and a comment.
    #[command(after_long_help = "Examples:\n  collimate config ppo\n  collimate config all > recipe.toml")]
    Config {
        /// Whose settings.
        #[arg(value_enum)]
        stage: ConfigOf,
    },
    /// Make a run's report.html again from its files, and print its results.
    Report {
        /// The run directory.
        dir: PathBuf,
    },
}

/// What `collimate data` does.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Tell what a file is taken for, what is wrong in it, how long it is, and show what the model would read.
    #[command(
        long_about = "Tells what a file of records is taken for: prompts with responses, instructions (Alpaca), dialogues \
            (OpenAI's messages, ShareGPT's conversations), preferences (chosen and rejected), rankings, scored responses \
            (UltraFeedback), prompts or text; in JSON lines, a JSON array, Parquet or plain text, also packed as .gz or \
            .zst. Counts its records, bad rows, duplicates, held-out prompts that are trained on too, and tokens; and \
            shows the first records as the model reads them, with what is learnt coloured. Exits with 1 where a row makes \
            no record.",
        after_long_help = "Examples:\n  \
            collimate data check demonstrations.jsonl --model models/smollm2\n  \
            collimate data check train.parquet --heldout test.parquet --model models/smollm2 --max-tokens 1024\n  \
            collimate data check comparisons.json --json | jq .lengths"
    )]
    Check(DataCheckArgs),
}

/// What `data check` takes.
#[derive(Debug, Args)]
pub struct DataCheckArgs {
    /// Files of records.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A directory with a tokenizer: lengths are counted in its tokens, and dialogues shown by its chat template.
    /// Without it, characters are counted.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Count sequences longer than this. [default: the model's context]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Share of the records that is held out, as in a recipe.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, conflicts_with = "heldout")]
    pub heldout_share: f64,
    /// A file that is held out, instead of a share.
    #[arg(long, value_name = "FILE")]
    pub heldout: Option<PathBuf>,
    /// Records to show.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub examples: usize,
    /// Print one JSON object for each file.
    #[arg(long)]
    pub json: bool,
}

/// What `run`, `iterate` and the stages take.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The recipe, a TOML file. Its relative paths are relative to it.
    #[arg(value_name = "FILE.toml")]
    pub recipe: PathBuf,
    /// The run directory. The same recipe continues the run in it. [default: runs/ and the recipe's name]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Change a setting of the recipe, as in ppo.ptx_coef=0. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object for each event on standard output, instead of progress bars and tables.
    #[arg(long)]
    pub json: bool,
    /// Serve metrics for Prometheus (/metrics) and the status (/status) at this port of the loopback interface, or at
    /// ADDRESS:PORT.
    #[arg(long, value_name = "PORT")]
    pub metrics_addr: Option<String>,
    /// Serve a page to watch the run and to command it (pause, checkpoint, change settings), and print its link: at this
    /// port of the loopback interface, or at ADDRESS:PORT. [default: 9480]
    #[arg(
        long,
        value_name = "ADDR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = crate::view::server::DEFAULT_PORT
    )]
    pub serve: Option<String>,
    /// With --serve: let the page put rollouts before people, as tasks in this database of `collimate label`; made if it is
    /// absent.
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub labels: Option<PathBuf>,
}

/// What `view` takes.
#[derive(Debug, Args)]
pub struct ViewArgs {
    /// The run directory, or that of `collimate iterate`.
    #[arg(value_name = "RUN_DIR")]
    pub dir: PathBuf,
    /// A port of the loopback interface, or ADDRESS:PORT; 0 is any free port.
    #[arg(long, value_name = "ADDR", default_value = crate::view::server::DEFAULT_PORT)]
    pub addr: String,
    /// Let the page put rollouts before people, as tasks in this database of `collimate label`; made if it is absent.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
}

/// What `status` takes.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run directory, or the --metrics-addr of a live run: a port of this machine, or ADDRESS:PORT.
    #[arg(value_name = "RUN_DIR|ADDRESS")]
    pub run: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `replay` takes.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The run directory.
    #[arg(value_name = "RUN_DIR")]
    pub dir: PathBuf,
    /// Start at the checkpoint of this version instead of at the beginning.
    #[arg(long, value_name = "VERSION")]
    pub from: Option<u64>,
    /// Stop at this version instead of at the journal's end.
    #[arg(long, value_name = "VERSION")]
    pub until: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `plan` takes.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The assumptions, a TOML file; `collimate config plan` prints one.
    #[arg(value_name = "FILE.toml", required_unless_present = "from", conflicts_with = "from")]
    pub file: Option<PathBuf>,
    /// Take what was measured in a run instead.
    #[arg(long, value_name = "RUN_DIR")]
    pub from: Option<PathBuf>,
    /// Change an assumption, as in costs.learner.token_s=1e-4. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Print the assumptions as a file that this command reads, and simulate nothing.
    #[arg(long, conflicts_with = "json")]
    pub toml: bool,
}

/// What `generate` takes.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The policy's directory.
    #[arg(value_name = "MODEL_DIR")]
    pub model: PathBuf,
    /// A prompt. Can be given several times.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    pub prompt: Vec<String>,
    /// A file of prompts: JSON lines with `prompt`.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// The longest response, in tokens.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_new_tokens: usize,
    /// Divides the logits.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f32,
    /// Sample from the K most likely tokens alone; 0 samples from all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Sample from the smallest set of most likely tokens that holds this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Take the most likely token always.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "n_samples", "seed"])]
    pub greedy: bool,
    /// Responses to each prompt.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub n_samples: u32,
    /// Where the random numbers come from.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object for each response: prompt, response, token ids, their log-probabilities, finish reason.
    #[arg(long)]
    pub json: bool,
}

/// What `chat` takes.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The policy: a directory, or hf:OWNER/NAME@REVISION on the HuggingFace hub.
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// What the assistant is told before the dialogue.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Add what is typed to this file, made if it is absent, as prompts that `collimate label` takes by --tasks or `import`:
    /// a JSON line for each turn, which holds the dialogue up to it as the model read it. Labelers are then asked for a
    /// response.
    #[arg(long, value_name = "FILE")]
    pub save_prompts: Option<PathBuf>,
    /// Divides the logits; 0 takes the most likely token always.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f32,
    /// Sample from the smallest set of most likely tokens that holds this probability.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// The longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_new_tokens: usize,
    /// Where the random numbers come from.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// What `score` takes.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// The directory of a policy or of a reward model.
    #[arg(value_name = "MODEL_DIR")]
    pub model: PathBuf,
    /// JSON lines; `-` is standard input.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Divides a policy's logits.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f32,
    /// Where to compute: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

/// Whose settings `config` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConfigOf {
    /// What stands outside the tables, and `corpus`.
    Recipe,
    /// The `pretrain` table.
    Pretrain,
    /// The `sft` table.
    Sft,
    /// The `collect` table.
    Collect,
    /// The `reward` table.
    Reward,
    /// The `ppo` table.
    Ppo,
    /// The `iterate` table, for `collimate iterate`.
    Iterate,
    /// All of it: a whole recipe.
    All,
    /// What `collimate plan` assumes; a file of its own.
    Plan,
    /// How people label: what `collimate label --config` takes; a file of its own.
    Label,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn label_serves_a_database_or_does_something_with_it() {
        let parse = |text: &str| CommandLine::try_parse_from(text.split(' '));
        assert!(parse("collimate label").is_err());
        assert!(parse("collimate label a.db --tasks t.jsonl --labeler anna").is_ok());
        assert!(parse("collimate label export a.db out.jsonl --what preferences").is_ok());
        assert!(parse("collimate label --overlap 2 export a.db out.jsonl").is_err());
    }

    #[test]
    fn generate_needs_a_prompt_and_greedy_takes_no_sampling_flag() {
        let parse = |text: &str| CommandLine::try_parse_from(text.split(' '));
        assert!(parse("collimate generate m").is_err());
        assert!(parse("collimate generate m --prompt a --greedy").is_ok());
        assert!(parse("collimate generate m --prompt a --greedy --top-k 3").is_err());
        assert!(parse("collimate generate m --prompts f --n-samples 3").is_ok());
    }
}
