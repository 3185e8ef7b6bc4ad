//! `evaluation.jsonl` as a list: what a run's policy answered to one prompt before PPO and after it, side by side.

use std::path::Path;

use collimate_protocol::records::{EvaluatedPolicy, EvaluationRecord};
use serde::{Deserialize, Serialize};

use crate::rundir::rollout_index::{N_HEAD, first_characters, last_characters};
use crate::rundir::rollout_query::MOST_ROWS;
use crate::rundir::{RunDir, RunDirError, Stage, read_jsonl};

/// What the list is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationSort {
    /// The order of the prompts.
    #[default]
    Id,
    /// Score after PPO, less that before.
    Gain,
    /// The same of the gold score.
    GoldGain,
    /// Score after PPO.
    After,
    /// Score before PPO.
    Before,
}

/// A part of the list: which prompts, in which order, from where on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationQuery {
    /// By what. Prompts that have no such number come last.
    pub sort: EvaluationSort,
    /// Smallest first.
    pub ascending: bool,
    /// With this text in the prompt or a response, in any case of letters.
    pub search: String,
    /// Leaves out so many at the front.
    pub offset: usize,
    /// At most so many, and at most [`MOST_ROWS`].
    pub limit: Option<u32>,
}

/// A held-out prompt with its responses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Its place among the prompts, from 1.
    pub id: usize,
    /// What the policy answered before PPO.
    pub before: EvaluationRecord,
    /// What it answered after PPO, once that has ended.
    pub after: Option<EvaluationRecord>,
}

impl Pair {
    fn key(&self, sort: EvaluationSort) -> Option<f32> {
        let (before, after) = (&self.before, self.after.as_ref());
        match sort {
            EvaluationSort::Id => Some(self.id as f32),
            EvaluationSort::Gain => after.map(|after| after.score - before.score),
            EvaluationSort::GoldGain => Some(after?.gold? - before.gold?),
            EvaluationSort::After => after.map(|after| after.score),
            EvaluationSort::Before => Some(before.score),
        }
    }

    /// `search` in lower case.
    fn has(&self, search: &str) -> bool {
        let texts =
            [Some(&self.before.prompt), Some(&self.before.response), self.after.as_ref().map(|it| &it.response)];
        texts.into_iter().flatten().any(|text| text.to_lowercase().contains(search))
    }
}

/// The numbers of a response.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Its score.
    pub score: f32,
    /// Its gold score, where there is one.
    pub gold: Option<f32>,
}

impl Scores {
    fn of(record: &EvaluationRecord) -> Self {
        Self { score: record.score, gold: record.gold }
    }
}

/// What the list shows of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationRow {
    /// Its place among the prompts, from 1.
    pub id: usize,
    /// Its last characters.
    pub prompt: String,
    /// The first characters of the newest response.
    pub response: String,
    /// Of the response before PPO.
    pub before: Scores,
    /// Of the response after it.
    pub after: Option<Scores>,
}

/// A part of the list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationPage {
    /// How many prompts the whole list has.
    pub total: usize,
    /// Whether there are responses from after PPO.
    pub has_after: bool,
    /// The prompts of the part.
    pub rows: Vec<EvaluationRow>,
}

/// What the run in a directory has been evaluated on: a line for each held-out prompt and policy, none before PPO.
///
/// # Errors
/// The directory holds no run, or the file can't be read.
pub fn read(root: &Path) -> Result<Vec<Pair>, RunDirError> {
    let path = RunDir::existing(root)?.stage(Stage::Ppo).evaluation();
    Ok(if path.exists() { pairs(read_jsonl(&path)?) } else { Vec::new() })
}

/// Puts together what both policies answered: they have the same prompts in the same order.
fn pairs(records: Vec<EvaluationRecord>) -> Vec<Pair> {
    let (before, after): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.policy == EvaluatedPolicy::Before);
    let mut after = after.into_iter();
    let pair = |(idx, before): (usize, EvaluationRecord)| {
        let after = after.next().filter(|after| after.prompt == before.prompt);
        Pair { id: idx + 1, before, after }
    };
    before.into_iter().enumerate().map(pair).collect()
}

/// The part that is asked for.
pub fn page(pairs: &[Pair], query: &EvaluationQuery) -> EvaluationPage {
    let search = query.search.trim().to_lowercase();
    let mut found: Vec<&Pair> = pairs.iter().filter(|pair| pair.has(&search)).collect();
    found.sort_by(|one, other| match (one.key(query.sort), other.key(query.sort)) {
        (Some(one), Some(other)) if query.ascending => one.total_cmp(&other),
        (Some(one), Some(other)) => other.total_cmp(&one),
        (one, other) => other.is_some().cmp(&one.is_some()),
    });
    let limit = query.limit.unwrap_or(MOST_ROWS).min(MOST_ROWS) as usize;
    let rows = found.iter().skip(query.offset).take(limit).map(|pair| EvaluationRow {
        id: pair.id,
        prompt: last_characters(&pair.before.prompt, N_HEAD).to_owned(),
        response: first_characters(&pair.after.as_ref().unwrap_or(&pair.before).response, N_HEAD).to_owned(),
        before: Scores::of(&pair.before),
        after: pair.after.as_ref().map(Scores::of),
    });
    let has_after = pairs.iter().any(|pair| pair.after.is_some());
    EvaluationPage { total: found.len(), has_after, rows: rows.collect() }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::FinishReason;

    use super::*;

    fn record(
        policy: EvaluatedPolicy,
        prompt: &str,
        response: &str,
        score: f32,
        gold: Option<f32>,
    ) -> EvaluationRecord {
        let (prompt, response) = (prompt.to_owned(), response.to_owned());
        EvaluationRecord { policy, prompt, response, n_tokens: 3, finish: FinishReason::End, score, gold, kl: 0.0 }
    }

    fn evaluated() -> Vec<Pair> {
        let before = |prompt, response, score| record(EvaluatedPolicy::Before, prompt, response, score, Some(0.0));
        let after = |prompt, response, score, gold| record(EvaluatedPolicy::After, prompt, response, score, gold);
        pairs(vec![
            before("It was", "grey", 0.5),
            before("He said", "NOTHING", 1.0),
            before("So they", "left", -1.0),
            after("It was", "a joy", 2.0, Some(0.5)),
            after("He said", "yes", 1.5, Some(3.0)),
        ])
    }

    #[test]
    fn both_responses_to_a_prompt_stand_side_by_side_and_an_unfinished_run_has_the_first_alone() {
        let pairs = evaluated();
        let responses: Vec<_> =
            pairs.iter().map(|pair| (&*pair.before.response, pair.after.as_ref().map(|it| &*it.response))).collect();
        assert_eq!(responses, [("grey", Some("a joy")), ("NOTHING", Some("yes")), ("left", None)]);
        let root = tempfile::tempdir().unwrap();
        drop(RunDir::open(root.path(), &toml::Table::new()).unwrap());
        assert_eq!(read(root.path()).unwrap(), []);
    }

    #[test]
    fn prompts_are_sorted_searched_and_come_in_parts() {
        let pairs = evaluated();
        let ids =
            |query: EvaluationQuery| -> Vec<usize> { page(&pairs, &query).rows.iter().map(|row| row.id).collect() };
        let by = |sort, ascending| EvaluationQuery { sort, ascending, ..EvaluationQuery::default() };
        assert_eq!(ids(by(EvaluationSort::Id, true)), [1, 2, 3]);
        assert_eq!(ids(by(EvaluationSort::Gain, false)), [1, 2, 3], "what has no gain comes last");
        assert_eq!(ids(by(EvaluationSort::Gain, true)), [2, 1, 3]);
        assert_eq!(ids(by(EvaluationSort::GoldGain, false)), [2, 1, 3]);
        assert_eq!(ids(by(EvaluationSort::Before, true)), [3, 1, 2]);
        assert_eq!(ids(by(EvaluationSort::After, false)), [1, 2, 3]);
        let search = |text: &str| EvaluationQuery { search: text.to_owned(), ..by(EvaluationSort::Id, true) };
        for (text, found) in [("nothing", &[2][..]), ("JOY", &[1]), ("so th", &[3]), ("none", &[])] {
            assert_eq!(ids(search(text)), found, "{text}");
        }
        let second = page(&pairs, &EvaluationQuery { offset: 1, limit: Some(1), ..by(EvaluationSort::Id, true) });
        assert_eq!((second.total, second.has_after, second.rows.len(), second.rows[0].id), (3, true, 1, 2));
        assert_eq!(second.rows[0].after, Some(Scores { score: 1.5, gold: Some(3.0) }));
    }
}
