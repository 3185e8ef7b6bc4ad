//! Sentiment by a word list.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use collimate_protocol::RoleError;
use collimate_protocol::roles::{RewardFunction, RewardRequest};

use crate::error::{Error, Result};

/// Words and their scores. A text of n words scores the sum of its words' scores over √n; one without words, 0.
///
/// The root lets a longer text of the same tone score higher, but a word repeated four times only twice as high. A word
/// is a longest run of letters, digits and apostrophes, lower-cased, without apostrophes at its ends; a word that is not
/// in the list has score 0 and counts in n.
#[derive(Clone, Debug)]
pub struct Lexicon {
    scores: HashMap<String, f32>,
}

impl Lexicon {
    /// Reads a list: a word, a tab and its score on each line. Empty lines, and lines that begin with `#`, are passed
    /// over.
    ///
    /// # Errors
    /// Names the file, the line, and what is wrong: another form, a score that is no finite number, a word that stands
    /// there twice or that no text can contain, no word at all.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let mut scores = HashMap::new();
        for (idx, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |problem| Error::bad_line(path, idx + 1, problem);
            let (word, score) = parse(line).map_err(bad)?;
            if scores.insert(word.to_owned(), score).is_some() {
                return Err(bad(format!("`{word}` stands in the list twice")));
            }
        }
        if scores.is_empty() {
            return Err(Error::bad_file(path, "holds no word, expected a word, a tab and its score on each line"));
        }
        Ok(Self { scores })
    }

    /// The score of a text.
    pub fn score(&self, text: &str) -> f32 {
        let text = normalised(text);
        let (mut sum, mut n_words) = (0.0, 0usize);
        for word in words(&text) {
            sum += self.scores.get(word).copied().unwrap_or(0.0);
            n_words += 1;
        }
        if n_words == 0 { 0.0 } else { sum / (n_words as f32).sqrt() }
    }
}

impl RewardFunction for Lexicon {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        Ok(requests.iter().map(|request| self.score(&request.response)).collect())
    }
}

fn parse(line: &str) -> std::result::Result<(&str, f32), String> {
    let (word, score) =
        line.split_once('\t').ok_or_else(|| format!("is {line:?}, expected a word, a tab and its score"))?;
    if words(&normalised(word)).collect::<Vec<_>>() != [word] {
        return Err(format!("{word:?} is not one lower-case word, so no text can match it"));
    }
    match score.trim().parse::<f32>() {
        Ok(number) if number.is_finite() => Ok((word, number)),
        _ => Err(format!("the score of `{word}` is {score:?}, expected a number")),
    }
}

/// Lower case, with one kind of apostrophe.
fn normalised(text: &str) -> String {
    text.to_lowercase().replace('\u{2019}', "'")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::tests::request;
    use super::*;

    fn load(content: &str) -> std::result::Result<Lexicon, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let name = file.path().display().to_string();
        Lexicon::load(file.path()).map_err(|error| error.to_string().strip_prefix(&name).unwrap().to_owned())
    }

    #[test]
    fn a_text_scores_the_sum_of_its_words_over_the_root_of_their_number() {
        let mut lexicon = load("# a list\nhappy\t2.5\n\nsad\t-2\ncan't\t-0.5\n").unwrap();
        let worked = [
            ("She was happy.", 2.5 / 3f32.sqrt()),
            ("HAPPY, happy--'happy' happy!", 10.0 / 2.0),
            ("happy and sad", 0.5 / 3f32.sqrt()),
            ("I can\u{2019}t", -0.5 / 2f32.sqrt()),
            ("happiness", 0.0),
            ("", 0.0),
            ("-- ' .", 0.0),
        ];
        for (text, expected) in worked {
            assert!((lexicon.score(text) - expected).abs() < 1e-6, "{text}: {}", lexicon.score(text));
        }
        // The prompt's tone is not the response's merit.
        assert_eq!(lexicon.scores(&[request("so happy", "sad")]).unwrap(), [-2.0]);
    }

    #[test]
    fn a_list_that_is_none_is_named_by_line() {
        let error = |content| load(content).unwrap_err();
        assert_eq!(error("happy\t1\nsad -2\n"), ":2: is \"sad -2\", expected a word, a tab and its score");
        assert_eq!(error("happy\tvery\n"), ":1: the score of `happy` is \"very\", expected a number");
        assert_eq!(error("happy\tNaN\n"), ":1: the score of `happy` is \"NaN\", expected a number");
        assert_eq!(error("happy\t1\nhappy\t2\n"), ":2: `happy` stands in the list twice");
        assert_eq!(error("Happy\t1\n"), ":1: \"Happy\" is not one lower-case word, so no text can match it");
        assert_eq!(error("well off\t1\n"), ":1: \"well off\" is not one lower-case word, so no text can match it");
        assert_eq!(error("# nothing\n"), ": holds no word, expected a word, a tab and its score on each line");
        assert!(Lexicon::load(Path::new("/nonexistent.tsv")).unwrap_err().to_string().contains("/nonexistent.tsv"));
    }

    #[test]
    fn the_list_that_comes_with_the_examples_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/sentiment_lexicon.tsv");
        let lexicon = Lexicon::load(&path).unwrap();
        assert!(lexicon.score("a delightful, happy evening") > 1.0);
        assert!(lexicon.score("a dreadful, miserable evening") < -1.0);
    }
}
