//! `collimate chat`: a dialogue with a policy, in the terminal.

mod saved_prompts;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, IsTerminal, Write};

use rustyline::DefaultEditor;
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
use saved_prompts::SavedPrompts;

/// What the user does.
enum Said {
    /// Types a turn; a blank one is passed over.
    Turn(String),
    /// Begins anew.
    Reset,
}

/// What answers.
trait Answers {
    /// A dialogue as it is read.
    type Prompt;

    /// Leaves out of the dialogue what there is no room for, and gives what is then read.
    fn fit(&mut self, messages: &mut Vec<Message>) -> anyhow::Result<Self::Prompt>;

    /// Answers, and shows the answer.
    fn answer(&mut self, prompt: Self::Prompt) -> anyhow::Result<String>;
}

/// What has been said, with what answers and where prompts are kept.
struct Chat<A> {
    answers: A,
    messages: Vec<Message>,
    saved: Option<SavedPrompts>,
}

/// A model that answers on the standard output.
struct Model {
    engine: Engine<()>,
    tokenizer: Tokenizer,
    context_len: usize,
    params: SamplingParams,
    seed: u64,
    n_answers: u32,
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
    let saved = args.save_prompts.as_deref().map(SavedPrompts::open).transpose()?;
    let files = ModelFiles::open(&args.model, HeadKind::Language)?;
    let InputModel { config, weights } = files.load(&Device::Cpu, Precision::F32)?;
    let model = Model {
        engine: Engine::new(&config, &weights, PolicyVersion(0), 1)?,
        tokenizer: files.tokenizer,
        context_len: config.context_len,
        params,
        seed: args.seed,
        n_answers: 0,
    };
    let system = args.system.iter().map(|content| Message { role: Role::System, content: content.clone() });
    let mut chat = Chat { answers: model, messages: system.collect(), saved };
    if !io::stdin().is_terminal() {
        return chat.go_on(io::stdin().lock().lines().map(|line| Ok(Said::Turn(line?))));
    }
    writeln!(io::stderr(), "{}: /reset begins anew, Ctrl-D ends.", args.model.display())?;
    let mut editor = DefaultEditor::new()?;
    chat.go_on(std::iter::from_fn(|| typed(&mut editor)))
}

/// What is typed at the terminal, until it ends.
fn typed(editor: &mut DefaultEditor) -> Option<anyhow::Result<Said>> {
    let line = match editor.readline("> ") {
        Ok(line) => line,
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => return None,
        Err(error) => return Some(Err(error.into())),
    };
    match line.trim() {
        "/reset" => return Some(Ok(Said::Reset)),
        "" => {}
        _ => {
            let _ = editor.add_history_entry(line.as_str());
        }
    }
    Some(Ok(Said::Turn(line)))
}

impl<A: Answers> Chat<A> {
    /// Answers turn by turn.
    fn go_on(&mut self, said: impl IntoIterator<Item = anyhow::Result<Said>>) -> anyhow::Result<()> {
        for said in said {
            match said? {
                Said::Reset => self.messages.truncate(n_system(&self.messages)),
                Said::Turn(content) if content.trim().is_empty() => {}
                Said::Turn(content) => self.turn(content)?,
            }
        }
        Ok(())
    }

    fn turn(&mut self, content: String) -> anyhow::Result<()> {
        self.messages.push(Message { role: Role::User, content });
        let prompt = self.answers.fit(&mut self.messages)?;
        if let Some(saved) = &mut self.saved
            && let Err(error) = saved.add(&self.messages)
        {
            writeln!(io::stderr(), "warning: {error}: this prompt is not saved")?;
        }
        let content = self.answers.answer(prompt)?;
        self.messages.push(Message { role: Role::Assistant, content });
        Ok(())
    }
}

/// What the assistant was told before the dialogue.
fn n_system(messages: &[Message]) -> usize {
    messages.iter().take_while(|message| message.role == Role::System).count()
}

impl Answers for Model {
    type Prompt = Vec<u32>;

    /// The dialogue's tokens. Where they leave no room for an answer, the oldest turns go.
    fn fit(&mut self, messages: &mut Vec<Message>) -> anyhow::Result<Vec<u32>> {
        let n_system = n_system(messages);
        let room = self.context_len.saturating_sub(self.params.max_new_tokens.min(self.context_len / 2));
        loop {
            let prompt = prompt_tokens(&self.tokenizer, &PromptText::Messages(messages.clone()))?;
            if prompt.len() <= room {
                return Ok(prompt);
            }
            if messages.len() < n_system + 3 {
                anyhow::bail!("{} tokens leave no room for an answer in {}", prompt.len(), self.context_len);
            }
            // A question and its answer.
            messages.drain(n_system..n_system + 2);
            writeln!(io::stderr(), "(the oldest turns no longer fit and are left out)")?;
        }
    }

    /// Shows each piece of the answer as soon as it is whole.
    fn answer(&mut self, prompt: Vec<u32>) -> anyhow::Result<String> {
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
        Ok(answer)
    }
}
