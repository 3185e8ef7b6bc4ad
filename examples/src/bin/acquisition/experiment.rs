//! One seed's tasks, and one setting's curve over them.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use collimate::rundir::{RunDir, Stage};
use collimate::stages::context::{StageContext, StopFlag, Unobserved};
use collimate::stages::inputs::{InputModel, ModelFiles};
use collimate::stages::labeler::{self, Asked};
use collimate::stages::recipe::Recipe;
use collimate::stages::reward::{LabelerConfig, RewardConfig};
use collimate::view::Live;
use collimate::{config, device};
use collimate_models::arch::{HeadKind, ScalarModel, scalar_from_language};
use collimate_models::data::comparisons::response_sequences;
use collimate_models::feedback::acquisition::{AcquireBy, Candidate, RankedFeatures, draw_arms, order, turns};
use collimate_models::generate::TOKENS_PER_PASS;
use collimate_models::objective::pairs;
use collimate_models::rng;
use collimate_models::train::{
    PairAccuracy, RankedResponses, RewardTrainer, pair_accuracy, sequence_features, shuffled_minibatches,
};
use collimate_protocol::records::Arm;
use serde::Serialize;

/// How the settings are compared.
pub struct Protocol {
    /// Tasks that may be labelled.
    pub n_pool: usize,
    /// Tasks that accuracy is measured on.
    pub n_heldout: usize,
    /// Numbers of labelled tasks at which a reward model is trained, ascending.
    pub sizes: Vec<usize>,
    /// Tasks in one optimiser step.
    pub batch_size: usize,
    /// Optimiser steps of each training at least.
    pub least_steps: usize,
    /// The share of tasks that is drawn at random where a reward model chooses.
    pub random_share: f64,
    /// Small heads that may disagree.
    pub n_heads: usize,
}

/// A point of a setting's curve.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub seed: u64,
    pub setting: AcquireBy,
    /// Labelled tasks.
    pub n_labeled: usize,
    /// Of those, such as were drawn at random.
    pub n_random: usize,
    /// What the labelled tasks hold; ties are none.
    pub n_pairs: usize,
    /// Share of held-out pairs that are ordered as gold orders them.
    pub accuracy: f64,
    /// Over the held-out tasks.
    pub stderr: f64,
    /// Of choosing, training and measuring.
    pub seconds: f64,
}

/// One seed's tasks, in random order, with what a labeler would say of each.
pub struct Tasks {
    seed: u64,
    pool: Vec<RankedResponses>,
    heldout: Vec<RankedResponses>,
}

/// A reward model, and how well it does on what is held out.
pub struct Trained {
    model: ScalarModel,
    accuracy: PairAccuracy,
    seconds: f64,
}

/// What all seeds and settings have in common.
pub struct Experiment {
    protocol: Protocol,
    recipe: Recipe,
    reward: RewardConfig,
    labeler: LabelerConfig,
    files: ModelFiles,
    sft: InputModel,
}

impl Experiment {
    /// Reads the recipe and the SFT model of a run directory.
    pub fn open(dir: &Path, sets: &[String], protocol: Protocol) -> Result<Self> {
        let dir = RunDir::existing(dir)?;
        let recipe: Recipe = config::load(&dir.config(), sets)?;
        let reward = recipe.reward.clone().context("the run's recipe has no [reward] table")?;
        let labeler = reward.labeler.clone().context("the run's recipe has no [reward.labeler] table")?;
        let sft = reward.sft.clone().unwrap_or_else(|| dir.stage(Stage::Sft).model());
        let files = ModelFiles::open(&sft, HeadKind::Language)?;
        let sft = files.load(&device::open(&recipe.device.0)?, recipe.precision)?;
        Ok(Self { protocol, recipe, reward, labeler, files, sft })
    }

    /// Samples responses to prompts of the pool and held-out ones, and has gold rank them.
    pub fn tasks(&self, seed: u64) -> Result<Tasks> {
        let LabelerConfig { gold, k, max_new_tokens, temperature, .. } = self.labeler.clone();
        let Protocol { n_pool, n_heldout, .. } = self.protocol;
        let asked = Asked { table: "reward.labeler", n_prompts: n_pool + n_heldout, k, max_new_tokens, temperature };
        asked.check()?;
        let tokenizer = &self.files.tokenizer;
        let mut prompts = asked.prompts_of_corpus(self.recipe.corpus.as_ref(), tokenizer)?;
        // What is held out must not be in the pool too.
        prompts.sort_unstable();
        prompts.dedup();
        let prompts = asked.pick(prompts, seed)?;
        let mut context = StageContext {
            seed,
            device: self.sft.weights.device().clone(),
            precision: self.recipe.precision,
            // Nothing is written.
            out_dir: Stage::Reward.name().into(),
            stop: StopFlag::default(),
            live: Live::default(),
            observer: &mut Unobserved,
            started: Instant::now(),
        };
        let requests = asked.sample(&prompts, (&self.sft.config, &self.sft.weights), tokenizer, &mut context)?;
        let ranked = labeler::rank(gold.build()?.as_mut(), &requests, k).map_err(anyhow::Error::msg)?;
        let ranked = ranked.into_iter().map(|one| {
            let sequences = response_sequences(tokenizer, &one.prompt, &one.responses, one.tokens.as_ref())?;
            Ok(RankedResponses { sequences, ranks: one.ranks })
        });
        let mut heldout = ranked.collect::<Result<Vec<_>>>()?;
        let pool = heldout.split_off(n_heldout);
        Ok(Tasks { seed, pool, heldout })
    }

    /// Trains on the tasks that every setting begins with.
    pub fn first(&self, tasks: &Tasks) -> Result<Trained> {
        let labeled: Vec<usize> = (0..self.protocol.sizes[0]).collect();
        self.train(tasks, &labeled)
    }

    /// One setting's curve, from the first tasks on; `told` hears of each point.
    pub fn curve(
        &self,
        tasks: &Tasks,
        setting: AcquireBy,
        first: &Trained,
        mut told: impl FnMut(&Point) -> Result<()>,
    ) -> Result<Vec<Point>> {
        let Protocol { sizes, random_share, .. } = &self.protocol;
        let mut labeled: Vec<usize> = (0..sizes[0]).collect();
        let mut open = Open::new(labeled.len()..tasks.pool.len(), setting, *random_share, tasks.seed);
        let mut n_random = labeled.len();
        let mut points: Vec<Point> = Vec::new();
        let mut newest: Option<Trained> = None;
        for &size in sizes {
            let since = Instant::now();
            let n_new = size - labeled.len();
            if n_new > 0 {
                let model = &newest.as_ref().unwrap_or(first).model;
                self.have_chosen(&mut open, tasks, &labeled, setting, model)?;
                let next = open.take(n_new);
                n_random += next.iter().filter(|(arm, _)| *arm == Arm::Random).count();
                labeled.extend(next.into_iter().map(|(_, task)| task));
                newest = Some(self.train(tasks, &labeled)?);
            }
            let trained = newest.as_ref().unwrap_or(first);
            let PairAccuracy { mean, stderr, .. } = trained.accuracy;
            let point = Point {
                seed: tasks.seed,
                setting,
                n_labeled: labeled.len(),
                n_random,
                n_pairs: labeled.iter().map(|task| pairs(&tasks.pool[*task].ranks).len()).sum(),
                accuracy: mean,
                stderr,
                seconds: if n_new > 0 { since.elapsed().as_secs_f64() } else { trained.seconds },
            };
            told(&point)?;
            points.push(point);
        }
        Ok(points)
    }

    /// Puts the tasks that are the reward model's to choose into its order.
    fn have_chosen(
        &self,
        open: &mut Open,
        tasks: &Tasks,
        labeled: &[usize],
        setting: AcquireBy,
        model: &ScalarModel,
    ) -> Result<()> {
        if open.acquired.is_empty() {
            return Ok(());
        }
        let candidates = read(model, tasks, &open.acquired)?;
        // Only heads learn from what is labelled.
        let labeled = if setting == AcquireBy::Disagreement { labeled } else { &[] };
        let ranked = read(model, tasks, labeled)?.into_iter().zip(labeled);
        let ranked: Vec<RankedFeatures> = ranked
            .map(|(read, task)| RankedFeatures { features: read.features, ranks: tasks.pool[*task].ranks.clone() })
            .collect();
        let order = order(setting, self.protocol.n_heads, &candidates, &ranked, tasks.seed);
        open.acquired = order.into_iter().map(|idx| open.acquired[idx]).collect();
        Ok(())
    }

    /// Trains a reward model from the SFT model on these tasks of the pool. The recipe's passes over few tasks would
    /// end before anything is learnt, so there are as many as make the least number of steps.
    fn train(&self, tasks: &Tasks, labeled: &[usize]) -> Result<Trained> {
        let since = Instant::now();
        let RewardConfig { n_epochs, optim, .. } = &self.reward;
        let Protocol { batch_size, least_steps, .. } = self.protocol;
        let steps_per_pass = labeled.len().div_ceil(batch_size);
        let n_passes = least_steps.div_ceil(steps_per_pass).max(*n_epochs);
        let mut order = rng::for_purpose(tasks.seed, "order of comparisons");
        let minibatches: Vec<Vec<usize>> =
            (0..n_passes).flat_map(|_| shuffled_minibatches(labeled.len(), batch_size, &mut order)).collect();
        let InputModel { config, weights } = &self.sft;
        let start = scalar_from_language(config, weights, &mut rng::for_purpose(tasks.seed, "scalar head"))?;
        let mut trainer = RewardTrainer::new(config, &start, optim, minibatches.len() as u64)?;
        for minibatch in minibatches {
            let batch: Vec<RankedResponses> = minibatch.iter().map(|&idx| tasks.pool[labeled[idx]].clone()).collect();
            trainer.step(&batch)?;
        }
        let model = trainer.model()?;
        let accuracy = pair_accuracy(&model, &tasks.heldout, optim.microbatch_tokens)?;
        Ok(Trained { model, accuracy, seconds: since.elapsed().as_secs_f64() })
    }
}

/// Tasks of the pool that are not labelled yet, by their arms, in the order in which they will be asked.
struct Open {
    random: Vec<usize>,
    acquired: Vec<usize>,
}

impl Open {
    /// Draws the arms, which stay as they are.
    fn new(tasks: std::ops::Range<usize>, setting: AcquireBy, random_share: f64, seed: u64) -> Self {
        let share = if setting == AcquireBy::Random { 1.0 } else { random_share };
        let arms = draw_arms(tasks.len(), share, &mut rng::for_purpose(seed, "arms"));
        let (random, acquired): (Vec<_>, Vec<_>) = tasks.zip(arms).partition(|(_, arm)| *arm == Arm::Random);
        let tasks = |drawn: Vec<(usize, Arm)>| drawn.into_iter().map(|(task, _)| task).collect();
        Self { random: tasks(random), acquired: tasks(acquired) }
    }

    /// Takes the next `n`, the arms in turns.
    fn take(&mut self, n: usize) -> Vec<(Arm, usize)> {
        let arms: Vec<Arm> = turns(self.random.len(), self.acquired.len()).take(n).collect();
        let n_random = arms.iter().filter(|arm| **arm == Arm::Random).count();
        let mut random = self.random.drain(..n_random);
        let mut acquired = self.acquired.drain(..arms.len() - n_random);
        let next = |arm: Arm| Some((arm, if arm == Arm::Random { random.next() } else { acquired.next() }?));
        arms.into_iter().filter_map(next).collect()
    }
}

/// What a reward model makes of tasks of the pool.
fn read(model: &ScalarModel, tasks: &Tasks, which: &[usize]) -> Result<Vec<Candidate>> {
    let sequences: Vec<&[u32]> =
        which.iter().flat_map(|task| &tasks.pool[*task].sequences).map(Vec::as_slice).collect();
    let mut read = sequence_features(model, &sequences, TOKENS_PER_PASS)?.into_iter();
    let candidate = |task: &usize| {
        let own = read.by_ref().take(tasks.pool[*task].sequences.len());
        let (features, scores) = own.map(|one| (one.hidden, one.score)).unzip();
        Candidate { features, scores }
    };
    Ok(which.iter().map(candidate).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_the_random_share_is_random_in_every_round_and_no_task_comes_twice() {
        let mut open = Open::new(7..207, AcquireBy::Margin, 0.2, 3);
        let (mut n_random, mut seen) = (0, Vec::new());
        for n in [7, 14, 28, 56] {
            let next = open.take(n);
            assert_eq!(next.len(), n);
            n_random += next.iter().filter(|(arm, _)| *arm == Arm::Random).count();
            seen.extend(next.iter().map(|(_, task)| *task));
            assert!(5 * n_random >= seen.len(), "{n_random} of {}", seen.len());
            // As a reward model does.
            open.acquired.reverse();
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 105);
        assert!(Open::new(0..50, AcquireBy::Random, 0.2, 3).acquired.is_empty());
    }
}
