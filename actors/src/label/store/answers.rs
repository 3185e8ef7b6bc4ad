//! Answers as files take them and bring them.

use jiff::Timestamp;
use rusqlite::{Connection, params};

use collimate_protocol::records::{
    Answer, LabelTask, LabeledComparison, LabeledDemonstration, LabeledPreference, Provenance, Ranking, Written,
};

use super::tasks::parsed;
use super::{Millis, Result, StoreError, labelers, next, places, settled, work};

/// Which answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// What training is to read: the newest revision of each answer, without the screening's and without repeats. Of a
    /// task that is settled, what it is settled by alone.
    Training,
    /// The same, and what labelers said of settled tasks too.
    WithOverruled,
    /// Every revision of every answer and of every settled ranking, without what was taken back.
    All,
}

/// An answer with all that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// What was asked.
    pub task: LabelTask,
    /// What was answered.
    pub answer: Answer,
    /// How that came about.
    pub provenance: Provenance,
}

/// Calls `take` with each answer, in the order in which they were given.
pub fn each<E: From<StoreError>>(
    connection: &Connection,
    which: Which,
    take: impl FnMut(Answered) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    const NEWEST: &str = "WHERE t.known IS NULL AND a.pass = 0
        AND n.revision = (SELECT max(revision) FROM answers WHERE assignment = a.id)";
    const IN_FORCE: &str = "WHERE s.body IS NOT NULL
        AND s.revision = (SELECT max(revision) FROM settlements WHERE task = s.task)";
    let not_overruled = format!("{NEWEST} AND NOT EXISTS (SELECT 1 FROM settled WHERE task = t.id)");
    let (of_labelers, of_settled) = match which {
        Which::All => ("", "WHERE s.id IN (SELECT id FROM settled)"),
        Which::WithOverruled => (NEWEST, IN_FORCE),
        Which::Training => (not_overruled.as_str(), IN_FORCE),
    };
    take_all(connection, of_labelers, of_settled, [], take)
}

/// Calls `take` with every revision of each answer to a task and of what it was settled by, in the order in which they were
/// given, without repeats.
pub fn of_task<E: From<StoreError>>(
    connection: &Connection,
    task: i64,
    take: impl FnMut(Answered) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let of_settled = "WHERE s.task = ?1 AND s.body IS NOT NULL";
    take_all(connection, "WHERE a.task = ?1 AND a.pass = 0", of_settled, [task], take)
}

fn take_all<E: From<StoreError>>(
    connection: &Connection,
    of_labelers: &str,
    of_settled: &str,
    values: impl rusqlite::Params,
    mut take: impl FnMut(Answered) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let query = format!(
        "SELECT t.body, n.body, l.name, n.at, n.revision, n.seconds, a.shown, a.pass, t.known, t.content, t.arm, 0, n.id
         FROM answers n JOIN assignments a ON a.id = n.assignment JOIN tasks t ON t.id = a.task
         JOIN labelers l ON l.id = a.labeler {of_labelers}
         UNION ALL
         SELECT t.body, s.body, l.name, s.at, s.revision, 0.0, NULL, 0, NULL, t.content, t.arm, 1, s.id
         FROM settlements s JOIN tasks t ON t.id = s.task JOIN labelers l ON l.id = s.settled_by {of_settled}
         ORDER BY 4, 13"
    );
    let mut statement = connection.prepare(&query).map_err(StoreError::from)?;
    let mut rows = statement.query(values).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        take(answered(row)?)?;
    }
    Ok(())
}

fn answered(row: &rusqlite::Row<'_>) -> Result<Answered> {
    let text = |idx: usize| -> Result<String> { Ok(row.get(idx)?) };
    let task: LabelTask = parsed(&text(0)?)?;
    let provenance = Provenance {
        labeler: text(2)?,
        time: in_words(row.get(3)?),
        revision: row.get(4)?,
        seconds: row.get(5)?,
        // The admin sees responses in the task's own order.
        shown: match row.get::<_, Option<String>>(6)? {
            Some(shown) => parsed(&shown)?,
            None => (0..task.responses.len()).collect(),
        },
        is_repeat: row.get::<_, i64>(7)? > 0,
        known_ranks: row.get::<_, Option<String>>(8)?.map(|known| parsed(&known)).transpose()?,
        task: text(9)?,
        arm: places::arm_of(row.get(10)?)?,
        settled: row.get(11)?,
        origin: task.origin.clone(),
    };
    Ok(Answered { answer: parsed(&text(1)?)?, task, provenance })
}

/// RFC 3339 with milliseconds.
pub(super) fn in_words(at: Millis) -> String {
    let time = Timestamp::from_millisecond(at).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Reads what [`in_words`] wrote, and other times of RFC 3339.
pub(super) fn in_millis(time: &str) -> Result<Millis> {
    let parsed: std::result::Result<Timestamp, _> = time.parse();
    parsed.map(|time| time.as_millisecond()).map_err(|_| {
        StoreError::Invalid(format!("key `time` is {time:?}, expected a time as 2026-01-31T12:00:00Z (RFC 3339)"))
    })
}

/// Adds an answer that a file brings, or what a task is settled by, unless it is there. The task is. Tells whether it was
/// added.
pub fn add(connection: &Connection, task: i64, answer: &Answer, provenance: &Provenance) -> Result<bool> {
    if provenance.settled {
        return settled::add(connection, task, answer, provenance);
    }
    let labeler = labelers::add(connection, &provenance.labeler)?;
    if let Some(arm) = provenance.arm {
        places::set_arm(connection, task, arm)?;
    }
    let (at, pass) = (in_millis(&provenance.time)?, i64::from(provenance.is_repeat));
    let assignment = match next::find(connection, task, labeler, pass)? {
        Some(id) => id,
        None => next::insert(connection, task, labeler, pass, &provenance.shown, &next::Rules::immediate(), at)?,
    };
    let is_free: bool = connection
        .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM answers WHERE assignment = ?1 AND revision = ?2)")?
        .query_row(params![assignment, provenance.revision], |row| row.get(0))?;
    let revision: u32 = match is_free && provenance.revision > 0 {
        true => provenance.revision,
        false => work::next_revision(connection, assignment)?,
    };
    if !work::insert(connection, assignment, revision, answer, at, provenance.seconds)? {
        return Ok(false);
    }
    let was: String = connection
        .prepare_cached("SELECT state FROM assignments WHERE id = ?1")?
        .query_row([assignment], |row| row.get(0))?;
    if pass == 0 && matches!(was.as_str(), "left" | "skipped") {
        connection.prepare_cached("UPDATE tasks SET n_taken = n_taken + 1 WHERE id = ?1")?.execute([task])?;
    }
    connection
        .prepare_cached(
            "UPDATE assignments SET state = 'answered', finished_at = max(coalesce(finished_at, 0), ?2) WHERE id = ?1",
        )?
        .execute(params![assignment, at])?;
    Ok(true)
}

impl Answered {
    /// As a line of the rankings, if it is one.
    pub fn into_comparison(self) -> Option<LabeledComparison> {
        let Answer::Ranking(Ranking { ranks, all_bad, flags, scores, notes }) = self.answer else { return None };
        let LabelTask { kind, prompt, responses, tokens, .. } = self.task;
        Some(LabeledComparison {
            prompt,
            responses,
            ranks,
            tokens,
            kind,
            all_bad,
            flags,
            scores,
            notes,
            provenance: self.provenance,
        })
    }

    /// As a line of the demonstrations, if it is one.
    pub fn into_demonstration(self) -> Option<LabeledDemonstration> {
        let Answer::Written(Written { response, notes }) = self.answer else { return None };
        Some(LabeledDemonstration { prompt: self.task.prompt, response, notes, provenance: self.provenance })
    }

    /// As lines of pairs: one for each pair that is no tie.
    pub fn into_preferences(self) -> Vec<LabeledPreference> {
        let Answer::Ranking(ranking) = &self.answer else { return Vec::new() };
        let (ranks, responses) = (&ranking.ranks, &self.task.responses);
        let pairs = (0..ranks.len()).flat_map(|i| (0..ranks.len()).map(move |j| (i, j)));
        pairs
            .filter(|&(better, worse)| ranks[better] < ranks[worse])
            .map(|(better, worse)| LabeledPreference {
                prompt: self.task.prompt.clone(),
                chosen: responses[better].clone(),
                rejected: responses[worse].clone(),
                provenance: self.provenance.clone(),
            })
            .collect()
    }
}
