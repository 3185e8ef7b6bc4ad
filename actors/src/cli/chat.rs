//! `collimate chat`: a dialogue with a policy, in the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use rustyline::error::ReadlineError;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, Precision};
use collimate_models::data::prompt_tokens;
use collimate_models::generate::{Engine, SamplingParams};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::records::{Message, PromptText, Role};
use collimate_protocol::{PolicyVersion, PromptId};

use super::args::ChatArgs;
use crate::stages::inputs::{InputModel, ModelFiles};

/// A model and what has been said.
struct Chat {
    engine: Engine<()>,
    tokenizer: Tokenizer,
    context_len: usize,
    params: SamplingParams,
    seed: u64,
    n_answers: u32,
    messages: Vec<Message>,
}

/// Reads what the user says, a line a turn, and answers until the input ends.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let params = SamplingParams {
        temperature: args.temperature,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
        ..SamplingParams::default()
    };
    params.validate()?;
    let files = ModelFiles::open(&args.model, HeadKind::Language)?;
    let InputModel { config, weights } = files.load(&Device::Cpu, Precision::F32)?;
    let tokenizer = files.tokenizer;
    let system = args.system.iter().map(|content| Message { role: Role::System, content: content.clone() });
    let mut chat = Chat {
        engine: Engine::new(&config, &weights, PolicyVersion(0), 1)?,
        tokenizer,
        context_len: config.context_len,
        params,
        seed: args.seed,
        n_answers: 0,
        messages: system.collect(),
    };
    let n_system = chat.messages.len();
    if !io::stdin().is_terminal() {
        for line in io::stdin().lock().lines() {
            let line = line?;
            if !line.trim().is_empty() {
                chat.turn(line)?;
            }
        }
        return Ok(());
    }
    writeln!(io::stderr(), "{}: /reset begins anew, Ctrl-D ends.", args.model.display())?;
    let mut editor = rustyline::DefaultEditor::new()?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match line.trim() {
            "" => {}
            "/reset" => chat.messages.truncate(n_system),
            _ => {
                let _ = editor.add_history_entry(line.as_str());
                chat.turn(line)?;
            }
        }
    }
}

impl Chat {
    /// Answers, and shows each piece of the answer as soon as it is whole.
    fn turn(&mut self, content: String) -> anyhow::Result<()> {
        self.messages.push(Message { role: Role::User, content });
        let prompt = self.fitting_prompt()?;
        let rng = rng::for_sample(self.seed, PromptId(0), self.n_answers);
        self.n_answers += 1;
        self.engine.admit((), &prompt, rng, self.params)?;
        let mut out = io::stdout().lock();
        let mut shown = String::new();
        let answer = loop {
            let ended = self.engine.step()?.pop();
            let tokens = match &ended {
                Some(response) => response.tokens.clone(),
                None => self.engine.in_progress().next().map(|(_, tokens)| tokens.to_vec()).unwrap_or_default(),
            };
            let text = self.tokenizer.decode(&tokens)?;
            // A letter of several tokens is a replacement sign until the last of them.
            if (ended.is_some() || !text.ends_with('\u{fffd}'))
                && let Some(more) = text.strip_prefix(shown.as_str())
            {
                write!(out, "{more}")?;
                out.flush()?;
                shown = text;
            }
            if ended.is_some() {
                break shown;
            }
        };
        writeln!(out)?;
        self.messages.push(Message { role: Role::Assistant, content: answer });
        Ok(())
    }

    /// The dialogue's tokens. Where they leave no room for an answer, the oldest turns go.
    fn fitting_prompt(&mut self) -> anyhow::Result<Vec<u32>> {
        let n_system = self.messages.iter().take_while(|message| message.role == Role::System).count();
        let room = self.context_len.saturating_sub(self.params.max_new_tokens.min(self.context_len / 2));
        loop {
            let prompt = prompt_tokens(&self.tokenizer, &PromptText::Messages(self.messages.clone()))?;
            if prompt.len() <= room {
                return Ok(prompt);
            }
            if self.messages.len() < n_system + 3 {
                anyhow::bail!("{} tokens leave no room for an answer in {}", prompt.len(), self.context_len);
            }
            // A question and its answer.
            self.messages.drain(n_system..n_system + 2);
            writeln!(io::stderr(), "(the oldest turns no longer fit and are left out)")?;
        }
    }
}
