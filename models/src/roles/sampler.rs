//! The generator's model: samples responses with the newest policy.

use std::sync::Arc;

use collimate_protocol::roles::Sampler;
use collimate_protocol::{Prompt, RoleError, Rollout, Snapshot};

use crate::Device;
use crate::arch::{ModelConfig, Weights};
use crate::error::{Error, Result};
use crate::generate::{CachePolicy, Engine, Response, SamplingParams};
use crate::rng;

/// Samples rollouts for PPO. A rollout's tokens are a function of the run's seed, its prompt, its sample index and
/// the weights that its steps used.
#[derive(Debug)]
pub struct PolicySampler {
    config: Arc<ModelConfig>,
    n_slots: usize,
    params: SamplingParams,
    run_seed: u64,
    device: Device,
    cache_policy: CachePolicy,
    /// `None` until the first snapshot comes.
    engine: Option<Engine<Prompt>>,
}

impl PolicySampler {
    /// A sampler of up to `n_slots` sequences at once.
    ///
    /// # Errors
    /// There is no slot, or the settings are none that PPO can be trained with
    /// ([`SamplingParams::validate_for_ppo`]).
    pub fn new(config: Arc<ModelConfig>, n_slots: usize, params: SamplingParams, run_seed: u64) -> Result<Self> {
        params.validate_for_ppo()?;
        if n_slots == 0 {
            return Err(Error::invalid("a generator needs at least one slot"));
        }
        Ok(Self {
            config,
            n_slots,
            params,
            run_seed,
            device: Device::Cpu,
            cache_policy: CachePolicy::default(),
            engine: None,
        })
    }

    /// Computes on this device instead of the CPU.
    pub fn on(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }

    /// Does this with the cache of sequences in progress when new weights come.
    pub fn with_cache(mut self, cache_policy: CachePolicy) -> Self {
        self.cache_policy = cache_policy;
        self
    }
}

impl Sampler<Weights> for PolicySampler {
    fn load(&mut self, snapshot: &Snapshot<Weights>) -> std::result::Result<(), RoleError> {
        let policy = snapshot.policy.to_device(&self.device)?;
        match &mut self.engine {
            Some(engine) => engine.set_weights(&policy, snapshot.version)?,
            None => {
                let engine = Engine::new(&self.config, &policy, snapshot.version, self.n_slots)?;
                self.engine = Some(engine.with_cache(self.cache_policy));
            }
        }
        Ok(())
    }

    fn rest(&mut self) {
        self.engine = None;
    }

    fn n_free_slots(&self) -> usize {
        self.engine.as_ref().map_or(self.n_slots, Engine::n_free_slots)
    }

    fn n_running(&self) -> usize {
        self.engine.as_ref().map_or(0, Engine::n_running)
    }

    fn admit(&mut self, prompt: Prompt) -> std::result::Result<(), RoleError> {
        let Some(engine) = &mut self.engine else {
            return Err(Error::invalid("a prompt came before the first weights").into());
        };
        let rng = rng::for_sample(self.run_seed, prompt.ticket.prompt_id, prompt.ticket.sample_idx);
        let tokens = prompt.tokens.clone();
        Ok(engine.admit(prompt, &tokens, rng, self.params)?)
    }

    fn step(&mut self) -> std::result::Result<Vec<Rollout>, RoleError> {
        let Some(engine) = &mut self.engine else { return Ok(Vec::new()) };
        Ok(engine.step()?.into_iter().map(rollout).collect())
    }
}

fn rollout(response: Response<Prompt>) -> Rollout {
    Rollout {
        prompt: response.tag,
        prompt_version: response.prompt_version,
        response: response.tokens,
        logprobs: response.logprobs,
        versions: response.versions,
        entropies: response.entropies,
        finish: response.finish,
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::{FinishReason, PolicyVersion, PromptId, Ticket, TicketId};

    use super::*;
    use crate::arch::{HeadKind, LanguageModel};
    use crate::generate::response_logprobs;
    use crate::testing::{gpt2, tokens, weights};

    fn params(temperature: f32) -> SamplingParams {
        SamplingParams { temperature, max_new_tokens: 10, ..SamplingParams::default() }
    }

    fn snapshot(version: u64, seed: u64) -> Snapshot<Weights> {
        let policy = Arc::new(weights(&gpt2(), HeadKind::Language, seed));
        Snapshot { version: PolicyVersion(version), policy: policy.clone(), value: policy }
    }

    fn prompt(id: u64, sample_idx: u32) -> Prompt {
        let prompt_id = PromptId(id % 3);
        Prompt { ticket: Ticket { id: TicketId(id), prompt_id, sample_idx }, tokens: tokens(4, prompt_id.0) }
    }

    fn sampler(n_slots: usize, temperature: f32) -> PolicySampler {
        PolicySampler::new(gpt2(), n_slots, params(temperature), 42).unwrap()
    }

    fn run(sampler: &mut PolicySampler, prompts: Vec<Prompt>) -> Vec<Rollout> {
        let (mut waiting, mut rollouts) = (prompts.into_iter().peekable(), Vec::new());
        while waiting.peek().is_some() || sampler.n_running() > 0 {
            while sampler.n_free_slots() > 0 {
                let Some(prompt) = waiting.next() else { break };
                sampler.admit(prompt).unwrap();
            }
            rollouts.extend(sampler.step().unwrap());
        }
        rollouts.sort_by_key(|rollout: &Rollout| rollout.prompt.ticket.id);
        rollouts
    }

    #[test]
    fn before_any_update_the_ratio_is_one_at_every_temperature() {
        for temperature in [0.5, 0.7, 1.3] {
            let mut sampler = sampler(4, temperature);
            sampler.load(&snapshot(0, 1)).unwrap();
            let rollouts = run(&mut sampler, (0..8).map(|id| prompt(id, id as u32 / 3)).collect());
            let model = LanguageModel::new(&gpt2(), &weights(&gpt2(), HeadKind::Language, 1)).unwrap();
            let pairs: Vec<_> = rollouts.iter().map(|rollout| (&rollout.prompt.tokens, &rollout.response)).collect();
            let new_logprobs = response_logprobs(&model, &pairs, temperature).unwrap();
            for (rollout, new_logprobs) in rollouts.iter().zip(&new_logprobs) {
                assert!(rollout.logprobs.iter().zip(new_logprobs).all(|(old, new)| (old - new).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn a_ticket_issued_again_samples_the_same_and_another_sample_another() {
        let sample = |n_slots: usize, prompts: Vec<Prompt>| {
            let mut sampler = sampler(n_slots, 1.0);
            sampler.load(&snapshot(0, 1)).unwrap();
            run(&mut sampler, prompts)
        };
        let first = sample(2, vec![prompt(0, 0), prompt(1, 0), prompt(3, 1)]);
        assert_eq!(sample(1, vec![prompt(3, 1)]), first[2..]);
        assert_eq!(first[0].prompt.tokens, first[2].prompt.tokens);
        assert_ne!(first[0].response, first[2].response);
    }

    #[test]
    fn every_token_names_the_version_that_sampled_it() {
        let mut sampler = sampler(2, 1.0);
        sampler.load(&snapshot(3, 1)).unwrap();
        sampler.admit(prompt(0, 0)).unwrap();
        let mut rollouts = sampler.step().unwrap();
        sampler.load(&snapshot(4, 2)).unwrap();
        while sampler.n_running() > 0 {
            rollouts.extend(sampler.step().unwrap());
        }
        let rollout = &rollouts[0];
        assert_eq!(rollout.versions.len(), rollout.response.len());
        assert_eq!(rollout.versions[0], PolicyVersion(3));
        assert!(rollout.versions[1..].iter().all(|version| *version == PolicyVersion(4)));
        assert_eq!(rollout.finish == FinishReason::End, rollout.response.last() == Some(&crate::testing::END));
    }

    #[test]
    fn a_cache_that_is_computed_anew_gives_the_log_probabilities_of_the_new_version() {
        let models =
            [1, 2].map(|seed| LanguageModel::new(&gpt2(), &weights(&gpt2(), HeadKind::Language, seed)).unwrap());
        let off_by = |cache_policy| {
            let mut sampler = sampler(2, 1.0).with_cache(cache_policy);
            sampler.load(&snapshot(0, 1)).unwrap();
            sampler.admit(prompt(0, 0)).unwrap();
            sampler.admit(prompt(1, 5)).unwrap();
            let mut rollouts = Vec::new();
            (0..3).for_each(|_| rollouts.extend(sampler.step().unwrap()));
            sampler.load(&snapshot(1, 2)).unwrap();
            while sampler.n_running() > 0 {
                rollouts.extend(sampler.step().unwrap());
            }
            let rollout = rollouts.iter().max_by_key(|rollout| rollout.response.len()).unwrap();
            assert!(rollout.response.len() > 4, "nothing was sampled after the change");
            assert_eq!(rollout.prompt_version, PolicyVersion(0));
            let pairs = [(&rollout.prompt.tokens, &rollout.response)];
            let of_each = models.each_ref().map(|model| response_logprobs(model, &pairs, 1.0).unwrap().remove(0));
            let errors = rollout.logprobs.iter().zip(&rollout.versions).enumerate();
            errors
                .map(|(place, (logprob, version))| (logprob - of_each[version.0 as usize][place]).abs())
                .fold(0.0, f32::max)
        };
        assert!(off_by(CachePolicy::Recompute) < 1e-5);
        assert!(off_by(CachePolicy::Keep) > 1e-3);
    }

    #[test]
    fn a_prompt_takes_a_slot() {
        let mut sampler = sampler(3, 1.0);
        assert_eq!(sampler.n_free_slots(), 3);
        sampler.load(&snapshot(0, 1)).unwrap();
        sampler.admit(prompt(5, 0)).unwrap();
        assert_eq!((sampler.n_free_slots(), sampler.n_running()), (2, 1));
    }

    #[test]
    fn what_ppo_can_not_use_is_refused_at_the_start() {
        let refusal = |n_slots, params| PolicySampler::new(gpt2(), n_slots, params, 0).unwrap_err().to_string();
        assert!(refusal(0, params(1.0)).contains("at least one slot"));
        assert!(refusal(1, params(0.0)).contains("`temperature` must be more than 0"));
        assert!(refusal(1, SamplingParams { top_k: 5, ..params(1.0) }).contains("`top_k` must be 0"));
        assert!(refusal(1, SamplingParams { top_p: 0.9, ..params(1.0) }).contains("`top_p`"));
        let early = sampler(1, 1.0).admit(prompt(0, 0)).unwrap_err().to_string();
        assert!(early.contains("before the first weights"));
    }
}
