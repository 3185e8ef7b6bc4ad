//! Plain text as the stages use it: paragraphs, some of them held out, as a stream of tokens to predict, or cut into
//! prompts and how they go on.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Fewer response tokens than this make no demonstration.
const MIN_RESPONSE_TOKENS: usize = 4;

/// Words whose full stop ends no sentence. A tokenizer that has them in pieces is not helped by this; then a response
/// may stop after one.
const ABBREVIATIONS: [&str; 9] = ["Mr", "Mrs", "Ms", "Dr", "St", "Esq", "Rev", "Capt", "Hon"];

/// Which part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What stages train on.
    Train,
    /// What they never see.
    Heldout,
}

/// A prompt and how the text goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// The beginning of a paragraph, with the beginning-of-sequence token where the tokenizer has one.
    pub prompt: Vec<u32>,
    /// What follows; ends with the end token where the text came to an end within the length allowed.
    pub response: Vec<u32>,
}

/// Reads paragraphs, which blank lines separate, from text files and from the `.txt` files of directories (in order of
/// their names). Lines of a paragraph are joined by a space.
pub fn read_paragraphs(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut paragraphs = Vec::new();
    for file in text_files(paths)? {
        let bytes = std::fs::read(&file).map_err(|source| Error::io(&file, source))?;
        let text = String::from_utf8(bytes).map_err(|e| Error::bad_file(&file, format!("not UTF-8 text: {e}")))?;
        paragraphs.extend(paragraphs_of(&text));
    }
    if paragraphs.is_empty() {
        return Err(Error::invalid(format!("no text in {paths:?}: a corpus needs at least one paragraph")));
    }
    Ok(paragraphs)
}

fn paragraphs_of(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let words = |lines: &[&str]| lines.iter().flat_map(|line| line.split_whitespace()).collect::<Vec<_>>().join(" ");
    lines.split(|line| line.is_empty()).map(words).filter(|paragraph| !paragraph.is_empty()).collect()
}

fn text_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        if metadata.is_dir() {
            files.extend(directory_text_files(path)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

fn directory_text_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| Error::io(dir, source))? {
        let path = entry.map_err(|source| Error::io(dir, source))?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() { Err(Error::bad_file(dir, "no .txt file in this directory")) } else { Ok(files) }
}

/// Splits items into train and held-out by their index alone: every n-th is held out, with n = 1 / `heldout_share`,
/// so that the split is the same in every stage and for every seed.
pub fn split_by_index<T>(items: Vec<T>, heldout_share: f64) -> (Vec<T>, Vec<T>) {
    let mut parts = (Vec::new(), Vec::new());
    for (idx, item) in items.into_iter().enumerate() {
        if is_heldout(idx, heldout_share) { parts.1.push(item) } else { parts.0.push(item) }
    }
    parts
}

/// Whether the item of this index is held out.
pub fn is_heldout(idx: usize, heldout_share: f64) -> bool {
    ((idx + 1) as f64 * heldout_share).floor() > (idx as f64 * heldout_share).floor()
}

/// A corpus in tokens.
#[derive(Clone, Debug)]
pub struct Corpus {
    train: Vec<Vec<u32>>,
    heldout: Vec<Vec<u32>>,
    /// For each token, whether a sentence may end with it.
    closes: Vec<bool>,
    /// For each token, whether a full stop after it is a part of the word.
    abbreviates: Vec<bool>,
    bos: Option<u32>,
    eos: u32,
}

impl Corpus {
    /// Encodes paragraphs and splits them.
    pub fn new(paragraphs: &[String], tokenizer: &Tokenizer, heldout_share: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&heldout_share) {
            return Err(Error::invalid(format!(
                "heldout_share is {heldout_share}, expected a number from 0 to below 1"
            )));
        }
        let encoded = paragraphs.par_iter().map(|paragraph| tokenizer.encode(paragraph)).collect::<Result<Vec<_>>>()?;
        let (train, heldout) = split_by_index(encoded, heldout_share);
        let texts: Vec<String> =
            (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.decode(&[id])).collect::<Result<_>>()?;
        Ok(Self {
            train,
            heldout,
            closes: texts.iter().map(|text| is_sentence_end(text)).collect(),
            abbreviates: texts.iter().map(|text| ABBREVIATIONS.contains(&text.trim())).collect(),
            bos: tokenizer.bos(),
            eos: tokenizer.eos(),
        })
    }

    fn paragraphs(&self, split: Split) -> &[Vec<u32>] {
        match split {
            Split::Train => &self.train,
            Split::Heldout => &self.heldout,
        }
    }

    fn ends_sentence(&self, tokens: &[u32], idx: usize) -> bool {
        let follows_abbreviation = idx.checked_sub(1).is_some_and(|before| self.abbreviates[tokens[before] as usize]);
        self.closes[tokens[idx] as usize] && !follows_abbreviation
    }

    /// All paragraphs end to end, each followed by the end token.
    pub fn token_stream(&self, split: Split) -> Vec<u32> {
        let mut stream = Vec::new();
        for paragraph in self.paragraphs(split) {
            stream.extend_from_slice(paragraph);
            stream.push(self.eos);
        }
        stream
    }

    /// From each paragraph that is long enough: its first `n_prompt` tokens, and what follows, up to `n_response`
    /// tokens with the end token. The response stops at the last sentence end that fits; where none fits, it is cut
    /// and gets no end token.
    pub fn continuations(&self, split: Split, n_prompt: usize, n_response: usize) -> Vec<Continuation> {
        let long_enough = |paragraph: &&Vec<u32>| paragraph.len() >= n_prompt + MIN_RESPONSE_TOKENS;
        let cut = |paragraph: &Vec<u32>| {
            let (prompt, rest) = paragraph.split_at(n_prompt);
            let fits = &rest[..rest.len().min(n_response.saturating_sub(1))];
            let last_end = (0..fits.len()).rposition(|idx| self.ends_sentence(fits, idx));
            let response = match last_end {
                _ if fits.len() == rest.len() => [fits, &[self.eos]].concat(),
                Some(end) if end + 1 >= MIN_RESPONSE_TOKENS => [&fits[..=end], &[self.eos]].concat(),
                _ => rest[..rest.len().min(n_response)].to_vec(),
            };
            Continuation { prompt: self.bos.into_iter().chain(prompt.iter().copied()).collect(), response }
        };
        self.paragraphs(split).iter().filter(long_enough).map(cut).collect()
    }
}

fn is_sentence_end(token: &str) -> bool {
    let closed = token.trim_end_matches(['"', '\'', '\u{201d}', '\u{2019}', ')']);
    closed.ends_with(['.', '!', '?']) && !closed.ends_with("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train_byte_level_bpe(["It was. It is! So"; 8], 270, &[]).unwrap()
    }

    #[test]
    fn every_nth_item_is_held_out() {
        assert_eq!(split_by_index((0..8).collect(), 0.25), (vec![0, 1, 2, 4, 5, 6], vec![3, 7]));
        assert_eq!(split_by_index((0..3).collect(), 0.0), (vec![0, 1, 2], vec![]));
    }

    #[test]
    fn a_response_stops_at_the_last_sentence_end_that_fits() {
        let tokenizer = tokenizer();
        let text = "It was it was. It is it is! So it was so it was so it was so it was".to_owned();
        let corpus = Corpus::new(&[text], &tokenizer, 0.0).unwrap();
        let n_prompt = tokenizer.encode("It was").unwrap().len();
        let n_two_sentences = tokenizer.encode(" it was. It is it is!").unwrap().len();
        let one = &corpus.continuations(Split::Train, n_prompt, n_two_sentences + 4)[0];
        assert_eq!(tokenizer.decode(&one.response).unwrap(), " it was. It is it is!");
        assert_eq!(one.response.last(), Some(&tokenizer.eos()));
        assert_eq!(tokenizer.decode(&one.prompt).unwrap(), "It was");
    }

    #[test]
    fn a_response_does_not_stop_at_an_abbreviation() {
        let text = "So it was so. It was Mr. So and so it was so it was so it was".to_owned();
        let tokenizer = Tokenizer::train_byte_level_bpe([text.repeat(8)], 300, &[]).unwrap();
        let corpus = Corpus::new(&[text], &tokenizer, 0.0).unwrap();
        let up_to_mr = tokenizer.encode(" it was so. It was Mr.").unwrap().len();
        let one = &corpus.continuations(Split::Train, 1, up_to_mr + 2)[0];
        assert_eq!(tokenizer.decode(&one.response).unwrap(), " it was so.");
    }

    #[test]
    fn a_response_without_sentence_end_gets_no_end_token() {
        let tokenizer = tokenizer();
        let corpus = Corpus::new(&["so it was so it was so it was so it was".to_owned()], &tokenizer, 0.0).unwrap();
        let one = &corpus.continuations(Split::Train, 4, 6)[0];
        assert_eq!(one.response.len(), 6);
        assert!(!one.response.contains(&tokenizer.eos()));
    }

    #[test]
    fn paragraphs_come_from_files_in_order_and_lines_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.txt"), "third").unwrap();
        std::fs::write(dir.path().join("a.txt"), "first\r\nline\r\n\r\n \n\nsecond \n").unwrap();
        let paragraphs = read_paragraphs(&[dir.path().to_owned()]).unwrap();
        assert_eq!(paragraphs, ["first line", "second", "third"]);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latin.txt");
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        let error = read_paragraphs(&[path]).unwrap_err().to_string();
        assert!(error.contains("latin.txt") && error.contains("UTF-8"), "{error}");
    }
}
