//! What one may ask a list of rollouts for.

use rusqlite::types::Value;
use serde::{Deserialize, Serialize};

/// Characters from which on a text is found anywhere; shorter ones are looked for in what the list shows alone.
const N_TRIGRAM: usize = 3;

/// Most rows at once.
pub const MOST_ROWS: u32 = 500;

/// What rollouts are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SortKey {
    /// The order in which they were recorded.
    #[default]
    Id,
    /// Score.
    Score,
    /// Gold score.
    Gold,
    /// KL to the reference.
    Kl,
    /// Tokens of the response.
    NTokens,
}

impl SortKey {
    fn column(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Score => "score",
            Self::Gold => "gold",
            Self::Kl => "kl",
            Self::NTokens => "n_tokens",
        }
    }
}

/// A part of a list: which rollouts, in which order, from where on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutQuery {
    /// By what.
    pub sort: SortKey,
    /// Smallest first.
    pub ascending: bool,
    /// Of a prompt.
    pub prompt_id: Option<u64>,
    /// Trained on at this version or later.
    pub from_version: Option<u64>,
    /// Trained on at this version or earlier.
    pub to_version: Option<u64>,
    /// With this text in prompt or response, in any case of letters.
    pub search: String,
    /// Recorded after the one of this number.
    pub after_id: Option<i64>,
    /// Recorded no later than the one of this number: a list that is read page by page stays the same while more come.
    pub up_to_id: Option<i64>,
    /// Leaves out so many at the front.
    pub offset: u32,
    /// At most so many, and at most [`MOST_ROWS`].
    pub limit: Option<u32>,
}

impl RolloutQuery {
    /// The condition, and what stands for its question marks. Empty where every rollout is meant.
    pub(super) fn filter(&self) -> (String, Vec<Value>) {
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        let mut add = |condition: &'static str, value: Value| {
            conditions.push(condition);
            values.push(value);
        };
        let number = |n: u64| Value::Integer(n.min(i64::MAX as u64).cast_signed());
        if let Some(prompt_id) = self.prompt_id {
            add("prompt_id = ?", number(prompt_id));
        }
        if let Some(version) = self.from_version {
            add("version >= ?", number(version));
        }
        if let Some(version) = self.to_version {
            add("version <= ?", number(version));
        }
        if let Some(id) = self.after_id {
            add("id > ?", Value::Integer(id));
        }
        if let Some(id) = self.up_to_id {
            add("id <= ?", Value::Integer(id));
        }
        let search = self.search.trim();
        if search.chars().count() >= N_TRIGRAM {
            let phrase = format!("\"{}\"", search.replace('"', "\"\""));
            add("id IN (SELECT rowid FROM texts WHERE texts MATCH ?)", Value::Text(phrase));
        } else if !search.is_empty() {
            add("instr(lower(prompt || char(10) || response), lower(?)) > 0", Value::Text(search.to_owned()));
        }
        if conditions.is_empty() {
            return (String::new(), values);
        }
        (format!("WHERE {}", conditions.join(" AND ")), values)
    }

    /// Order, and which part of it.
    pub(super) fn order(&self) -> String {
        let direction = if self.ascending { "ASC" } else { "DESC" };
        let column = self.sort.column();
        let by = if self.sort == SortKey::Id { String::new() } else { format!("{column} {direction}, ") };
        let limit = self.limit.unwrap_or(MOST_ROWS).min(MOST_ROWS);
        format!("ORDER BY {by}id {direction} LIMIT {limit} OFFSET {}", self.offset)
    }
}
