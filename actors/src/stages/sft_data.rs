//! What SFT trains on: demonstrations cut from the corpus, which are held in memory, or those of files, which are read
//! anew in each pass.

use std::path::Path;

use collimate_models::data::corpus::{Continuation, Split, is_heldout};
use collimate_models::data::demonstrations::stream_examples;
use collimate_models::data::limit::{Fitted, LengthCounts, LengthLimit};
use collimate_models::data::passes::{Items, Pass, Source};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_models::train::{LmExample, shuffled_minibatches};

use super::context::StageError;
use super::data_files::DataFiles;
use super::inputs::{ModelFiles, load_corpus};
use super::recipe::CorpusConfig;
use super::sft::SftConfig;

/// Held-out demonstrations of files that are kept: enough to judge by, however large the files are.
const MAX_HELDOUT: usize = 2000;

/// One batch, or what is wrong with the file it comes from.
type Batch = Result<Vec<LmExample>, StageError>;

/// Demonstrations in tokens.
pub struct SftData {
    train: Train,
    /// What SFT is judged by.
    pub heldout: Vec<LmExample>,
    longest: usize,
    /// What there is to tell of demonstrations that were too long.
    told: Option<String>,
}

enum Train {
    Memory(Vec<LmExample>),
    Files(Box<Files>),
}

/// Files, and how one is read.
struct Files {
    sources: Vec<Source>,
    tokenizer: Tokenizer,
    limit: LengthLimit,
    heldout_share: f64,
    /// Examples that a pass takes, about.
    n_train: usize,
}

impl SftData {
    /// Demonstrations of files. Each is read once to see whether all of it can be learnt, and how much it is.
    pub fn of_files(files: &DataFiles, config: &SftConfig, base: &ModelFiles) -> Result<Self, StageError> {
        let limit = LengthLimit::new(config.max_tokens, base.config.context_len, config.too_long)?;
        let mut counts = LengthCounts::default();
        let mut files = Files {
            sources: files.sources(),
            limit,
            tokenizer: base.tokenizer.clone(),
            heldout_share: config.heldout_share,
            n_train: 0,
        };
        let mut heldout = Vec::new();
        let (mut n_train, mut longest) = (0.0, 0);
        for source in &files.sources {
            source.validate()?;
            let mut is_empty = true;
            for example in stream_examples(&source.path, &files.tokenizer, limit)? {
                let (idx, example) = example?;
                let Some(example) = counts.count(example) else { continue };
                is_empty = false;
                longest = longest.max(example.tokens.len());
                match is_heldout(idx, files.heldout_share) {
                    true if heldout.len() < MAX_HELDOUT => heldout.push(example),
                    true => {}
                    false => n_train += source.weight,
                }
            }
            if is_empty {
                let told = counts.tell("demonstrations", limit).map_or(String::new(), |told| format!(": {told}"));
                return Err(StageError::Setting(format!("{}: holds no demonstration{told}", source.path.display())));
            }
        }
        files.n_train = n_train.round() as usize;
        Self { train: Train::Files(Box::new(files)), heldout, longest, told: counts.tell("demonstrations", limit) }
            .checked()
    }

    /// Demonstrations cut from the corpus.
    pub fn of_corpus(corpus: Option<&CorpusConfig>, tokenizer: &Tokenizer) -> Result<Self, StageError> {
        let [train, heldout] = cut(corpus, tokenizer)?;
        let longest = train.iter().chain(&heldout).map(|example| example.tokens.len()).max().unwrap_or(0);
        Self { train: Train::Memory(train), heldout, longest, told: None }.checked()
    }

    fn checked(self) -> Result<Self, StageError> {
        let (n_train, n_heldout) = (self.n_train(), self.heldout.len());
        if n_train > 0 && n_heldout > 0 {
            return Ok(self);
        }
        Err(StageError::Setting(format!(
            "{n_train} demonstrations to train on and {n_heldout} held out: there must be at least one of each"
        )))
    }

    /// What there is to tell of demonstrations that were too long.
    pub fn told(&self) -> Option<&str> {
        self.told.as_deref()
    }

    /// Tokens of the longest demonstration.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// How many examples a pass trains on; about, where a weight of the files is no whole number.
    pub fn n_train(&self) -> usize {
        match &self.train {
            Train::Memory(examples) => examples.len(),
            Train::Files(files) => files.n_train,
        }
    }

    /// The batches of all passes, each shuffled.
    pub fn batches<'a>(&'a self, config: &'a SftConfig, seed: u64) -> Box<dyn Iterator<Item = Batch> + 'a> {
        match &self.train {
            Train::Memory(examples) => {
                let mut rng = rng::for_purpose(seed, "order of demonstrations");
                let minibatches = (0..config.n_epochs)
                    .flat_map(move |_| shuffled_minibatches(examples.len(), config.batch_size, &mut rng));
                Box::new(minibatches.map(|batch| Ok(batch.into_iter().map(|idx| examples[idx].clone()).collect())))
            }
            Train::Files(files) => Box::new((0..config.n_epochs).flat_map(move |epoch| {
                let rng = rng::for_purpose(seed, &format!("order of demonstrations in pass {epoch}"));
                let batches: Box<dyn Iterator<Item = Batch>> =
                    match Pass::new(&files.sources, |path| files.open(path), config.shuffle_buffer, rng) {
                        Ok(pass) => Box::new(Batches { pass, size: config.batch_size }),
                        Err(error) => Box::new(std::iter::once(Err(error.into()))),
                    };
                batches
            })),
        }
    }
}

impl Files {
    /// What is trained on of one file.
    fn open(&self, path: &Path) -> collimate_models::Result<Items<LmExample>> {
        let share = self.heldout_share;
        let examples = stream_examples(path, &self.tokenizer, self.limit)?;
        Ok(Box::new(examples.filter_map(move |example| match example {
            Ok((idx, _)) if is_heldout(idx, share) => None,
            Ok((_, Fitted::Whole(example) | Fitted::Truncated(example))) => Some(Ok(example)),
            Ok((_, Fitted::Dropped)) => None,
            Err(error) => Some(Err(error)),
        })))
    }
}

/// A pass in batches; the last may be smaller.
struct Batches {
    pass: Pass<LmExample>,
    size: usize,
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        match self.pass.by_ref().take(self.size).collect::<Result<Vec<_>, _>>() {
            Ok(batch) if batch.is_empty() => None,
            Ok(batch) => Some(Ok(batch)),
            Err(error) => Some(Err(error.into())),
        }
    }
}

/// Demonstrations cut from the corpus, to train on and held out.
pub fn cut(corpus: Option<&CorpusConfig>, tokenizer: &Tokenizer) -> Result<[Vec<LmExample>; 2], StageError> {
    let cut = load_corpus(corpus, tokenizer, "cutting demonstrations")?;
    let lengths = corpus.cloned().unwrap_or_default();
    Ok([Split::Train, Split::Heldout].map(|split| {
        let continuations = cut.continuations(split, lengths.prompt_tokens, lengths.response_tokens);
        continuations.iter().map(example).collect()
    }))
}

fn example(continuation: &Continuation) -> LmExample {
    let tokens = [continuation.prompt.as_slice(), &continuation.response].concat();
    LmExample::response(tokens, continuation.prompt.len())
}
