//! How a project stands: what its admin sees, and what `collimate label agreement` prints.
//!
//! Agreement, consistency and bias are of the tasks that nobody has chosen: a reward model chooses those that are hard to
//! tell apart, and people agree less on them than on what is asked at large.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::Serialize;

use collimate_models::feedback::labelers::ENOUGH_RANKINGS;
use collimate_models::feedback::{
    Agreement, Interval, LabelerAgreement, Vote, agreement, agreement_by_labeler, consistency, labeler_agreement,
    merge, position_bias, ranking_agreement,
};
use collimate_protocol::records::Arm;

use super::store::stats::{self, LabelerCounts, StatedRanking, TaskCounts};
use super::store::tasks::{get, last_turn};
use super::store::{Millis, Result};

/// The bootstrap's seed: the same answers give the same interval each time they are looked at.
const SEED: u64 = 0;
/// Disagreements that are listed: as many as somebody may look at in a day.
const N_DISAGREEMENTS: usize = 50;
/// Characters of a prompt and of a response in the list.
const N_SHOWN: usize = 240;

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The number.
    pub value: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// What it is counted over.
    pub n: usize,
}

impl Measured {
    fn of(interval: Interval, n: usize) -> Self {
        let Interval { value, low, high } = interval;
        Self { value, low, high, n }
    }
}

/// How one labeler stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelerOverview {
    /// Counts and pace.
    #[serde(flatten)]
    pub counts: LabelerCounts,
    /// Mean agreement with the consensus of the others; absent where there is not enough data.
    pub agreement: Option<f64>,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// Rankings that others made too.
    pub n_shared: usize,
    /// Krippendorff's alpha of all who ranked what this labeler and others ranked; its `n` is these prompts. Absent where
    /// there is not enough data.
    pub alpha: Option<Measured>,
    /// Agreement with themselves on hidden repeats.
    pub self_consistency: Option<f64>,
    /// How many repeats.
    pub n_repeats: usize,
    /// The share of its pairs that the response shown first won, ties left out, 0.5 by chance; its `n` is the rankings in
    /// which something is not tied.
    pub share_of_first: Option<Measured>,
}

/// One ranking of a disagreement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Opinion {
    /// Whose.
    pub labeler: String,
    /// For each response its rank.
    pub ranks: Vec<u32>,
}

/// A task that labelers ranked differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disagreement {
    /// Its number.
    pub task: u64,
    /// How the prompt begins.
    pub prompt: String,
    /// How the responses begin.
    pub responses: Vec<String>,
    /// Who said what.
    pub opinions: Vec<Opinion>,
    /// All of them merged.
    pub merged: Vec<u32>,
    /// Mean agreement of its labelers.
    pub agreement: f64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// Progress.
    pub tasks: TaskCounts,
    /// Answers in the last hour, of all labelers.
    pub n_last_hour: i64,
    /// Rankings of tasks that a reward model or a person has chosen: they are no part of what follows, but for the
    /// disagreements.
    pub n_chosen: usize,
    /// Pairwise agreement; its `n` is the judgements compared.
    pub pairwise: Option<Measured>,
    /// Krippendorff's alpha; its `n` is the prompts that two or more ranked.
    pub alpha: Option<Measured>,
    /// Agreement of labelers with themselves on hidden repeats.
    pub self_consistency: Option<f64>,
    /// How many repeats.
    pub n_repeats: usize,
    /// The share of its pairs that the response shown first won, ties left out, 0.5 by chance; its `n` is the rankings in
    /// which something is not tied.
    pub share_of_first: Option<Measured>,
    /// Each labeler.
    pub labelers: Vec<LabelerOverview>,
    /// Tasks that labelers ranked differently.
    pub n_disagreements: usize,
    /// Those on which they differ most, the worst first.
    pub disagreements: Vec<Disagreement>,
}

/// Of a project as it is now.
pub fn overview(connection: &Connection, now: Millis) -> Result<Overview> {
    let votes_of = |rankings: &[StatedRanking]| -> Vec<Vote> {
        rankings.iter().filter(|ranking| !ranking.is_repeat).map(|ranking| ranking.vote.clone()).collect()
    };
    let all = stats::rankings(connection)?;
    let votes_of_all = votes_of(&all);
    let n_all = all.len();
    let is_chosen = |ranking: &StatedRanking| matches!(ranking.arm, Some(Arm::Acquired | Arm::Picked));
    let rankings: Vec<StatedRanking> = all.into_iter().filter(|ranking| !is_chosen(ranking)).collect();
    let votes = votes_of(&rankings);
    let among = agreement(&votes, SEED);
    let of_labelers = labeler_agreement(&votes);
    let around_labelers = agreement_by_labeler(&votes, SEED);
    let counts = stats::labelers(connection, now)?;
    let names: BTreeMap<u64, String> = counts.iter().map(|labeler| (labeler.id as u64, labeler.name.clone())).collect();
    let (n_disagreements, disagreements) = disagreements(connection, &votes_of_all, &names)?;
    let all_repeats = consistency(&repeats(&rankings, None));
    Ok(Overview {
        tasks: stats::tasks(connection)?,
        n_last_hour: counts.iter().map(|labeler| labeler.n_last_hour).sum(),
        n_chosen: n_all - rankings.len(),
        pairwise: among.map(|among| Measured::of(among.pairwise, among.n_judgements as usize)),
        alpha: among.map(|among| Measured::of(among.alpha, among.n_prompts)),
        self_consistency: all_repeats.map(|repeats| repeats.mean),
        n_repeats: all_repeats.map_or(0, |repeats| repeats.n_repeats),
        share_of_first: share_of_first(&rankings, None),
        labelers: counts.into_iter().map(|counts| labeler(counts, &rankings, &of_labelers, &around_labelers)).collect(),
        n_disagreements,
        disagreements,
    })
}

fn labeler(
    counts: LabelerCounts,
    rankings: &[StatedRanking],
    agreements: &BTreeMap<u64, LabelerAgreement>,
    around: &BTreeMap<u64, Agreement>,
) -> LabelerOverview {
    let id = counts.id as u64;
    let (agreement, standard_error, n_shared) = match agreements.get(&id) {
        Some(LabelerAgreement::Known { mean, standard_error, n_rankings }) => {
            (Some(*mean), Some(*standard_error), *n_rankings)
        }
        Some(LabelerAgreement::NotEnoughData { n_rankings }) => (None, None, *n_rankings),
        None => (None, None, 0),
    };
    let around = around.get(&id).filter(|around| around.n_prompts >= ENOUGH_RANKINGS);
    let own = consistency(&repeats(rankings, Some(id)));
    LabelerOverview {
        counts,
        agreement,
        standard_error,
        n_shared,
        alpha: around.map(|around| Measured::of(around.alpha, around.n_prompts)),
        self_consistency: own.map(|own| own.mean),
        n_repeats: own.map_or(0, |own| own.n_repeats),
        share_of_first: share_of_first(rankings, Some(id)),
    }
}

/// First and second rankings of the same task by the same labeler.
fn repeats(rankings: &[StatedRanking], labeler: Option<u64>) -> Vec<(Vec<u32>, Vec<u32>)> {
    let of_labeler = rankings.iter().filter(|one| labeler.is_none_or(|id| id == one.vote.labeler));
    let (second, first): (Vec<_>, Vec<_>) = of_labeler.partition(|one| one.is_repeat);
    let first: BTreeMap<(u64, u64), &Vec<u32>> =
        first.into_iter().map(|one| ((one.vote.task, one.vote.labeler), &one.vote.ranks)).collect();
    let both = second.into_iter().filter_map(|one| {
        let before = first.get(&(one.vote.task, one.vote.labeler))?;
        Some(((*before).clone(), one.vote.ranks.clone()))
    });
    both.collect()
}

fn share_of_first(rankings: &[StatedRanking], labeler: Option<u64>) -> Option<Measured> {
    let of_labeler = rankings.iter().filter(|one| labeler.is_none_or(|id| id == one.vote.labeler));
    let bias = position_bias(of_labeler.map(|one| (one.vote.ranks.as_slice(), one.shown.as_slice())))?;
    Some(Measured::of(bias.share_of_first, bias.n_rankings))
}

/// How many there are, and the worst of them.
fn disagreements(
    connection: &Connection,
    votes: &[Vote],
    names: &BTreeMap<u64, String>,
) -> Result<(usize, Vec<Disagreement>)> {
    let mut tasks = BTreeMap::<u64, Vec<&Vote>>::new();
    votes.iter().for_each(|vote| tasks.entry(vote.task).or_default().push(vote));
    let mut worst: Vec<(f64, u64, Vec<&Vote>)> = tasks
        .into_iter()
        .filter_map(|(task, votes)| Some((mean_agreement(&votes)?, task, votes)))
        .filter(|(agreement, ..)| *agreement < 1.0)
        .collect();
    worst.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let n_all = worst.len();
    worst.truncate(N_DISAGREEMENTS);
    let begin = |text: &str| -> String { text.chars().take(N_SHOWN).collect() };
    let listed = worst.into_iter().map(|(agreement, number, votes)| {
        let task = get(connection, number as i64)?;
        let rankings: Vec<&[u32]> = votes.iter().map(|vote| vote.ranks.as_slice()).collect();
        let opinion = |vote: &&Vote| Opinion {
            labeler: names.get(&vote.labeler).cloned().unwrap_or_default(),
            ranks: vote.ranks.clone(),
        };
        Ok(Disagreement {
            task: number,
            prompt: begin(last_turn(&task.prompt)),
            responses: task.responses.iter().map(|response| begin(response)).collect(),
            opinions: votes.iter().map(opinion).collect(),
            merged: merge(&rankings),
            agreement,
        })
    });
    Ok((n_all, listed.collect::<Result<_>>()?))
}

/// Over all pairs of a task's labelers.
fn mean_agreement(votes: &[&Vote]) -> Option<f64> {
    let pairs = votes.iter().enumerate().flat_map(|(idx, one)| votes[idx + 1..].iter().map(move |other| (one, other)));
    let agreements: Vec<f64> = pairs.filter_map(|(one, other)| ranking_agreement(&one.ranks, &other.ranks)).collect();
    (!agreements.is_empty()).then(|| agreements.iter().sum::<f64>() / agreements.len() as f64)
}
