//! Settings that may be changed while a run goes on.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A reward model, so that another one is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelId {
    /// Its directory, or its name on the hub.
    pub dir: PathBuf,
    /// A hash of its weights as they are in memory (hexadecimal).
    pub weights: String,
}

impl fmt::Display for RewardModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (weights {})", self.dir.display(), self.weights)
    }
}

/// A setting's new value. It takes effect between two updates, and the journal has it with the update from which on it
/// holds, so that a replay changes it there too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingChange {
    /// The coefficient of the KL penalty. An adaptive controller goes on from it.
    KlCoef(f64),
    /// The policy's highest learning rate; warm-up and decay keep their shape.
    Lr(f64),
    /// The value model's highest learning rate.
    ValueLr(f64),
    /// The reward model. It takes effect where nothing is in flight, so that no batch has scores of two; the value model
    /// is warmed up anew.
    RewardModel(RewardModelId),
}

impl SettingChange {
    /// The setting's key in the `ppo` table.
    pub fn key(&self) -> &'static str {
        match self {
            Self::KlCoef(_) => "kl_coef",
            Self::Lr(_) => "lr",
            Self::ValueLr(_) => "value_lr",
            Self::RewardModel(_) => "reward_model",
        }
    }

    /// What is wrong with it, if anything is. Whether a reward model can be read is not known here.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::KlCoef(value) | Self::Lr(value) | Self::ValueLr(value) if !value.is_finite() || *value < 0.0 => {
                Some(format!("`{}` is {value}, expected a number of at least 0", self.key()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KlCoef(value) | Self::Lr(value) | Self::ValueLr(value) => write!(f, "{} = {value}", self.key()),
            Self::RewardModel(model) => write!(f, "{} = {model}", self.key()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_below_0_or_none_at_all_is_refused_by_its_key() {
        assert_eq!(SettingChange::Lr(0.0).problem(), None);
        let problem = SettingChange::KlCoef(-0.5).problem().unwrap();
        assert_eq!(problem, "`kl_coef` is -0.5, expected a number of at least 0");
        assert!(SettingChange::ValueLr(f64::NAN).problem().is_some());
        assert!(SettingChange::Lr(f64::INFINITY).problem().is_some());
    }
}
