//! PPO's settings: what it reads and samples, the flow's, and the objective's, all in one table.

use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::{Table, Value};

use collimate_models::arch::LoraConfig;
use collimate_models::data::limit::TooLong;
use collimate_models::generate::{CachePolicy, SamplingParams};
use collimate_models::reward::BuiltinReward;
use collimate_models::train::{PpoConfig, Preset};

use super::recipe::DeviceName;
use crate::flow::FlowConfig;
use crate::rewards::SubprocessConfig;

/// SFT model and reward model to aligned policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct PpoStageConfig {
    /// What the stage reads, samples and measures.
    #[serde(flatten)]
    pub stage: PpoSetup,
    /// How much, how stale, how many threads.
    #[serde(flatten)]
    pub flow: FlowConfig,
    /// The objective and its optimiser.
    #[serde(flatten)]
    pub objective: PpoConfig,
}

/// What PPO reads, samples and measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PpoSetup {
    /// Settings known by name, which the other keys of this table then change: "instructgpt" (Ouyang et al. 2022).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// The SFT model's directory: where the policy starts, and what it is held near to. Without it, the sft stage's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft: Option<PathBuf>,
    /// The directory of the policy to go on from, where that is not the SFT model itself: a policy that was trained from it
    /// before. What it is held near to stays the SFT model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    /// The reward model's directory: what gives the scores, and where the value model starts. Without it, the reward
    /// stage's. A recipe with `builtin` or `process` may have neither; the value model then starts from the SFT model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<PathBuf>,
    /// In whose tokens the reward model reads: "shared" or "own".
    pub reward_tokens: RewardTokens,
    /// The directory of the value model to go on from, of an earlier run with save_value_model. Without it, the value
    /// model starts from the reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_model: Option<PathBuf>,
    /// Writes the value model to `value_model` at the end, for a later run to go on from.
    pub save_value_model: bool,
    /// Trains adapters alone: policy, reference and value model stand on one SFT model in memory, and so does a reward
    /// model that is an adapter on it. The value model goes on with the reward model's adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// JSON lines with `prompt`. Without it, prompts are cut from the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<PathBuf>,
    /// The most tokens of a prompt of the file; 0 takes as many as leave room for a response.
    pub max_prompt_tokens: usize,
    /// What becomes of prompts with more: "refuse" or "drop".
    pub too_long: TooLong,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// Generators, each with its own thread when threaded.
    pub n_generators: usize,
    /// Responses that a generator samples at once.
    pub n_slots: usize,
    /// With weight_updates = "in_flight": what becomes of the keys and values that a response in progress has in the
    /// cache. "keep" leaves them as older weights made them; "recompute" pays a pass over the response for exact ones.
    pub in_flight_cache: CachePolicy,
    /// Reference scorers, each with its own thread when threaded.
    pub n_reference_scorers: usize,
    /// Reward scorers, each with its own thread when threaded, and with its own process where a process gives scores.
    pub n_reward_scorers: usize,
    /// Tokens of a pretraining sequence (PPO-ptx).
    pub ptx_seq_len: usize,
    /// Rollouts of each update that are written to rollouts.jsonl, first those of a few prompts that were there before.
    pub n_rollouts_recorded: usize,
    /// Of those, how many are written with each token's text, reference log-probability, value and advantage: about 60
    /// bytes a token.
    pub n_rollouts_in_detail: usize,
    /// Where each role computes.
    pub devices: RoleDevices,
    /// What is measured before and after.
    pub evaluate: EvaluateConfig,
    /// What the scores stand for: judges each batch, and both policies at the end. PPO never sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<BuiltinReward>,
    /// Scores from a built-in function instead of a reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin: Option<BuiltinReward>,
    /// Scores from a process that speaks JSON lines, instead of a reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<SubprocessConfig>,
}

impl PpoStageConfig {
    /// How responses are sampled, in training and in evaluation alike.
    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.objective.temperature as f32,
            max_new_tokens: self.stage.max_new_tokens,
            ..SamplingParams::default()
        }
    }
}

impl Default for PpoSetup {
    fn default() -> Self {
        Self {
            preset: None,
            sft: None,
            policy: None,
            reward_model: None,
            reward_tokens: RewardTokens::default(),
            value_model: None,
            save_value_model: false,
            lora: None,
            prompts: None,
            max_prompt_tokens: 0,
            too_long: TooLong::default(),
            max_new_tokens: 32,
            n_generators: 1,
            n_slots: 32,
            in_flight_cache: CachePolicy::default(),
            n_reference_scorers: 1,
            n_reward_scorers: 1,
            ptx_seq_len: 128,
            n_rollouts_recorded: 8,
            n_rollouts_in_detail: 8,
            devices: RoleDevices::default(),
            evaluate: EvaluateConfig::default(),
            gold: None,
            builtin: None,
            process: None,
        }
    }
}

/// In whose tokens a reward model reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardTokens {
    /// The policy's: the very tokens that were sampled. Both tokenizers must be the same.
    #[default]
    Shared,
    /// Its own: the text, encoded anew and framed by the reward model's own chat template. The value model, which must
    /// read the policy's tokens, then starts from the SFT model.
    Own,
}

/// Where each role computes: `cpu`, or `cuda:N` in a build with CUDA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoleDevices {
    /// Of the generators: the first takes the first, and so on, over again where there are more generators.
    pub generators: Vec<DeviceName>,
    /// Of the reference. Without it, the recipe's device, as for those below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<DeviceName>,
    /// Of the reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<DeviceName>,
    /// Of the value model where it makes experience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<DeviceName>,
    /// Of policy and value model in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learner: Option<DeviceName>,
}

impl Default for RoleDevices {
    fn default() -> Self {
        let cpu = DeviceName::default();
        Self { generators: vec![cpu], reference: None, reward_model: None, values: None, learner: None }
    }
}

/// What both policies, before and after, are judged on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Held-out prompts that are answered, each once. Fewer where there are fewer.
    pub n_prompts: usize,
    /// Held-out sequences of pretraining text, of ptx_seq_len tokens each. Fewer where there are fewer.
    pub n_sequences: usize,
    /// Share of a prompts file that is held out. (The corpus has its own share.)
    pub heldout_share: f64,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self { n_prompts: 384, n_sequences: 256, heldout_share: 0.1 }
    }
}

impl<'de> Deserialize<'de> for PpoStageConfig {
    /// serde's `flatten` accepts unknown keys, so the table is sorted into its three parts here.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Parts)
    }
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = PpoStageConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PpoStageConfig, A::Error> {
        let (mut stage, mut flow, mut objective) = (Table::new(), Table::new(), Table::new());
        while let Some(key) = map.next_key::<String>()? {
            if KEYS.stage.contains(&key.as_str()) {
                map.next_value_seed(OneKey::<PpoSetup>::new(key, &mut stage))?;
            } else if KEYS.flow.contains(&key.as_str()) {
                map.next_value_seed(OneKey::<FlowConfig>::new(key, &mut flow))?;
            } else if KEYS.objective.contains(&key.as_str()) {
                map.next_value_seed(OneKey::<PpoConfig>::new(key, &mut objective))?;
            } else {
                return Err(A::Error::unknown_field(&key, &KEYS.all));
            }
        }
        let stage: PpoSetup = over(&PpoSetup::default(), stage)?;
        let (flow_base, objective_base) = match stage.preset {
            None => (FlowConfig::default(), PpoConfig::default()),
            Some(preset) => {
                let flow = FlowConfig {
                    n_updates: preset.n_updates(),
                    batch_size: preset.batch_size(),
                    ..FlowConfig::default()
                };
                (flow, preset.objective())
            }
        };
        Ok(PpoStageConfig { stage, flow: over(&flow_base, flow)?, objective: over(&objective_base, objective)? })
    }
}

/// The keys of each part.
struct Keys {
    stage: Vec<&'static str>,
    flow: Vec<&'static str>,
    objective: Vec<&'static str>,
    all: Vec<&'static str>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let (stage, flow, objective) = (keys_of::<PpoSetup>(), keys_of::<FlowConfig>(), keys_of::<PpoConfig>());
    let all = [stage.as_slice(), &flow, &objective].concat();
    Keys { stage, flow, objective, all }
});

/// A struct's keys, those that are unset by default included. Serde wants them to live for ever.
fn keys_of<T: JsonSchema>() -> Vec<&'static str> {
    let schema = schemars::schema_for!(T).to_value();
    let properties = schema.get("properties").and_then(|properties| properties.as_object());
    properties.into_iter().flatten().map(|(key, _)| &*key.clone().leak()).collect()
}

/// A value of `T`, changed by some keys.
fn over<T: Serialize + DeserializeOwned, E: Error>(base: &T, keys: Table) -> Result<T, E> {
    let mut table = Table::try_from(base).map_err(E::custom)?;
    table.extend(keys);
    T::deserialize(table).map_err(|error| E::custom(error.message()))
}

/// Reads one key's value into a table, and checks it as a part of `T` at once: while serde still knows where it stands.
struct OneKey<'a, T> {
    key: String,
    table: &'a mut Table,
    part: std::marker::PhantomData<T>,
}

impl<'a, T> OneKey<'a, T> {
    fn new(key: String, table: &'a mut Table) -> Self {
        Self { key, table, part: std::marker::PhantomData }
    }
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for OneKey<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let value = Value::deserialize(deserializer)?;
        let alone = Table::from_iter([(self.key.clone(), value.clone())]);
        T::deserialize(alone).map_err(|error| D::Error::custom(error.message()))?;
        self.table.insert(self.key, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::flow::FlowMode;
    use crate::stages::recipe::Recipe;

    fn parsed(text: &str) -> Result<PpoStageConfig, String> {
        let recipe: Result<Recipe, _> = config::parse(text, Path::new("r.toml"), &[]);
        recipe.map(|recipe| recipe.ppo.unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_of_all_parts_stand_in_one_table() {
        let text = "[ppo]\nptx_coef = 0\nmax_staleness = 2\nmode = \"deterministic\"\nn_slots = 8\n\
                    [ppo.threads]\nlearner = 2\n[ppo.evaluate]\nn_prompts = 5\n[ppo.gold]\nkind = \"length\"\ntarget_tokens = 3\n";
        let ppo = parsed(text).unwrap();
        assert_eq!((ppo.objective.ptx_coef, ppo.flow.max_staleness, ppo.flow.mode), (0.0, 2, FlowMode::Deterministic));
        assert_eq!((ppo.stage.n_slots, ppo.flow.threads.learner, ppo.stage.evaluate.n_prompts), (8, 2, 5));
        assert_eq!(ppo.stage.gold, Some(BuiltinReward::Length { target_tokens: 3 }));
    }

    #[test]
    fn what_is_written_out_reads_the_same() {
        let mut ppo = parsed("[ppo]\npreset = \"instructgpt\"\nlr = 1e-4\n[ppo.process]\ncommand = [\"a\"]\n").unwrap();
        ppo.stage.sft = Some("m".into());
        let recipe = Recipe { ppo: Some(ppo), ..Recipe::default() };
        let text = toml::to_string(&recipe).unwrap();
        assert_eq!(config::parse::<Recipe>(&text, Path::new("r.toml"), &[]).unwrap(), recipe);
    }

    #[test]
    fn a_preset_is_a_base_that_other_keys_change() {
        let ppo = parsed("[ppo]\nkl_coef = 0.1\npreset = \"instructgpt\"\n").unwrap();
        let preset = Preset::InstructGpt.objective();
        assert_eq!(ppo.objective, PpoConfig { kl_coef: 0.1, ..preset });
        assert_eq!((ppo.flow.batch_size, ppo.flow.n_updates), (512, 500));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named_with_their_line() {
        assert_eq!(
            parsed("[ppo]\nptx_coeff = 1\n").unwrap_err(),
            "r.toml:2: unknown key `ppo.ptx_coeff`; did you mean `ptx_coef`?"
        );
        assert_eq!(
            parsed("[ppo]\n\nmax_stalenes = 1\n").unwrap_err(),
            "r.toml:3: unknown key `ppo.max_stalenes`; did you mean `max_staleness`?"
        );
        assert_eq!(
            parsed("[ppo]\nmode = \"determinstic\"\n").unwrap_err(),
            "r.toml:2: `ppo.mode` is `determinstic`, which is not one of its values; did you mean `deterministic`?"
        );
        let error = parsed("[ppo]\nlr = \"high\"\n").unwrap_err();
        assert!(error.starts_with("r.toml:2: `ppo.lr`: invalid type: string \"high\", expected a number"), "{error}");
        let error = parsed("[ppo.evaluate]\nn_prompt = 1\n").unwrap_err();
        assert_eq!(error, "r.toml:2: unknown key `ppo.evaluate.n_prompt`; did you mean `n_prompts`?");
    }
}
