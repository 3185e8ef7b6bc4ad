//! `rollouts.jsonl`: some of the rollouts of each update, as text with their scores, and some of those token by token.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use collimate_protocol::records::{RolloutRecord, TokenDetail};
use collimate_protocol::roles::Detokenizer;
use collimate_protocol::{Experience, ExperienceBatch, PolicyVersion, PromptId, RoleError};
use serde::Deserialize;

use super::pieces::pieces;
use super::watched_prompts::WatchedPrompts;
use super::{JsonlWriter, RolloutIndex, RunDirError};

/// How many rollouts of an update are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// As text with their scores.
    pub n_rollouts: usize,
    /// Of those, token by token.
    pub n_in_detail: usize,
}

/// Writes some rollouts of each batch, and keeps the index beside them. Batches are in order of ticket.
pub struct RolloutWriter {
    file: JsonlWriter<RolloutRecord>,
    /// `None` once it could not be written: it can be made again from the file, by whoever needs it.
    index: Option<RolloutIndex>,
    detokenizer: Arc<dyn Detokenizer>,
    recorded: Recorded,
    watched: WatchedPrompts,
}

impl RolloutWriter {
    /// Starts the file with what is there of the updates before `version`.
    pub fn open(
        path: &Path,
        version: PolicyVersion,
        detokenizer: Arc<dyn Detokenizer>,
        recorded: Recorded,
    ) -> Result<Self, RunDirError> {
        let file =
            File::options().create(true).truncate(false).write(true).open(path).map_err(RunDirError::io(path))?;
        let (end, watched) = earlier(path, version)?;
        file.set_len(end).map_err(RunDirError::io(path))?;
        let index = RolloutIndex::open(path).and_then(|mut index| index.catch_up().map(|_| index)).ok();
        Ok(Self { file: JsonlWriter::append(path)?, index, detokenizer, recorded, watched })
    }

    /// Adds the update that trained on this batch. `gold` has a score for each of its rollouts, or none at all.
    pub fn write(&mut self, batch: &ExperienceBatch, gold: Option<&[f32]>) -> Result<(), RoleError> {
        let prompts: Vec<PromptId> =
            batch.experiences.iter().map(|experience| experience.scored.rollout.prompt.ticket.prompt_id).collect();
        let chosen = self.watched.choose(&prompts, self.recorded.n_rollouts);
        // Of each, whether it is recorded token by token.
        let mut chosen: Vec<(usize, bool)> =
            chosen.into_iter().enumerate().map(|(rank, idx)| (idx, rank < self.recorded.n_in_detail)).collect();
        chosen.sort_unstable();
        let records = chosen
            .into_iter()
            .map(|(idx, is_in_detail)| {
                let experience = &batch.experiences[idx];
                let gold = gold.and_then(|gold| gold.get(idx).copied());
                let mut record = record_of(batch, experience, gold, &*self.detokenizer)?;
                if is_in_detail {
                    record.tokens = Some(detail_of(batch, experience, &*self.detokenizer)?);
                }
                Ok(record)
            })
            .collect::<Result<Vec<_>, RoleError>>()?;
        self.file.write_all(&records)?;
        records.iter().for_each(|record| self.watched.see(record.prompt_id));
        if let Some(index) = &mut self.index
            && index.catch_up().is_err()
        {
            self.index = None;
        }
        Ok(())
    }
}

/// Where the lines of updates before `version` end, and the prompts that they watch. Versions only rise, so all of them
/// come first.
fn earlier(path: &Path, version: PolicyVersion) -> Result<(u64, WatchedPrompts), RunDirError> {
    #[derive(Deserialize)]
    struct Trained {
        version: PolicyVersion,
        prompt_id: PromptId,
    }
    let mut watched = WatchedPrompts::default();
    let mut file = BufReader::new(File::open(path).map_err(RunDirError::io(path))?);
    let (mut end, mut line) = (0, String::new());
    for number in 1.. {
        line.clear();
        let n_bytes = file.read_line(&mut line).map_err(RunDirError::io(path))?;
        // A line without an end was being written when the process died.
        if n_bytes == 0 || !line.ends_with('\n') {
            break;
        }
        let trained: Trained =
            serde_json::from_str(&line).map_err(|error| RunDirError::bad(path, format!("line {number}: {error}")))?;
        if trained.version >= version {
            break;
        }
        end += n_bytes as u64;
        watched.see(trained.prompt_id);
    }
    Ok((end, watched))
}

/// A rollout as a line, without its tokens.
pub fn record_of(
    batch: &ExperienceBatch,
    experience: &Experience,
    gold: Option<f32>,
    detokenizer: &dyn Detokenizer,
) -> Result<RolloutRecord, RoleError> {
    let scored = &experience.scored;
    let rollout = &scored.rollout;
    let kl = scored.sequence_kl();
    Ok(RolloutRecord {
        version: batch.version,
        prompt_id: rollout.prompt.ticket.prompt_id,
        sample_idx: rollout.prompt.ticket.sample_idx,
        prompt: detokenizer.decode(&rollout.prompt.tokens)?,
        prompt_tokens: rollout.prompt.tokens.clone(),
        response: detokenizer.decode(rollout.response_body())?,
        response_tokens: rollout.response.clone(),
        logprobs: rollout.logprobs.clone(),
        versions: rollout.versions.clone(),
        finish: rollout.finish,
        score: scored.score,
        gold,
        kl,
        kl_penalty: batch.kl_coef * kl,
        reward: experience.rewards.iter().sum(),
        tokens: None,
    })
}

/// A rollout's tokens one by one.
fn detail_of(
    batch: &ExperienceBatch,
    experience: &Experience,
    detokenizer: &dyn Detokenizer,
) -> Result<TokenDetail, RoleError> {
    let rollout = &experience.scored.rollout;
    let mut response = pieces(rollout.response_body(), detokenizer)?;
    // An end token.
    response.resize(rollout.response.len(), String::new());
    Ok(TokenDetail {
        prompt: pieces(&rollout.prompt.tokens, detokenizer)?,
        response,
        ref_logprobs: rounded(&experience.scored.ref_logprobs),
        values: rounded(&experience.values),
        advantages: rounded(&experience.advantages),
        values_version: batch.values_version,
    })
}

fn rounded(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|number| (number * 1e4).round() / 1e4).collect()
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
            response: vec![3, 4, 0],
            logprobs: vec![-1.0, -0.5, -0.25],
            versions: vec![PolicyVersion(0), PolicyVersion(1), PolicyVersion(1)],
            prompt_version: PolicyVersion(0),
            entropies: vec![1.0; 3],
            finish: FinishReason::End,
        };
        let scored = ScoredRollout { rollout, ref_logprobs: vec![-1.5, -0.75, -0.25], score };
        Experience {
            scored,
            rewards: vec![-0.05, -0.025, score],
            values: vec![0.123_456, 0.2, 0.3],
            advantages: vec![1.0, -1.0, 0.5],
            returns: vec![0.0; 3],
        }
    }

    pub(crate) fn batch(version: u64, experiences: Vec<Experience>) -> ExperienceBatch {
        let (version, values_version) = (PolicyVersion(version), PolicyVersion(version));
        ExperienceBatch { version, experiences, kl_coef: 0.1, values_version }
    }

    fn writer(path: &Path, version: u64, n_rollouts: usize, n_in_detail: usize) -> RolloutWriter {
        let recorded = Recorded { n_rollouts, n_in_detail };
        RolloutWriter::open(path, PolicyVersion(version), Arc::new(Digits), recorded).unwrap()
    }

    #[test]
    fn some_rollouts_of_an_update_are_written_as_text_and_fewer_token_by_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        let batch = batch(4, vec![experience(7, 0.5), experience(8, 1.0), experience(9, 2.0)]);
        writer(&path, 0, 2, 1).write(&batch, Some(&[0.1, 0.2, 0.3])).unwrap();
        let records: Vec<RolloutRecord> = read_jsonl(&path).unwrap();
        assert_eq!(records.len(), 2);
        let first = &records[0];
        assert_eq!((first.prompt.as_str(), first.response.as_str()), ("1 2", "3 4"), "no end token in the text");
        assert_eq!((first.gold, first.kl, first.kl_penalty), (Some(0.1), 0.75, 0.1 * 0.75));
        assert!((first.reward - (0.5 - 0.075)).abs() < 1e-6);
        let tokens = first.tokens.as_ref().unwrap();
        assert_eq!((tokens.prompt.concat(), tokens.response.concat()), (first.prompt.clone(), first.response.clone()));
        assert_eq!(tokens.response, ["3", " 4", ""]);
        assert_eq!((&*tokens.ref_logprobs, tokens.values[0]), (&[-1.5, -0.75, -0.25][..], 0.1235));
        assert_eq!(
            (records[1].version, records[1].prompt_id, &records[1].tokens),
            (PolicyVersion(4), PromptId(8), &None)
        );
    }

    #[test]
    fn a_run_that_goes_on_drops_the_rollouts_of_updates_that_it_does_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        let mut first = writer(&path, 0, 1, 1);
        (0..4).for_each(|version| first.write(&batch(version, vec![experience(version, 0.0)]), None).unwrap());
        drop(first);
        std::fs::write(&path, format!("{}{{\"versio", std::fs::read_to_string(&path).unwrap())).unwrap();
        let mut again = writer(&path, 2, 1, 1);
        again.write(&batch(2, vec![experience(12, 1.0)]), None).unwrap();
        let records: Vec<RolloutRecord> = read_jsonl(&path).unwrap();
        let ids: Vec<(u64, u64)> = records.iter().map(|r| (r.version.0, r.prompt_id.0)).collect();
        assert_eq!(ids, [(0, 0), (1, 1), (2, 12)]);
    }

    /// Batches of four prompts in which the first eight come again and again, in other places, among new ones.
    #[test]
    fn a_prompt_is_recorded_again_also_by_a_run_that_went_on_and_what_is_in_detail_is_of_watched_prompts() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let batch_of = |version: u64| {
            let prompts = [100 + version, version * 3 % 8, 200 + version, version * 5 % 8];
            batch(version, prompts.map(|prompt| experience(prompt, 0.0)).to_vec())
        };
        let mut straight = writer(&path("straight.jsonl"), 0, 2, 1);
        (0..20).for_each(|version| straight.write(&batch_of(version), None).unwrap());
        let mut first = writer(&path("again.jsonl"), 0, 2, 1);
        (0..9).for_each(|version| first.write(&batch_of(version), None).unwrap());
        drop(first);
        let mut again = writer(&path("again.jsonl"), 6, 2, 1);
        (6..20).for_each(|version| again.write(&batch_of(version), None).unwrap());
        assert_eq!(std::fs::read(path("again.jsonl")).unwrap(), std::fs::read(path("straight.jsonl")).unwrap());

        let records: Vec<RolloutRecord> = read_jsonl(&path("straight.jsonl")).unwrap();
        assert_eq!(records.len(), 40);
        let last: Vec<(u64, bool)> = records[38..].iter().map(|r| (r.prompt_id.0, r.tokens.is_some())).collect();
        assert_eq!(last.iter().filter(|(_, is_in_detail)| *is_in_detail).count(), 1);
        let (detailed, _) = last.iter().find(|(_, is_in_detail)| *is_in_detail).unwrap();
        assert!(records[..38].iter().any(|record| record.prompt_id.0 == *detailed), "{last:?}");
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        std::fs::write(&path, "{\"version\":0,\"prompt_id\":0}\nnonsense\n").unwrap();
        let recorded = Recorded { n_rollouts: 1, n_in_detail: 0 };
        let error = RolloutWriter::open(&path, PolicyVersion(9), Arc::new(Digits), recorded).err().unwrap();
        assert!(error.to_string().contains("rollouts.jsonl: line 2: "), "{error}");
    }
}
