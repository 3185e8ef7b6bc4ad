//! What a labeler has put down so far, as the page shows it; and the answer that it makes when it is complete.

use collimate_models::feedback::competition_ranks;
use collimate_protocol::records::{Answer, Ranking, SCORES, TaskKind, Written};
use serde::{Deserialize, Serialize};

/// Places that a labeler can give: as many as there can be responses.
const LAST_PLACE: u32 = 9;
/// The longest text that a labeler can write, in characters. A demonstration is seldom a twentieth of it.
pub const LONGEST_TEXT: usize = 100_000;

/// What is put down, in the order in which the responses are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Draft {
    /// For each response the place it was given: 1 is best, equal places tie, and places may be left empty.
    pub places: Vec<Option<u32>>,
    /// Whether none of them is acceptable.
    pub all_bad: bool,
    /// For each response what is the matter with it.
    pub flags: Vec<Vec<String>>,
    /// For each response its overall score.
    pub scores: Vec<Option<u8>>,
    /// A demonstration.
    pub response: String,
    /// In the labeler's words.
    pub notes: String,
}

impl Draft {
    /// Whether nothing is put down, so that nothing is lost by going on without it.
    pub fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
            && !self.all_bad
            && self.flags.iter().all(Vec::is_empty)
            && self.scores.iter().all(Option::is_none)
            && self.response.trim().is_empty()
            && self.notes.trim().is_empty()
    }

    /// Refuses what no page puts down.
    pub fn check(&self, n_responses: usize, known_flags: &[String]) -> Result<(), String> {
        for (name, n) in [("places", self.places.len()), ("flags", self.flags.len()), ("scores", self.scores.len())] {
            if n != 0 && n != n_responses {
                return Err(format!("`{name}` holds {n}, expected one for each of {n_responses} responses"));
            }
        }
        if let Some(place) = self.places.iter().flatten().find(|place| !(1..=LAST_PLACE).contains(*place)) {
            return Err(format!("`places` holds {place}, expected 1 to {LAST_PLACE}"));
        }
        if let Some(score) = self.scores.iter().flatten().find(|score| !SCORES.contains(score)) {
            return Err(format!("`scores` holds {score}, expected {} to {}", SCORES.start(), SCORES.end()));
        }
        if let Some(flag) = self.flags.iter().flatten().find(|flag| !known_flags.contains(flag)) {
            return Err(format!("`flags` holds `{flag}`, which is none of this project's"));
        }
        for (name, text) in [("response", &self.response), ("notes", &self.notes)] {
            let n_chars = text.chars().count();
            if n_chars > LONGEST_TEXT {
                return Err(format!("`{name}` has {n_chars} characters, and {LONGEST_TEXT} are the most"));
            }
        }
        Ok(())
    }

    /// The answer. `shown[place on the page]` is the index of a response in the task.
    ///
    /// # Errors
    /// What is missing yet.
    pub fn finish(&self, kind: TaskKind, shown: &[usize], known_flags: &[String]) -> Result<Answer, String> {
        self.check(shown.len(), known_flags)?;
        if kind == TaskKind::Write {
            if self.response.trim().is_empty() {
                return Err("the response is empty".to_owned());
            }
            return Ok(Answer::Written(Written { response: self.response.clone(), notes: self.notes.clone() }));
        }
        let places: Option<Vec<u32>> = match self.places.iter().any(Option::is_some) {
            true => self.places.iter().copied().collect(),
            // All are bad, and none is better.
            false => self.all_bad.then(|| vec![1; shown.len()]),
        };
        let places = places.ok_or("a response has no place yet")?;
        let ranks = competition_ranks(&in_task_order(&places, shown));
        let mut flags = in_task_order(&self.flags, shown);
        for of_one in &mut flags {
            // In the order of the form, so that the same flags are the same list.
            of_one.sort_by_key(|flag| known_flags.iter().position(|known| known == flag));
            of_one.dedup();
        }
        let scores = in_task_order(&self.scores, shown);
        Ok(Answer::Ranking(Ranking { ranks, all_bad: self.all_bad, flags, scores, notes: self.notes.clone() }))
    }

    /// What the page shows of an answer that is to be changed.
    pub fn of(answer: &Answer, shown: &[usize]) -> Self {
        match answer {
            Answer::Written(Written { response, notes }) => {
                Self { response: response.clone(), notes: notes.clone(), ..Self::default() }
            }
            Answer::Ranking(ranking) => Self {
                // All bad and none better was said without any place.
                places: match ranking.all_bad && ranking.ranks.iter().all(|rank| *rank == 1) {
                    true => vec![None; shown.len()],
                    false => shown.iter().map(|idx| ranking.ranks.get(*idx).copied()).collect(),
                },
                all_bad: ranking.all_bad,
                flags: shown.iter().map(|idx| ranking.flags.get(*idx).cloned().unwrap_or_default()).collect(),
                scores: shown.iter().map(|idx| ranking.scores.get(*idx).copied().flatten()).collect(),
                notes: ranking.notes.clone(),
                response: String::new(),
            },
        }
    }
}

/// From the page's order to the task's. What the page left out is empty.
fn in_task_order<T: Clone + Default>(on_page: &[T], shown: &[usize]) -> Vec<T> {
    let mut in_task = vec![T::default(); shown.len()];
    for (value, idx) in on_page.iter().zip(shown) {
        in_task[*idx] = value.clone();
    }
    in_task
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Vec<String> {
        ["untrue", "harmful"].map(str::to_owned).to_vec()
    }

    fn draft() -> Draft {
        Draft {
            places: vec![Some(2), Some(2), Some(5)],
            flags: vec![vec!["harmful".to_owned(), "untrue".to_owned(), "harmful".to_owned()], vec![], vec![]],
            scores: vec![Some(1), None, Some(7)],
            notes: "a note".to_owned(),
            ..Draft::default()
        }
    }

    #[test]
    fn an_answer_is_in_the_task_s_order_with_ties_kept() {
        let Answer::Ranking(ranking) = draft().finish(TaskKind::Rank, &[2, 0, 1], &flags()).unwrap() else { panic!() };
        assert_eq!(ranking.ranks, [1, 3, 1], "[A=B]>C as it was shown");
        assert_eq!(ranking.flags, [vec![], vec![], flags()]);
        assert_eq!(ranking.scores, [None, Some(7), Some(1)]);
        let again = Draft::of(&Answer::Ranking(ranking.clone()), &[2, 0, 1]);
        assert_eq!(again.finish(TaskKind::Rank, &[2, 0, 1], &flags()), Ok(Answer::Ranking(ranking)));
    }

    #[test]
    fn what_is_incomplete_or_unknown_is_refused() {
        let refused = |change: fn(&mut Draft)| {
            let mut draft = draft();
            change(&mut draft);
            draft.finish(TaskKind::Rank, &[0, 1, 2], &flags()).unwrap_err()
        };
        assert_eq!(refused(|draft| draft.places[1] = None), "a response has no place yet");
        assert_eq!(refused(|draft| draft.places = vec![]), "a response has no place yet");
        assert_eq!(refused(|draft| draft.places[1] = Some(10)), "`places` holds 10, expected 1 to 9");
        assert_eq!(refused(|draft| draft.scores[0] = Some(8)), "`scores` holds 8, expected 1 to 7");
        assert_eq!(
            refused(|draft| draft.flags[0][0] = "rude".into()),
            "`flags` holds `rude`, which is none of this project's"
        );
        assert_eq!(refused(|draft| draft.places.push(None)), "`places` holds 4, expected one for each of 3 responses");
        assert!(refused(|draft| draft.notes = "x".repeat(LONGEST_TEXT + 1)).contains("100001 characters"));
        assert_eq!(Draft::default().finish(TaskKind::Write, &[], &[]), Err("the response is empty".to_owned()));
    }

    #[test]
    fn all_bad_alone_is_an_answer_in_which_all_tie() {
        let all_bad = Draft { all_bad: true, ..Draft::default() };
        let Ok(Answer::Ranking(ranking)) = all_bad.finish(TaskKind::Rank, &[1, 0], &[]) else { panic!() };
        assert_eq!(Draft::of(&Answer::Ranking(ranking.clone()), &[1, 0]).places, [None, None]);
        assert_eq!((ranking.ranks, ranking.all_bad), (vec![1, 1], true));
        assert!(!all_bad.is_empty() && Draft::default().is_empty());
        assert!(Draft { places: vec![None; 3], flags: vec![vec![]; 3], ..Draft::default() }.is_empty());
    }
}
