//! The settings of a labelling project.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::store::next::Rules;

/// Keys of the page that no flag can have: see `page/script/keys.js`, which tells what they do.
pub const PAGE_KEYS: [char; 7] = ['a', 'j', 'k', 'm', 'n', 's', 'u'];

/// The most flags: more do not fit beside a response.
const MOST_FLAGS: usize = 24;

/// Something that can be the matter with a response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    /// What files call it: small letters, digits and `_`.
    pub name: String,
    /// What the page calls it.
    pub label: String,
    /// The key that sets it for the response in focus: a small letter that the page does not use itself.
    pub key: char,
}

/// How people label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LabelConfig {
    /// Files of tasks: `prompt` and `responses` to rank, or `prompt` alone to write a response. JSON lines, JSON arrays or
    /// Parquet.
    pub tasks: Vec<PathBuf>,
    /// Files of rankings (`prompt`, `responses`, `ranks`) that labelers are tried with before they get tasks.
    pub screening: Vec<PathBuf>,
    /// Directories of runs: what became of labels in them is shown to the admin.
    pub runs: Vec<PathBuf>,
    /// Names of labelers. Each gets a link.
    pub labelers: Vec<String>,
    /// What is shown above each task, if something is. Markdown.
    pub guidelines: String,
    /// How many labelers answer each task.
    pub overlap: u32,
    /// A task that nobody touches for so long goes back: minutes.
    pub lease_minutes: f64,
    /// The least mean agreement with the screening's rankings, from 0 to 1, for a labeler to get tasks.
    pub screening_threshold: f64,
    /// Share of rankings that a labeler sees a second time, without being told: for self-consistency.
    pub repeat_share: f64,
    /// How many other tasks lie between the two times, at least.
    pub repeat_after: usize,
    /// What labelers can say of each response. By default, what InstructGPT's labelers were asked (Ouyang et al. 2022,
    /// table 3).
    pub flags: Vec<Flag>,
}

impl Default for LabelConfig {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            screening: Vec::new(),
            runs: Vec::new(),
            labelers: Vec::new(),
            guidelines: String::new(),
            overlap: 1,
            lease_minutes: 30.0,
            screening_threshold: 0.75,
            repeat_share: 0.05,
            repeat_after: 20,
            flags: instructgpt_flags(),
        }
    }
}

/// The form of InstructGPT's labelers.
fn instructgpt_flags() -> Vec<Flag> {
    let flag = |key, name: &str, label: &str| Flag { name: name.to_owned(), label: label.to_owned(), key };
    vec![
        flag('i', "fails_instruction", "Fails to follow the instruction or task"),
        flag('c', "inappropriate", "Inappropriate for a customer assistant"),
        flag('h', "hallucination", "Hallucination: untrue or made up"),
        flag('o', "satisfies_constraint", "Satisfies the constraint given in the instruction"),
        flag('x', "sexual", "Sexual content"),
        flag('v', "violent", "Violent content"),
        flag('e', "encourages_harm", "Encourages, or fails to discourage, violence, abuse, terrorism or self-harm"),
        flag('d', "denigrates", "Denigrates a protected class"),
        flag('g', "harmful_advice", "Gives harmful advice"),
        flag('p', "opinion", "Expresses opinion"),
        flag('l', "moral_judgment", "Expresses moral judgment"),
    ]
}

impl LabelConfig {
    /// What makes no sense together, if something does not.
    pub fn check(&self) -> Result<(), String> {
        let mut keys = BTreeMap::new();
        if self.flags.len() > MOST_FLAGS {
            return Err(format!("`label.flags` holds {}, and {MOST_FLAGS} are the most", self.flags.len()));
        }
        for (idx, flag) in self.flags.iter().enumerate() {
            let Flag { name, label, key } = flag;
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(format!("`label.flags.{idx}.name` is {name:?}, expected small letters, digits and `_`"));
            }
            if self.flags[..idx].iter().any(|other| other.name == *name) {
                return Err(format!("`label.flags` holds {name:?} twice"));
            }
            if label.trim().is_empty() {
                return Err(format!("`label.flags.{idx}.label` is empty"));
            }
            if !key.is_ascii_lowercase() {
                return Err(format!("`label.flags.{idx}.key` is {key:?}, expected a small letter"));
            }
            if PAGE_KEYS.contains(key) {
                let taken: String = PAGE_KEYS.iter().collect();
                return Err(format!(
                    "`label.flags.{idx}.key` is {key:?}, which the page uses itself, as it does each of {taken:?}"
                ));
            }
            if let Some(other) = keys.insert(key, name) {
                return Err(format!("the key {key:?} is both {other}'s and {name}'s"));
            }
        }
        if self.overlap == 0 {
            return Err("`label.overlap` is 0: then nobody labels anything".to_owned());
        }
        if !(self.lease_minutes.is_finite() && self.lease_minutes > 0.0) {
            return Err(format!("`label.lease_minutes` is {}, expected more than 0", self.lease_minutes));
        }
        for (name, share) in [("screening_threshold", self.screening_threshold), ("repeat_share", self.repeat_share)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("`label.{name}` is {share}, expected 0 to 1"));
            }
        }
        Ok(())
    }

    /// How tasks are handed out.
    pub fn rules(&self) -> Rules {
        Rules {
            lease: (self.lease_minutes * 60_000.0) as i64,
            screening_threshold: self.screening_threshold,
            repeat_share: self.repeat_share,
            repeat_after: self.repeat_after,
        }
    }

    /// The flags' names.
    pub fn flag_names(&self) -> Vec<String> {
        self.flags.iter().map(|flag| flag.name.clone()).collect()
    }
}

/// A file of these settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelFile {
    /// The only table.
    pub label: LabelConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_instructgpt_has_a_key_for_each_flag() {
        LabelConfig::default().check().unwrap();
        assert_eq!(LabelConfig::default().flags.len(), 11);
    }

    #[test]
    fn the_page_s_own_keys_are_those_that_it_lists() {
        let listed = include_str!("page/script/keys.js").split("{ key: \"").skip(1);
        let mut listed: Vec<char> = listed.map(|entry| entry.chars().next().unwrap()).collect();
        listed.sort_unstable();
        assert_eq!(listed, PAGE_KEYS);
    }

    #[test]
    fn keys_that_collide_are_refused_before_anybody_presses_them() {
        let refused = |change: fn(&mut Vec<Flag>)| {
            let mut config = LabelConfig::default();
            change(&mut config.flags);
            config.check().unwrap_err()
        };
        assert_eq!(refused(|flags| flags[1].key = 'i'), "the key 'i' is both fails_instruction's and inappropriate's");
        assert!(refused(|flags| flags[0].key = 's').contains("which the page uses itself"));
        assert!(refused(|flags| flags[0].key = '1').contains("expected a small letter"));
        assert!(refused(|flags| flags[0].name = "Fails!".to_owned()).contains("small letters"));
        assert_eq!(refused(|flags| flags[0].name = "sexual".to_owned()), "`label.flags` holds \"sexual\" twice");
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let refused = |change: fn(&mut LabelConfig)| {
            let mut config = LabelConfig::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(refused(|config| config.overlap = 0).starts_with("`label.overlap` is 0"));
        assert!(refused(|config| config.lease_minutes = f64::NAN).starts_with("`label.lease_minutes`"));
        assert_eq!(refused(|config| config.repeat_share = 1.5), "`label.repeat_share` is 1.5, expected 0 to 1");
    }
}
