//! The journal: what it takes to run a threaded run again, bit for bit. Whatever follows from seeds and settings is not
//! in it; what the threads' timing decided is.

use serde::{Deserialize, Serialize};

use crate::change::SettingChange;
use crate::ids::PolicyVersion;
use crate::rollout::{ExperienceBatch, FinishReason, ScoredRollout};
use crate::ticket::{Ticket, TicketCounts};

/// One update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournaledUpdate {
    /// The version that trained on the batch.
    pub version: PolicyVersion,
    /// Settings that were changed before the batch was made, in this order: they hold for it and its update.
    pub changes: Vec<SettingChange>,
    /// The version of the value model that the batch's values are of.
    pub values_version: PolicyVersion,
    /// The coefficient of the KL penalty in the batch's rewards.
    pub kl_coef: f32,
    /// What the batch was made of, in order of ticket id.
    pub rollouts: Vec<JournaledRollout>,
    /// The ledger after the update.
    pub tickets: TicketCounts,
    /// Checksum of the weights after the update.
    pub checksum: u64,
}

/// One rollout of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournaledRollout {
    /// Which prompt, and which sample of it.
    pub ticket: Ticket,
    /// The version that read the prompt.
    pub prompt_version: PolicyVersion,
    /// The versions that sampled the tokens, one after another.
    pub versions: Vec<VersionRun>,
    /// Why it ended.
    pub finish: FinishReason,
    /// CRC32C of the token ids, then of the bits of their log-probabilities, little endian.
    pub digest: u32,
    /// Its score.
    pub score: f32,
}

/// Tokens in a row that one version sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRun {
    /// The version.
    pub version: PolicyVersion,
    /// How many tokens.
    pub n_tokens: u32,
}

impl JournaledUpdate {
    /// What the journal keeps of an update.
    pub fn of(batch: &ExperienceBatch, changes: &[SettingChange], tickets: TicketCounts, checksum: u64) -> Self {
        Self {
            version: batch.version,
            changes: changes.to_vec(),
            values_version: batch.values_version,
            kl_coef: batch.kl_coef,
            rollouts: batch.experiences.iter().map(|e| JournaledRollout::of(&e.scored)).collect(),
            tickets,
            checksum,
        }
    }
}

impl JournaledRollout {
    /// Tokens of the response.
    pub fn n_tokens(&self) -> usize {
        self.versions.iter().map(|run| run.n_tokens as usize).sum()
    }

    /// What the journal keeps of a rollout.
    pub fn of(scored: &ScoredRollout) -> Self {
        let rollout = &scored.rollout;
        let mut versions: Vec<VersionRun> = Vec::new();
        for &version in &rollout.versions {
            match versions.last_mut() {
                Some(last) if last.version == version => last.n_tokens += 1,
                _ => versions.push(VersionRun { version, n_tokens: 1 }),
            }
        }
        let ids = rollout.response.iter().flat_map(|id| id.to_le_bytes());
        let logprobs = rollout.logprobs.iter().flat_map(|logprob| logprob.to_bits().to_le_bytes());
        let bytes: Vec<u8> = ids.chain(logprobs).collect();
        Self {
            ticket: rollout.prompt.ticket,
            prompt_version: rollout.prompt_version,
            versions,
            finish: rollout.finish,
            digest: crc32c::crc32c(&bytes),
            score: scored.score,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PromptId, TicketId};
    use crate::rollout::{Prompt, Rollout};

    #[test]
    fn versions_are_kept_as_runs_and_any_changed_bit_changes_the_digest() {
        let ticket = Ticket { id: TicketId(7), prompt_id: PromptId(3), sample_idx: 1 };
        let version = PolicyVersion;
        let rollout = Rollout {
            prompt: Prompt { ticket, tokens: vec![1] },
            prompt_version: version(3),
            response: vec![5, 6, 7],
            logprobs: vec![-1.0, -2.0, -3.0],
            versions: vec![version(3), version(3), version(4)],
            entropies: vec![0.0; 3],
            finish: FinishReason::End,
        };
        let scored = ScoredRollout { rollout, ref_logprobs: vec![0.0; 3], score: 0.5 };
        let kept = JournaledRollout::of(&scored);
        let run = |version, n_tokens| VersionRun { version: PolicyVersion(version), n_tokens };
        assert_eq!(kept.versions, [run(3, 2), run(4, 1)]);
        let mut other = scored.clone();
        other.rollout.response[2] = 8;
        assert_ne!(JournaledRollout::of(&other).digest, kept.digest);
        let mut other = scored;
        other.rollout.logprobs[0] = f32::from_bits((-1.0f32).to_bits() ^ 1);
        assert_ne!(JournaledRollout::of(&other).digest, kept.digest);
    }
}
