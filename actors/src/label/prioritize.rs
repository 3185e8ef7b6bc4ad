//! Which tasks come first: some that are drawn at random, and in turns with them those that a reward model chooses.

use std::collections::BTreeMap;
use std::path::Path;

use collimate_models::feedback::acquisition::{
    AcquireBy, Acquisition, Candidate, RankedFeatures, draw_arms, order, turns,
};
use collimate_models::roles::TaskReader;
use collimate_models::{Device, rng};
use collimate_protocol::records::{Answer, Arm, LabelTask};

use super::store::answers::{self, Which};
use super::store::places::{self, OpenTask, Placed, Told};
use super::store::{Store, StoreError, tasks};
use crate::stages::context::StageError;
use crate::stages::inputs::{InputModel, ModelFiles};
use collimate_models::arch::{HeadKind, Precision};

/// Tasks that are in memory as text at once.
const BATCH: usize = 512;

/// Heads that may disagree, unless another number is given.
pub const DEFAULT_HEADS: usize = 16;
/// Tasks that a reward model looks at at most, unless another number is given.
pub const DEFAULT_MOST: usize = 20_000;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PrioritizeError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The reward model can't be read.
    #[error(transparent)]
    Model(#[from] StageError),
    /// The reward model can't read the tasks.
    #[error(transparent)]
    Reading(#[from] collimate_models::Error),
    /// The reward model gave something else than numbers.
    #[error("{model}: gives {score} as a score")]
    NotFinite {
        /// Which.
        model: String,
        /// What.
        score: f32,
    },
}

/// How tasks get their places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prioritize {
    /// By what they are chosen.
    pub by: AcquireBy,
    /// The share that is drawn at random.
    pub random_share: f64,
    /// Heads that may disagree.
    pub n_heads: usize,
    /// The reward model looks at no more than so many.
    pub n_most: usize,
    /// Where the random numbers come from.
    pub seed: u64,
}

impl Prioritize {
    /// What makes no sense, if something does not.
    pub fn check(&self) -> Result<(), PrioritizeError> {
        let Self { by, random_share, n_heads, .. } = *self;
        Acquisition { by, random_share, n_heads }
            .problem()
            .map_or(Ok(()), |problem| Err(PrioritizeError::Setting(problem)))
    }
}

/// A reward model that reads tasks, with the name by which its scores are kept.
pub struct NamedReader {
    name: String,
    reader: TaskReader,
}

impl NamedReader {
    /// Reads a reward model's directory.
    pub fn open(dir: &Path, device: &Device) -> Result<Self, PrioritizeError> {
        let files = ModelFiles::open(dir, HeadKind::Scalar)?;
        let InputModel { config, weights } = files.load(device, Precision::F32)?;
        let name = files.name();
        Ok(Self { name, reader: TaskReader::new(&config, &weights, files.tokenizer)? })
    }

    fn read(&self, tasks: &[LabelTask]) -> Result<Vec<Option<Candidate>>, PrioritizeError> {
        let read = self.reader.read(tasks)?;
        match read.iter().flatten().flat_map(|one| &one.scores).find(|score| !score.is_finite()) {
            None => Ok(read),
            Some(score) => Err(PrioritizeError::NotFinite { model: self.name.clone(), score: *score }),
        }
    }
}

/// What became of the open tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prioritized {
    /// Drawn at random, now or before.
    pub n_random: usize,
    /// For the reward model to choose.
    pub n_acquired: usize,
    /// Of those, what it looked at.
    pub n_read: usize,
    /// Rankings that the heads learnt from.
    pub n_labeled: usize,
    /// Too long for it.
    pub n_too_long: usize,
}

/// Gives every open task its place. All of it happens, or nothing; what labelers do meanwhile goes on.
pub fn prioritize(
    store: &Store,
    how: &Prioritize,
    reader: Option<&NamedReader>,
) -> Result<Prioritized, PrioritizeError> {
    how.check()?;
    let open = store.read(places::open_tasks)?;
    let arms = arms_of(&open, how);
    let of_arm = |wanted: Arm| arms.iter().filter(move |(_, arm)| **arm == wanted).map(|(task, _)| *task);
    let mut random: Vec<i64> = of_arm(Arm::Random).collect();
    rng::shuffle(&mut random, &mut rng::for_purpose(how.seed, "random tasks"));
    let mut acquired: Vec<i64> = of_arm(Arm::Acquired).collect();
    // What is not looked at comes in random order after what is.
    rng::shuffle(&mut acquired, &mut rng::for_purpose(how.seed, "tasks to choose from"));
    let mut placed = Prioritized { n_random: random.len(), n_acquired: acquired.len(), ..Prioritized::default() };
    let mut told = BTreeMap::new();
    if let Some(reader) = reader {
        let unread = acquired.split_off(acquired.len().min(how.n_most));
        let (chosen, too_long) = choose(store, how, reader, &acquired, &mut told, &mut placed)?;
        acquired = [chosen, unread, too_long].concat();
    }
    let (mut random, mut acquired) = (random.into_iter(), acquired.into_iter());
    let in_turns = turns(placed.n_random, placed.n_acquired).map(|arm| {
        let task = if arm == Arm::Random { random.next() } else { acquired.next() };
        let task = task.expect("as many turns as tasks");
        Placed { task, arm, told: told.remove(&task) }
    });
    let picked = of_arm(Arm::Picked).map(|task| Placed { task, arm: Arm::Picked, told: None });
    // What a person has picked comes before all.
    let order: Vec<Placed> = picked.chain(in_turns).collect();
    store.write_now(move |connection| places::set(connection, &order))?;
    Ok(placed)
}

/// Every open task's arm: the one that it has, or one that is drawn now.
fn arms_of(open: &[OpenTask], how: &Prioritize) -> BTreeMap<i64, Arm> {
    let n_new = open.iter().filter(|task| task.arm.is_none()).count();
    let share = if how.by == AcquireBy::Random { 1.0 } else { how.random_share };
    let mut drawn = draw_arms(n_new, share, &mut rng::for_purpose(how.seed, "arms")).into_iter();
    open.iter().map(|task| (task.id, task.arm.or_else(|| drawn.next()).expect("one for each new task"))).collect()
}

/// These tasks in the reward model's order, and those that it can't read. What it made of each is kept in `told`.
fn choose(
    store: &Store,
    how: &Prioritize,
    reader: &NamedReader,
    tasks: &[i64],
    told: &mut BTreeMap<i64, Told>,
    placed: &mut Prioritized,
) -> Result<(Vec<i64>, Vec<i64>), PrioritizeError> {
    let (mut ids, mut candidates, mut too_long) = (Vec::new(), Vec::new(), Vec::new());
    for batch in tasks.chunks(BATCH) {
        let read = store.read(|connection| batch.iter().map(|task| tasks::get(connection, *task)).collect())?;
        let read: Vec<LabelTask> = read;
        for (task, candidate) in batch.iter().zip(reader.read(&read)?) {
            match candidate {
                Some(candidate) => {
                    told.insert(*task, Told { model: reader.name.clone(), scores: candidate.scores.clone() });
                    ids.push(*task);
                    candidates.push(candidate);
                }
                None => too_long.push(*task),
            }
        }
    }
    let labeled = if how.by == AcquireBy::Disagreement { labeled(store, reader)? } else { Vec::new() };
    (placed.n_read, placed.n_labeled, placed.n_too_long) = (ids.len(), labeled.len(), too_long.len());
    let chosen = order(how.by, how.n_heads, &candidates, &labeled, how.seed);
    Ok((chosen.into_iter().map(|idx| ids[idx]).collect(), too_long))
}

/// What people have ranked so far, as the reward model has it.
fn labeled(store: &Store, reader: &NamedReader) -> Result<Vec<RankedFeatures>, PrioritizeError> {
    let mut ranked: Vec<(LabelTask, Vec<u32>)> = Vec::new();
    store.read(|connection| {
        answers::each(connection, Which::Training, |answered| -> Result<(), StoreError> {
            if let Answer::Ranking(ranking) = answered.answer {
                ranked.push((answered.task, ranking.ranks));
            }
            Ok(())
        })
    })?;
    let mut labeled = Vec::new();
    for batch in ranked.chunks(BATCH) {
        let (tasks, ranks): (Vec<LabelTask>, Vec<&Vec<u32>>) =
            batch.iter().map(|(task, ranks)| (task.clone(), ranks)).unzip();
        let read = reader.read(&tasks)?.into_iter().zip(ranks);
        labeled.extend(read.filter_map(|(candidate, ranks)| {
            candidate.map(|candidate| RankedFeatures { features: candidate.features, ranks: ranks.clone() })
        }));
    }
    Ok(labeled)
}
