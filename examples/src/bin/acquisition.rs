//! How many comparisons does choosing them save? A reward model of the example has learnt from its first rankings; then
//! simulated labelers compare two responses at a time, and its head is trained anew on 25, 50, 100, 200 and 400 comparisons:
//! drawn at random, or four fifths of them chosen by the reward model so far, as `collimate label prioritize` chooses.
//!
//!     cargo run --release -p collimate-examples --bin acquisition -- [FOLDER] [N_SEEDS]
//!
//! FOLDER (runs/acquisition) keeps the SFT model. The labelers make mistakes: they prefer a response with the probability
//! that Bradley and Terry's model gives for the difference of the gold scores (Gao et al. 2023, arXiv 2210.10760, have a gold
//! model too). Accuracy is on pairs of other prompts, as the gold scores order them. All settings of a seed share the first
//! comparisons, the held-out pairs and every labeler's mistakes. The decoder stays as it is, so that what its last hidden
//! states are is worked out once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow};
use collimate::stages::context::{StageContext, StageObserver, StopFlag};
use collimate::stages::inputs::{ModelFiles, load_corpus};
use collimate::stages::recipe::CorpusConfig;
use collimate::stages::{sampling, sft};
use collimate::view::Live;
use collimate_models::arch::{HeadKind, ModelConfig, Precision, ScalarModel, Weights, scalar_from_language};
use collimate_models::data::corpus::Split;
use collimate_models::feedback::acquisition::{AcquireBy, Candidate, LEAST_RANDOM_SHARE, RankedFeatures, order};
use collimate_models::generate::{SamplingParams, TOKENS_PER_PASS};
use collimate_models::reward::BuiltinReward;
use collimate_models::train::{
    OptimConfig, RankedResponses, RewardTrainer, SequenceFeatures, pair_accuracy, sequence_features,
    shuffled_minibatches,
};
use collimate_models::{Device, rng};
use collimate_protocol::roles::RewardRequest;
use rand::Rng;

/// Comparisons after each round.
const SIZES: [usize; 5] = [25, 50, 100, 200, 400];
/// How many are needed for the accuracy that this many random ones reach.
const TARGET_SIZE: usize = 200;
/// What the reward model learns from first: pairs whose prompts are neither in the pool nor held out.
const N_FIRST: usize = 800;
const N_POOL: usize = 1000;
const N_HELDOUT: usize = 600;
const N_EPOCHS: usize = 2;
const BATCH_SIZE: usize = 16;
const N_HEADS: usize = 16;
/// What divides the difference of gold scores: the smaller, the fewer mistakes.
const LABELER_TEMPERATURE: f64 = 0.25;
const SETTINGS: [(&str, AcquireBy); 3] =
    [("random", AcquireBy::Random), ("margin", AcquireBy::Margin), ("disagreement", AcquireBy::Disagreement)];
const N_RESAMPLINGS: usize = 2000;

/// Two responses to a prompt, and what they are worth.
struct Pair {
    sequences: Vec<Vec<u32>>,
    gold: [f64; 2],
}

impl Pair {
    /// As somebody ranked it who sees the gold scores through noise; `chance` is from 0 to 1.
    fn labeled(&self, chance: f64) -> RankedResponses {
        let first_wins = 1.0 / (1.0 + (-(self.gold[0] - self.gold[1]) / LABELER_TEMPERATURE).exp());
        let ranks = if chance < first_wins { vec![1, 2] } else { vec![2, 1] };
        RankedResponses { sequences: self.sequences.clone(), ranks }
    }

    /// As the gold scores rank it.
    fn by_gold(&self) -> RankedResponses {
        let ranks = if self.gold[0] > self.gold[1] { vec![1, 2] } else { vec![2, 1] };
        RankedResponses { sequences: self.sequences.clone(), ranks }
    }
}

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "runs/acquisition".to_owned()));
    let n_seeds: u64 = std::env::args().nth(2).map_or(Ok(20), |n| n.parse())?;
    let files = ModelFiles::open(&sft_model(&out)?, HeadKind::Language)?;
    let weights = files.load(&Device::Cpu, Precision::F32)?.weights;
    let pairs = sample_pairs(&files, &weights)?;
    let n_right: usize = pairs
        .iter()
        .enumerate()
        .filter(|(idx, pair)| pair.labeled(chance(0, *idx)).ranks == pair.by_gold().ranks)
        .count();
    let (first, others) = pairs.split_at(N_FIRST);
    let first: Vec<RankedResponses> =
        first.iter().enumerate().map(|(idx, pair)| pair.labeled(chance(0, idx))).collect();
    let model = reward_model(&files.config, &weights, &first)?;
    let by_gold: Vec<RankedResponses> = others.iter().map(Pair::by_gold).collect();
    let before = pair_accuracy(&model, &by_gold, TOKENS_PER_PASS)?;
    println!(
        "A labeler orders {:.3} of the pairs as gold does; the first {N_FIRST} make a reward model that orders {:.3} ± {:.3} \
         of the others so.\n",
        n_right as f64 / pairs.len() as f64,
        before.mean,
        before.stderr
    );
    let read = read(&model, others)?;

    // For each setting and seed, the accuracy at each size.
    let mut curves = vec![Vec::new(); SETTINGS.len()];
    for seed in 1..=n_seeds {
        for (curves, (_, by)) in curves.iter_mut().zip(SETTINGS) {
            curves.push(one_curve(others, &read, by, seed));
        }
    }
    print_table(&curves);
    Ok(())
}

/// The example's SFT model, trained unless it is there.
fn sft_model(out: &Path) -> Result<PathBuf> {
    let folder = out.join("sft");
    let model = folder.join("model");
    if !model.exists() {
        std::fs::create_dir_all(&folder)?;
        let optim = OptimConfig { lr: 5e-4, ..sft::SftConfig::default().optim };
        let config = sft::SftConfig { batch_size: 32, max_steps: 120, optim, ..sft::SftConfig::default() };
        let mut context = StageContext {
            seed: 1,
            device: Device::Cpu,
            precision: Precision::F32,
            out_dir: folder,
            stop: StopFlag::default(),
            live: Live::default(),
            observer: &mut Silent,
            started: Instant::now(),
        };
        sft::run(&config, &here().join("base"), Some(&corpus()), &mut context)?;
    }
    Ok(model)
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn corpus() -> CorpusConfig {
    CorpusConfig { paths: vec![here().join("data/austen")], ..CorpusConfig::default() }
}

/// Two responses to each of so many prompts, with their gold scores; pairs of equal scores can't be judged and are left out.
fn sample_pairs(files: &ModelFiles, weights: &Weights) -> Result<Vec<Pair>> {
    let config = corpus();
    let cut = load_corpus(Some(&config), &files.tokenizer, "the example")?;
    let continuations = cut.continuations(Split::Train, config.prompt_tokens, config.response_tokens);
    let mut prompts: Vec<Vec<u32>> = continuations.into_iter().map(|one| one.prompt).collect();
    rng::shuffle(&mut prompts, &mut rng::for_purpose(0, "prompts"));
    prompts.truncate(2 * (N_FIRST + N_POOL + N_HELDOUT));
    let params = SamplingParams { max_new_tokens: 32, ..SamplingParams::default() };
    let (mut sampler, snapshot) = sampling::policy_sampler(&files.config, weights, 64, params, 0)?;
    let rollouts = sampling::sample_all(&mut sampler, &snapshot, sampling::ticketed(&prompts, 2), |_| {})
        .map_err(|error| anyhow!(error))?;
    let requests =
        rollouts.iter().map(|rollout| RewardRequest::of(rollout, &files.tokenizer)).collect::<Result<Vec<_>, _>>();
    let requests = requests.map_err(|error| anyhow!(error))?;
    let mut gold = BuiltinReward::Lexicon { path: here().join("data/sentiment_lexicon.tsv") }.build()?;
    let gold = gold.scores(&requests).map_err(|error| anyhow!(error))?;
    let pairs =
        requests.chunks(2).zip(gold.chunks(2)).filter(|(_, gold)| gold[0] != gold[1]).map(|(pair, gold)| Pair {
            sequences: pair.iter().map(|one| [&one.prompt_tokens[..], &one.response_tokens].concat()).collect(),
            gold: [f64::from(gold[0]), f64::from(gold[1])],
        });
    let pairs: Vec<Pair> = pairs.take(N_FIRST + N_POOL + N_HELDOUT).collect();
    anyhow::ensure!(pairs.len() == N_FIRST + N_POOL + N_HELDOUT, "only {} pairs are of different gold", pairs.len());
    Ok(pairs)
}

/// What decides over the mistake that a labeler makes about a pair.
fn chance(seed: u64, pair: usize) -> f64 {
    rng::for_purpose(seed, &format!("labeler of pair {pair}")).random()
}

/// The held-out accuracy at each size.
fn one_curve(pairs: &[Pair], read: &[Candidate], by: AcquireBy, seed: u64) -> Vec<f64> {
    let mut order_of_all: Vec<usize> = (0..pairs.len()).collect();
    rng::shuffle(&mut order_of_all, &mut rng::for_purpose(seed, "pool and held-out pairs"));
    let (heldout, pool) = order_of_all.split_at(N_HELDOUT);
    // In random order, so that the first ones are a random draw.
    let (mut unlabeled, mut labeled): (Vec<usize>, Vec<usize>) = (pool.to_vec(), Vec::new());
    let mut head: Option<Vec<f64>> = None;
    let mut accuracies = Vec::new();
    let told = |of: &[usize]| -> Vec<RankedFeatures> {
        let ranked = |idx: &usize| RankedFeatures {
            features: read[*idx].features.clone(),
            ranks: pairs[*idx].labeled(chance(seed, *idx)).ranks,
        };
        of.iter().map(ranked).collect()
    };
    for size in SIZES {
        let n_new = size - labeled.len();
        let n_random = match head {
            Some(_) if by != AcquireBy::Random => (n_new as f64 * LEAST_RANDOM_SHARE).ceil() as usize,
            _ => n_new,
        };
        labeled.extend(unlabeled.drain(..n_random));
        if let Some(head) = head.as_ref().filter(|_| n_random < n_new) {
            let scored = |idx: &usize| Candidate {
                features: read[*idx].features.clone(),
                scores: read[*idx].features.iter().map(|one| dot(head, one) as f32).collect(),
            };
            let candidates: Vec<Candidate> = unlabeled.iter().map(scored).collect();
            let mut chosen = order(by, N_HEADS, &candidates, &told(&labeled), seed + size as u64);
            chosen.truncate(n_new - n_random);
            labeled.extend(chosen.iter().map(|place| unlabeled[*place]));
            chosen.sort_unstable();
            for place in chosen.into_iter().rev() {
                unlabeled.remove(place);
            }
        }
        let trained = train_head(&told(&labeled));
        let n_right = heldout.iter().filter(|idx| {
            let [first, second] = [0, 1].map(|place| dot(&trained, &read[**idx].features[place]));
            (first > second) == (pairs[**idx].gold[0] > pairs[**idx].gold[1])
        });
        accuracies.push(n_right.count() as f64 / heldout.len() as f64);
        head = Some(trained);
    }
    accuracies
}

fn dot(head: &[f64], features: &[f32]) -> f64 {
    head.iter().zip(features).map(|(weight, x)| weight * f64::from(*x)).sum()
}

/// The reward model's head, trained anew: the minimum of the ranking loss, summed over the comparisons, and half the squared
/// length of the head, by gradient descent. Hidden states come out of a norm, so they are of one size already.
fn train_head(labeled: &[RankedFeatures]) -> Vec<f64> {
    const N_STEPS: usize = 300;
    let differences: Vec<Vec<f64>> = labeled
        .iter()
        .map(|RankedFeatures { features, ranks }| {
            let [better, worse] = if ranks[0] < ranks[1] { [0, 1] } else { [1, 0] };
            features[better].iter().zip(&features[worse]).map(|(a, b)| f64::from(a - b)).collect()
        })
        .collect();
    // No direction curves more than this: the loss of a pair by a quarter of its squared length.
    let squares: f64 = differences.iter().flatten().map(|x| x * x).sum();
    let step = 1.0 / (1.0 + 0.25 * squares);
    let mut head = vec![0.0; differences[0].len()];
    let mut moving = head.clone();
    for n in 0..N_STEPS {
        // Nesterov 1983: the gradient is taken a little ahead.
        let mut gradient = moving.clone();
        for difference in &differences {
            let margin: f64 = moving.iter().zip(difference).map(|(weight, d)| weight * d).sum();
            let doubt = 1.0 / (1.0 + margin.exp());
            gradient.iter_mut().zip(difference).for_each(|(sum, d)| *sum -= doubt * d);
        }
        let next: Vec<f64> = moving.iter().zip(&gradient).map(|(weight, slope)| weight - step * slope).collect();
        let ahead = n as f64 / (n as f64 + 3.0);
        moving = next.iter().zip(&head).map(|(new, old)| new + ahead * (new - old)).collect();
        head = next;
    }
    head
}

/// What a reward model makes of these pairs.
fn read(model: &ScalarModel, pairs: &[Pair]) -> Result<Vec<Candidate>> {
    let sequences: Vec<&[u32]> = pairs.iter().flat_map(|pair| pair.sequences.iter().map(Vec::as_slice)).collect();
    let read = sequence_features(model, &sequences, TOKENS_PER_PASS)?;
    let candidate = |pair: &[SequenceFeatures]| {
        let (features, scores) = pair.iter().map(|one| (one.hidden.clone(), one.score)).unzip();
        Candidate { features, scores }
    };
    Ok(read.chunks(2).map(candidate).collect())
}

/// The reward stage's training, from the SFT model on.
fn reward_model(config: &Arc<ModelConfig>, sft: &Weights, train: &[RankedResponses]) -> Result<ScalarModel> {
    let optim = OptimConfig { lr: 1e-3, weight_decay: 0.0, ..OptimConfig::default() };
    let mut rng = rng::for_purpose(1, "order of comparisons");
    let minibatches: Vec<Vec<usize>> =
        (0..N_EPOCHS).flat_map(|_| shuffled_minibatches(train.len(), BATCH_SIZE, &mut rng)).collect();
    let start = scalar_from_language(config, sft, &mut rng::for_purpose(1, "scalar head"))?;
    let mut trainer = RewardTrainer::new(config, &start, &optim, minibatches.len() as u64)?;
    for minibatch in &minibatches {
        let batch: Vec<RankedResponses> = minibatch.iter().map(|idx| train[*idx].clone()).collect();
        trainer.step(&batch)?;
    }
    Ok(ScalarModel::frozen(config, &trainer.weights()?)?)
}

fn print_table(curves: &[Vec<Vec<f64>>]) {
    let sizes: Vec<String> = SIZES.iter().map(|size| format!("accuracy at {size}")).collect();
    println!("| comparisons | {} | as good as {TARGET_SIZE} random ones |", sizes.join(" | "));
    println!("|---|{}---|", "---|".repeat(SIZES.len()));
    let n_seeds = curves[0].len();
    let everything: Vec<usize> = (0..n_seeds).collect();
    let mut rng = rng::for_purpose(0, "resampled seeds");
    let resampled: Vec<Vec<usize>> =
        (0..N_RESAMPLINGS).map(|_| (0..n_seeds).map(|_| rng.random_range(0..n_seeds)).collect()).collect();
    for ((name, _), own) in SETTINGS.iter().zip(curves) {
        let cells: Vec<String> = (0..SIZES.len())
            .map(|idx| {
                let (mean, error) = mean_and_error(own.iter().map(|curve| curve[idx]).collect());
                format!("{mean:.3} ± {error:.3}")
            })
            .collect();
        let needed = |seeds: &[usize]| needed(&mean_curve(&curves[0], seeds), &mean_curve(own, seeds));
        let of_all = needed(&everything);
        let others: Vec<f64> =
            resampled.iter().map(|seeds| needed(seeds).unwrap_or(SIZES[SIZES.len() - 1] as f64)).collect();
        let mean = others.iter().sum::<f64>() / others.len() as f64;
        let spread = (others.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / (others.len() - 1) as f64).sqrt();
        let needed =
            of_all.map_or(format!("more than {}", SIZES[SIZES.len() - 1]), |n| format!("{n:.0} ± {spread:.0}"));
        println!("| {name} | {} | {needed} |", cells.join(" | "));
    }
}

fn mean_and_error(numbers: Vec<f64>) -> (f64, f64) {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

fn mean_curve(curves: &[Vec<f64>], seeds: &[usize]) -> Vec<f64> {
    (0..SIZES.len()).map(|idx| seeds.iter().map(|seed| curves[*seed][idx]).sum::<f64>() / seeds.len() as f64).collect()
}

/// Where a mean curve first comes to what random ones reach at the target size, between sizes by the logarithm; `None`
/// where it does not.
fn needed(random: &[f64], own: &[f64]) -> Option<f64> {
    let target = random[SIZES.iter().position(|size| *size == TARGET_SIZE).expect("one of the sizes")];
    if own[0] >= target {
        return Some(SIZES[0] as f64);
    }
    let steps = SIZES.windows(2).zip(own.windows(2));
    let mut crossing = steps.filter(|(_, accuracies)| accuracies[0] < target && accuracies[1] >= target);
    crossing.next().map(|(sizes, accuracies)| {
        let share = (target - accuracies[0]) / (accuracies[1] - accuracies[0]);
        let (low, high) = ((sizes[0] as f64).ln(), (sizes[1] as f64).ln());
        (low + share * (high - low)).exp()
    })
}

/// Says nothing.
struct Silent;

impl StageObserver for Silent {
    fn goes_on(&mut self, _n_done: u64) {}
    fn phase(&mut self, _name: &str, _n_steps: u64) {}
    fn step(&mut self, _n_done: u64, _metrics: &[(&'static str, f64)]) {}
    fn note(&mut self, _text: &str) {}
    fn warn(&mut self, _text: &str) {}
}
