//! Comparisons that the reward model trains on.

use std::collections::HashMap;
use std::path::Path;

use collimate_protocol::records::{Comparison, ComparisonTokens, LabelName, PromptText};
use serde_json::{Map, Value};

use super::corpus::is_heldout;
use super::dialogue::{Problem, shown};
use super::framing::{prompt_tokens, response_tokens};
use super::limit::{Fitted, LengthLimit};
use super::records::{Record, Records};
use super::schema::Schema;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::train::RankedResponses;

/// Fewer responses can't be compared.
pub const MIN_RANKED: usize = 2;
/// InstructGPT's labelers ranked 4 to 9 (Ouyang et al. 2022, section 3.5). Ranking more at once is not to be trusted.
pub const MAX_RANKED: usize = 9;

impl Record for Comparison {
    const NAME: &'static str = "comparison";

    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self> {
        let comparison = schema.comparison(row)?;
        problem(&comparison).map_or(Ok(comparison), Err)
    }
}

/// What is wrong with it beyond its form, if something is.
fn problem(comparison: &Comparison) -> Option<String> {
    let (n_responses, n_ranks) = (comparison.responses.len(), comparison.ranks.len());
    if !(MIN_RANKED..=MAX_RANKED).contains(&n_responses) {
        return Some(format!("has {n_responses} responses, expected {MIN_RANKED} to {MAX_RANKED}"));
    }
    if n_ranks != n_responses {
        return Some(format!("has {n_responses} responses and {n_ranks} ranks, expected a rank for each response"));
    }
    if comparison.ranks.contains(&0) {
        return Some("has a rank 0; the best rank is 1".to_owned());
    }
    comparison.tokens.as_ref().and_then(|tokens| token_problem(tokens, n_responses))
}

fn token_problem(tokens: &ComparisonTokens, n_responses: usize) -> Option<String> {
    if tokens.prompt.is_empty() {
        return Some("has no token under `tokens.prompt`".to_owned());
    }
    let n = tokens.responses.len();
    (n != n_responses).then(|| format!("has {n_responses} responses and {n} under `tokens.responses`"))
}

/// A comparison, with what exports of `collimate label` say of it in each line: the name of the label that it is (`task`,
/// `labeler` and `revision`), and whether the labeler called all responses bad (`all_bad`).
#[derive(Clone, Debug, PartialEq)]
pub struct NamedComparison {
    /// The comparison.
    pub comparison: Comparison,
    /// The label's name.
    pub name: Option<LabelName>,
    /// Whether none of the responses is acceptable.
    pub all_bad: bool,
}

impl Record for NamedComparison {
    const NAME: &'static str = Comparison::NAME;

    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self> {
        // In a file of another kind a column of that name may mean anything.
        let all_bad = schema == Schema::Ranking && all_bad(row)?;
        Ok(Self { comparison: Comparison::read(schema, row)?, name: name_of(row), all_bad })
    }
}

fn all_bad(row: &Map<String, Value>) -> Problem<bool> {
    match row.get("all_bad") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(all_bad)) => Ok(*all_bad),
        Some(other) => Err(format!("key `all_bad` is {}, expected true or false", shown(other))),
    }
}

fn name_of(row: &Map<String, Value>) -> Option<LabelName> {
    let text = |key: &str| row.get(key)?.as_str().map(str::to_owned);
    let revision = row.get("revision")?.as_u64().and_then(|revision| u32::try_from(revision).ok())?;
    Some(LabelName { task: text("task")?, labeler: text("labeler")?, revision })
}

/// Which of these prompts' records are held out: of the prompts, in the order of their first appearance, as many as
/// [`is_heldout`] says. All records of one prompt are on the same side, so that no model is measured on a prompt that it
/// was trained on.
pub fn heldout_by_prompt<'a>(prompts: impl IntoIterator<Item = &'a PromptText>, heldout_share: f64) -> Vec<bool> {
    let mut numbers = HashMap::<&PromptText, usize>::new();
    let number_of = |prompt: &'a PromptText| {
        let next = numbers.len();
        *numbers.entry(prompt).or_insert(next)
    };
    prompts.into_iter().map(number_of).map(|number| is_heldout(number, heldout_share)).collect()
}

/// Reads a comparisons file. A comparison whose responses all tie is allowed, though it holds no pair: see
/// [`n_without_pairs`].
///
/// # Errors
/// Names the file, the line, and what is wrong. A file in which all is tied teaches nothing and is refused.
pub fn read_comparisons(path: &Path) -> Result<Records<NamedComparison>> {
    let comparisons: Records<NamedComparison> = Records::read(path)?;
    if n_without_pairs(comparisons.iter().map(|one| &one.comparison)) == comparisons.len() {
        return Err(Error::bad_file(
            path,
            "all responses of every comparison are tied, so there is no pair to learn from",
        ));
    }
    Ok(comparisons)
}

/// Ranks by scores, as a labeler writes them: 1 is best, equal scores share a rank, and the next rank counts the
/// responses above.
pub fn ranks_of(scores: &[f64]) -> Vec<u32> {
    scores.iter().map(|score| 1 + scores.iter().filter(|other| *other > score).count() as u32).collect()
}

/// How many comparisons hold no pair, since all their responses tie.
pub fn n_without_pairs<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> usize {
    let all_tie = |comparison: &&Comparison| comparison.ranks.windows(2).all(|pair| pair[0] == pair[1]);
    comparisons.into_iter().filter(all_tie).count()
}

/// Comparisons that say something about their responses as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WholeCounts {
    /// Comparisons, of whatever kind.
    pub n_comparisons: usize,
    /// Those whose responses were all said to be bad, ranked or not.
    pub n_all_bad: usize,
    /// Those whose responses all tie.
    pub n_all_tied: usize,
}

impl WholeCounts {
    /// Of the comparisons of a file.
    pub fn of(comparisons: &Records<NamedComparison>) -> Self {
        Self {
            n_comparisons: comparisons.len(),
            n_all_bad: comparisons.iter().filter(|one| one.all_bad).count(),
            n_all_tied: n_without_pairs(comparisons.iter().map(|one| &one.comparison)),
        }
    }

    /// What there is to tell; `None` where there is no such comparison.
    pub fn tell(&self) -> Option<String> {
        let Self { n_comparisons, n_all_bad, n_all_tied } = *self;
        (n_all_bad + n_all_tied > 0).then(|| {
            format!(
                "of {n_comparisons} comparisons {n_all_bad} call all their responses bad, and {n_all_tied} tie them all, \
                 which teaches nothing"
            )
        })
    }
}

/// For each response one sequence of tokens, the prompt before it. Where the tokens that were sampled are known, they are
/// used as they are; a response that is text gets one end token.
///
/// # Errors
/// A prompt without tokens, or a token that the tokenizer does not have.
pub fn response_sequences(
    tokenizer: &Tokenizer,
    prompt: &PromptText,
    responses: &[String],
    tokens: Option<&ComparisonTokens>,
) -> Result<Vec<Vec<u32>>> {
    let (prompt, responses) = match tokens {
        Some(tokens) => (tokens.prompt.clone(), tokens.responses.clone()),
        None => {
            let responses = responses.iter().map(|response| response_tokens(tokenizer, prompt, response));
            (prompt_tokens(tokenizer, prompt)?, responses.collect::<Result<_>>()?)
        }
    };
    let vocab_size = tokenizer.vocab_size();
    let sequence = |response: Vec<u32>| {
        let sequence = [prompt.as_slice(), &response].concat();
        match sequence.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(sequence),
            Some(id) => Err(Error::invalid(format!(
                "`tokens` holds {id}, and the tokenizer's tokens end at {}: were they sampled with another one?",
                vocab_size - 1
            ))),
        }
    };
    responses.into_iter().map(sequence).collect()
}

/// The comparisons' tokens, as [`response_sequences`] has them.
///
/// # Errors
/// A sequence that the limit refuses, a prompt without tokens, or a token that the tokenizer does not have; the line is
/// named.
pub fn tokenize_comparisons(
    comparisons: &Records<NamedComparison>,
    tokenizer: &Tokenizer,
    limit: LengthLimit,
) -> Result<Vec<Fitted<RankedResponses>>> {
    comparisons.try_map(|NamedComparison { comparison, .. }| {
        let Comparison { prompt, responses, ranks, tokens } = comparison;
        let sequences = response_sequences(tokenizer, prompt, responses, tokens.as_ref())?;
        let n_tokens = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let what = || format!("the prompt with its longest response has {n_tokens} tokens");
        match limit.takes(n_tokens, what)? {
            true => Ok(Fitted::Whole(RankedResponses { sequences, ranks: ranks.clone() })),
            false => Ok(Fitted::Dropped),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::bytes;
    use super::super::records::tests::file;
    use super::*;

    fn problem(line: &str) -> String {
        let file = file(line);
        let message = read_comparisons(file.path()).unwrap_err().to_string();
        message.strip_prefix(&file.path().display().to_string()).unwrap().to_owned()
    }

    #[test]
    fn a_comparison_that_makes_no_sense_is_named_by_line() {
        let one = r#"{"prompt": "a", "responses": ["b"], "ranks": [1]}"#;
        assert_eq!(problem(one), ":1: has 1 responses, expected 2 to 9");
        let ten = format!(r#"{{"prompt": "a", "responses": {:?}, "ranks": {:?}}}"#, ["b"; 10], [1; 10]);
        assert_eq!(problem(&ten), ":1: has 10 responses, expected 2 to 9");
        let short = r#"{"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2]}"#;
        assert_eq!(problem(short), ":1: has 3 responses and 2 ranks, expected a rank for each response");
        let zero = r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [0, 1]}"#;
        assert_eq!(problem(zero), ":1: has a rank 0; the best rank is 1");
        let negative = r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [-1, 1]}"#;
        assert!(
            problem(negative).starts_with(":1: key `ranks` is [-1,1], expected a list of ranks"),
            "{}",
            problem(negative)
        );
        let rank = r#"{"prompt": "a", "responses": ["b", "c"], "rank": [1, 2]}"#;
        assert_eq!(
            problem(&format!("{}\n{rank}", one.replace("[\"b\"]", "[\"b\", \"c\"]").replace("[1]", "[1, 2]"))),
            ":2: key `ranks` is missing; is it meant by `rank`?"
        );
        let tokens = r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "tokens": {"prompt": [1], "responses": [[2]]}}"#;
        assert_eq!(problem(tokens), ":1: has 2 responses and 1 under `tokens.responses`");
    }

    #[test]
    fn equal_scores_share_a_rank_and_the_next_rank_counts_those_above() {
        assert_eq!(ranks_of(&[0.5, 2.0, 0.5, -1.0]), [2, 1, 2, 4]);
    }

    #[test]
    fn ties_are_kept_and_those_without_a_pair_counted() {
        let tied = r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}"#;
        let ranked = r#"{"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 1, 2]}"#;
        let mixed = file(format!("{tied}\n{ranked}\n"));
        let comparisons = read_comparisons(mixed.path()).unwrap();
        let without = n_without_pairs(comparisons.iter().map(|one| &one.comparison));
        assert_eq!((comparisons.len(), without), (2, 1));
        assert_eq!(
            problem(&format!("{tied}\n{tied}\n")),
            ": all responses of every comparison are tied, so there is no pair to learn from"
        );
    }

    #[test]
    fn all_of_a_prompt_s_comparisons_are_on_the_same_side() {
        let prompts: Vec<PromptText> = ["a", "b", "a", "c", "b", "d", "b"].map(PromptText::from).to_vec();
        // Of a, b, c, d every second is held out: b and d.
        assert_eq!(heldout_by_prompt(&prompts, 0.5), [false, true, false, false, true, true, true]);
        // Where each prompt stands once, it is every n-th line.
        let once: Vec<PromptText> = (0..10).map(|n| PromptText::Text(n.to_string())).collect();
        let by_line: Vec<bool> = (0..10).map(|idx| is_heldout(idx, 0.3)).collect();
        assert_eq!(heldout_by_prompt(&once, 0.3), by_line);
    }

    #[test]
    fn a_label_has_a_name_where_its_line_names_all_of_it() {
        let line = |more: &str| format!(r#"{{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]{more}}}"#);
        let named = r#", "task": "t", "labeler": "anna", "revision": 3"#;
        let file = file(format!("{}\n{}\n", line(named), line(r#", "labeler": "anna""#)));
        let names: Vec<_> = read_comparisons(file.path()).unwrap().iter().map(|one| one.name.clone()).collect();
        let name = LabelName { task: "t".to_owned(), labeler: "anna".to_owned(), revision: 3 };
        assert_eq!(names, [Some(name), None]);
    }

    #[test]
    fn what_is_called_all_bad_is_counted_whether_ranked_or_tied() {
        let line = |ranks: &str, more: &str| {
            format!(r#"{{"prompt": "a", "responses": ["b", "c"], "ranks": {ranks}{more}}}"#) + "\n"
        };
        let [all_bad, good] = [true, false].map(|all_bad| format!(r#", "all_bad": {all_bad}"#));
        let lines = [
            line("[1, 2]", &all_bad),
            line("[1, 1]", &all_bad),
            line("[1, 1]", &good),
            line("[2, 1]", &good),
            line("[2, 1]", r#", "all_bad": null"#),
            line("[2, 1]", ""),
        ];
        let comparisons = read_comparisons(file(lines.concat()).path()).unwrap();
        let counts = WholeCounts::of(&comparisons);
        assert_eq!(counts, WholeCounts { n_comparisons: 6, n_all_bad: 2, n_all_tied: 2 });
        let told = "of 6 comparisons 2 call all their responses bad, and 2 tie them all, which teaches nothing";
        assert_eq!(counts.tell().as_deref(), Some(told));
        let plain = read_comparisons(file(line("[1, 2]", "")).path()).unwrap();
        assert_eq!(WholeCounts::of(&plain).tell(), None);
        let number = line("[1, 2]", r#", "all_bad": 1"#);
        assert_eq!(problem(&number), ":1: key `all_bad` is 1, expected true or false");
        let preference = file(r#"{"prompt": "a", "chosen": "b", "rejected": "c", "all_bad": "of another kind"}"#);
        assert_eq!(WholeCounts::of(&read_comparisons(preference.path()).unwrap()).n_all_bad, 0);
    }

    #[test]
    fn sampled_tokens_are_used_as_they_are_and_text_gets_one_end_token() {
        let tokenizer = bytes();
        let text = r#"{"prompt": "a", "responses": ["b", "cd"], "ranks": [2, 1]}"#;
        // The second response was cut off: it has no end token and gets none.
        let sampled = r#"{"prompt": "a", "responses": ["?", "?"], "ranks": [1, 2],
            "tokens": {"prompt": [5, 6], "responses": [[7, 0], [8]]}}"#;
        let file = file(format!("{text}\n{}\n", sampled.replace('\n', " ")));
        let ranked =
            tokenize_comparisons(&read_comparisons(file.path()).unwrap(), &tokenizer, LengthLimit::context(4)).unwrap();
        let ranked = ranked.into_iter().map(|one| match one {
            Fitted::Whole(ranked) => ranked,
            other => panic!("{other:?}"),
        });
        let ranked: Vec<RankedResponses> = ranked.collect();
        let abcd = tokenizer.encode("abcd").unwrap();
        assert_eq!(ranked[0].sequences, [vec![abcd[0], abcd[1], 0], vec![abcd[0], abcd[2], abcd[3], 0]]);
        assert_eq!(ranked[0].ranks, [2, 1]);
        assert_eq!(ranked[1].sequences, [vec![5, 6, 7, 0], vec![5, 6, 8]]);
    }

    #[test]
    fn sequences_that_the_model_can_not_take_are_named_by_line() {
        let text = file(r#"{"prompt": "a", "responses": ["b", "cd"], "ranks": [2, 1]}"#);
        let message = tokenize_comparisons(&read_comparisons(text.path()).unwrap(), &bytes(), LengthLimit::context(3))
            .unwrap_err();
        assert!(message.to_string().contains(":1: the prompt with its longest response has 4 tokens"), "{message}");

        let foreign = file(
            r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "tokens": {"prompt": [1], "responses": [[2], [257]]}}"#,
        );
        let message =
            tokenize_comparisons(&read_comparisons(foreign.path()).unwrap(), &bytes(), LengthLimit::context(9))
                .unwrap_err();
        assert!(
            message.to_string().contains(":1: `tokens` holds 257, and the tokenizer's tokens end at 256"),
            "{message}"
        );
    }
}
