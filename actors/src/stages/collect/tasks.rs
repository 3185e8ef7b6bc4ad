//! What labelers are asked, and what they answered.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use collimate_models::data::Records;
use collimate_models::data::comparisons::{NamedComparison, read_comparisons as records_of};
use collimate_models::data::limit::{LengthCounts, LengthLimit};
use collimate_models::data::prompts::tokenize_prompts;
use collimate_models::roles::RewardModelScorer;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::records::{
    Comparison, LabelName, LabelTask, LabeledComparison, Origin, PpoSummary, PromptText, Provenance, TaskKind,
};
use collimate_protocol::roles::{RewardFunction, RewardRequest};
use serde::Serialize;

use super::config::CollectConfig;
use crate::label::store::answers::Answered;
use crate::rundir::{RunDir, Stage, read_jsonl};
use crate::stages::context::{StageContext, StageError};
use crate::stages::inputs::{InputModel, ModelFiles};
use crate::stages::labeler;
use crate::stages::outputs::write_lines;
use crate::stages::ppo_reward::open_reward_model;
use crate::stages::recipe::CorpusConfig;

/// Responses that are scored between two looks at whether to stop.
const SCORED_TOGETHER: usize = 64;

/// A line of `comparisons.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    #[serde(flatten)]
    comparison: Comparison,
    /// Of the label that it is, where it has one: the reward stage tells by it which labels it read.
    #[serde(flatten)]
    name: Option<LabelName>,
    /// Whether the labeler called all responses bad.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all_bad: bool,
}

/// K responses to each prompt, and what the prompts say.
pub struct Sampled {
    /// Those to one prompt stand one after another.
    pub requests: Vec<RewardRequest>,
    prompts: Vec<PromptText>,
    k: usize,
    origin: Origin,
    /// For each response the score of the reward model that the policy was trained on.
    scores: Option<Vec<f32>>,
}

/// Samples what is to be ranked.
pub fn sample(
    config: &CollectConfig,
    files: &ModelFiles,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<Sampled, StageError> {
    let asked = config.asked();
    let tokens: Vec<Vec<u32>>;
    let mut texts = Vec::new();
    match &config.prompts {
        None => tokens = pick(asked.prompts_of_corpus(corpus, &files.tokenizer)?, config, context)?,
        Some(path) => {
            let records = Records::read(path)?;
            let (context_len, n_response) = (files.config.context_len, config.max_new_tokens);
            let limit = LengthLimit::leaving_room(0, context_len, n_response, config.too_long)?;
            let mut counts = LengthCounts::default();
            let fitted: Vec<Option<Vec<u32>>> =
                tokenize_prompts(&records, &files.tokenizer, limit)?.into_iter().map(|one| counts.count(one)).collect();
            if let Some(told) = counts.tell("prompts", limit) {
                context.observer.warn(&told);
            }
            let pairs = records.into_records().into_iter().zip(fitted);
            let pairs = pairs.filter_map(|(record, tokens)| Some((record.prompt, tokens?))).collect();
            let (said, in_tokens): (Vec<PromptText>, Vec<Vec<u32>>) = pick(pairs, config, context)?.into_iter().unzip();
            (texts, tokens) = (said, in_tokens);
        }
    }
    let weights = files.load(&context.device, context.precision)?.weights;
    let requests = asked.sample(&tokens, (&files.config, &weights), &files.tokenizer, context)?;
    if texts.is_empty() {
        texts = requests.chunks(config.k).map(|group| PromptText::Text(group[0].prompt.clone())).collect();
    }
    let origin = Origin { model: Some(files.name()), seed: Some(context.seed), ..Origin::default() };
    Ok(Sampled { requests, prompts: texts, k: config.k, origin, scores: None })
}

/// The run whose PPO ended with this policy, and the version that it is.
fn trained_by(policy: &Path) -> Option<(String, u64)> {
    let run = RunDir::existing(policy.parent()?.parent()?).ok()?;
    let is_its_own = run.stage(Stage::Ppo).model() == policy;
    let summary: PpoSummary = run.finished(Stage::Ppo).ok()??;
    is_its_own.then(|| (run.root().display().to_string(), summary.n_updates))
}

/// Which prompts are answered.
fn pick<T>(prompts: Vec<T>, config: &CollectConfig, context: &StageContext<'_>) -> Result<Vec<T>, StageError> {
    config.asked().pick(prompts, context.seed)
}

impl Sampled {
    /// Rankings in the order of the prompts, as lines.
    pub fn lines(self, comparisons: Vec<Comparison>) -> Vec<Line> {
        let with_prompt = |(prompt, comparison): (PromptText, Comparison)| Line {
            comparison: Comparison { prompt, ..comparison },
            name: None,
            all_bad: false,
        };
        self.prompts.into_iter().zip(comparisons).map(with_prompt).collect()
    }

    /// With what is known of the policy: the run that trained it, and the scores of the reward model that it was trained on.
    /// People's rankings are set against these.
    pub fn judged(
        self,
        config: &CollectConfig,
        policy: &ModelFiles,
        context: &mut StageContext<'_>,
    ) -> Result<Self, StageError> {
        let Some(dir) = &config.reward_model else { return Ok(self) };
        let files = open_reward_model(dir, policy, false)?;
        let InputModel { config, weights } = files.load(&context.device, context.precision)?;
        let mut scorer = RewardModelScorer::new(&config, &weights)?;
        context.observer.phase("scores of samples", self.requests.len() as u64);
        let mut scores = Vec::with_capacity(self.requests.len());
        for requests in self.requests.chunks(SCORED_TOGETHER) {
            scores.extend(scorer.scores(requests)?);
            context.observer.step(scores.len() as u64, &[]);
            context.check_stop()?;
        }
        let (run, policy_version) = trained_by(&policy.dir).unzip();
        let reward_model = Some(dir.display().to_string());
        let origin = Origin { run, policy_version, reward_model, ..self.origin };
        Ok(Self { origin, scores: Some(scores), ..self })
    }

    fn tasks(self) -> Vec<LabelTask> {
        let k = self.k;
        let scores = |idx: usize| Some(self.scores.as_ref()?[idx * k..(idx + 1) * k].to_vec());
        let groups = self.prompts.into_iter().zip(self.requests.chunks(k)).enumerate();
        groups
            .map(|(idx, (prompt, group))| LabelTask {
                kind: TaskKind::Rank,
                prompt,
                responses: group.iter().map(|request| request.response.clone()).collect(),
                tokens: Some(labeler::tokens_of(group)),
                origin: Origin { scores: scores(idx), ..self.origin.clone() },
            })
            .collect()
    }
}

/// The file `tasks.jsonl`.
pub struct Tasks {
    tasks: Vec<LabelTask>,
    /// The task of each prompt with its responses.
    by_content: HashMap<(PromptText, Vec<String>), usize>,
}

impl Tasks {
    /// Reads the file, or makes it.
    pub fn read_or_make(path: &Path, sample: impl FnOnce() -> Result<Sampled, StageError>) -> Result<Self, StageError> {
        if !path.exists() {
            write_lines(path, &sample()?.tasks())?;
        }
        Ok(Self::new(read_jsonl(path)?))
    }

    fn new(tasks: Vec<LabelTask>) -> Self {
        let content = |(idx, task): (usize, &LabelTask)| ((task.prompt.clone(), task.responses.clone()), idx);
        let by_content = tasks.iter().enumerate().map(content).collect();
        Self { tasks, by_content }
    }

    /// All of them.
    pub fn all(&self) -> &[LabelTask] {
        &self.tasks
    }

    /// The rankings of these tasks in a file, as lines.
    ///
    /// # Errors
    /// The file is absent or holds too few, or a ranking of something else: what is missing, and where it belongs.
    pub fn ranked_in(&self, path: &Path, n_enough: usize) -> Result<Vec<Line>, StageError> {
        let (tasks, file) = (path.with_file_name("tasks.jsonl"), path.display());
        if !path.exists() {
            return Err(StageError::Setting(format!(
                "{} prompts wait to be ranked in {}: write a line with `ranks` for each of them (or for {n_enough}) to \
                 {file}, `prompt` and `responses` as they are, and give the same command again",
                self.tasks.len(),
                tasks.display()
            )));
        }
        let mut lines = read_comparisons(path)?;
        let mut ranked = HashSet::new();
        for (idx, line) in lines.iter_mut().enumerate() {
            let other = || {
                let tasks = tasks.display();
                format!("{file}: the ranking {} is of a prompt with responses that are not in {tasks}", idx + 1)
            };
            ranked.insert(self.complete(line).ok_or_else(|| StageError::Setting(other()))?);
        }
        let (n_ranked, n_enough) = (ranked.len(), self.n_enough(n_enough));
        if n_ranked < n_enough {
            return Err(StageError::Setting(format!(
                "{file} ranks {n_ranked} of the {} prompts in {}, and {n_enough} are wanted (collect.n_enough)",
                self.tasks.len(),
                tasks.display()
            )));
        }
        Ok(lines)
    }

    /// How many tasks are enough where this many prompts are wanted: the same prompt with the same responses is one task.
    pub fn n_enough(&self, wanted: usize) -> usize {
        wanted.min(self.by_content.len())
    }

    /// Puts the tokens that were sampled to a ranking. Which task it is of; `None` for another one than these.
    pub fn complete(&self, line: &mut Line) -> Option<usize> {
        let Comparison { prompt, responses, .. } = &line.comparison;
        let idx = *self.by_content.get(&(prompt.clone(), responses.clone()))?;
        line.comparison.tokens.clone_from(&self.tasks[idx].tokens);
        Some(idx)
    }
}

/// These comparisons with those of people as they stand now: of a task that is in both, what people say of it by now.
pub fn updated(comparisons: Vec<Line>, of_people: Vec<Line>) -> Vec<Line> {
    let task = |line: &Line| line.name.as_ref().map(|name| name.task.clone());
    let now: HashSet<String> = of_people.iter().filter_map(task).collect();
    let is_of_another = |line: &Line| task(line).is_none_or(|task| !now.contains(&task));
    comparisons.into_iter().filter(is_of_another).chain(of_people).collect()
}

impl Line {
    /// Drops the tokens where this tokenizer reads other text in them: then another model sampled them.
    pub fn check_tokens(&mut self, tokenizer: &Tokenizer) {
        let Comparison { prompt, responses, tokens, .. } = &mut self.comparison;
        let says = |tokens: &[u32], text: &str| {
            // A response may end in a token that is no text.
            let body = &tokens[..tokens.len().saturating_sub(1)];
            [tokens, body].iter().any(|tokens| tokenizer.decode(tokens).is_ok_and(|decoded| decoded == text))
        };
        let are_its_own = tokens.as_ref().is_none_or(|tokens| {
            let prompt_fits = match prompt {
                PromptText::Text(text) => says(&tokens.prompt, text),
                PromptText::Messages(_) => true,
            };
            prompt_fits && tokens.responses.iter().zip(responses.iter()).all(|(tokens, text)| says(tokens, text))
        });
        if !are_its_own {
            *tokens = None;
        }
    }

    /// A labeler's ranking; `None` for another kind of answer.
    pub fn of(answered: Answered) -> Option<Self> {
        let LabeledComparison { prompt, responses, ranks, tokens, all_bad, provenance, .. } =
            answered.into_comparison()?;
        let Provenance { task, labeler, revision, .. } = provenance;
        let name = Some(LabelName { task, labeler, revision });
        Some(Self { comparison: Comparison { prompt, responses, ranks, tokens }, name, all_bad })
    }
}

/// The comparisons of a file, with what it says of the labels that they are.
pub fn read_comparisons(path: &Path) -> Result<Vec<Line>, StageError> {
    let records = records_of(path)?.into_records().into_iter();
    let line = |NamedComparison { comparison, name, all_bad }: NamedComparison| Line { comparison, name, all_bad };
    Ok(records.map(line).collect())
}

#[cfg(test)]
mod tests {
    use collimate_protocol::records::ComparisonTokens;

    use super::*;

    fn task(prompt: &str, tokens: u32) -> LabelTask {
        let tokens = ComparisonTokens { prompt: vec![tokens], responses: vec![vec![1], vec![2]] };
        LabelTask {
            kind: TaskKind::Rank,
            prompt: prompt.into(),
            responses: vec!["yes".into(), "no".into()],
            tokens: Some(tokens),
            origin: Origin::default(),
        }
    }

    #[test]
    fn rankings_of_a_file_get_the_tokens_that_were_sampled_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new(vec![task("a", 7), task("b", 8)]);
        let path = dir.path().join("rankings.jsonl");
        let error = tasks.ranked_in(&path, 1).err().unwrap().to_string();
        assert!(error.contains("2 prompts wait to be ranked in") && error.contains("rankings.jsonl"), "{error}");
        let line = |prompt: &str| {
            format!(
                r#"{{"prompt": "{prompt}", "responses": ["yes", "no"], "ranks": [2, 1], "task": "t", "labeler": "anna", "revision": 2, "notes": ""}}"#
            )
        };
        let all_bad = line("a").replace(r#""notes": """#, r#""all_bad": true"#);
        std::fs::write(&path, line("a") + "\n" + &all_bad).unwrap();
        let lines = tasks.ranked_in(&path, 1).unwrap();
        let written = serde_json::to_value(&lines[0]).unwrap();
        assert_eq!(
            written,
            serde_json::json!({
                "prompt": "a", "responses": ["yes", "no"], "ranks": [2, 1],
                "tokens": {"prompt": [7], "responses": [[1], [2]]},
                "task": "t", "labeler": "anna", "revision": 2,
            })
        );
        assert_eq!(serde_json::to_value(&lines[1]).unwrap()["all_bad"], true);
        // Two labelers have ranked one of the two.
        let error = tasks.ranked_in(&path, 2).err().unwrap().to_string();
        assert!(error.contains("ranks 1 of the 2 prompts") && error.contains("2 are wanted"), "{error}");
        std::fs::write(&path, line("a") + "\n" + &line("c")).unwrap();
        let error = tasks.ranked_in(&path, 1).err().unwrap().to_string();
        assert!(error.contains("the ranking 2 is of a prompt with responses that are not in"), "{error}");
    }

    #[test]
    fn what_people_say_of_a_task_by_now_takes_the_place_of_what_they_said_before() {
        let line = |task: &str, labeler: Option<&str>, revision: u32| Line {
            comparison: Comparison { prompt: "a".into(), responses: vec![], ranks: vec![], tokens: None },
            all_bad: false,
            name: labeler.map(|labeler| LabelName { task: task.into(), labeler: labeler.into(), revision }),
        };
        let earlier =
            vec![line("", None, 0), line("t", Some("anna"), 1), line("t", Some("ben"), 1), line("v", Some("ben"), 1)];
        // Anna has changed her ranking of t, or the admin has settled it; v is in another project.
        let now = vec![line("t", Some("anna"), 2), line("u", Some("anna"), 1)];
        let expected = [&earlier[0], &earlier[3], &now[0], &now[1]].map(Line::clone);
        assert_eq!(updated(earlier, now), expected);
    }

    #[test]
    fn tokens_that_are_not_this_tokenizer_s_are_dropped() {
        let tokenizer = Tokenizer::train_byte_level_bpe(["abcd"], 257, &[]).unwrap();
        let line = |tokens: ComparisonTokens| Line {
            comparison: Comparison {
                prompt: "ab".into(),
                responses: vec!["c".into(), "d".into()],
                ranks: vec![1, 2],
                tokens: Some(tokens),
            },
            all_bad: false,
            name: None,
        };
        let checked = |prompt: &[u32], responses: [&[u32]; 2]| {
            let responses = responses.map(<[u32]>::to_vec).to_vec();
            let mut line = line(ComparisonTokens { prompt: prompt.to_vec(), responses });
            line.check_tokens(&tokenizer);
            line.comparison.tokens.is_some()
        };
        let id = |letter: &str| tokenizer.encode(letter).unwrap()[0];
        let (a, b, c, d) = (id("a"), id("b"), id("c"), id("d"));
        assert!(checked(&[a, b], [&[c], &[d]]));
        assert!(checked(&[a, b], [&[c, tokenizer.eos()], &[d]]), "with the token that ends a response");
        assert!(!checked(&[a, b], [&[c], &[a]]) && !checked(&[b, a], [&[c], &[d]]));
        assert!(!checked(&[a, b], [&[c], &[1_000_000]]), "an id that it does not have");
    }
}
