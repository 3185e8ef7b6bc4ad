//! Which keys two configs differ in.

use std::collections::BTreeMap;
use std::fmt;

use toml::{Table, Value};

/// A key with another value on each side; `None` where it is absent.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDiff {
    /// Dotted.
    pub key: String,
    /// On the left.
    pub left: Option<Value>,
    /// On the right.
    pub right: Option<Value>,
}

impl fmt::Display for KeyDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| value.as_ref().map_or_else(|| "absent".to_owned(), Value::to_string);
        write!(f, "{}: {} there, {} now", self.key, show(&self.left), show(&self.right))
    }
}

/// Every key whose value differs, in order of key. A table that only one side has is one difference.
pub fn differences(left: &Table, right: &Table) -> Vec<KeyDiff> {
    let mut found = BTreeMap::new();
    collect(left, right, "", &mut found);
    found.into_values().collect()
}

fn collect(left: &Table, right: &Table, prefix: &str, found: &mut BTreeMap<String, KeyDiff>) {
    for key in left.keys().chain(right.keys()) {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (left.get(key), right.get(key)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => collect(a, b, &path, found),
            (a, b) if a != b => {
                found.insert(path.clone(), KeyDiff { key: path, left: a.cloned(), right: b.cloned() });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_listed_by_key_with_both_values() {
        let left: Table = toml::from_str("a = 1\nsame = 2\n[t]\nx = \"u\"\nl = [1]\n[only]\ny = 1").unwrap();
        let right: Table = toml::from_str("a = 2\nsame = 2\nnew = true\n[t]\nx = \"u\"\nl = [1, 2]").unwrap();
        let shown: Vec<String> = differences(&left, &right).iter().map(KeyDiff::to_string).collect();
        assert_eq!(
            shown,
            [
                "a: 1 there, 2 now",
                "new: absent there, true now",
                "only: { y = 1 } there, absent now",
                "t.l: [1] there, [1, 2] now"
            ]
        );
        assert!(differences(&left, &left).is_empty());
    }
}
