//! Tasks that labelers ranked differently, which the admin may settle.

use std::collections::BTreeMap;

use collimate_models::feedback::{Vote, merge, ranking_agreement};
use collimate_protocol::records::{Answer, LabelTask, Ranking};
use rusqlite::Connection;
use serde::Serialize;

use super::store::answers::{self, Answered};
use super::store::settled::{self, Settled};
use super::store::tasks::{content_id, find, get, last_turn};
use super::store::{Result, StoreError, labelers, stats};

/// Disagreements in one part of the list: as many as somebody may look at in a day.
pub const N_LISTED: usize = 50;
/// Characters of a prompt and of a response in the list.
const N_SHOWN: usize = 240;

/// One ranking of a disagreement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Opinion {
    /// Whose.
    pub labeler: String,
    /// For each response its rank.
    pub ranks: Vec<u32>,
}

/// A task that labelers ranked differently, or that is settled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disagreement {
    /// The task: a hash of its content.
    pub task: String,
    /// How the prompt begins.
    pub prompt: String,
    /// How the responses begin.
    pub responses: Vec<String>,
    /// Who said what.
    pub opinions: Vec<Opinion>,
    /// All of them merged.
    pub merged: Vec<u32>,
    /// Mean agreement of its labelers; absent where fewer than two ranked it.
    pub agreement: Option<f64>,
    /// What it is settled by, if it is.
    pub settled: Option<Settled>,
}

/// A part of the list of all disagreements: those that are not settled come first, the worst before the others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// All of them.
    pub n_disagreements: usize,
    /// Of those, the settled ones.
    pub n_settled: usize,
    /// How many come before this part.
    pub from: usize,
    /// This part.
    pub disagreements: Vec<Disagreement>,
}

/// Of a project as it is now, [`N_LISTED`] from this one on.
pub fn list(connection: &Connection, from: usize) -> Result<Listed> {
    among(connection, &stats::first_votes(&stats::rankings(connection)?), from)
}

/// Of these votes, [`N_LISTED`] from this one on.
pub fn among(connection: &Connection, votes: &[Vote], from: usize) -> Result<Listed> {
    let settled = settled::tasks(connection)?;
    let names = labelers::names(connection)?;
    let mut tasks: BTreeMap<u64, Vec<&Vote>> = settled.iter().map(|task| (*task, Vec::new())).collect();
    votes.iter().for_each(|vote| tasks.entry(vote.task).or_default().push(vote));
    let mut listed: Vec<(bool, Option<f64>, u64, Vec<&Vote>)> = tasks
        .into_iter()
        .map(|(task, votes)| {
            let ranks: Vec<&[u32]> = votes.iter().map(|vote| vote.ranks.as_slice()).collect();
            (settled.contains(&task), mean_agreement(&ranks), task, votes)
        })
        .filter(|(is_settled, agreement, ..)| *is_settled || agreement.is_some_and(|agreement| agreement < 1.0))
        .collect();
    let of_agreement = |agreement: Option<f64>| agreement.unwrap_or(1.0);
    listed.sort_by(|a, b| a.0.cmp(&b.0).then(of_agreement(a.1).total_cmp(&of_agreement(b.1))).then(a.2.cmp(&b.2)));
    let n_disagreements = listed.len();
    let begin = |text: &str| -> String { text.chars().take(N_SHOWN).collect() };
    let part = listed.into_iter().skip(from).take(N_LISTED).map(|(_, agreement, number, votes)| {
        let task = get(connection, number as i64)?;
        let ranks: Vec<&[u32]> = votes.iter().map(|vote| vote.ranks.as_slice()).collect();
        let opinion = |vote: &&Vote| Opinion {
            labeler: names.get(&vote.labeler).cloned().unwrap_or_default(),
            ranks: vote.ranks.clone(),
        };
        Ok(Disagreement {
            task: content_id(&task),
            prompt: begin(last_turn(&task.prompt)),
            responses: task.responses.iter().map(|response| begin(response)).collect(),
            opinions: votes.iter().map(opinion).collect(),
            merged: merge(&ranks),
            agreement,
            settled: settled::of_task(connection, number as i64)?,
        })
    });
    let disagreements = part.collect::<Result<_>>()?;
    Ok(Listed { n_disagreements, n_settled: settled.len(), from, disagreements })
}

/// Over all pairs of a task's rankings.
fn mean_agreement(ranks: &[&[u32]]) -> Option<f64> {
    let pairs = ranks.iter().enumerate().flat_map(|(idx, one)| ranks[idx + 1..].iter().map(move |other| (one, other)));
    let agreements: Vec<f64> = pairs.filter_map(|(one, other)| ranking_agreement(one, other)).collect();
    (!agreements.is_empty()).then(|| agreements.iter().sum::<f64>() / agreements.len() as f64)
}

/// All that one labeler said of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FullOpinion {
    /// Who.
    pub labeler: String,
    /// When: RFC 3339, UTC.
    pub time: String,
    /// Which of that labeler's answers: the newest.
    pub revision: u32,
    /// The ranking with its flags, scores and notes.
    #[serde(flatten)]
    pub ranking: Ranking,
}

/// One task with all that was said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct FullDisagreement {
    /// What was asked.
    pub task: LabelTask,
    /// What each labeler said, by name.
    pub opinions: Vec<FullOpinion>,
    /// All of it merged.
    pub merged: Vec<u32>,
    /// Mean agreement of its labelers; absent where fewer than two ranked it.
    pub agreement: Option<f64>,
    /// What it is settled by, if it is.
    pub settled: Option<Settled>,
}

/// The number of the task with this content.
///
/// # Errors
/// [`StoreError::NotFound`] where there is none.
pub fn number_of(connection: &Connection, content: &str) -> Result<i64> {
    find(connection, content)?.ok_or_else(|| StoreError::NotFound("there is no such task".to_owned()))
}

/// All that was said of the task with this content.
///
/// # Errors
/// [`StoreError::NotFound`] where there is none, [`StoreError::Invalid`] where it can't be settled.
pub fn of_task(connection: &Connection, content: &str) -> Result<FullDisagreement> {
    let number = number_of(connection, content)?;
    let task = settled::rankable(connection, number)?;
    let mut newest = BTreeMap::<String, FullOpinion>::new();
    answers::of_task(connection, number, |answered| -> Result<()> {
        let Answered { answer: Answer::Ranking(ranking), provenance, .. } = answered else { return Ok(()) };
        let is_newest = newest.get(&provenance.labeler).is_none_or(|before| before.revision < provenance.revision);
        if !provenance.settled && is_newest {
            let (labeler, time, revision) = (provenance.labeler, provenance.time, provenance.revision);
            newest.insert(labeler.clone(), FullOpinion { labeler, time, revision, ranking });
        }
        Ok(())
    })?;
    let opinions: Vec<FullOpinion> = newest.into_values().collect();
    let ranks: Vec<&[u32]> = opinions.iter().map(|opinion| opinion.ranking.ranks.as_slice()).collect();
    let (merged, agreement) = (merge(&ranks), mean_agreement(&ranks));
    Ok(FullDisagreement { merged, agreement, settled: settled::of_task(connection, number)?, opinions, task })
}
