//! How much memory a stage will take, told before a model is read; and a stage that can't fit is refused then, with the
//! settings that would make it fit.

mod ppo;
mod supervised;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig};
use collimate_models::memory;
use indicatif::HumanBytes;

use super::context::StageError;

pub use ppo::{PromptLengths, of_ppo};
pub use supervised::{of_pretrain, of_reward, of_sft};

/// Tokens to which a pass is advised to be cut: fewer keep the CPU waiting.
const SMALL_PASS: usize = 256;

/// What one actor, or part of a stage, holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryItem {
    /// Who, and what.
    pub what: String,
    /// On which device.
    pub device: String,
    /// How much.
    pub bytes: u64,
}

/// What a stage takes, and what it would take with other settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// By actor.
    pub items: Vec<MemoryItem>,
    /// Settings that take less, with what the stage takes on the CPU with each.
    pub alternatives: Vec<(String, u64)>,
    /// What it takes on the CPU with all of them.
    pub with_all: u64,
}

/// A change of a stage's settings, as it is written in a recipe.
type Change<C> = (String, Box<dyn Fn(&mut C)>);

impl MemoryEstimate {
    fn new<C: Clone>(
        config: &C,
        changes: Vec<Change<C>>,
        items: impl Fn(&C) -> Result<Vec<MemoryItem>, StageError>,
    ) -> Result<Self, StageError> {
        let mut alternatives = Vec::new();
        let mut all = config.clone();
        for (setting, change) in changes {
            let mut changed = config.clone();
            change(&mut changed);
            change(&mut all);
            alternatives.push((setting, total(&items(&changed)?)));
        }
        Ok(Self { items: items(config)?, alternatives, with_all: total(&items(&all)?) })
    }

    /// What it takes on the CPU.
    pub fn total(&self) -> u64 {
        total(&self.items)
    }

    /// A line for each item, and one for each device.
    pub fn table(&self, in_use: u64, available: Option<u64>) -> String {
        let mut text = String::from("memory, as estimated before any model is read:");
        for MemoryItem { what, device, bytes } in &self.items {
            let _ = write!(text, "\n  {:>11}  {device}  {what}", HumanBytes(*bytes).to_string());
        }
        let mut by_device: BTreeMap<&str, u64> = BTreeMap::new();
        for item in &self.items {
            *by_device.entry(&item.device).or_default() += item.bytes;
        }
        if in_use > 0 {
            let _ = write!(text, "\n  {:>11}  {CPU}  program, tokenizer, data", HumanBytes(in_use).to_string());
            *by_device.entry(CPU).or_default() += in_use;
        }
        for (device, bytes) in by_device {
            let _ = write!(text, "\n  {:>11}  {device}  in all", HumanBytes(bytes).to_string());
            if let Some(available) = available.filter(|_| device == CPU) {
                let _ = write!(text, ", {} are free besides", HumanBytes(available));
            }
        }
        text
    }

    /// Refuses what does not fit into so much memory.
    pub fn check(&self, available: u64) -> Result<(), StageError> {
        let needed = self.total();
        if needed <= available {
            return Ok(());
        }
        let fits: Vec<String> = self
            .alternatives
            .iter()
            .filter(|(_, bytes)| *bytes <= available)
            .map(|(setting, bytes)| format!("{setting} (about {})", HumanBytes(*bytes)))
            .collect();
        let every: Vec<&str> = self.alternatives.iter().map(|(setting, _)| setting.as_str()).collect();
        let help = if !fits.is_empty() {
            format!("it fits with {}", fits.join(", or "))
        } else if self.with_all <= available {
            format!("it fits with all of {} (about {})", every.join(", "), HumanBytes(self.with_all))
        } else if every.is_empty() {
            "take a smaller model".to_owned()
        } else {
            format!("even with all of {} it takes about {}", every.join(", "), HumanBytes(self.with_all))
        };
        Err(StageError::Setting(format!(
            "this takes about {}, and only {} are free: {help}",
            HumanBytes(needed),
            HumanBytes(available)
        )))
    }
}

const CPU: &str = "cpu";

fn total(items: &[MemoryItem]) -> u64 {
    items.iter().filter(|item| item.device == CPU).map(|item| item.bytes).sum()
}

fn item(device: &str, what: impl Into<String>, bytes: u64) -> MemoryItem {
    MemoryItem { what: what.into(), device: device.to_owned(), bytes }
}

/// Tokens of the largest pass over `n_tokens` in all, cut to a budget: sequences stay whole.
fn largest_pass(n_tokens: usize, budget: usize, longest: usize) -> usize {
    n_tokens.min(budget).max(longest)
}

/// What is trained, in bytes: a model, or adapters on it.
fn trained(config: &ModelConfig, head: HeadKind, lora: Option<&LoraConfig>) -> Result<u64, StageError> {
    match lora {
        None => Ok(memory::weights(config, head)),
        Some(lora) => Ok(memory::adapters(config, head, lora)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn estimate() -> MemoryEstimate {
        MemoryEstimate {
            items: vec![
                item(CPU, "a model", 3 * GIB),
                item(CPU, "a pass", 5 * GIB),
                item("cuda:0", "another", 9 * GIB),
            ],
            alternatives: vec![("a = 1".into(), 6 * GIB), ("b = 2".into(), 4 * GIB)],
            with_all: 2 * GIB,
        }
    }

    #[test]
    fn what_can_not_fit_is_refused_with_the_settings_that_make_it_fit() {
        let refusal = |available: u64| match estimate().check(available) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(refusal(8 * GIB), "");
        assert_eq!(
            refusal(7 * GIB),
            "this takes about 8.00 GiB, and only 7.00 GiB are free: it fits with a = 1 (about 6.00 GiB), or b = 2 \
             (about 4.00 GiB)"
        );
        assert!(refusal(5 * GIB).ends_with("it fits with b = 2 (about 4.00 GiB)"));
        assert!(refusal(3 * GIB).ends_with("it fits with all of a = 1, b = 2 (about 2.00 GiB)"));
        assert!(refusal(GIB).ends_with("even with all of a = 1, b = 2 it takes about 2.00 GiB"));
    }

    #[test]
    fn the_table_sums_by_device_and_counts_what_is_in_use() {
        let table = estimate().table(GIB, Some(10 * GIB));
        let line = |end: &str| table.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("{table}"));
        assert_eq!(line("a pass").trim(), "5.00 GiB  cpu  a pass");
        assert_eq!(line("data").trim(), "1.00 GiB  cpu  program, tokenizer, data");
        assert_eq!(line("besides").trim(), "9.00 GiB  cpu  in all, 10.00 GiB are free besides");
        assert_eq!(line("cuda:0  in all").trim(), "9.00 GiB  cuda:0  in all");
    }
}
