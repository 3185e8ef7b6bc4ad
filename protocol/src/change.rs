//! Settings that may be changed while a run goes on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A setting's new value. It takes effect between two updates, and the journal has it with the update from which on it
/// holds, so that a replay changes it there too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingChange {
    /// The coefficient of the KL penalty. An adaptive controller goes on from it.
    KlCoef(f64),
    /// The policy's highest learning rate; warm-up and decay keep their shape.
    Lr(f64),
    /// The value model's highest learning rate.
    ValueLr(f64),
}

impl SettingChange {
    /// The setting's key in the `ppo` table.
    pub fn key(self) -> &'static str {
        match self {
            Self::KlCoef(_) => "kl_coef",
            Self::Lr(_) => "lr",
            Self::ValueLr(_) => "value_lr",
        }
    }

    /// What it becomes.
    pub fn value(self) -> f64 {
        match self {
            Self::KlCoef(value) | Self::Lr(value) | Self::ValueLr(value) => value,
        }
    }

    /// What is wrong with it, if anything is.
    pub fn problem(self) -> Option<String> {
        let (key, value) = (self.key(), self.value());
        let is_good = value.is_finite() && value >= 0.0;
        (!is_good).then(|| format!("`{key}` is {value}, expected a number of at least 0"))
    }
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key(), self.value())
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
