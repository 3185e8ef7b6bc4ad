//! A policy judged on held-out prompts and held-out text: what the before/after table is made of.

use std::sync::Arc;

use collimate_models::arch::{LanguageModel, ModelConfig, Weights};
use collimate_models::generate::SamplingParams;
use collimate_models::tokenizer::Tokenizer;
use collimate_models::train::{LmExample, heldout_nll};
use collimate_protocol::records::{Estimate, EvaluatedPolicy, EvaluationRecord, PolicyEvaluation, SampleRecord};
use collimate_protocol::roles::{ReferencePolicy, RewardFunction, RewardRequest};
use collimate_protocol::{Rollout, ScoredRollout};

use super::context::{StageError, StageObserver, StopFlag};
use super::sampling;

/// Rollouts that the reference scores in one call.
pub(super) const REFERENCE_BATCH: usize = 64;

/// Everything that judges a policy. The same judge sees the policy before and after, with the same sampling seeds.
pub struct Judge<'a> {
    /// Held-out prompts.
    pub prompts: &'a [Vec<u32>],
    /// Held-out pretraining text.
    pub text: &'a [LmExample],
    /// The frozen SFT model.
    pub reference: &'a mut dyn ReferencePolicy,
    /// What PPO optimises.
    pub reward: &'a mut dyn RewardFunction,
    /// What it is meant to stand for, where the run has that.
    pub gold: Option<&'a mut dyn RewardFunction>,
    /// Responses that are sampled at once.
    pub n_slots: usize,
    /// How responses are sampled.
    pub params: SamplingParams,
    /// The models' tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Seed of the sampling.
    pub seed: u64,
    /// Tokens of text that go through the model at once.
    pub microbatch_tokens: usize,
}

/// One judged response.
#[derive(Clone, Debug)]
pub struct JudgedResponse {
    /// What was judged.
    pub request: RewardRequest,
    /// Its score.
    pub score: f32,
    /// Its gold score, where there is one.
    pub gold: Option<f32>,
    /// Its KL to the SFT model (summed k1, nats).
    pub kl: f32,
}

impl JudgedResponse {
    /// As a line of `evaluation.jsonl`.
    pub fn record(&self, policy: EvaluatedPolicy) -> EvaluationRecord {
        EvaluationRecord {
            policy,
            prompt: self.request.prompt.clone(),
            response: self.request.response.clone(),
            n_tokens: self.request.response_tokens.len(),
            finish: self.request.finish,
            score: self.score,
            gold: self.gold,
            kl: self.kl,
        }
    }

    /// The gold score where there is one, else the score.
    fn verdict(&self) -> f64 {
        f64::from(self.gold.unwrap_or(self.score))
    }
}

impl Judge<'_> {
    /// Samples one response to every prompt and judges them; reads all the text.
    pub fn judge(
        &mut self,
        config: &Arc<ModelConfig>,
        weights: &Weights,
        stop: &StopFlag,
        observer: &mut dyn StageObserver,
    ) -> Result<(PolicyEvaluation, Vec<JudgedResponse>), StageError> {
        let (mut sampler, snapshot) = sampling::policy_sampler(config, weights, self.n_slots, self.params, self.seed)?;
        let prompts = sampling::ticketed(self.prompts, 1);
        let rollouts =
            sampling::sample_all(&mut sampler, &snapshot, prompts, |n_done| observer.step(n_done as u64, &[]))?;
        if stop.is_stopped() {
            return Err(StageError::Stopped);
        }
        let requests =
            rollouts.iter().map(|rollout| RewardRequest::of(rollout, self.tokenizer)).collect::<Result<Vec<_>, _>>()?;
        let scores = self.reward.scores(&requests)?;
        let gold = self.gold.as_mut().map(|gold| gold.scores(&requests)).transpose()?;
        let scored = self.with_reference(&rollouts, &scores)?;
        let nll = heldout_nll(&LanguageModel::frozen(config, weights)?, self.text, self.microbatch_tokens)?;

        let judged = requests.into_iter().enumerate().map(|(idx, request)| JudgedResponse {
            request,
            score: scores[idx],
            gold: gold.as_ref().map(|gold| gold[idx]),
            kl: scored[idx].sequence_kl(),
        });
        let evaluation = PolicyEvaluation {
            score: Estimate::of(scores.iter().copied().map(f64::from)),
            gold: gold.as_ref().map(|gold| Estimate::of(gold.iter().copied().map(f64::from))),
            kl: Estimate::of(scored.iter().map(|one| f64::from(one.sequence_kl()))),
            nll: Estimate::of(nll.per_example),
            length: Estimate::of(rollouts.iter().map(|rollout| rollout.response.len() as f64)),
            empty_share: Estimate::of(rollouts.iter().map(|r| f64::from(u8::from(r.response_body().is_empty())))),
        };
        Ok((evaluation, judged.collect()))
    }

    /// Scores anew what was judged, where the reward has become another one since: what is compared is scored by one.
    pub fn score_again(
        &mut self,
        evaluation: &mut PolicyEvaluation,
        judged: &mut [JudgedResponse],
    ) -> Result<(), StageError> {
        let requests: Vec<RewardRequest> = judged.iter().map(|judged| judged.request.clone()).collect();
        let scores = self.reward.scores(&requests)?;
        evaluation.score = Estimate::of(scores.iter().copied().map(f64::from));
        judged.iter_mut().zip(scores).for_each(|(judged, score)| judged.score = score);
        Ok(())
    }

    fn with_reference(&mut self, rollouts: &[Rollout], scores: &[f32]) -> Result<Vec<ScoredRollout>, StageError> {
        let mut scored = Vec::with_capacity(rollouts.len());
        for chunk in rollouts.chunks(REFERENCE_BATCH) {
            for (rollout, ref_logprobs) in chunk.iter().zip(self.reference.logprobs(chunk)?) {
                let score = scores[scored.len()];
                scored.push(ScoredRollout { rollout: rollout.clone(), ref_logprobs, score });
            }
        }
        Ok(scored)
    }
}

/// The first `n` prompts with both policies' responses.
pub fn side_by_side(before: &[JudgedResponse], after: &[JudgedResponse], n: usize) -> Vec<SampleRecord> {
    let pairs = before.iter().zip(after).take(n);
    pairs
        .map(|(before, after)| SampleRecord {
            prompt: before.request.prompt.clone(),
            before: before.request.response.clone(),
            before_score: before.verdict(),
            after: after.request.response.clone(),
            after_score: after.verdict(),
        })
        .collect()
}
