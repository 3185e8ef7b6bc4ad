//! What people's rankings say, and how far they agree: formulas over plain numbers.
//!
//! - [`pairs`]: a ranking as its pairs, with ties.
//! - [`mod@agreement`]: tie-aware pairwise agreement and Krippendorff's alpha, of all and around each labeler, with
//!   intervals by a bootstrap over prompts.
//! - [`labelers`]: each labeler against the consensus of the others, and against a second look at the same task.
//! - [`mod@merge`]: n rankings to one, by Tideman's ranked pairs.
//! - [`position`]: whether what is shown first wins more often than chance has it.
//! - [`acquisition`]: which task to label next.
//! - [`against`]: people against a reward model, and an alarm where the two part.

pub mod acquisition;
pub mod against;
pub mod agreement;
pub mod labelers;
pub mod merge;
pub mod pairs;
pub mod position;

pub use against::{AgainstPeople, Change, JudgedRanking, against_people, over_optimisation};
pub use agreement::{Agreement, Interval, agreement, agreement_by_labeler};
pub use labelers::{Consistency, LabelerAgreement, consistency, labeler_agreement};
pub use merge::merge;
pub use pairs::{competition_ranks, ranking_agreement};
pub use position::{PositionBias, position_bias};

/// One labeler's ranking of one prompt's responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Which prompt with its responses.
    pub task: u64,
    /// Whose ranking.
    pub labeler: u64,
    /// For each response its rank; 1 is best, equal ranks are a tie.
    pub ranks: Vec<u32>,
}

/// The votes of each task together, in the order of the tasks' numbers.
fn by_task(votes: &[Vote]) -> Vec<Vec<&Vote>> {
    let mut tasks = std::collections::BTreeMap::<u64, Vec<&Vote>>::new();
    for vote in votes {
        tasks.entry(vote.task).or_default().push(vote);
    }
    tasks.into_values().collect()
}

#[cfg(test)]
mod tests;
