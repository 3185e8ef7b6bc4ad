//! Settings of the collect stage.

use std::path::PathBuf;

use collimate_models::data::limit::TooLong;
use collimate_models::feedback::acquisition::{AcquireBy, LEAST_RANDOM_SHARE};
use collimate_models::reward::BuiltinReward;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::label::config::LabelConfig;
use crate::label::prioritize::{DEFAULT_HEADS, DEFAULT_MOST, Prioritize};
use crate::label::server::DEFAULT_PORT;
use crate::stages::context::StageError;
use crate::stages::labeler::Asked;

/// A policy's responses, and rankings of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CollectConfig {
    /// Who ranks: "simulated" (the scorer in [collect.gold]), "page" (people, on the page of `collimate label`) or "file"
    /// (whoever writes `rankings.jsonl` beside the stage's `tasks.jsonl`).
    pub source: Source,
    /// The directory of the policy whose responses are ranked. Without it, the sft stage's model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    /// The directory of the reward model that the policy was trained on. Its scores are kept with the tasks, so that people can
    /// be set against it; nobody who ranks sees them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<PathBuf>,
    /// JSON lines with `prompt`. Without it, prompts are cut from the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<PathBuf>,
    /// What becomes of prompts of the file that leave no room for a response: "refuse" or "drop".
    pub too_long: TooLong,
    /// Prompts that are answered; they are picked at random.
    pub n_prompts: usize,
    /// Responses to each, 2 to 9.
    pub k: usize,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// What divides the logits.
    pub temperature: f64,
    /// Prompts that must have been ranked before the stage goes on, from a page or a file; 0 for all of them.
    pub n_enough: usize,
    /// Files of comparisons from before, which stand before the new ones in `comparisons.jsonl`. With source = "page", what
    /// the database holds beside the new tasks is there too, each answer as it was last given.
    pub earlier: Vec<PathBuf>,
    /// With source = "simulated": what the labelers like. The reward model sees their rankings alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<BuiltinReward>,
    /// With source = "page": where the page is, and who labels there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<PageConfig>,
}

/// Where rankings come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Labelers simulated by a gold scorer (Gao et al. 2023).
    Simulated,
    /// People, on the page of `collimate label`.
    #[default]
    Page,
    /// A file that somebody writes.
    File,
}

/// A page for labelers while the stage waits for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PageConfig {
    /// A port of the loopback interface, or ADDRESS:PORT; 0 is any free port.
    pub addr: String,
    /// Where people reach the page, if not there: https://NAME of a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The database of the labelling project, which others may have open too. Without it, `answers.db` in the stage's
    /// folder; all rounds of `collimate iterate` share one in the run's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db: Option<PathBuf>,
    /// Which tasks come first, where fewer are wanted (`n_enough`) than there are. Without this table they come in the order
    /// of the prompts, which were picked at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquire: Option<AcquireConfig>,
    /// How people label: as in a file of `collimate label`, without its tasks.
    pub label: LabelConfig,
}

/// Which tasks come first, as `collimate label prioritize` places them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AcquireConfig {
    /// "margin" (those whose responses the reward model scores most alike), "disagreement" (those on whose order many small
    /// heads on it disagree, and that differ among themselves) or "random". The reward model is `collect.reward_model`, in
    /// `collimate iterate` the one of the round before; where there is none, as in a first round, all are drawn at random.
    pub by: AcquireBy,
    /// The share of tasks that is drawn at random all the same, 0.2 to 1.
    pub random_share: f64,
    /// Heads that may disagree.
    pub n_heads: usize,
    /// The reward model looks at no more than so many tasks.
    pub n_most: usize,
}

impl Default for AcquireConfig {
    fn default() -> Self {
        Self {
            by: AcquireBy::Disagreement,
            random_share: LEAST_RANDOM_SHARE,
            n_heads: DEFAULT_HEADS,
            n_most: DEFAULT_MOST,
        }
    }
}

impl AcquireConfig {
    /// As what places tasks takes it.
    pub fn prioritize(&self, seed: u64) -> Prioritize {
        let Self { by, random_share, n_heads, n_most } = *self;
        Prioritize { by, random_share, n_heads, n_most, seed }
    }
}

impl Default for PageConfig {
    fn default() -> Self {
        Self { addr: DEFAULT_PORT.to_owned(), url: None, db: None, acquire: None, label: LabelConfig::default() }
    }
}

impl Default for CollectConfig {
    fn default() -> Self {
        Self {
            source: Source::default(),
            policy: None,
            reward_model: None,
            prompts: None,
            too_long: TooLong::default(),
            n_prompts: 1000,
            k: 4,
            max_new_tokens: 32,
            temperature: 1.0,
            n_enough: 0,
            earlier: Vec::new(),
            gold: None,
            page: None,
        }
    }
}

impl CollectConfig {
    /// What is asked.
    pub fn asked(&self) -> Asked<'_> {
        let Self { n_prompts, k, max_new_tokens, temperature, .. } = *self;
        Asked { table: "collect", n_prompts, k, max_new_tokens, temperature }
    }

    /// Prompts that must have been ranked.
    pub fn n_enough(&self) -> usize {
        if self.n_enough == 0 { self.n_prompts } else { self.n_enough }
    }

    /// Refuses what makes no sense, and what would have no effect.
    pub fn check(&self) -> Result<(), StageError> {
        let bad = |problem: String| Err(StageError::Setting(problem));
        self.asked().check()?;
        for (key, n) in [("n_prompts", self.n_prompts), ("max_new_tokens", self.max_new_tokens)] {
            if n == 0 {
                return bad(format!("collect.{key} is 0, it must be at least 1"));
            }
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return bad(format!("collect.temperature is {}, expected a number above 0", self.temperature));
        }
        if self.too_long == TooLong::Truncate {
            return bad(
                "collect.too_long is \"truncate\", but half a prompt is another prompt: take \"drop\" or \"refuse\""
                    .into(),
            );
        }
        if self.n_enough > self.n_prompts {
            return bad(format!(
                "collect.n_enough is {}, more than the {} prompts of collect.n_prompts",
                self.n_enough, self.n_prompts
            ));
        }
        let source = match self.source {
            Source::Simulated => "simulated",
            Source::Page => "page",
            Source::File => "file",
        };
        match (self.source, &self.gold, &self.page) {
            (Source::Simulated, None, _) => bad(
                "collect.source is \"simulated\", but there is no [collect.gold] table that says what the labelers like"
                    .into(),
            ),
            (Source::Simulated, Some(_), Some(_)) | (Source::File, _, Some(_)) => {
                bad(format!("[collect.page] has no effect with collect.source = \"{source}\"; remove it"))
            }
            (Source::Page | Source::File, Some(_), _) => {
                bad(format!("[collect.gold] has no effect with collect.source = \"{source}\"; remove it"))
            }
            (Source::Simulated, ..) if self.reward_model.is_some() => {
                bad("collect.reward_model has no effect with collect.source = \"simulated\"; remove it".into())
            }
            (Source::Simulated, ..) if self.n_enough > 0 => {
                bad("collect.n_enough has no effect with collect.source = \"simulated\"; remove it".into())
            }
            (_, _, Some(page)) => page.check(),
            _ => Ok(()),
        }
    }
}

impl PageConfig {
    fn check(&self) -> Result<(), StageError> {
        if !self.label.tasks.is_empty() {
            return Err(StageError::Setting(
                "collect.page.label.tasks is set, but the tasks are the stage's own: remove it".into(),
            ));
        }
        if let Some(acquire) = &self.acquire {
            let problem = |error| StageError::Setting(format!("[collect.page.acquire]: {error}"));
            acquire.prioritize(0).check().map_err(problem)?;
        }
        self.label.check().map_err(|problem| StageError::Setting(format!("[collect.page.label]: {problem}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_refused_by_its_key() {
        let gold = Some(BuiltinReward::Length { target_tokens: 3 });
        let simulated = CollectConfig { source: Source::Simulated, gold: gold.clone(), ..CollectConfig::default() };
        simulated.check().unwrap();
        CollectConfig::default().check().unwrap();
        let refused = |config: CollectConfig, message: &str| {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        refused(CollectConfig { gold: None, ..simulated.clone() }, "no [collect.gold] table");
        refused(CollectConfig { k: 10, ..simulated.clone() }, "collect.k is 10, expected 2 to 9");
        refused(CollectConfig { n_enough: 5, ..simulated.clone() }, "collect.n_enough has no effect");
        refused(CollectConfig { page: Some(PageConfig::default()), ..simulated }, "[collect.page] has no effect");
        let of_people = CollectConfig::default;
        refused(CollectConfig { gold, ..of_people() }, "[collect.gold] has no effect with collect.source = \"page\"");
        refused(CollectConfig { n_enough: 1001, ..of_people() }, "collect.n_enough is 1001, more than the 1000");
        refused(CollectConfig { temperature: 0.0, ..of_people() }, "collect.temperature is 0");
        let label = LabelConfig { tasks: vec!["t.jsonl".into()], ..LabelConfig::default() };
        let page = PageConfig { label, ..PageConfig::default() };
        refused(CollectConfig { page: Some(page), ..of_people() }, "collect.page.label.tasks");
        let acquire = Some(AcquireConfig { random_share: 0.1, ..AcquireConfig::default() });
        let page = PageConfig { acquire, ..PageConfig::default() };
        refused(CollectConfig { page: Some(page), ..of_people() }, "[collect.page.acquire]: the random share is 0.1");
    }
}
