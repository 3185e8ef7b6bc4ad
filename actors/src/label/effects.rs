//! What became of labels: which reward model read each, what it then made of what was ranked, and which updates followed;
//! and people against reward models over a run's versions.
//!
//! All of it is read from the project and from the folders of the runs that are named.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use collimate_models::feedback::against::ENOUGH_ON_EACH_SIDE;
use collimate_models::feedback::{AgainstPeople, Change, JudgedRanking, against_people, over_optimisation};
use collimate_protocol::records::{Answer, Arm, LabelName, LabelTask, UsedFor};
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;

use super::runs::{ModelRecord, RunRecord};
use super::store::answers::{self, Answered, Which};
use super::store::places::Told;
use super::store::tasks::{find, get, last_turn, parsed};
use super::store::{Result, StoreError};

/// Points of a curve that a page gets: more than it draws pixels for.
const MOST_POINTS: usize = 400;
/// Points that rankings are gathered into.
const N_POINTS: usize = 20;
/// Rankings in a point, at least.
const LEAST_IN_POINT: usize = 5;
/// Labels that are listed.
const N_LISTED: usize = 100;
/// Characters of a prompt in the list.
const N_SHOWN: usize = 120;

/// A reward model's scores of a task's responses against a person's ranking of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoredBy {
    /// The reward model.
    pub reward_model: Option<String>,
    /// For each response its score.
    pub scores: Vec<f32>,
    /// The mean over the pairs of the better response's score less the worse one's; absent where all tie.
    pub margin: Option<f64>,
    /// Share of the pairs that it orders as the person did.
    pub agreement: Option<f64>,
}

impl ScoredBy {
    fn new(reward_model: Option<String>, scores: Vec<f32>, ranks: &[u32]) -> Self {
        let against = against_people(&scores, ranks);
        let margin = against.map(|AgainstPeople { margin, .. }| margin);
        Self { reward_model, scores, margin, agreement: against.map(|against| against.agreement) }
    }
}

/// A reward model that read a label, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Use {
    /// The run that trained the reward model, or trained its policy on it.
    pub run: String,
    /// What for.
    pub used: UsedFor,
    /// What the reward model that came of it makes of the responses.
    pub after: Option<ScoredBy>,
    /// PPO's updates against that reward model, as version and mean score.
    pub updates: Vec<(u64, f64)>,
    /// How many there are in all.
    pub n_updates: usize,
}

/// A label with what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelEffect {
    /// Who ranked.
    pub labeler: String,
    /// Which of that labeler's answers.
    pub revision: u32,
    /// When.
    pub time: String,
    /// For each response its rank.
    pub ranks: Vec<u32>,
    /// What the reward model before it made of the responses.
    pub before: Option<ScoredBy>,
    /// Who read it.
    pub uses: Vec<Use>,
}

/// A task, and what became of its labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskEffect {
    /// What was asked.
    pub task: LabelTask,
    /// How it came about that it was.
    pub arm: Option<Arm>,
    /// Every label.
    pub labels: Vec<LabelEffect>,
}

/// Of the task with this content; `None` where there is none.
pub fn of_task(connection: &Connection, content: &str, runs: &[RunRecord]) -> Result<Option<TaskEffect>> {
    let Some(id) = find(connection, content)? else { return Ok(None) };
    let task = get(connection, id)?;
    let mut statement = connection.prepare_cached("SELECT told FROM tasks WHERE id = ?1")?;
    let told: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?.flatten();
    let told: Option<Told> = told.map(|told| parsed(&told)).transpose()?;
    let (mut labels, mut arm) = (Vec::new(), None);
    answers::of_task(connection, id, |answered| -> Result<()> {
        arm = answered.provenance.arm;
        labels.extend(label_effect(answered, told.as_ref(), runs));
        Ok(())
    })?;
    Ok(Some(TaskEffect { task, arm, labels }))
}

/// Scores from before the label: of the reward model that the run used, else of the one that chose the task.
fn before(task: &LabelTask, told: Option<&Told>) -> Option<(Option<String>, Vec<f32>)> {
    let of_run = task.origin.scores.clone().map(|scores| (task.origin.reward_model.clone(), scores));
    of_run.or_else(|| told.map(|told| (Some(told.model.clone()), told.scores.clone())))
}

fn label_effect(answered: Answered, told: Option<&Told>, runs: &[RunRecord]) -> Option<LabelEffect> {
    let Answered { task, answer: Answer::Ranking(ranking), provenance } = answered else { return None };
    let (labeler, revision) = (provenance.labeler, provenance.revision);
    let name = LabelName { task: provenance.task, labeler: labeler.clone(), revision };
    let read_by = |run: &RunRecord, model: &ModelRecord| {
        let used = model.used.get(&name)?;
        let after = used.scores.clone().map(|scores| ScoredBy::new(model.dir.clone(), scores, &ranking.ranks));
        let updates: Vec<(u64, f64)> = model.scores.iter().map(|(version, score)| (*version, *score)).collect();
        let n_updates = updates.len();
        Some(Use { run: run.root.clone(), used: used.used, after, updates: thinned(updates), n_updates })
    };
    let all = runs.iter().flat_map(|run| run.models.iter().map(move |model| (run, model)));
    Some(LabelEffect {
        before: before(&task, told).map(|(model, scores)| ScoredBy::new(model, scores, &ranking.ranks)),
        uses: all.filter_map(|(run, model)| read_by(run, model)).collect(),
        labeler,
        revision,
        time: provenance.time,
        ranks: ranking.ranks,
    })
}

/// Every n-th point and the last: a mean score is no spike that must not be lost, and `collimate view` has all of them.
fn thinned(points: Vec<(u64, f64)>) -> Vec<(u64, f64)> {
    let every = points.len().div_ceil(MOST_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(idx, _)| idx % every == 0 || *idx == last).map(|(_, point)| point).collect()
}

/// Some rankings together, by version.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AgreementPoint {
    /// The first and the last version of the policy that wrote what was ranked.
    pub versions: [u64; 2],
    /// Mean agreement of the reward model's order with people's.
    pub agreement: f64,
    /// Its standard error; absent for one ranking.
    pub standard_error: Option<f64>,
    /// How many rankings.
    pub n: usize,
}

/// What has changed, for the page.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// The first version of the recent rankings.
    pub since: u64,
    /// How many rankings are earlier, and recent.
    pub n: [usize; 2],
    /// Mean scores, earlier and recent.
    pub scores: [f64; 2],
    /// Mean agreement, earlier and recent.
    pub agreements: [f64; 2],
    /// The standard error of the difference of the agreements.
    pub agreement_error: f64,
    /// Whether the score has risen while agreement has fallen.
    pub is_alarm: bool,
}

impl From<Change> for Changed {
    fn from(change: Change) -> Self {
        let Change { since, n_earlier, n_recent, scores, agreements, agreement_error, is_alarm } = change;
        Self { since, n: [n_earlier, n_recent], scores, agreements, agreement_error, is_alarm }
    }
}

/// People against one reward model over one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// The run.
    pub run: String,
    /// The reward model whose scores the policy was trained on.
    pub reward_model: Option<String>,
    /// Rankings of what the run's policy wrote.
    pub n_rankings: usize,
    /// Agreement over versions.
    pub points: Vec<AgreementPoint>,
    /// The run's mean score over versions; empty where the run's folder was not named.
    pub scores: Vec<(u64, f64)>,
    /// The change; absent where there are too few rankings to tell.
    pub change: Option<Changed>,
}

/// A label in the list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedLabel {
    /// The task.
    pub task: String,
    /// How the prompt ends.
    pub prompt: String,
    /// Who ranked.
    pub labeler: String,
    /// Which of that labeler's answers.
    pub revision: u32,
    /// When.
    pub time: String,
    /// How it came about that the task was asked.
    pub arm: Option<Arm>,
    /// The version of the policy that wrote the responses.
    pub policy_version: Option<u64>,
    /// How many of the runs' reward models read it.
    pub n_uses: usize,
}

/// People and the reward model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effects {
    /// For each run and reward model.
    pub series: Vec<Series>,
    /// The newest labels.
    pub labels: Vec<ListedLabel>,
    /// How many there are.
    pub n_labels: usize,
    /// Rankings that are wanted on either side before a change is told of.
    pub enough: usize,
}

/// Of all that people ranked.
pub fn effects(connection: &Connection, runs: &[RunRecord]) -> Result<Effects> {
    let mut judged = BTreeMap::<(String, Option<String>), Vec<(u64, f64)>>::new();
    let (mut labels, mut n_labels) = (VecDeque::new(), 0);
    answers::each(connection, Which::WithOverruled, |answered| -> std::result::Result<(), StoreError> {
        let Answered { task, answer: Answer::Ranking(ranking), provenance } = answered else { return Ok(()) };
        n_labels += 1;
        let name = LabelName { task: provenance.task, labeler: provenance.labeler, revision: provenance.revision };
        let n_uses = models_that_read(&name, runs);
        labels.push_front(ListedLabel {
            prompt: ending(last_turn(&task.prompt)),
            task: name.task,
            labeler: name.labeler,
            revision: name.revision,
            time: provenance.time,
            arm: provenance.arm,
            policy_version: task.origin.policy_version,
            n_uses,
        });
        labels.truncate(N_LISTED);
        // How people judge a version is what its labelers said, whatever the admin made of it.
        if provenance.settled {
            return Ok(());
        }
        let origin = task.origin;
        if let (Some(run), Some(version), Some(scores)) = (origin.run, origin.policy_version, origin.scores)
            && let Some(against) = against_people(&scores, &ranking.ranks)
        {
            judged.entry((run, origin.reward_model)).or_default().push((version, against.agreement));
        }
        Ok(())
    })?;
    let series = judged.into_iter().map(|((run, reward_model), rankings)| {
        let scores = scores_by(reward_model.as_ref(), &run, runs);
        series(run, reward_model, rankings, scores)
    });
    Ok(Effects { series: series.collect(), labels: labels.into(), n_labels, enough: ENOUGH_ON_EACH_SIDE })
}

/// How many reward models read a label. One that several runs took scores from is one.
fn models_that_read(name: &LabelName, runs: &[RunRecord]) -> usize {
    let models = runs.iter().flat_map(|run| &run.models);
    let dirs: BTreeSet<&Option<String>> =
        models.filter(|model| model.used.contains_key(name)).map(|model| &model.dir).collect();
    dirs.len()
}

/// A run's mean scores by a reward model, over versions; `None` where the run's folder was not named.
fn scores_by<'a>(reward_model: Option<&String>, run: &str, runs: &'a [RunRecord]) -> Option<&'a BTreeMap<u64, f64>> {
    let record = runs.iter().find(|record| record.root == run)?;
    record.models.iter().find(|model| model.dir.as_ref() == reward_model).map(|model| &model.scores)
}

fn series(
    run: String,
    reward_model: Option<String>,
    mut rankings: Vec<(u64, f64)>,
    scores: Option<&BTreeMap<u64, f64>>,
) -> Series {
    rankings.sort_by_key(|(version, _)| *version);
    let in_point = rankings.len().div_ceil(N_POINTS).max(LEAST_IN_POINT);
    let judged = |(version, agreement): &(u64, f64)| {
        let mean_score = *scores?.get(version)?;
        Some(JudgedRanking { version: *version, mean_score, agreement: *agreement })
    };
    let judged: Vec<JudgedRanking> = rankings.iter().filter_map(judged).collect();
    Series {
        run,
        reward_model,
        n_rankings: rankings.len(),
        points: rankings.chunks(in_point).map(point).collect(),
        scores: thinned(scores.map(|scores| scores.iter().map(|(v, s)| (*v, *s)).collect()).unwrap_or_default()),
        change: over_optimisation(&judged).map(Changed::from),
    }
}

fn point(rankings: &[(u64, f64)]) -> AgreementPoint {
    let n = rankings.len() as f64;
    let agreement = rankings.iter().map(|(_, agreement)| agreement).sum::<f64>() / n;
    let squares: f64 = rankings.iter().map(|(_, one)| (one - agreement).powi(2)).sum();
    let standard_error = (rankings.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
    AgreementPoint {
        versions: [rankings[0].0, rankings[rankings.len() - 1].0],
        agreement,
        standard_error,
        n: rankings.len(),
    }
}

fn ending(text: &str) -> String {
    let n_chars = text.chars().count();
    text.chars().skip(n_chars.saturating_sub(N_SHOWN)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rankings_are_gathered_by_version_and_set_against_the_run_s_score() {
        // 20 rankings at version 1 of which 19 agree, then 20 at version 3 of which 5 do.
        let at =
            |version: u64, n_agreed: usize| (0..20).map(move |idx| (version, if idx < n_agreed { 1.0 } else { 0.0 }));
        let rankings: Vec<(u64, f64)> = at(3, 5).chain(at(1, 19)).collect();
        let scores = BTreeMap::from([(0, -1.0), (1, 0.0), (2, 1.0), (3, 2.0)]);
        let told = series("/runs/a".to_owned(), None, rankings.clone(), Some(&scores));
        assert_eq!((told.n_rankings, told.points.len(), told.scores.len()), (40, 8, 4));
        assert_eq!((told.points[0].versions, told.points[0].agreement, told.points[0].n), ([1, 1], 1.0, 5));
        assert_eq!(told.points[7].versions, [3, 3]);
        let change = told.change.unwrap();
        assert_eq!((change.is_alarm, change.since, change.scores, change.n), (true, 3, [0.0, 2.0], [20, 20]));
        let unnamed = series("/runs/a".to_owned(), None, rankings, None);
        assert_eq!((unnamed.change, unnamed.scores.len(), unnamed.points.len()), (None, 0, 8));
    }

    #[test]
    fn a_long_curve_keeps_its_ends() {
        let points: Vec<(u64, f64)> = (0..1001).map(|version| (version, version as f64)).collect();
        let thin = thinned(points);
        assert!(thin.len() <= MOST_POINTS && thin[0].0 == 0 && thin[thin.len() - 1].0 == 1000, "{}", thin.len());
        assert!(thinned(Vec::new()).is_empty());
    }
}
