use std::collections::BTreeMap;

use collimate_protocol::records::RewardModelSince;
use collimate_protocol::{PromptId, RewardModelId, Ticket, TicketCounts, TicketId};
use proptest::prelude::*;

use super::*;
use crate::rundir::testing::cases;

fn checkpoint(version: u64) -> Checkpoint {
    let open = vec![Ticket { id: TicketId(version + 4), prompt_id: PromptId(1), sample_idx: 0 }];
    let counts = TicketCounts {
        issued: version + 5,
        trained: version + 3,
        dropped: 1,
        dropped_by_reason: BTreeMap::from([(collimate_protocol::DropReason::TooStale, 1)]),
        in_flight: 1,
    };
    let since = |dir: &str, version| RewardModelSince {
        model: RewardModelId { dir: dir.into(), weights: "0f".into() },
        version: PolicyVersion(version),
    };
    let reward_model = (version > 2).then(|| since("a", 2));
    let next_reward_model = (version > 4).then(|| since("b", version + 1));
    Checkpoint {
        version: PolicyVersion(version),
        ledger: LedgerState { counts, open, reward_model, next_reward_model },
        checksum: u64::MAX - version,
        trainer: Arc::new(
            StateFile::write(&std::env::temp_dir(), |path| Ok(fs::write(path, trainer(version))?)).unwrap(),
        ),
        experience_maker: Some(br#"{"kl":0.1}"#.to_vec()),
    }
}

fn trainer(version: u64) -> Vec<u8> {
    (0..200u8).map(|byte| byte.wrapping_mul(version as u8 + 3)).collect()
}

/// Everything that a checkpoint holds.
fn contents(checkpoint: &Checkpoint) -> impl PartialEq + std::fmt::Debug + use<> {
    let Checkpoint { version, ledger, checksum, trainer, experience_maker } = checkpoint.clone();
    (version, ledger, checksum, fs::read(trainer.path()).unwrap(), experience_maker)
}

fn assert_newest(checkpoints: &Checkpoints, expected: &Checkpoint) {
    assert_eq!(contents(&checkpoints.newest().unwrap().checkpoint.unwrap()), contents(expected));
}

fn versions(numbers: &[u64]) -> Vec<PolicyVersion> {
    numbers.iter().copied().map(PolicyVersion).collect()
}

fn saved(numbers: &[u64]) -> (tempfile::TempDir, Checkpoints) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::at(&folder.path().join("checkpoints"));
    numbers.iter().for_each(|version| checkpoints.save(&checkpoint(*version), 9).unwrap());
    (folder, checkpoints)
}

#[test]
fn the_newest_comes_back_as_it_was_and_the_oldest_go() {
    let (_folder, checkpoints) = saved(&[]);
    assert!(checkpoints.newest().unwrap().checkpoint.is_none());
    for version in [2, 4, 10] {
        checkpoints.save(&checkpoint(version), 2).unwrap();
    }
    assert_eq!(checkpoints.versions().unwrap(), versions(&[4, 10]));
    assert_newest(&checkpoints, &checkpoint(10));
    let first = Checkpoint { experience_maker: None, ..checkpoint(11) };
    checkpoints.save(&first, 1).unwrap();
    assert_newest(&checkpoints, &first);
}

#[test]
fn a_damaged_one_is_passed_over_by_name_and_replaced_when_its_version_comes_again() {
    let (_folder, checkpoints) = saved(&[1, 2]);
    fs::write(checkpoints.path(PolicyVersion(2)).join(TRAINER), b"short").unwrap();
    let found = checkpoints.newest().unwrap();
    assert_eq!(contents(found.checkpoint.as_ref().unwrap()), contents(&checkpoint(1)));
    assert!(found.damaged[0].contains("v00000002/trainer.safetensors: it has 5 bytes, expected 200"), "{found:?}");
    checkpoints.save(&checkpoint(2), 9).unwrap();
    assert_newest(&checkpoints, &checkpoint(2));
}

#[test]
fn where_all_are_damaged_nothing_is_started_over() {
    let (_folder, checkpoints) = saved(&[1, 2]);
    for version in versions(&[1, 2]) {
        fs::remove_file(checkpoints.path(version).join(MANIFEST)).unwrap();
    }
    let error = checkpoints.newest().unwrap_err().to_string();
    assert!(error.contains("every checkpoint is damaged") && error.contains("v00000001/manifest.json"), "{error}");
}

#[test]
fn what_is_newer_than_where_a_run_goes_on_is_removed() {
    let (_folder, checkpoints) = saved(&[1, 2, 3]);
    checkpoints.remove_after(PolicyVersion(1)).unwrap();
    assert_eq!(checkpoints.versions().unwrap(), versions(&[1]));
}

/// Every state of the folder that a process killed while saving can leave: the files in the order in which they are
/// written, each cut anywhere, and the folder not yet renamed.
#[test]
fn a_save_that_was_interrupted_anywhere_leaves_the_one_before_and_does_not_hinder_the_next() {
    let (_other, whole) = saved(&[2]);
    let source = whole.path(PolicyVersion(2));
    let files = [TRAINER, EXPERIENCE_MAKER, MANIFEST].map(|name| (name, fs::read(source.join(name)).unwrap()));
    for n_files in 0..files.len() {
        for share in [0.0, 0.5, 1.0] {
            let (_folder, checkpoints) = saved(&[1]);
            let unfinished = checkpoints.unfinished(PolicyVersion(2));
            fs::create_dir(&unfinished).unwrap();
            for (name, bytes) in &files[..n_files] {
                fs::write(unfinished.join(name), bytes).unwrap();
            }
            let (name, bytes) = &files[n_files];
            fs::write(unfinished.join(name), &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
            assert_newest(&checkpoints, &checkpoint(1));
            checkpoints.save(&checkpoint(2), 9).unwrap();
            assert_newest(&checkpoints, &checkpoint(2));
            assert_eq!(fs::read_dir(&checkpoints.dir).unwrap().count(), 2);
        }
    }
}

#[test]
fn states_that_a_killed_process_left_are_removed_and_whole_checkpoints_stay() {
    let (_folder, checkpoints) = saved(&[1]);
    let left = StateFile::of(&checkpoints.path(PolicyVersion(1)).join(TRAINER)).unwrap();
    fs::copy(left.path(), checkpoints.dir.join(".state-left")).unwrap();
    drop(left);
    fs::create_dir(checkpoints.unfinished(PolicyVersion(2))).unwrap();
    checkpoints.remove_left_over().unwrap();
    assert_eq!(fs::read_dir(&checkpoints.dir).unwrap().count(), 1);
    assert_newest(&checkpoints, &checkpoint(1));
    Checkpoints::at(Path::new("absent")).remove_left_over().unwrap();
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_damage_is_recognised_and_the_one_before_is_found(
        file in prop::sample::select(vec![TRAINER, EXPERIENCE_MAKER, MANIFEST]),
        place in 0.0..1.0f64,
        damage in prop_oneof![(0..8u8).prop_map(Some), Just(None)],
    ) {
        let (_folder, checkpoints) = saved(&[1, 2]);
        let path = checkpoints.path(PolicyVersion(2)).join(file);
        let mut bytes = fs::read(&path).unwrap();
        let idx = (place * bytes.len() as f64) as usize;
        match damage {
            Some(bit) => bytes[idx] ^= 1 << bit,
            None => bytes.truncate(idx),
        }
        fs::write(&path, &bytes).unwrap();
        let error = checkpoints.load(PolicyVersion(2)).unwrap_err().to_string();
        prop_assert!(error.contains("v00000002"), "{}", error);
        let found = checkpoints.newest().unwrap();
        prop_assert_eq!(contents(&found.checkpoint.unwrap()), contents(&checkpoint(1)));
        prop_assert_eq!(found.damaged.len(), 1);
    }
}
