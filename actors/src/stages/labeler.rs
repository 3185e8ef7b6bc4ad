//! What labelers are asked, and labelers simulated by a gold scorer, as Gao et al. 2023 (arXiv 2210.10760) have them: the
//! reward model sees their rankings alone, never the gold scores.

use std::sync::Arc;

use collimate_models::arch::{ModelConfig, Weights};
use collimate_models::data::comparisons::{MAX_RANKED, MIN_RANKED, ranks_of};
use collimate_models::data::corpus::Split;
use collimate_models::generate::SamplingParams;
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::RoleError;
use collimate_protocol::records::{Comparison, ComparisonTokens, PromptText};
use collimate_protocol::roles::{RewardFunction, RewardRequest};

use super::context::{StageContext, StageError};
use super::inputs::load_corpus;
use super::recipe::CorpusConfig;
use super::sampling;

/// Samples that are in work at once.
const N_SLOTS: usize = 64;

/// What is asked: which of K responses to a prompt is better.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The table whose keys these are, for messages.
    pub table: &'a str,
    /// Prompts.
    pub n_prompts: usize,
    /// Responses to each.
    pub k: usize,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// What divides the logits.
    pub temperature: f64,
}

impl Asked<'_> {
    /// Refuses what can't be ranked.
    pub fn check(&self) -> Result<(), StageError> {
        let Self { table, k, .. } = self;
        if !(MIN_RANKED..=MAX_RANKED).contains(k) {
            return Err(StageError::Setting(format!("{table}.k is {k}, expected {MIN_RANKED} to {MAX_RANKED}")));
        }
        Ok(())
    }

    /// The beginnings of the corpus's paragraphs.
    pub fn prompts_of_corpus(
        &self,
        corpus: Option<&CorpusConfig>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Vec<u32>>, StageError> {
        let cut = load_corpus(corpus, tokenizer, &format!("[{}]", self.table))?;
        let lengths = corpus.cloned().unwrap_or_default();
        let continuations = cut.continuations(Split::Train, lengths.prompt_tokens, lengths.response_tokens);
        Ok(continuations.into_iter().map(|continuation| continuation.prompt).collect())
    }

    /// Which of the prompts are asked: as many as are wanted, at random.
    pub fn pick<T>(&self, mut prompts: Vec<T>, seed: u64) -> Result<Vec<T>, StageError> {
        let Self { table, n_prompts, .. } = *self;
        if prompts.len() < n_prompts {
            let n = prompts.len();
            return Err(StageError::Setting(format!(
                "{table}.n_prompts is {n_prompts}, but there are only {n} prompts"
            )));
        }
        rng::shuffle(&mut prompts, &mut rng::for_purpose(seed, "prompts to label"));
        prompts.truncate(n_prompts);
        Ok(prompts)
    }

    /// K responses to each prompt, those to one prompt one after another.
    pub fn sample(
        &self,
        prompts: &[Vec<u32>],
        policy: (&Arc<ModelConfig>, &Weights),
        tokenizer: &Tokenizer,
        context: &mut StageContext<'_>,
    ) -> Result<Vec<RewardRequest>, StageError> {
        let params = SamplingParams {
            temperature: self.temperature as f32,
            max_new_tokens: self.max_new_tokens,
            ..SamplingParams::default()
        };
        let (mut sampler, snapshot) = sampling::policy_sampler(policy.0, policy.1, N_SLOTS, params, context.seed)?;
        let ticketed = sampling::ticketed(prompts, self.k as u32);
        context.observer.phase("samples to rank", ticketed.len() as u64);
        let observer = &mut *context.observer;
        let rollouts =
            sampling::sample_all(&mut sampler, &snapshot, ticketed, |n_done| observer.step(n_done as u64, &[]))?;
        context.check_stop()?;
        Ok(rollouts.iter().map(|rollout| RewardRequest::of(rollout, tokenizer)).collect::<Result<Vec<_>, _>>()?)
    }
}

/// Lets the gold scorer rank groups of K responses to one prompt; `requests` holds the groups one after another.
pub fn rank(gold: &mut dyn RewardFunction, requests: &[RewardRequest], k: usize) -> Result<Vec<Comparison>, RoleError> {
    let scores = gold.scores(requests)?;
    let groups = requests.chunks(k).zip(scores.chunks(k));
    Ok(groups
        .map(|(group, scores)| Comparison {
            prompt: PromptText::Text(group[0].prompt.clone()),
            responses: group.iter().map(|request| request.response.clone()).collect(),
            ranks: ranks_of(&scores.iter().map(|score| f64::from(*score)).collect::<Vec<_>>()),
            tokens: Some(tokens_of(group)),
        })
        .collect())
}

/// The tokens of responses to one prompt.
pub fn tokens_of(group: &[RewardRequest]) -> ComparisonTokens {
    ComparisonTokens {
        prompt: group[0].prompt_tokens.clone(),
        responses: group.iter().map(|request| request.response_tokens.clone()).collect(),
    }
}
