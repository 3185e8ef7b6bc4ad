//! `collect`: policy to comparisons. Samples K responses to each of some prompts and has them ranked: by people on a page,
//! by whoever writes a file, or by simulated labelers.
//!
//! - [`config`]: its settings.
//! - `tasks`: what is asked, in the file `tasks.jsonl`; what was answered, as comparisons.
//! - `page`: the page, while the stage waits.

pub mod config;
mod page;
mod tasks;

use std::path::Path;

use collimate_models::arch::HeadKind;
use collimate_protocol::records::CollectSummary;

use super::context::{StageContext, StageError};
use super::inputs::ModelFiles;
use super::labeler;
use super::outputs::write_lines;
use super::recipe::CorpusConfig;
use crate::rundir::StageDir;
use config::{CollectConfig, Source};
use page::Ranked;
use tasks::{Line, Tasks};

/// Collects comparisons of the responses of the policy in `policy`.
pub fn run(
    config: &CollectConfig,
    policy: &Path,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<CollectSummary, StageError> {
    config.check()?;
    let dir = StageDir::at(&context.out_dir);
    let mut earlier: Vec<Line> = Vec::new();
    for file in &config.earlier {
        earlier.extend(tasks::read_comparisons(file)?);
    }
    let files = ModelFiles::open(policy, HeadKind::Language)?;
    let new = match config.source {
        Source::Simulated => {
            let Some(gold) = &config.gold else { return Err(StageError::Setting("there is no [collect.gold]".into())) };
            let mut gold = gold.build()?;
            let sampled = tasks::sample(config, &files, corpus, context)?;
            let comparisons = labeler::rank(gold.as_mut(), &sampled.requests, config.k)?;
            sampled.lines(comparisons)
        }
        Source::Page | Source::File => {
            let tasks = Tasks::read_or_make(&dir.tasks(), || {
                let sampled = tasks::sample(config, &files, corpus, context)?;
                sampled.judged(config, &files, context)
            })?;
            match config.source {
                Source::Page => {
                    let Ranked { lines, mut others } = page::wait(config, &tasks, &dir, context)?;
                    others.iter_mut().for_each(|line| line.check_tokens(&files.tokenizer));
                    // A labeler may have changed an answer since an earlier round read it.
                    earlier = tasks::updated(earlier, others);
                    lines
                }
                _ => tasks.ranked_in(&dir.rankings(), config.n_enough())?,
            }
        }
    };
    let n_new = new.len();
    let lines: Vec<Line> = earlier.into_iter().chain(new).collect();
    write_lines(&dir.comparisons(), &lines)?;
    Ok(CollectSummary {
        k: config.k,
        n_prompts: config.n_prompts,
        n_new,
        n_comparisons: lines.len(),
        elapsed_s: context.elapsed_s(),
    })
}
