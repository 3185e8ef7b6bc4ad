use collimate_protocol::records::{JournaledRollout, VersionRun};
use collimate_protocol::{FinishReason, PromptId, RewardModelId, SettingChange, Ticket, TicketCounts, TicketId};
use proptest::prelude::*;

use super::*;
use crate::rundir::testing::cases;

fn update(version: u64, n_rollouts: u64) -> JournaledUpdate {
    let rollout = |n: u64| JournaledRollout {
        ticket: Ticket { id: TicketId(version * n_rollouts + n), prompt_id: PromptId(n * 131), sample_idx: 2 },
        prompt_version: PolicyVersion(version),
        versions: vec![
            VersionRun { version: PolicyVersion(version), n_tokens: 20 },
            VersionRun { version: PolicyVersion(version + 1), n_tokens: 12 },
        ],
        finish: FinishReason::Length,
        digest: 0xdead_beef,
        score: 0.25,
    };
    JournaledUpdate {
        changes: match version % 3 {
            1 => vec![SettingChange::Lr(0.5)],
            2 => vec![SettingChange::RewardModel(RewardModelId { dir: "a".into(), weights: "0f".into() })],
            _ => Vec::new(),
        },
        version: PolicyVersion(version),
        values_version: PolicyVersion(version),
        kl_coef: 0.05,
        rollouts: (0..n_rollouts).map(rollout).collect(),
        tickets: TicketCounts::default(),
        checksum: u64::MAX - version,
    }
}

struct InFolder {
    _folder: tempfile::TempDir,
    path: PathBuf,
    updates: Vec<JournaledUpdate>,
}

fn journal(n: u64) -> InFolder {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.bin");
    let updates: Vec<_> = (0..n).map(|version| update(version, 3)).collect();
    let mut writer = JournalWriter::open(&path, PolicyVersion(0)).unwrap();
    updates.iter().for_each(|update| writer.append(update).unwrap());
    InFolder { _folder: folder, path, updates }
}

#[test]
fn what_was_appended_is_there_at_once_and_costs_less_than_two_bytes_a_token() {
    let journal = journal(0);
    let mut writer = JournalWriter::open(&journal.path, PolicyVersion(0)).unwrap();
    let update = update(0, 64);
    writer.append(&update).unwrap();
    assert_eq!(Journal::read(&journal.path).unwrap().updates, [update]);
    let n_bytes = std::fs::metadata(&journal.path).unwrap().len();
    assert!(n_bytes < 2 * 64 * 32, "{n_bytes} bytes for 64 rollouts of 32 tokens");
}

#[test]
fn a_run_that_goes_on_at_a_version_drops_what_came_after_it() {
    let journal = journal(4);
    let mut writer = JournalWriter::open(&journal.path, PolicyVersion(2)).unwrap();
    let again = JournaledUpdate { checksum: 7, ..update(2, 3) };
    writer.append(&again).unwrap();
    let expected = [journal.updates[0].clone(), journal.updates[1].clone(), again];
    assert_eq!(Journal::read(&journal.path).unwrap().updates, expected);
    JournalWriter::open(&journal.path, PolicyVersion(0)).unwrap();
    assert!(Journal::read(&journal.path).unwrap().updates.is_empty());
}

#[test]
fn a_gap_between_what_is_there_and_where_the_run_goes_on_is_refused() {
    let journal = journal(2);
    let error = JournalWriter::open(&journal.path, PolicyVersion(3)).unwrap_err().to_string();
    assert!(error.contains("journal.bin: it ends before the update of v2, and the run goes on at v3"), "{error}");
    std::fs::remove_file(&journal.path).unwrap();
    let error = JournalWriter::open(&journal.path, PolicyVersion(1)).unwrap_err().to_string();
    assert!(error.contains("journal.bin: it is gone"), "{error}");
}

#[test]
fn a_tail_of_zeros_is_torn_and_other_files_are_refused() {
    let journal = journal(2);
    let mut bytes = std::fs::read(&journal.path).unwrap();
    bytes.extend([0; 500]);
    std::fs::write(&journal.path, &bytes).unwrap();
    let read = Journal::read(&journal.path).unwrap();
    assert_eq!((read.updates, read.n_torn), (journal.updates, 500));
    std::fs::write(&journal.path, b"{}").unwrap();
    let error = Journal::read(&journal.path).unwrap_err().to_string();
    assert!(error.ends_with("journal.bin: this is not a journal, or one of another version"), "{error}");
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn cut_anywhere_it_gives_the_whole_updates_before_the_cut_and_goes_on_from_there(share in 0.0..=1.0f64) {
        let journal = journal(4);
        let bytes = std::fs::read(&journal.path).unwrap();
        let n = (share * bytes.len() as f64) as usize;
        std::fs::write(&journal.path, &bytes[..n]).unwrap();
        let read = Journal::read(&journal.path).unwrap();
        let n_whole = read.updates.len();
        prop_assert_eq!(&read.updates, &journal.updates[..n_whole]);
        prop_assert!(n_whole == 4 || n < bytes.len());
        let mut writer = JournalWriter::open(&journal.path, PolicyVersion(n_whole as u64)).unwrap();
        writer.append(&update(n_whole as u64, 1)).unwrap();
        prop_assert_eq!(Journal::read(&journal.path).unwrap().updates.len(), n_whole + 1);
    }

    #[test]
    fn a_flipped_bit_is_refused_by_name_or_costs_the_last_update_alone(place in 0.0..1.0f64, bit in 0..8u8) {
        let journal = journal(4);
        let mut bytes = std::fs::read(&journal.path).unwrap();
        let idx = (place * bytes.len() as f64) as usize;
        bytes[idx] ^= 1 << bit;
        std::fs::write(&journal.path, &bytes).unwrap();
        match Journal::read(&journal.path) {
            Ok(read) => {
                prop_assert_eq!(&read.updates, &journal.updates[..3]);
                prop_assert!(read.n_torn > 0);
            }
            Err(error) => prop_assert!(error.to_string().contains("journal.bin: "), "{}", error),
        }
    }
}
