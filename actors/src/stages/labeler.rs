//! Labelers simulated by a gold scorer, as Gao et al. 2023 (arXiv 2210.10760) have them: the reward model sees their
//! rankings alone, never the gold scores.

use collimate_protocol::RoleError;
use collimate_protocol::records::{Comparison, ComparisonTokens, PromptText};
use collimate_protocol::roles::{RewardFunction, RewardRequest};

/// Ranks as a labeler writes them: 1 is best, equal scores share a rank, and the next rank counts the responses above.
pub fn ranks_of(scores: &[f32]) -> Vec<u32> {
    scores.iter().map(|score| 1 + scores.iter().filter(|other| *other > score).count() as u32).collect()
}

/// Lets the gold scorer rank groups of K responses to one prompt; `requests` holds the groups one after another.
pub fn rank(gold: &mut dyn RewardFunction, requests: &[RewardRequest], k: usize) -> Result<Vec<Comparison>, RoleError> {
    let scores = gold.scores(requests)?;
    let groups = requests.chunks(k).zip(scores.chunks(k));
    Ok(groups
        .map(|(group, scores)| Comparison {
            prompt: PromptText::Text(group[0].prompt.clone()),
            responses: group.iter().map(|request| request.response.clone()).collect(),
            ranks: ranks_of(scores),
            tokens: Some(ComparisonTokens {
                prompt: group[0].prompt_tokens.clone(),
                responses: group.iter().map(|request| request.response_tokens.clone()).collect(),
            }),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::ranks_of;

    #[test]
    fn equal_scores_share_a_rank_and_the_next_rank_counts_those_above() {
        assert_eq!(ranks_of(&[0.5, 2.0, 0.5, -1.0]), [2, 1, 2, 4]);
    }
}
