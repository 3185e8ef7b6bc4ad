//! `label`: the page where people rank responses, and what goes into it and comes out.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use collimate_models::feedback::acquisition::AcquireBy;

use super::args::{LabelArgs, LabelCommand};
use super::{Ended, print};
use crate::label::config::{LabelConfig, LabelFile};
use crate::label::links;
use crate::label::overview::{LabelerOverview, Measured, Overview, overview};
use crate::label::prioritize::{NamedReader, Prioritize, Prioritized, prioritize};
use crate::label::server::{DEFAULT_PORT, LabelServer};
use crate::label::store::answers::Which;
use crate::label::store::labelers::ADMIN;
use crate::label::store::{Store, now, tasks};
use crate::label::transfer::{self, Export, ImportAs, Imported};
use crate::web::bind::parse_address;
use crate::{config, device};

/// Serves, or does what the command says.
pub fn run(args: LabelArgs) -> anyhow::Result<Ended> {
    match args.command {
        None => serve(&args),
        Some(command) => {
            match command {
                LabelCommand::Import { db, files, screening, overlap } => {
                    let into = if screening { ImportAs::Screening } else { ImportAs::Work(overlap) };
                    let store = Store::open(&db)?;
                    files.iter().try_for_each(|file| import(&store, file, into))?;
                }
                LabelCommand::Export { db, file, what, overruled, all } => {
                    let which = match (all, overruled) {
                        (true, _) => Which::All,
                        (false, true) => Which::WithOverruled,
                        (false, false) => Which::Training,
                    };
                    export(&db, &file, what, which)?;
                }
                LabelCommand::Prioritize { db, model, by, random_share, heads, most, seed, device } => {
                    let by = by.into();
                    let how = Prioritize { by, random_share, n_heads: heads, n_most: most, seed };
                    how.check()?;
                    let reader = match (&model, by) {
                        (_, AcquireBy::Random) => None,
                        (Some(dir), _) => Some(NamedReader::open(dir, &device::open(&device)?)?),
                        (None, _) => {
                            bail!("--model is missing: the reward model that is to choose (or take --by random)")
                        }
                    };
                    let placed = prioritize(&Store::existing(&db)?, &how, reader.as_ref())?;
                    print(&told_of(&placed, by))?;
                }
                LabelCommand::Agreement { db, json } => {
                    let overview = Store::existing(&db)?.read(|connection| overview(connection, now()))?;
                    let text = if json { serde_json::to_string(&overview)? + "\n" } else { in_words(&overview) };
                    print(&text)?;
                }
                LabelCommand::Link { db, names, url } => {
                    let store = Store::existing(&db)?;
                    for name in names {
                        let token = links::new_token(&store, &name)?;
                        print(&(links::link(&name, url.trim_end_matches('/'), &token) + "\n"))?;
                    }
                }
            }
            Ok(Ended::Complete)
        }
    }
}

fn serve(args: &LabelArgs) -> anyhow::Result<Ended> {
    let db = args.db.as_ref().context("no database was named")?;
    let config = settings(args)?;
    let store = Store::open(db)?;
    let overlap = config.overlap;
    store.write_now(move |connection| tasks::set_overlap(connection, overlap))?;
    config.screening.iter().try_for_each(|file| import(&store, file, ImportAs::Screening))?;
    config.tasks.iter().try_for_each(|file| import(&store, file, ImportAs::Work(overlap)))?;

    let server =
        LabelServer::new(store.clone(), &config, parse_address(&args.addr, DEFAULT_PORT)?, args.url.as_deref())?;
    let url = server.url().to_owned();
    print(&format!("labelling at {url} (Ctrl-C ends it)\n"))?;
    for line in links::of(&store, &config.labelers, &url)? {
        print(&(line + "\n"))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            served = server.serve() => served.map(|()| Ended::Complete).map_err(Into::into),
            // What was acknowledged is on the disk: there is nothing to finish.
            stopped = tokio::signal::ctrl_c() => stopped.map(|()| Ended::Stopped).map_err(Into::into),
        }
    })
}

/// The settings of the file, with what the flags say.
fn settings(args: &LabelArgs) -> anyhow::Result<LabelConfig> {
    let (file, base): (LabelFile, PathBuf) = match &args.config {
        Some(path) => (config::load(path, &args.set)?, path.parent().map(Path::to_owned).unwrap_or_default()),
        None => (config::parse("", Path::new("--set"), &args.set)?, PathBuf::new()),
    };
    let mut config = file.label;
    for path in config.tasks.iter_mut().chain(&mut config.screening).chain(&mut config.runs) {
        *path = base.join(&path);
    }
    config.tasks.extend(args.tasks.iter().cloned());
    config.screening.extend(args.screening.iter().cloned());
    config.runs.extend(args.run.iter().cloned());
    config.labelers.extend(args.labeler.iter().cloned());
    if let Some(overlap) = args.overlap {
        config.overlap = overlap;
    }
    if let Err(problem) = config.check() {
        bail!("{problem}");
    }
    if config.labelers.iter().any(|name| name == ADMIN) {
        bail!("`{ADMIN}` is who sees the overview, and can be no labeler's name");
    }
    Ok(config)
}

fn import(store: &Store, file: &Path, into: ImportAs) -> anyhow::Result<()> {
    let Imported { n_tasks, n_answers, n_known } = transfer::import(store, file, into)?;
    let kind = if into == ImportAs::Screening { "screening tasks" } else { "tasks" };
    let answers = if n_answers > 0 { format!(", {n_answers} new answers") } else { String::new() };
    let known = if n_known > 0 { format!(", {n_known} that were there") } else { String::new() };
    print(&format!("{}: {n_tasks} new {kind}{answers}{known}\n", file.display()))?;
    Ok(())
}

fn export(db: &Path, file: &Path, what: Export, which: Which) -> anyhow::Result<()> {
    let n_lines = transfer::export(&Store::existing(db)?, file, what, which)?;
    print(&format!("{n_lines} lines written to {}\n", file.display()))?;
    Ok(())
}

/// What became of the tasks.
fn told_of(placed: &Prioritized, by: AcquireBy) -> String {
    let Prioritized { n_random, n_acquired, n_read, n_labeled, n_too_long } = placed;
    let mut text = format!("{} open tasks: {n_random} drawn at random", n_random + n_acquired);
    if by != AcquireBy::Random {
        text += &format!(", {n_acquired} to be chosen, of which the reward model has looked at {n_read}");
    }
    if by == AcquireBy::Disagreement {
        text += &format!("; its heads learnt from {n_labeled} rankings");
    }
    if *n_too_long > 0 {
        text += &format!("; {n_too_long} are longer than its context, and come last");
    }
    text + "\n"
}

/// The overview, for a terminal.
fn in_words(overview: &Overview) -> String {
    let tasks = &overview.tasks;
    let mut text = format!(
        "{} of {} answers, {} in the last hour; {} tasks, {} open, {} being worked on\n",
        tasks.n_answers, tasks.n_wanted, overview.n_last_hour, tasks.n_tasks, tasks.n_open, tasks.n_taken
    );
    let measured = |measured: &Option<Measured>, of: &str| match measured {
        Some(Measured { value, low, high, n }) => format!("{value:.3} ({low:.3} to {high:.3}; {n} {of})"),
        None => "no data".to_owned(),
    };
    let own = |mean: Option<f64>, n: usize| match mean {
        Some(mean) => format!("{mean:.3} ({n} repeats)"),
        None => "no data".to_owned(),
    };
    if overview.n_chosen > 0 {
        text += &format!("without {} rankings of tasks that a reward model or a person chose:\n", overview.n_chosen);
    }
    text += &format!("pairwise agreement:   {}\n", measured(&overview.pairwise, "judgements"));
    text += &format!("Krippendorff's alpha: {}\n", measured(&overview.alpha, "prompts"));
    text += &format!("self-consistency:     {}\n", own(overview.self_consistency, overview.n_repeats));
    text += &format!("first shown wins:     {}\n", measured(&overview.share_of_first, "rankings, 0.5 by chance"));
    for labeler in &overview.labelers {
        let LabelerOverview { counts, agreement, standard_error, n_shared, alpha, .. } = labeler;
        let against = match (agreement, standard_error) {
            (Some(mean), Some(error)) => format!("agrees with the others {mean:.3} ± {error:.3} ({n_shared} rankings)"),
            _ => format!("not enough data on agreement ({n_shared} rankings that others made too)"),
        };
        let alpha =
            alpha.as_ref().map(|alpha| format!(", alpha {:.3} ({:.3} to {:.3})", alpha.value, alpha.low, alpha.high));
        text += &format!("  {}: {} answers, {against}{}\n", counts.name, counts.n_answered, alpha.unwrap_or_default());
    }
    text += &format!("{} disagreements, {} of them settled\n", overview.n_disagreements, overview.n_settled);
    text
}
