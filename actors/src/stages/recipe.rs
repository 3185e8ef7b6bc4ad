//! The recipe file: which stages a run has, in the order in which they build on one another.

use std::path::{Path, PathBuf};

use collimate_models::arch::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::collect::config::CollectConfig;
use super::iterate::IterateConfig;
use super::ppo_config::PpoStageConfig;
use super::pretrain::PretrainConfig;
use super::reward::RewardConfig;
use super::sft::SftConfig;
use crate::rundir::RunDir;
use crate::{config, hub};

/// A recipe. A stage runs when its table is present, and starts from what the stage before it wrote unless it names
/// another input. Relative paths are relative to the recipe file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Where all random numbers come from. The same seed and settings give the same run.
    pub seed: u64,
    /// Where stages compute: `cpu`, or `cuda:N` in a build with CUDA. PPO's roles can each have another.
    pub device: DeviceName,
    /// What matrices are multiplied in: `f32`; `bf16`, which is f32 on the CPU; or `bf16-emulated`, which is bf16 on the CPU
    /// too, slowly. Parameters, moments, norms, attention, softmaxes and losses are f32 in any case.
    pub precision: Precision,
    /// Text that several stages use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corpus: Option<CorpusConfig>,
    /// Raw text to tokenizer and base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrain: Option<PretrainConfig>,
    /// Base model and demonstrations to SFT model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft: Option<SftConfig>,
    /// A policy's responses to comparisons of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collect: Option<CollectConfig>,
    /// SFT model and comparisons to reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<RewardConfig>,
    /// SFT model and reward model to aligned policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppo: Option<PpoStageConfig>,
    /// Rounds of collect, reward and ppo: for `collimate iterate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iterate: Option<IterateConfig>,
}

/// A device by candle's name: `cpu`, or `cuda:N` in a build with the `cuda` feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct DeviceName(pub String);

impl Default for DeviceName {
    fn default() -> Self {
        Self("cpu".into())
    }
}

/// Plain text, and how prompts and demonstrations are cut from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusConfig {
    /// Text files, or directories of `.txt` files. Blank lines separate paragraphs.
    pub paths: Vec<PathBuf>,
    /// Share of the paragraphs that no stage trains on. They give the held-out NLL and the held-out prompts. Which
    /// ones they are depends on the text and this share alone, so that a base model's held-out text stays held out.
    pub heldout_share: f64,
    /// Tokens of a prompt: the beginning of a paragraph.
    pub prompt_tokens: usize,
    /// The most tokens of a demonstration's response: how the paragraph goes on, to the last sentence end that fits.
    pub response_tokens: usize,
}

impl Default for CorpusConfig {
    fn default() -> Self {
        Self { paths: Vec::new(), heldout_share: 0.05, prompt_tokens: 16, response_tokens: 32 }
    }
}

impl Recipe {
    /// The recipe of the run in a directory; `None` where there is none, or it can't be read.
    pub fn of_run(dir: &RunDir) -> Option<Self> {
        config::load(&dir.config(), &[]).ok()
    }

    /// Makes every relative path relative to `base`, the recipe file's directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        let resolve = |path: &mut PathBuf| {
            let plain = hub::without_scheme(path);
            if plain.is_relative() && !hub::is_hub_name(plain) {
                *path = base.join(plain);
            }
        };
        if let Some(corpus) = &mut self.corpus {
            corpus.paths.iter_mut().for_each(resolve);
        }
        if let Some(pretrain) = &mut self.pretrain {
            pretrain.tokenizer.iter_mut().for_each(resolve);
        }
        if let Some(sft) = &mut self.sft {
            sft.base.iter_mut().for_each(resolve);
            sft.demonstrations.iter_mut().for_each(|files| files.paths_mut().for_each(resolve));
        }
        if let Some(collect) = &mut self.collect {
            [&mut collect.policy, &mut collect.reward_model, &mut collect.prompts]
                .into_iter()
                .flatten()
                .for_each(resolve);
            collect.earlier.iter_mut().for_each(resolve);
            if let Some(gold) = &mut collect.gold {
                gold.resolve_paths(base);
            }
            if let Some(page) = &mut collect.page {
                page.db.iter_mut().chain(&mut page.label.screening).for_each(resolve);
            }
        }
        if let Some(reward) = &mut self.reward {
            [&mut reward.sft, &mut reward.comparisons, &mut reward.demonstrations]
                .into_iter()
                .flatten()
                .for_each(resolve);
            if let Some(labeler) = &mut reward.labeler {
                labeler.gold.resolve_paths(base);
            }
        }
        if let Some(ppo) = &mut self.ppo {
            let stage = &mut ppo.stage;
            [&mut stage.sft, &mut stage.policy, &mut stage.reward_model, &mut stage.value_model, &mut stage.prompts]
                .into_iter()
                .flatten()
                .for_each(resolve);
            for function in [&mut stage.gold, &mut stage.builtin].into_iter().flatten() {
                function.resolve_paths(base);
            }
        }
    }
}
