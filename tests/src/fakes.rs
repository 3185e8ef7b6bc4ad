//! Fake roles. Weights are one number; every token, log-probability, score and update is a hash of what it depends
//! on, so that any mix-up changes a number and two runs can be compared exactly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collimate_protocol::records::TrainMetrics;
use collimate_protocol::roles::{
    Detokenizer, ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardModels, RewardRequest,
    Sampler, Trainer,
};
use collimate_protocol::{
    Experience, ExperienceBatch, FinishReason, PolicyVersion, PretrainBatch, Prompt, RewardModelId, RoleError, Rollout,
    ScoredRollout, SettingChange, Snapshot, Ticket,
};

/// The fakes' weights.
pub type FakeWeights = u64;

/// A hash of some numbers (SplitMix64's finaliser over a running sum).
pub fn hash(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0x9e37_79b9_7f4a_7c15, |state, &number| {
        let mut z = state.wrapping_add(number.wrapping_mul(0xbf58_476d_1ce4_e5b9)).wrapping_add(1);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A share of the hashes, in thousandths.
fn falls_within(hash: u64, per_mille: u64) -> bool {
    hash % 1000 < per_mille
}

/// A number in (-1, 0) from a hash: a log-probability.
fn negative_fraction(hash: u64) -> f32 {
    -(((hash % 1000) + 1) as f32) / 1001.0
}

/// The token that weights `policy` give a sample at `position`.
pub fn fake_token(ticket: Ticket, position: usize, policy: FakeWeights) -> u32 {
    (hash(&[ticket.prompt_id.0, ticket.sample_idx.into(), position as u64, policy]) % 64) as u32
}

/// Response lengths, as a function of prompt and sample index.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Shortest.
    pub min: usize,
    /// Longest, stragglers aside.
    pub max: usize,
    /// Share of stragglers, in thousandths.
    pub stragglers_per_mille: u64,
    /// How many times as long a straggler is.
    pub straggler_factor: usize,
}

impl Lengths {
    /// Every response this long.
    pub fn all(n: usize) -> Self {
        Self { min: n, max: n, stragglers_per_mille: 0, straggler_factor: 1 }
    }

    /// The length of a ticket's response.
    pub fn of(&self, ticket: Ticket) -> usize {
        let h = hash(&[7, ticket.prompt_id.0, ticket.sample_idx.into()]);
        let length = self.min + (h % (self.max - self.min + 1) as u64) as usize;
        if falls_within(h >> 32, self.stragglers_per_mille) { length * self.straggler_factor } else { length }
    }
}

/// What the fakes write down for a test to read.
#[derive(Debug, Default)]
pub struct Log {
    /// The version that the run goes on from.
    pub first_version: PolicyVersion,
    /// Every batch that was trained on, in order.
    pub batches: Vec<ExperienceBatch>,
    /// The pretraining batches that went with each.
    pub pretrain: Vec<Vec<PretrainBatch>>,
    /// The policy's weights that were published, by version.
    pub published: BTreeMap<PolicyVersion, FakeWeights>,
    /// Each load of weights by a sampler.
    pub loads: Vec<(PolicyVersion, FakeWeights)>,
    /// Every response that was sampled to its end, in order.
    pub sampled: Vec<Rollout>,
    /// Samplers that hold weights now.
    pub n_samplers_with_weights: usize,
    /// How many did when each batch was trained on.
    pub with_weights_in_updates: Vec<usize>,
}

/// A log that fakes and test share.
#[derive(Clone, Debug, Default)]
pub struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    /// The log as it is.
    pub fn read(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Samples one token a step for each response in progress.
#[derive(Debug)]
pub struct FakeSampler {
    n_slots: usize,
    lengths: Lengths,
    weights: Option<Snapshot<FakeWeights>>,
    running: Vec<Rollout>,
    log: SharedLog,
}

impl FakeSampler {
    /// A sampler with some slots.
    pub fn new(n_slots: usize, lengths: Lengths, log: SharedLog) -> Self {
        Self { n_slots, lengths, weights: None, running: Vec::new(), log }
    }

    fn has_ended(&self, rollout: &Rollout) -> bool {
        rollout.response.len() >= self.lengths.of(rollout.prompt.ticket)
    }
}

impl Sampler<FakeWeights> for FakeSampler {
    fn load(&mut self, snapshot: &Snapshot<FakeWeights>) -> Result<(), RoleError> {
        let mut log = self.log.read();
        log.loads.push((snapshot.version, *snapshot.policy));
        log.n_samplers_with_weights += usize::from(self.weights.replace(snapshot.clone()).is_none());
        Ok(())
    }

    fn rest(&mut self) {
        assert!(self.running.is_empty(), "rests in the middle of a response");
        self.log.read().n_samplers_with_weights -= usize::from(self.weights.take().is_some());
    }

    fn n_free_slots(&self) -> usize {
        self.n_slots - self.running.len()
    }

    fn n_running(&self) -> usize {
        self.running.len()
    }

    fn admit(&mut self, prompt: Prompt) -> Result<(), RoleError> {
        assert!(self.n_free_slots() > 0 && self.weights.is_some(), "admitted without a slot or without weights");
        let prompt_version = self.weights.as_ref().map(|weights| weights.version).unwrap_or_default();
        self.running.push(Rollout {
            prompt,
            prompt_version,
            response: Vec::new(),
            logprobs: Vec::new(),
            versions: Vec::new(),
            entropies: Vec::new(),
            finish: FinishReason::Length,
        });
        Ok(())
    }

    fn step(&mut self) -> Result<Vec<Rollout>, RoleError> {
        let Some(weights) = &self.weights else { return Err("stepped without weights".into()) };
        for rollout in &mut self.running {
            let (ticket, position) = (rollout.prompt.ticket, rollout.response.len());
            if position >= self.lengths.of(ticket) {
                continue;
            }
            let token = fake_token(ticket, position, *weights.policy);
            rollout.response.push(token);
            rollout.logprobs.push(negative_fraction(hash(&[1, token.into(), *weights.policy])));
            rollout.versions.push(weights.version);
            rollout.entropies.push(1.0);
        }
        let all = std::mem::take(&mut self.running);
        let (ended, running): (Vec<_>, _) = all.into_iter().partition(|rollout| self.has_ended(rollout));
        self.running = running;
        self.log.read().sampled.extend_from_slice(&ended);
        Ok(ended)
    }
}

/// A reference whose numbers are not finite for some samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeReference {
    /// Share of samples with a NaN, in thousandths.
    pub nan_per_mille: u64,
}

impl ReferencePolicy for FakeReference {
    fn logprobs(&mut self, rollouts: &[Rollout]) -> Result<Vec<Vec<f32>>, RoleError> {
        let of = |rollout: &Rollout| {
            let ticket = rollout.prompt.ticket;
            let is_nan = falls_within(hash(&[3, ticket.id.0]), self.nan_per_mille);
            let logprob = |&token: &u32| if is_nan { f32::NAN } else { negative_fraction(hash(&[2, token.into()])) };
            rollout.response.iter().map(logprob).collect()
        };
        Ok(rollouts.iter().map(of).collect())
    }
}

/// Scores by a hash of the tokens; checks that the text fits them.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeReward;

impl RewardFunction for FakeReward {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        let score = |request: &RewardRequest| {
            assert_eq!(request.response, FakeDetokenizer::text(&request.response_tokens));
            let tokens: Vec<u64> = request.response_tokens.iter().map(|&token| token.into()).collect();
            negative_fraction(hash(&tokens)) + 0.5
        };
        Ok(requests.iter().map(score).collect())
    }
}

/// Reward models by number: the n-th scores as [`FakeReward`] does, which stays within 1 of 0, and adds 10 n.
#[derive(Clone, Debug, Default)]
pub struct FakeRewardModels {
    /// How many times more one can't be read.
    pub n_failures: Arc<AtomicU64>,
}

impl FakeRewardModels {
    /// The n-th.
    pub fn id(n: u64) -> RewardModelId {
        RewardModelId { dir: n.to_string().into(), weights: format!("{:016x}", hash(&[n])) }
    }

    /// By which one a score is.
    pub fn number_of(score: f32) -> u64 {
        (score / 10.0).round() as u64
    }
}

impl RewardModels for FakeRewardModels {
    fn identify(&self, dir: &Path) -> Result<RewardModelId, RoleError> {
        let n = dir.to_str().and_then(|name| name.parse().ok());
        Ok(Self::id(n.ok_or_else(|| format!("{}: this is no reward model", dir.display()))?))
    }

    fn load(&self, model: &RewardModelId) -> Result<Box<dyn RewardFunction>, RoleError> {
        if self.n_failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err("it can't be read just now".into());
        }
        if self.identify(&model.dir)? != *model {
            return Err(format!("{model} is another one now").into());
        }
        let n: u64 = model.dir.to_str().unwrap_or_default().parse()?;
        Ok(Box::new(OtherFakeReward(n)))
    }
}

struct OtherFakeReward(u64);

impl RewardFunction for OtherFakeReward {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        Ok(FakeReward.scores(requests)?.into_iter().map(|score| score + 10.0 * self.0 as f32).collect())
    }
}

/// Tokens as numbers, separated by spaces.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeDetokenizer;

impl FakeDetokenizer {
    fn text(tokens: &[u32]) -> String {
        tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl Detokenizer for FakeDetokenizer {
    fn decode(&self, tokens: &[u32]) -> Result<String, RoleError> {
        Ok(Self::text(tokens))
    }
}

/// Values are a function of the value weights; advantages are the score less the value. It counts the rollouts that it
/// has seen, and the coefficient shows them.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeExperienceMaker {
    n_seen: u64,
    /// What the coefficient was set to last, as bits; 0 before.
    kl_coef: u64,
}

impl ExperienceMaker<FakeWeights> for FakeExperienceMaker {
    fn assemble(
        &mut self,
        version: PolicyVersion,
        rollouts: Vec<ScoredRollout>,
        snapshot: &Snapshot<FakeWeights>,
    ) -> Result<ExperienceBatch, RoleError> {
        let value = negative_fraction(*snapshot.value);
        let experience = |scored: ScoredRollout| {
            let n = scored.rollout.response.len();
            let advantages = vec![scored.score - value; n];
            let returns = vec![scored.score; n];
            Experience { rewards: vec![0.0; n], values: vec![value; n], advantages, returns, scored }
        };
        self.n_seen += rollouts.len() as u64;
        Ok(ExperienceBatch {
            version,
            experiences: rollouts.into_iter().map(experience).collect(),
            kl_coef: negative_fraction(hash(&[5, self.n_seen, self.kl_coef])),
            values_version: snapshot.version,
        })
    }

    fn change(&mut self, change: SettingChange) -> Result<(), RoleError> {
        if let SettingChange::KlCoef(kl_coef) = change {
            self.kl_coef = kl_coef.to_bits();
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<u8>, RoleError> {
        Ok([self.n_seen.to_le_bytes(), self.kl_coef.to_le_bytes()].concat())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RoleError> {
        let (n_seen, kl_coef) = state.split_at_checked(8).ok_or("a state that is cut short")?;
        (self.n_seen, self.kl_coef) = (u64::from_le_bytes(n_seen.try_into()?), u64::from_le_bytes(kl_coef.try_into()?));
        Ok(())
    }
}

/// The number of the batch, from 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakePretrain;

impl PretrainSource for FakePretrain {
    fn batch(&mut self, idx: u64) -> Result<PretrainBatch, RoleError> {
        Ok(PretrainBatch { sequences: vec![vec![idx as u32 + 1; 3]] })
    }
}

/// Folds everything that it is trained on into its weights.
#[derive(Debug)]
pub struct FakeTrainer {
    /// The weights now.
    pub weights: FakeWeights,
    /// Updates done.
    pub version: PolicyVersion,
    /// What the learning rate was set to last, as bits; 0 before.
    lr: u64,
    n_pretrain: usize,
    log: SharedLog,
}

impl FakeTrainer {
    /// A trainer that takes `n_pretrain` batches of text an update.
    pub fn new(n_pretrain: usize, log: SharedLog) -> Self {
        Self { weights: 1, version: PolicyVersion(0), lr: 0, n_pretrain, log }
    }
}

impl Trainer<FakeWeights> for FakeTrainer {
    fn pretrain_batches_per_update(&self) -> usize {
        self.n_pretrain
    }

    fn update(&mut self, batch: &ExperienceBatch, pretrain: &[PretrainBatch]) -> Result<TrainMetrics, RoleError> {
        assert_eq!(pretrain.len(), self.n_pretrain);
        for experience in &batch.experiences {
            let rollout = &experience.scored.rollout;
            for ((token, version), advantage) in
                rollout.response.iter().zip(&rollout.versions).zip(&experience.advantages)
            {
                self.weights = hash(&[self.weights, (*token).into(), version.0, advantage.to_bits().into()]);
            }
        }
        self.weights = hash(&[self.weights, batch.kl_coef.to_bits().into(), self.lr]);
        for token in pretrain.iter().flat_map(|batch| batch.sequences.iter().flatten()) {
            self.weights = hash(&[self.weights, (*token).into()]);
        }
        let mut log = self.log.read();
        let n_samplers_with_weights = log.n_samplers_with_weights;
        log.with_weights_in_updates.push(n_samplers_with_weights);
        let idx = (self.version.0 - log.first_version.0) as usize;
        match log.batches.get(idx) {
            // A trainer made anew does again what the one before it did.
            Some(before) => {
                assert_eq!(before, batch);
                assert_eq!(log.pretrain[idx], pretrain);
            }
            None => {
                log.batches.push(batch.clone());
                log.pretrain.push(pretrain.to_vec());
            }
        }
        self.version = self.version.next();
        Ok(TrainMetrics { policy_loss: negative_fraction(self.weights).into(), n_steps: 1, ..TrainMetrics::default() })
    }

    fn change(&mut self, change: SettingChange) -> Result<(), RoleError> {
        if let SettingChange::Lr(lr) = change {
            self.lr = lr.to_bits();
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot<FakeWeights>, RoleError> {
        self.log.read().published.insert(self.version, self.weights);
        let (policy, value) = (Arc::new(self.weights), Arc::new(hash(&[self.weights])));
        Ok(Snapshot { version: self.version, policy, value })
    }

    fn save_state(&self, path: &Path) -> Result<(), RoleError> {
        Ok(fs::write(path, [self.version.0, self.weights, self.lr].map(u64::to_le_bytes).concat())?)
    }

    fn restore(&mut self, path: &Path) -> Result<(), RoleError> {
        let state = fs::read(path)?;
        let numbers: Vec<u64> = state.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let [version, weights, lr] = numbers[..] else { return Err("a state that is cut short".into()) };
        (self.version, self.weights, self.lr) = (PolicyVersion(version), weights, lr);
        Ok(())
    }

    fn checksum(&self) -> Result<u64, RoleError> {
        Ok(self.weights)
    }
}
