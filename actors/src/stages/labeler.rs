//! Labelers simulated by a gold scorer, as Gao et al. 2023 (arXiv 2210.10760) have them: the reward model sees their
//! rankings alone, never the gold scores.

use collimate_models::data::comparisons::ranks_of;
use collimate_protocol::RoleError;
use collimate_protocol::records::{Comparison, ComparisonTokens, PromptText};
use collimate_protocol::roles::{RewardFunction, RewardRequest};

/// Lets the gold scorer rank groups of K responses to one prompt; `requests` holds the groups one after another.
pub fn rank(gold: &mut dyn RewardFunction, requests: &[RewardRequest], k: usize) -> Result<Vec<Comparison>, RoleError> {
    let scores = gold.scores(requests)?;
    let groups = requests.chunks(k).zip(scores.chunks(k));
    Ok(groups
        .map(|(group, scores)| Comparison {
            prompt: PromptText::Text(group[0].prompt.clone()),
            responses: group.iter().map(|request| request.response.clone()).collect(),
            ranks: ranks_of(&scores.iter().map(|score| f64::from(*score)).collect::<Vec<_>>()),
            tokens: Some(ComparisonTokens {
                prompt: group[0].prompt_tokens.clone(),
                responses: group.iter().map(|request| request.response_tokens.clone()).collect(),
            }),
        })
        .collect())
}
