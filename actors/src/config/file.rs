//! A TOML file, and what `--set` changes in it, to a config struct.

use std::fmt;
use std::path::{Path, PathBuf};

use collimate_models::data::nearest;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path as KeyPath, Segment};
use toml::de::{DeTable, DeValue};

use super::set;

/// What is wrong with a setting, where it stands, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The text is not TOML, or a setting in it is not one.
    #[error("{place}: {problem}")]
    Bad {
        /// Where.
        place: Place,
        /// What was found and what was expected.
        problem: String,
    },
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line, from 1, of a file.
    Line(PathBuf, usize),
    /// A `--set` argument.
    Set(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(path, line) => write!(f, "{}:{line}", path.display()),
            Place::Set(argument) => write!(f, "--set {argument}"),
        }
    }
}

/// Reads a config file and applies `sets`, each `a.b=value`, in order. An unknown key is an error that names the
/// nearest known one.
pub fn load<T: DeserializeOwned>(path: &Path, sets: &[String]) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    parse(&text, path, sets)
}

/// The same from text; `path` is for messages.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path, sets: &[String]) -> Result<T, ConfigError> {
    let mut table = parse_table(text, path)?;
    if sets.is_empty() {
        return from_text(text, path);
    }
    let in_file_alone = table.clone();
    for argument in sets {
        set::apply(&mut table, argument)?;
    }
    match from_table(&table) {
        Ok(config) => Ok(config),
        // The file may be wrong by itself; only then does the error have a line. Else some `--set` is to blame.
        Err(_) => {
            from_text::<T>(text, path)?;
            Err(blame(&in_file_alone, sets, from_table::<T>))
        }
    }
}

/// Reads a TOML file as a table of any content.
pub fn load_table(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    parse_table(&text, path)
}

fn parse_table(text: &str, path: &Path) -> Result<toml::Table, ConfigError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        ConfigError::Bad { place: Place::Line(path.to_owned(), line), problem: error.message().to_owned() }
    })
}

fn from_text<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    let bad = |line: usize, problem| ConfigError::Bad { place: Place::Line(path.to_owned(), line), problem };
    let deserializer = toml::Deserializer::parse(text)
        .map_err(|error| bad(error.span().map_or(1, |span| line_of(text, span.start)), error.message().to_owned()))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let problem = Problem::of(error.path(), error.inner());
        let line = problem
            .offset_in(text)
            .or_else(|| error.inner().span().map(|span| span.start))
            .map_or(1, |offset| line_of(text, offset));
        bad(line, problem.text)
    })
}

fn from_table<T: DeserializeOwned>(table: &toml::Table) -> Result<T, String> {
    serde_path_to_error::deserialize(table.clone()).map_err(|error| Problem::of(error.path(), error.inner()).text)
}

/// Finds the first `--set` after which the config is no config any more.
fn blame<T>(file: &toml::Table, sets: &[String], check: impl Fn(&toml::Table) -> Result<T, String>) -> ConfigError {
    let mut table = file.clone();
    for argument in sets {
        if let Err(error) = set::apply(&mut table, argument) {
            return error;
        }
        if let Err(problem) = check(&table) {
            return ConfigError::Bad { place: Place::Set(argument.clone()), problem };
        }
    }
    // Each step was fine, the whole is not: cannot happen, since the last step is the whole.
    ConfigError::Bad { place: Place::Set(sets.join(" ")), problem: "these settings do not go together".into() }
}

/// A deserialiser's complaint, in the words of someone who writes the file.
struct Problem {
    /// The keys down to the one complained about.
    keys: Vec<String>,
    text: String,
}

impl Problem {
    fn of(path: &KeyPath, error: &toml::de::Error) -> Self {
        let mut keys: Vec<String> = path
            .iter()
            .filter_map(|segment| match segment {
                Segment::Map { key } => Some(key.clone()),
                Segment::Seq { index } => Some(index.to_string()),
                Segment::Enum { .. } | Segment::Unknown => None,
            })
            .collect();
        let message = error.message();
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let text = match (message, quoted.as_slice()) {
            (_, [unknown, known @ ..]) if message.starts_with("unknown field") => {
                if keys.last().map(String::as_str) != Some(unknown) {
                    keys.push((*unknown).to_owned());
                }
                format!("unknown key `{}`{}", keys.join("."), suggestion(unknown, known))
            }
            (_, [unknown, known @ ..]) if message.starts_with("unknown variant") => {
                format!(
                    "`{}` is `{unknown}`, which is not one of its values{}",
                    keys.join("."),
                    suggestion(unknown, known)
                )
            }
            (_, [missing, ..]) if message.starts_with("missing field") => {
                keys.push((*missing).to_owned());
                format!("key `{}` is missing", keys.join("."))
            }
            _ if keys.is_empty() => in_plain_words(message),
            _ => format!("`{}`: {}", keys.join("."), in_plain_words(message)),
        };
        Self { keys, text }
    }

    /// Where the key stands in the text, or the nearest table above it.
    fn offset_in(&self, text: &str) -> Option<usize> {
        let document = DeTable::parse(text).ok()?;
        let mut table = document.get_ref();
        let mut offset = None;
        let mut keys = self.keys.iter();
        while let Some(key) = keys.next() {
            let (found, mut value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
            offset = Some(found.span().start);
            while let DeValue::Array(items) = value.get_ref() {
                let Some(item) = keys.next().and_then(|idx| items.get(idx.parse::<usize>().ok()?)) else { break };
                offset = Some(item.span().start);
                value = item;
            }
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        offset
    }
}

/// serde names Rust's types; people write TOML's.
fn in_plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 12] = [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected a nonzero usize", "expected a whole number above 0"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected path string", "expected a path in quotes"),
        ("expected a string", "expected text in quotes"),
        ("expected a sequence", "expected a list"),
        ("invalid type: map", "invalid type: table"),
    ];
    let mut text = message.to_owned();
    for (rust, plain) in WORDS {
        text = text.replace(rust, plain);
    }
    text
}

/// `; did you mean …?`, or all known names when none is near.
fn suggestion(unknown: &str, known: &[&str]) -> String {
    match nearest(unknown, known.iter().copied()) {
        Some(name) => format!("; did you mean `{name}`?"),
        None if known.is_empty() => "; there are none here".to_owned(),
        None => format!("; known: {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Recipe {
        seed: u64,
        ppo: Option<Ppo>,
        list: Vec<Ppo>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Ppo {
        ptx_coef: f64,
        batch_size: usize,
        mode: Mode,
        reward: Option<Reward>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Threaded,
        Deterministic,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
    enum Reward {
        Length { target: usize },
        Regex { pattern: String },
    }

    fn parsed(text: &str, sets: &[&str]) -> Result<Recipe, String> {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        parse(text, Path::new("recipe.toml"), &sets).map_err(|error| error.to_string())
    }

    fn error(text: &str, sets: &[&str]) -> String {
        parsed(text, sets).unwrap_err()
    }

    #[test]
    fn a_misspelt_key_is_named_with_file_line_and_the_nearest_key() {
        assert_eq!(
            error("seed = 1\n\n[ppo]\nptx_coeff = 1.0\n", &[]),
            "recipe.toml:4: unknown key `ppo.ptx_coeff`; did you mean `ptx_coef`?"
        );
        assert_eq!(error("sed = 1", &[]), "recipe.toml:1: unknown key `sed`; did you mean `seed`?");
        assert_eq!(
            error("[[list]]\n[[list]]\nsize = 3\n", &[]),
            "recipe.toml:3: unknown key `list.1.size`; did you mean `batch_size`?"
        );
    }

    #[test]
    fn a_key_like_no_other_is_answered_with_all_that_are_known() {
        assert_eq!(
            error("[ppo]\nxyz = 1", &[]),
            "recipe.toml:2: unknown key `ppo.xyz`; known: `ptx_coef`, `batch_size`, `mode`, `reward`"
        );
    }

    #[test]
    fn a_wrong_type_names_the_key_and_what_was_expected() {
        assert_eq!(
            error("[ppo]\n\nbatch_size = \"many\"", &[]),
            "recipe.toml:3: `ppo.batch_size`: invalid type: string \"many\", expected a whole number, 0 or more"
        );
        assert_eq!(
            error("[ppo]\nmode = \"determinstic\"", &[]),
            "recipe.toml:2: `ppo.mode` is `determinstic`, which is not one of its values; did you mean `deterministic`?"
        );
    }

    #[test]
    fn a_wrong_key_inside_a_tagged_table_has_its_line_too() {
        let text = "[ppo]\n[ppo.reward]\nkind = \"regex\"\npatern = \"a\"\n";
        assert_eq!(error(text, &[]), "recipe.toml:4: unknown key `ppo.reward.patern`; did you mean `pattern`?");
    }

    #[test]
    fn broken_toml_and_a_missing_file_are_named() {
        assert!(error("seed = \n", &[]).starts_with("recipe.toml:1: "));
        let error = load::<Recipe>(Path::new("/nowhere/recipe.toml"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/recipe.toml: "), "{error}");
    }

    #[test]
    fn set_changes_and_adds_settings() {
        let recipe =
            parsed("seed = 1\n[ppo]\nptx_coef = 2.0", &["ppo.ptx_coef=0", "seed = 7", "ppo.mode=deterministic"]);
        let ppo = Ppo { mode: Mode::Deterministic, ..Ppo::default() };
        assert_eq!(recipe.unwrap(), Recipe { seed: 7, ppo: Some(ppo), list: Vec::new() });
        let recipe = parsed("", &["ppo.reward.kind=length", "ppo.reward.target=3"]).unwrap();
        assert_eq!(recipe.ppo.unwrap().reward, Some(Reward::Length { target: 3 }));
    }

    #[test]
    fn a_wrong_set_is_named_and_so_is_a_wrong_file_beneath_it() {
        assert_eq!(
            error("", &["seed=3", "ppo.ptx_coeff=0"]),
            "--set ppo.ptx_coeff=0: unknown key `ppo.ptx_coeff`; did you mean `ptx_coef`?"
        );
        assert_eq!(
            error("", &["ppo.batch_size=x"]),
            "--set ppo.batch_size=x: `ppo.batch_size`: invalid type: string \"x\", expected a whole number, 0 or more"
        );
        assert_eq!(error("sed = 1", &["seed=3"]), "recipe.toml:1: unknown key `sed`; did you mean `seed`?");
    }
}
