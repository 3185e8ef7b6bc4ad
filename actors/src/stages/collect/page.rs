//! The page of `collimate label`, served while the stage waits for enough rankings.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use collimate_models::feedback::acquisition::AcquireBy;
use collimate_protocol::records::LabelTask;

use super::config::{AcquireConfig, CollectConfig};
use super::tasks::{Line, Tasks};
use crate::label::links;
use crate::label::prioritize::{NamedReader, PrioritizeError, Prioritized, prioritize};
use crate::label::server::{LabelServer, ServeError};
use crate::label::store::answers::{self, Which};
use crate::label::store::tasks::{self as stored, Purpose};
use crate::label::store::{Store, StoreError, settled, stats};
use crate::label::transfer::{self, ImportAs};
use crate::rundir::StageDir;
use crate::stages::context::{StageContext, StageError};
use crate::web::bind::parse_address;

/// How often it is looked whether enough is there: a person ranks in some minutes.
const LOOK: Duration = Duration::from_millis(500);

/// What people have ranked.
#[derive(Debug, Default)]
pub struct Ranked {
    /// The stage's tasks.
    pub lines: Vec<Line>,
    /// Whatever else the database holds: tasks of earlier rounds, as they are ranked by now, and those that somebody has
    /// picked from a run.
    pub others: Vec<Line>,
}

/// Serves the page until enough of the tasks have all their answers, and returns all answers. What is answered later stays
/// in the database.
pub fn wait(
    config: &CollectConfig,
    tasks: &Tasks,
    dir: &StageDir,
    context: &mut StageContext<'_>,
) -> Result<Ranked, StageError> {
    let page = config.page.clone().unwrap_or_default();
    let db = page.db.clone().unwrap_or_else(|| dir.path().join("answers.db"));
    let store = Store::open(&db)?;
    add(&store, tasks.all(), page.label.overlap)?;
    for file in &page.label.screening {
        transfer::import(&store, file, ImportAs::Screening)?;
    }
    if let Some(acquire) = &page.acquire {
        place(&store, acquire, config.reward_model.as_deref(), context)?;
    }
    let server = LabelServer::new(
        store.clone(),
        &page.label,
        parse_address(&page.addr, crate::label::server::DEFAULT_PORT).map_err(ServeError::Bind)?,
        page.url.as_deref(),
    )?;
    let n_enough = tasks.n_enough(config.n_enough());
    context.observer.tell(&format!("{n_enough} of {} prompts are to be ranked at {}", tasks.all().len(), server.url()));
    for line in links::of(&store, &page.label.labelers, server.url())? {
        context.observer.tell(&line);
    }
    context.observer.phase("rankings", n_enough as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("label page")
        .enable_all()
        .build()
        .map_err(ServeError::Io)?;
    let mut looked =
        Looked { store, overlap: page.label.overlap, tasks, seen: None, n_ranked: 0, ranked: Ranked::default() };
    runtime.block_on(async {
        let mut serving = std::pin::pin!(server.serve());
        loop {
            if looked.look()? {
                context.observer.step(looked.n_ranked.min(n_enough) as u64, &[]);
            }
            if looked.n_ranked >= n_enough {
                return Ok(std::mem::take(&mut looked.ranked));
            }
            tokio::select! {
                served = &mut serving => served?,
                () = tokio::time::sleep(LOOK) => {}
            }
            context.check_stop()?;
        }
    })
}

/// Puts the tasks in an order.
fn place(
    store: &Store,
    acquire: &AcquireConfig,
    reward_model: Option<&Path>,
    context: &mut StageContext<'_>,
) -> Result<(), StageError> {
    let problem = |error: PrioritizeError| StageError::Setting(error.to_string());
    let mut how = acquire.prioritize(context.seed);
    let model = reward_model.filter(|_| how.by != AcquireBy::Random);
    let reader = model.map(|dir| NamedReader::open(dir, &context.device)).transpose().map_err(problem)?;
    if reader.is_none() {
        how.by = AcquireBy::Random;
    }
    let Prioritized { n_random, n_acquired, .. } = prioritize(store, &how, reader.as_ref()).map_err(problem)?;
    context
        .observer
        .note(&format!("{n_random} open tasks were drawn at random, {n_acquired} for the reward model to choose"));
    Ok(())
}

/// Adds what is not there yet.
fn add(store: &Store, tasks: &[LabelTask], wanted: u32) -> Result<(), StoreError> {
    let tasks = tasks.to_vec();
    store.write_now(move |connection| {
        tasks.iter().try_for_each(|task| stored::add(connection, task, &Purpose::Work { wanted }).map(drop))
    })
}

/// What has been answered so far.
struct Looked<'a> {
    store: Store,
    /// Answers that are wanted to each task.
    overlap: u32,
    tasks: &'a Tasks,
    /// Answers in the whole database, and how often tasks were settled in it.
    seen: Option<(i64, i64)>,
    /// Tasks that have all their answers, or are settled.
    n_ranked: usize,
    ranked: Ranked,
}

impl Looked<'_> {
    /// Looks whether there are more answers, or other tasks are settled, and reads them.
    fn look(&mut self) -> Result<bool, StoreError> {
        let now = self
            .store
            .read(|connection| Ok((stats::tasks(connection)?.n_answers, settled::n_revisions(connection)?)))?;
        if self.seen == Some(now) {
            return Ok(false);
        }
        let (mut ranked, mut by_task) = (Ranked::default(), BTreeMap::<usize, u32>::new());
        self.store.read(|connection| {
            answers::each(connection, Which::Training, |answered| -> Result<(), StoreError> {
                // Of a settled task there is one ranking, and no more are waited for.
                let n = if answered.provenance.settled { self.overlap } else { 1 };
                let Some(mut line) = Line::of(answered) else { return Ok(()) };
                match self.tasks.complete(&mut line) {
                    Some(task) => {
                        *by_task.entry(task).or_default() += n;
                        ranked.lines.push(line);
                    }
                    None => ranked.others.push(line),
                }
                Ok(())
            })
        })?;
        self.seen = Some(now);
        self.n_ranked = by_task.values().filter(|n| **n >= self.overlap).count();
        self.ranked = ranked;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::records::{Answer, Origin, Provenance, Ranking, TaskKind};

    use super::*;

    fn ranked(store: &Store, labeler: &str, settled: bool) {
        let provenance = Provenance {
            labeler: labeler.to_owned(),
            time: "2026-01-31T12:00:00.000Z".to_owned(),
            revision: 1,
            seconds: 1.0,
            shown: vec![0, 1],
            is_repeat: false,
            known_ranks: None,
            origin: Origin::default(),
            task: String::new(),
            arm: None,
            settled,
        };
        let answer = Answer::Ranking(Ranking { ranks: vec![1, 2], ..Ranking::default() });
        store.write_now(move |connection| answers::add(connection, 1, &answer, &provenance).map(drop)).unwrap();
    }

    #[test]
    fn a_settled_task_is_ranked_whatever_its_labelers_have_said_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let task = LabelTask {
            kind: TaskKind::Rank,
            prompt: "a".into(),
            responses: vec!["yes".into(), "no".into()],
            tokens: None,
            origin: Origin::default(),
        };
        let path = dir.path().join("tasks.jsonl");
        std::fs::write(&path, serde_json::to_string(&task).unwrap() + "\n").unwrap();
        let tasks = Tasks::read_or_make(&path, || unreachable!("the file is there")).unwrap();
        let store = Store::open(&dir.path().join("answers.db")).unwrap();
        add(&store, tasks.all(), 3).unwrap();
        let mut looked = Looked {
            store: store.clone(),
            overlap: 3,
            tasks: &tasks,
            seen: None,
            n_ranked: 0,
            ranked: Ranked::default(),
        };
        assert!(looked.look().unwrap());
        for labeler in ["anna", "ben"] {
            ranked(&store, labeler, false);
        }
        assert!(looked.look().unwrap() && !looked.look().unwrap());
        assert_eq!((looked.n_ranked, looked.ranked.lines.len()), (0, 2), "a third is wanted");
        ranked(&store, "admin", true);
        assert!(looked.look().unwrap());
        assert_eq!((looked.n_ranked, looked.ranked.lines.len()), (1, 1));
        assert_eq!(serde_json::to_value(&looked.ranked.lines[0]).unwrap()["labeler"], "admin");
    }
}
