//! `reward`: SFT model and comparisons to reward model.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use collimate_models::arch::{HeadKind, LoraConfig, scalar_from_language};
use collimate_models::data::comparisons::{WholeCounts, heldout_by_prompt, read_comparisons, tokenize_comparisons};
use collimate_models::data::demonstrations::stream_examples;
use collimate_models::data::limit::{Fitted, LengthCounts, LengthLimit, TooLong};
use collimate_models::reward::BuiltinReward;
use collimate_models::rng;
use collimate_models::train::{OptimConfig, RankedResponses, RewardTrainer, pair_accuracy, shuffled_minibatches};
use collimate_protocol::records::RewardSummary;

use super::context::{StageContext, StageError};
use super::inputs::ModelFiles;
use super::labeler::{self, Asked};
use super::labels_used::Labels;
use super::memory;
use super::outputs::{save_trained, write_lines};
use super::recipe::CorpusConfig;
use super::sft_data::cut;
use super::training_file::TrainingFile;

/// Demonstrations whose mean score is shifted to 0.
const N_BIAS_DEMONSTRATIONS: usize = 512;
/// Where the rankings of simulated labelers are written, in the stage's folder.
pub const COMPARISONS_FILE: &str = "comparisons.jsonl";

/// SFT model and comparisons to reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// The SFT model's directory. Without it, the sft stage's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft: Option<PathBuf>,
    /// A file of comparisons: rankings, preferences or scored responses; `collimate data check` tells what it may hold.
    /// Give this or `labeler`, or a `collect` table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparisons: Option<PathBuf>,
    /// Labelers simulated by a gold scorer, who rank samples of the SFT model. Give this or `comparisons`, or a
    /// `collect` table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labeler: Option<LabelerConfig>,
    /// A file of demonstrations, whose mean score the bias shifts to 0. Without it, they are cut from the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demonstrations: Option<PathBuf>,
    /// Share of the prompts whose comparisons are held out to measure accuracy.
    pub heldout_share: f64,
    /// The most tokens of a prompt with one of its responses, in a file; 0 takes the model's whole context.
    pub max_tokens: usize,
    /// What becomes of comparisons with more: "refuse" or "drop". They are never cut: a score is read at a response's end.
    pub too_long: TooLong,
    /// Passes over the comparisons.
    pub n_epochs: usize,
    /// Comparisons in one optimiser step; all responses of each stay together.
    pub batch_size: usize,
    /// Trains adapters and the scalar head alone, on the SFT model as it is. `model` then holds all as one, and `adapter`
    /// what PEFT reads and what PPO by adapters puts on the SFT model that it has in memory anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// The optimiser.
    pub optim: OptimConfig,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            sft: None,
            comparisons: None,
            labeler: None,
            demonstrations: None,
            heldout_share: 0.2,
            max_tokens: 0,
            too_long: TooLong::default(),
            // More passes overfit (Ouyang et al. 2022, section 3.5).
            n_epochs: 1,
            batch_size: 16,
            lora: None,
            optim: OptimConfig { lr: 1e-4, weight_decay: 0.0, ..OptimConfig::default() },
        }
    }
}

/// Labelers simulated by a gold scorer (Gao et al. 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelerConfig {
    /// What the labelers like. The reward model sees their rankings alone.
    pub gold: BuiltinReward,
    /// Prompts to label; they are cut from the corpus.
    pub n_prompts: usize,
    /// Responses ranked for each prompt, 2 to 9.
    pub k: usize,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// What divides the logits.
    #[serde(default = "one")]
    pub temperature: f64,
}

fn one() -> f64 {
    1.0
}

/// Trains the reward model from the SFT model in `sft`.
pub fn run(
    config: &RewardConfig,
    sft: &Path,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<RewardSummary, StageError> {
    if config.too_long == TooLong::Truncate {
        return Err(StageError::Setting(
            "reward.too_long is \"truncate\", but a score is read at a response's end: take \"drop\" or \"refuse\""
                .into(),
        ));
    }
    let files = ModelFiles::open(sft, HeadKind::Language)?;
    let comparisons_path = match (&config.comparisons, &config.labeler) {
        (Some(path), None) => path.clone(),
        (None, Some(labeler)) => label(labeler, &files, corpus, context)?,
        _ => {
            return Err(StageError::Setting("[reward] needs comparisons from one place: a [collect] table, `comparisons` or a [reward.labeler] table".into()));
        }
    };
    let records = read_comparisons(&comparisons_path)?;
    let whole = WholeCounts::of(&records);
    if let Some(told) = whole.tell() {
        context.observer.note(&told);
    }
    let limit = LengthLimit::new(config.max_tokens, files.config.context_len, config.too_long)?;
    let mut counts = LengthCounts::default();
    let fitted = tokenize_comparisons(&records, &files.tokenizer, limit)?.into_iter();
    let fitted: Vec<Option<RankedResponses>> = fitted.map(|one| counts.count(one)).collect();
    if let Some(told) = counts.tell("comparisons", limit) {
        context.observer.warn(&told);
    }
    let labels = Labels::new(records.iter().map(|record| record.name.clone()), &fitted);
    let kept = records.iter().zip(fitted).filter_map(|(record, fitted)| Some((&record.comparison.prompt, fitted?)));
    let (prompts, ranked): (Vec<_>, Vec<RankedResponses>) = kept.unzip();
    let is_heldout = heldout_by_prompt(prompts, config.heldout_share);
    let k = ranked.iter().map(|comparison| comparison.ranks.len()).max().unwrap_or(0);
    let (mut train, mut heldout) = (Vec::new(), Vec::new());
    for (comparison, is_heldout) in ranked.into_iter().zip(&is_heldout) {
        if *is_heldout { heldout.push(comparison) } else { train.push(comparison) }
    }
    if train.is_empty() || heldout.is_empty() {
        return Err(StageError::Setting(format!(
            "{}: {} comparisons to train on and {} held out, all of a prompt's together: there must be at least one of \
             each",
            comparisons_path.display(),
            train.len(),
            heldout.len()
        )));
    }

    let demonstrations = bias_demonstrations(config, corpus, &files)?;
    let n_tokens = |comparison: &RankedResponses| comparison.sequences.iter().map(Vec::len).sum::<usize>();
    // A pass over what is held out keeps no record, so that its length matters less.
    let longest = train.iter().map(n_tokens).max().unwrap_or(0);
    context.check_memory(memory::of_reward(config, &files, longest, &context.device)?)?;

    let mut rng = rng::for_purpose(context.seed, "order of comparisons");
    let minibatches: Vec<Vec<usize>> =
        (0..config.n_epochs).flat_map(|_| shuffled_minibatches(train.len(), config.batch_size, &mut rng)).collect();
    let mut trainer = {
        let mut sft = files.load(&context.device, context.precision)?;
        if config.lora.is_some() {
            sft = sft.into_base()?;
        }
        let mut rng = rng::for_purpose(context.seed, "scalar head");
        let mut start = scalar_from_language(&files.config, &sft.weights, &mut rng)?;
        if let Some(lora) = &config.lora {
            let mut rng = rng::for_purpose(context.seed, "adapters of the reward model");
            start = start.adapted(&files.config, HeadKind::Scalar, lora, &mut rng)?;
        }
        RewardTrainer::new(&files.config, &start, &config.optim, minibatches.len() as u64)?
    };
    let budget = config.optim.microbatch_tokens;
    context.observer.phase("reward", minibatches.len() as u64);
    let steps_per_epoch = train.len().div_ceil(config.batch_size);
    let (mut file, n_done) = TrainingFile::open(context, |path| trainer.restore(path))?;
    context.check_stop()?;
    for (step_idx, minibatch) in minibatches.iter().enumerate().skip(n_done as usize) {
        let batch: Vec<RankedResponses> = minibatch.iter().map(|&idx| train[idx].clone()).collect();
        let step = trainer.step(&batch)?;
        let mut metrics = vec![("loss", step.loss), ("grad_norm", step.grad_norm), ("lr", step.lr)];
        if (step_idx + 1) % steps_per_epoch == 0 {
            metrics.push(("heldout_accuracy", pair_accuracy(&trainer.model()?, &heldout, budget)?.mean));
        }
        context.observer.step(step_idx as u64 + 1, &metrics);
        file.after_step(context, |path| trainer.save_state(path))?;
    }
    let accuracy = pair_accuracy(&trainer.model()?, &heldout, budget)?;
    let bias = trainer.shift_bias(&demonstrations)?;
    labels.write(&context.out_dir, &trainer.model()?, [&train, &heldout], &is_heldout, budget)?;
    let weights = trainer.weights()?;
    save_trained(context, &files, HeadKind::Scalar, &weights, config.lora.as_ref())?;
    file.remove()?;
    Ok(RewardSummary {
        heldout_accuracy: accuracy.mean,
        heldout_accuracy_stderr: accuracy.stderr,
        n_heldout_pairs: accuracy.n_pairs,
        k,
        n_comparisons: train.len(),
        n_all_bad: whole.n_all_bad,
        n_all_tied: whole.n_all_tied,
        bias: f64::from(bias),
        elapsed_s: context.elapsed_s(),
    })
}

/// The demonstrations whose mean score is to be 0.
fn bias_demonstrations(
    config: &RewardConfig,
    corpus: Option<&CorpusConfig>,
    sft: &ModelFiles,
) -> Result<Vec<Vec<u32>>, StageError> {
    let demonstrations: Vec<Vec<u32>> = match &config.demonstrations {
        None => {
            let [train, _] = cut(corpus, &sft.tokenizer)?;
            train.into_iter().take(N_BIAS_DEMONSTRATIONS).map(|example| example.tokens).collect()
        }
        Some(path) => {
            let limit = LengthLimit::new(config.max_tokens, sft.config.context_len, TooLong::Drop)?;
            let examples = stream_examples(path, &sft.tokenizer, limit)?.filter_map(|example| match example {
                Ok((_, Fitted::Whole(example))) => Some(Ok(example.tokens)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            });
            examples.take(N_BIAS_DEMONSTRATIONS).collect::<collimate_models::Result<_>>()?
        }
    };
    if demonstrations.is_empty() {
        return Err(StageError::Setting("there is no demonstration to shift the reward model's bias by".into()));
    }
    Ok(demonstrations)
}

/// Samples K responses to each prompt and lets the gold scorer rank them; returns the file of comparisons.
fn label(
    config: &LabelerConfig,
    sft: &ModelFiles,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<PathBuf, StageError> {
    let path = context.out_dir.join(COMPARISONS_FILE);
    if path.exists() {
        // Of an earlier attempt, which was training already.
        return Ok(path);
    }
    let asked = Asked {
        table: "reward.labeler",
        n_prompts: config.n_prompts,
        k: config.k,
        max_new_tokens: config.max_new_tokens,
        temperature: config.temperature,
    };
    asked.check()?;
    let mut gold = config.gold.build()?;
    let prompts = asked.pick(asked.prompts_of_corpus(corpus, &sft.tokenizer)?, context.seed)?;
    let weights = sft.load(&context.device, context.precision)?.weights;
    let requests = asked.sample(&prompts, (&sft.config, &weights), &sft.tokenizer, context)?;
    let comparisons = labeler::rank(gold.as_mut(), &requests, config.k)?;
    write_lines(&path, &comparisons)?;
    Ok(path)
}
