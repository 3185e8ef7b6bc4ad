//! A run directory that is made up, served in this process.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use collimate::label::store::Store;
use collimate::observe::ppo_recorder::UpdateRecord;
use collimate::rundir::{RunDir, Stage, StageDir};
use collimate::view::Live;
use collimate::view::directory::Follower;
use collimate::view::live::Watched;
use collimate::view::server::Door;
use collimate_protocol::messages::{RoleState, RoleStatus, RunStatus};
use collimate_protocol::records::{
    EvaluatedPolicy, EvaluationRecord, QueueDepth, RolloutRecord, Spread, TokenDetail, TrainMetrics, UpdateMetrics,
    WorkSums,
};
use collimate_protocol::{DropReason, FinishReason, PolicyVersion, PromptId, Role, RoleId, TicketCounts};
use serde::Serialize;

use crate::fakes::hash;
use crate::watching::Viewer;

/// What the run is called.
const NAME: &str = "instructgpt";

/// A run of which some updates are there, and its page.
pub struct ShownRun {
    dir: tempfile::TempDir,
    /// What tells the page what happens.
    pub live: Live,
    /// Looks at the page.
    pub viewer: Viewer,
    /// The link to the page.
    pub link: String,
}

impl ShownRun {
    /// A run with these updates and rollouts.
    pub fn new(updates: &[UpdateRecord], rollouts: &[RolloutRecord]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        begin(&dir.path().join(NAME), updates, rollouts);
        Self::serve(dir)
    }

    /// A run of `collimate iterate` with rounds of these updates and rollouts.
    pub fn of_rounds(rounds: &[(Vec<UpdateRecord>, Vec<RolloutRecord>)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let home = RunDir::open(&dir.path().join(NAME), &toml::Table::new()).expect("an empty folder");
        for (idx, (updates, rollouts)) in rounds.iter().enumerate() {
            begin(&home.round(idx + 1), updates, rollouts);
        }
        Self::serve(dir)
    }

    fn serve(dir: tempfile::TempDir) -> Self {
        let root = dir.path().join(NAME);
        let watched = Arc::new(Watched::of(&root));
        Follower::start(RunDir::existing(&root).expect("a run"), &watched);
        let door = Door::open("0").expect("a free port");
        let labels = Store::open(&dir.path().join("labels.db")).expect("a new file");
        let link = door.serve(watched.clone(), Some(labels)).expect("a thread");
        Self { dir, live: Live::to(watched), viewer: Viewer::of(&link), link }
    }

    /// The next round begins, before its first update.
    pub fn begin_round(&self, round: usize) {
        let root = self.dir.path().join(NAME).join(format!("round-{round}"));
        let run = RunDir::open(&root, &toml::Table::new()).expect("an empty folder");
        self.live.round_began(&run);
    }

    /// What the policies have answered to the held-out prompts.
    pub fn evaluate(&self, answers: &[EvaluationRecord]) {
        append(self.ppo().evaluation(), answers);
    }

    /// The project in which people are asked about its rollouts.
    pub fn labels(&self) -> PathBuf {
        self.dir.path().join("labels.db")
    }

    /// PPO's folder.
    pub fn ppo(&self) -> StageDir {
        StageDir::at(&self.dir.path().join(NAME).join("ppo"))
    }

    /// Another update, with its rollouts.
    pub fn push(&self, update: &UpdateRecord, rollouts: &[RolloutRecord]) {
        append(self.ppo().rollouts(), rollouts);
        append(self.ppo().metrics(), std::slice::from_ref(update));
        self.live.updated(update);
    }
}

fn begin(root: &Path, updates: &[UpdateRecord], rollouts: &[RolloutRecord]) {
    let run = RunDir::open(root, &toml::Table::new()).expect("an empty folder");
    let ppo = run.begin(Stage::Ppo).expect("a new stage");
    append(ppo.metrics(), updates);
    append(ppo.rollouts(), rollouts);
}

fn append<T: Serialize>(path: PathBuf, records: &[T]) {
    let lines: String =
        records.iter().map(|record| format!("{}\n", serde_json::to_string(record).expect("plain data"))).collect();
    let mut file = File::options().create(true).append(true).open(path).expect("a file in a temporary folder");
    file.write_all(lines.as_bytes()).expect("room for it");
}

/// An update with this score and little else.
pub fn update(version: u64, score: f64) -> UpdateRecord {
    let mut update = UpdateMetrics { version: PolicyVersion(version), ..UpdateMetrics::default() };
    update.batch.score = score;
    UpdateRecord { update, gold: None, n_labels: None }
}

/// The same by a reward model that has learnt from so many labels.
pub fn labelled_update(version: u64, score: f64, n_labels: u64) -> UpdateRecord {
    UpdateRecord { n_labels: Some(n_labels), ..update(version, score) }
}

/// A number from 0 to below 1.
fn share(of: &[u64]) -> f64 {
    (hash(of) % 10_000) as f64 / 1e4
}

/// An update as a run of some length has them: everything moves, and a little is noise.
pub fn lifelike_update(version: u64) -> UpdateRecord {
    let t = version as f64;
    let noise = |what: u64| share(&[version, what]) - 0.5;
    let grown = 1.0 - (-t / 60.0).exp();
    let mut record = update(version, -0.6 + 4.2 * grown + 0.5 * noise(1));
    record.gold = Some(0.3 + 1.3 * grown + 0.3 * noise(2));
    let batch = &mut record.update.batch;
    (batch.n_rollouts, batch.n_tokens) = (64, 1900);
    batch.kl = 12.0 * grown + noise(3);
    (batch.kl_k1, batch.kl_k2, batch.kl_k3) = (0.4 * grown, 0.5 * grown, 0.45 * grown);
    batch.kl_coef = 0.02;
    batch.entropy = 3.4 - 0.8 * grown + 0.1 * noise(4);
    batch.length = Spread { min: 4.0, mean: 23.0 + 8.0 * grown, max: 32.0 };
    batch.staleness = Spread { min: 0.0, mean: 0.85 + 0.1 * noise(5), max: 1.0 };
    batch.ended_share = 0.4;
    record.update.train = TrainMetrics {
        policy_loss: if version.is_multiple_of(97) { f64::NAN } else { -0.02 + 0.01 * noise(6) },
        value_loss: 0.9 * (-t / 40.0).exp() + 0.2 + if version == 150 { 3.0 } else { 0.02 * noise(7) },
        ptx_loss: 3.5 + 0.03 * noise(8),
        clip_fraction: 0.03 + 0.02 * noise(9),
        explained_variance: 0.7 * grown,
        policy_grad_norm: 1.2 + noise(10),
        value_grad_norm: 2.0 + noise(11),
        lr: 1e-4,
        n_steps: 4,
        ..TrainMetrics::default()
    };
    let flow = &mut record.update.flow;
    flow.elapsed_s = 2.6 * t;
    flow.tokens_per_s = 730.0 + 60.0 * noise(12);
    flow.tickets = tickets(version);
    for (role, len, capacity) in [("generator", 12, 64), ("reference_scorer", 3, 64), ("learner", 1, 1)] {
        flow.queues.insert(role.to_owned(), QueueDepth { len, capacity });
    }
    for (role, busy) in [("generator", 0.8), ("learner", 0.9), ("reference_scorer", 0.2)] {
        flow.busy.insert(role.to_owned(), busy + 0.1 * noise(13));
        flow.role_tokens_per_s.insert(role.to_owned(), 1000.0 * busy + 60.0 * noise(14));
    }
    record
}

fn tickets(version: u64) -> TicketCounts {
    TicketCounts {
        issued: 64 * version + 140,
        trained: 64 * version,
        dropped: 12,
        dropped_by_reason: [(DropReason::TooStale, 12)].into(),
        in_flight: 128,
    }
}

/// The status of a run after so many updates.
pub fn status(version: u64) -> RunStatus {
    let role = |role: Role, idx, busy: f64| RoleStatus {
        role: RoleId { role, idx },
        state: RoleState::Running,
        n_restarts: 0,
        n_items: 64 * version,
        n_tokens: 1900 * version,
        busy_s: busy * 2.6 * version as f64,
        queue_depth: 3,
        work: WorkSums::default(),
    };
    RunStatus {
        version: PolicyVersion(version),
        n_updates: 400,
        elapsed_s: 2.6 * version as f64,
        tickets: tickets(version),
        n_issued_again: 0,
        checkpoint: Some(PolicyVersion(version / 10 * 10)),
        has_ended: false,
        roles: vec![
            role(Role::PromptSource, 0, 0.01),
            role(Role::Generator, 0, 0.82),
            role(Role::Generator, 1, 0.77),
            role(Role::ReferenceScorer, 0, 0.21),
            role(Role::RewardScorer, 0, 0.34),
            role(Role::ExperienceBuffer, 0, 0.12),
            role(Role::PretrainMixer, 0, 0.01),
            role(Role::Learner, 0, 0.91),
            role(Role::Recorder, 0, 0.02),
        ],
    }
}

/// An answer to a held-out prompt.
pub fn answer(policy: EvaluatedPolicy, prompt: &str, response: &str, score: f32) -> EvaluationRecord {
    EvaluationRecord {
        policy,
        prompt: prompt.into(),
        response: response.into(),
        n_tokens: response.len(),
        finish: FinishReason::End,
        score,
        gold: Some(score / 2.0),
        kl: 0.5,
    }
}

/// A rollout of letters as tokens.
pub fn rollout(version: u64, prompt_id: u64, response: &str) -> RolloutRecord {
    let letters: Vec<String> = response.chars().map(String::from).collect();
    let tokens = response.chars().map(u32::from).collect();
    let numbers = |what: u64, from: f64, to: f64| -> Vec<f32> {
        (0..letters.len() as u64)
            .map(|idx| (from + (to - from) * share(&[version, prompt_id, idx, what])) as f32)
            .collect()
    };
    let (logprobs, ref_logprobs) = (numbers(1, -3.0, 0.0), numbers(2, -3.5, 0.0));
    RolloutRecord {
        version: PolicyVersion(version),
        prompt_id: PromptId(prompt_id),
        sample_idx: 0,
        prompt: "A prompt".into(),
        prompt_tokens: vec![1, 2],
        response: response.into(),
        response_tokens: tokens,
        kl: logprobs.iter().zip(&ref_logprobs).map(|(new, reference)| new - reference).sum(),
        logprobs,
        versions: vec![PolicyVersion(version); letters.len()],
        finish: FinishReason::Length,
        score: version as f32,
        gold: None,
        kl_penalty: 0.0,
        reward: version as f32,
        tokens: Some(TokenDetail {
            prompt: vec!["A prompt".into()],
            ref_logprobs,
            values: numbers(3, -1.0, 1.0),
            advantages: numbers(4, -2.0, 2.0),
            values_version: PolicyVersion(version),
            response: letters,
        }),
    }
}
