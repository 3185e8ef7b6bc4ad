//! `generate`: prompts continued by a policy.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, Precision};
use collimate_models::data::{Records, prompt_tokens};
use collimate_models::generate::{Engine, Response, SamplingParams};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::records::{PromptRecord, PromptText};
use collimate_protocol::{FinishReason, PolicyVersion, PromptId};

use super::args::GenerateArgs;
use crate::stages::inputs::{InputModel, ModelFiles};

/// Responses in progress at once.
const N_SLOTS: usize = 32;

/// What `--json` prints for a response.
#[derive(Debug, Serialize)]
struct Generated<'a> {
    prompt: &'a PromptText,
    sample_idx: u32,
    response: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish: FinishReason,
}

/// Which response to which prompt.
type Tag = (usize, u32);

/// Continues every prompt, and prints the responses in order.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let params = SamplingParams {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_k: args.top_k,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
    };
    params.validate()?;
    let mut prompts: Vec<PromptText> = args.prompt.iter().map(|prompt| prompt.as_str().into()).collect();
    if let Some(path) = &args.prompts {
        prompts.extend(Records::<PromptRecord>::read(path)?.into_records().into_iter().map(|record| record.prompt));
    }
    let files = ModelFiles::open(&args.model, HeadKind::Language)?;
    let InputModel { config, weights } = files.load(&Device::Cpu, Precision::F32)?;
    let tokenizer = files.tokenizer;
    let mut engine: Engine<Tag> = Engine::new(&config, &weights, PolicyVersion(0), N_SLOTS)?;

    let tokens = prompts
        .iter()
        .enumerate()
        .map(|(idx, prompt)| prompt_tokens(&tokenizer, prompt).with_context(|| format!("prompt {}", idx + 1)));
    let tokens = tokens.collect::<anyhow::Result<Vec<_>>>()?;
    let mut waiting = (0..prompts.len()).flat_map(|prompt_idx| (0..args.n_samples).map(move |idx| (prompt_idx, idx)));
    let mut printer =
        Printer { prompts: &prompts, tokenizer: &tokenizer, json: args.json, n_printed: 0, held: Vec::new() };
    let n_responses = prompts.len() * args.n_samples as usize;
    while printer.n_printed < n_responses {
        for tag in waiting.by_ref().take(engine.n_free_slots()) {
            let (prompt_idx, sample_idx) = tag;
            let rng = rng::for_sample(args.seed, PromptId(prompt_idx as u64), sample_idx);
            let admitted = engine.admit(tag, &tokens[prompt_idx], rng, params);
            admitted.with_context(|| format!("prompt {}", prompt_idx + 1))?;
        }
        for response in engine.step()? {
            printer.held.push(response);
        }
        printer.print_ready(args.n_samples)?;
    }
    Ok(())
}

/// Prints responses in the order of their prompts, each as soon as those before it are there.
struct Printer<'a> {
    prompts: &'a [PromptText],
    tokenizer: &'a Tokenizer,
    json: bool,
    n_printed: usize,
    held: Vec<Response<Tag>>,
}

impl Printer<'_> {
    fn print_ready(&mut self, n_samples: u32) -> anyhow::Result<()> {
        let next = |n_printed: usize| (n_printed / n_samples as usize, (n_printed % n_samples as usize) as u32);
        while let Some(at) = self.held.iter().position(|response| response.tag == next(self.n_printed)) {
            let response = self.held.swap_remove(at);
            self.print(response)?;
            self.n_printed += 1;
        }
        Ok(())
    }

    fn print(&self, response: Response<Tag>) -> anyhow::Result<()> {
        let (prompt_idx, sample_idx) = response.tag;
        let prompt = &self.prompts[prompt_idx];
        let text = self.tokenizer.decode(&response.tokens)?;
        let mut out = io::stdout().lock();
        if self.json {
            let generated = Generated {
                prompt,
                sample_idx,
                response: text,
                tokens: response.tokens,
                logprobs: response.logprobs,
                finish: response.finish,
            };
            writeln!(out, "{}", serde_json::to_string(&generated)?)?;
        } else {
            // A blank line between responses: they may have several lines.
            let separator = if self.n_printed > 0 { "\n" } else { "" };
            match prompt {
                PromptText::Text(prompt) => writeln!(out, "{separator}{prompt}{text}")?,
                PromptText::Messages(turns) => {
                    let asked = turns.last().map_or("", |turn| &turn.content);
                    writeln!(out, "{separator}> {asked}\n{text}")?;
                }
            }
        }
        Ok(out.flush()?)
    }
}
