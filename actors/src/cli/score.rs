//! `score`: what a policy or a reward model thinks of given text.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};

use collimate_models::arch::{HeadKind, LanguageModel, Precision};
use collimate_models::data::{prompt_tokens, response_tokens};
use collimate_models::generate::response_logprobs;
use collimate_models::roles::RewardModelScorer;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::FinishReason;
use collimate_protocol::records::PromptText;
use collimate_protocol::roles::{RewardFunction, RewardRequest};

use super::args::ScoreArgs;
use crate::device;
use crate::stages::inputs::{InputModel, ModelFiles};

/// Lines that are scored in one call.
const LINES_PER_CALL: usize = 32;

/// A line of the input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    prompt: Option<PromptText>,
    response: Option<String>,
}

/// A line in tokens: what is given, and what is scored after it.
struct Sequence {
    given: Vec<u32>,
    scored: Vec<u32>,
}

/// A line of the output under a policy.
#[derive(Debug, Serialize)]
struct PolicyScore {
    /// Of the response, the end token included, or of the text from its second token on.
    tokens: Vec<u32>,
    /// For each of them its log-probability (nats).
    logprobs: Vec<f32>,
    /// Their sum.
    logprob: f64,
}

/// A line of the output under a reward model.
#[derive(Debug, Serialize)]
struct RewardScore {
    score: f32,
}

enum Scorer {
    Policy(Box<LanguageModel>, f32),
    Reward(Box<RewardModelScorer>),
}

/// Scores every line, in order.
pub fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let device = device::open(&args.device)?;
    let files = ModelFiles::open_any(&args.model)?;
    let InputModel { config, weights } = files.load(&device, Precision::F32)?;
    let ModelFiles { head, tokenizer, .. } = files;
    let mut scorer = match head {
        HeadKind::Scalar => Scorer::Reward(Box::new(RewardModelScorer::new(&config, &weights)?)),
        HeadKind::Language => Scorer::Policy(Box::new(LanguageModel::frozen(&config, &weights)?), args.temperature),
    };

    let from_stdin = args.file == Path::new("-");
    let name = if from_stdin { "<stdin>".to_owned() } else { args.file.display().to_string() };
    let mut reader: Box<dyn BufRead> = if from_stdin {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(&args.file).with_context(|| name.clone())?))
    };
    let mut pending = Vec::new();
    let mut n_lines = 0;
    loop {
        let mut line = String::new();
        let n_bytes = reader.read_line(&mut line).with_context(|| format!("{name}:{}", n_lines + 1))?;
        if n_bytes > 0 {
            n_lines += 1;
            if line.trim().is_empty() {
                continue;
            }
            let sequence = sequence_of(&line, &tokenizer).and_then(|sequence| {
                let n_tokens = sequence.given.len() + sequence.scored.len();
                if n_tokens > config.context_len {
                    bail!("{n_tokens} tokens, but the model's context holds {}", config.context_len);
                }
                Ok(sequence)
            });
            pending.push(sequence.map_err(|error| anyhow!("{name}:{n_lines}: {error:#}"))?);
        }
        if n_bytes == 0 || pending.len() == LINES_PER_CALL {
            print_scores(&mut scorer, &std::mem::take(&mut pending))?;
        }
        if n_bytes == 0 {
            return Ok(());
        }
    }
}

fn sequence_of(line: &str, tokenizer: &Tokenizer) -> anyhow::Result<Sequence> {
    const EXPECTED: &str = "expected {\"text\": …} or {\"prompt\": …, \"response\": …}";
    let line: Line = serde_json::from_str(line).with_context(|| EXPECTED)?;
    match (line.text, line.prompt, line.response) {
        (Some(text), None, None) => {
            let mut tokens = prompt_tokens(tokenizer, &PromptText::Text(text))?;
            let scored = tokens.split_off(1);
            Ok(Sequence { given: tokens, scored })
        }
        (None, Some(prompt), Some(response)) => {
            let scored = response_tokens(tokenizer, &prompt, &response)?;
            Ok(Sequence { given: prompt_tokens(tokenizer, &prompt)?, scored })
        }
        _ => bail!(EXPECTED),
    }
}

fn print_scores(scorer: &mut Scorer, sequences: &[Sequence]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match scorer {
        Scorer::Policy(model, temperature) => {
            let pairs: Vec<_> = sequences.iter().map(|sequence| (&sequence.given, &sequence.scored)).collect();
            for (sequence, logprobs) in sequences.iter().zip(response_logprobs(model, &pairs, *temperature)?) {
                let logprob = logprobs.iter().copied().map(f64::from).sum();
                let score = PolicyScore { tokens: sequence.scored.clone(), logprobs, logprob };
                writeln!(out, "{}", serde_json::to_string(&score)?)?;
            }
        }
        Scorer::Reward(model) => {
            let requests: Vec<_> = sequences.iter().map(request_of).collect();
            let scores = model.scores(&requests).map_err(|error| anyhow!(error))?;
            for score in scores {
                writeln!(out, "{}", serde_json::to_string(&RewardScore { score })?)?;
            }
        }
    }
    Ok(out.flush()?)
}

/// A reward model looks at the tokens alone.
fn request_of(sequence: &Sequence) -> RewardRequest {
    RewardRequest {
        prompt_tokens: sequence.given.clone(),
        response_tokens: sequence.scored.clone(),
        prompt: String::new(),
        response: String::new(),
        finish: FinishReason::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap()
    }

    #[test]
    fn a_text_is_scored_from_its_second_token_on_and_a_response_with_its_end() {
        let tokenizer = tokenizer();
        let text = sequence_of(r#"{"text": "abc"}"#, &tokenizer).unwrap();
        assert_eq!((text.given.len(), text.scored.len()), (1, 2));
        let pair = sequence_of(r#"{"prompt": "ab", "response": "c"}"#, &tokenizer).unwrap();
        assert_eq!((pair.given.len(), pair.scored.len()), (2, 2));
        assert_eq!(pair.scored[1], tokenizer.eos());
    }

    #[test]
    fn a_line_that_is_neither_is_refused() {
        for line in
            ["{}", r#"{"prompt": "a"}"#, r#"{"text": "a", "prompt": "b", "response": "c"}"#, "{", r#"{"txt": 1}"#]
        {
            let error = format!("{:#}", sequence_of(line, &tokenizer()).err().unwrap());
            assert!(error.starts_with("expected {\"text\""), "{error}");
        }
    }
}
