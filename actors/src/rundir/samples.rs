//! `rollouts.jsonl`: some of the rollouts of each update, as text with their scores.

use std::path::Path;
use std::sync::Arc;

use collimate_protocol::records::RolloutRecord;
use collimate_protocol::roles::Detokenizer;
use collimate_protocol::{Experience, PolicyVersion, RoleError};
use serde_json::Value;

use super::{JsonlWriter, RunDirError};

/// Writes the first rollouts of each batch. Batches are in order of ticket, which no score and no length decides, so
/// the first ones are a fair sample.
pub struct RolloutWriter {
    file: JsonlWriter<RolloutRecord>,
    detokenizer: Arc<dyn Detokenizer>,
    n_per_update: usize,
}

impl RolloutWriter {
    /// Starts the file with what is there of the updates before `version`.
    pub fn open(
        path: &Path,
        version: PolicyVersion,
        detokenizer: Arc<dyn Detokenizer>,
        n_per_update: usize,
    ) -> Result<Self, RunDirError> {
        let is_earlier = |record: &Value| record["version"].as_u64().is_some_and(|trained_at| trained_at < version.0);
        Ok(Self { file: JsonlWriter::resume(path, is_earlier)?, detokenizer, n_per_update })
    }

    /// Adds the update that started from `version` and trained on these.
    pub fn write(&mut self, version: PolicyVersion, experiences: &[Experience]) -> Result<(), RoleError> {
        let sampled = experiences.iter().take(self.n_per_update);
        let records = sampled
            .map(|experience| record_of(version, experience, &*self.detokenizer))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.file.write_all(&records)?)
    }
}

/// A rollout as a line.
pub fn record_of(
    version: PolicyVersion,
    experience: &Experience,
    detokenizer: &dyn Detokenizer,
) -> Result<RolloutRecord, RoleError> {
    let scored = &experience.scored;
    let rollout = &scored.rollout;
    Ok(RolloutRecord {
        version,
        prompt_id: rollout.prompt.ticket.prompt_id,
        sample_idx: rollout.prompt.ticket.sample_idx,
        prompt: detokenizer.decode(&rollout.prompt.tokens)?,
        response: detokenizer.decode(rollout.response_body())?,
        response_tokens: rollout.response.clone(),
        logprobs: rollout.logprobs.clone(),
        versions: rollout.versions.clone(),
        finish: rollout.finish,
        score: scored.score,
        kl: scored.sequence_kl(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use collimate_protocol::{FinishReason, Prompt, PromptId, Rollout, ScoredRollout, Ticket, TicketId};

    use super::*;
    use crate::rundir::read_jsonl;

    pub(crate) struct Digits;

    impl Detokenizer for Digits {
        fn decode(&self, tokens: &[u32]) -> Result<String, RoleError> {
            Ok(tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
        }
    }

    pub(crate) fn experience(ticket: u64, score: f32) -> Experience {
        let ticket = Ticket { id: TicketId(ticket), prompt_id: PromptId(ticket), sample_idx: 0 };
        let rollout = Rollout {
            prompt: Prompt { ticket, tokens: vec![1, 2] },
            response: vec![3, 0],
            logprobs: vec![-1.0, -0.5],
            versions: vec![PolicyVersion(0), PolicyVersion(1)],
            prompt_version: PolicyVersion(0),
            entropies: vec![1.0, 1.0],
            finish: FinishReason::End,
        };
        let scored = ScoredRollout { rollout, ref_logprobs: vec![-1.5, -0.75], score };
        Experience {
            scored,
            rewards: vec![0.0; 2],
            values: vec![0.0; 2],
            advantages: vec![0.0; 2],
            returns: vec![0.0; 2],
        }
    }

    #[test]
    fn the_first_rollouts_of_an_update_are_written_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        let mut writer = RolloutWriter::open(&path, PolicyVersion(0), Arc::new(Digits), 2).unwrap();
        writer.write(PolicyVersion(4), &[experience(7, 0.5), experience(8, 1.0), experience(9, 2.0)]).unwrap();
        let records: Vec<RolloutRecord> = read_jsonl(&path).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(
            (records[0].prompt.as_str(), records[0].response.as_str()),
            ("1 2", "3"),
            "no end token in the text"
        );
        assert_eq!((records[1].version, records[1].prompt_id, records[1].kl), (PolicyVersion(4), PromptId(8), 0.75));
    }
}
