//! `report.html`: one self-contained page, made from the run directory's files alone.

use collimate_protocol::records::{RolloutRecord, Summary};
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use super::{curves, table};
use crate::rundir::{RunDir, RunDirError, Stage, atomic, read_jsonl, summary};

/// Rollouts of the last updates that the page shows.
const N_ROLLOUTS: usize = 12;

/// Makes `report.html`.
pub fn write(run: &RunDir) -> Result<(), RunDirError> {
    atomic::write(&run.report(), render(run)?.as_bytes())
}

/// The page as text.
pub fn render(run: &RunDir) -> Result<String, RunDirError> {
    let bad = |problem: String| RunDirError::bad(&run.report(), problem);
    let summary = summary::read(run)?;
    let charts = curves::of_run(run, &summary)?
        .iter()
        .map(|chart| {
            let legend = if chart.series.len() > 1 {
                chart.series.iter().map(|series| series.name.clone()).collect()
            } else {
                Vec::new()
            };
            Ok(Drawn { title: chart.title.clone(), caption: chart.caption.clone(), legend, svg: chart.to_svg()? })
        })
        .collect::<Result<Vec<_>, String>>()
        .map_err(bad)?;
    let config = std::fs::read_to_string(run.config()).map_err(RunDirError::io(&run.config()))?;
    let page = Page {
        name: run.root().display().to_string(),
        stages: table::stages(&summary),
        of_rounds: table::OF_ROUNDS,
        rounds: table::rounds(&summary.rounds),
        rows: summary.ppo.as_ref().map(table::before_after).unwrap_or_default(),
        charts,
        rollouts: rollouts(run)?,
        config,
        places: places(run),
        summary,
    };
    page.render().map_err(|error| bad(format!("{error:#}")))
}

/// What the template is given.
#[derive(Debug, Serialize)]
struct Page {
    name: String,
    summary: Summary,
    /// What each stage came to, in a line each.
    stages: Vec<String>,
    /// Names of the columns of the rounds' table.
    of_rounds: [&'static str; 7],
    /// The rounds, where the run has some.
    rounds: Vec<[String; 7]>,
    /// The table before/after.
    rows: Vec<table::Row>,
    charts: Vec<Drawn>,
    rollouts: Vec<RolloutRecord>,
    config: String,
    places: Vec<Placed>,
}

#[derive(Debug, Serialize)]
struct Drawn {
    title: String,
    caption: String,
    /// Names of the lines where there are several, in the order of the colours.
    legend: Vec<String>,
    svg: String,
}

/// A file or folder of the run that is there.
#[derive(Debug, Serialize)]
struct Placed {
    path: String,
    what: &'static str,
}

impl Page {
    fn render(&self) -> Result<String, minijinja::Error> {
        let mut env = Environment::new();
        // Samples are whatever a model wrote: everything is escaped unless the template says otherwise.
        env.set_auto_escape_callback(|_| AutoEscape::Html);
        env.add_filter("fixed", |number: f64, digits: usize| format!("{number:.digits$}"));
        env.add_template("report.html", include_str!("report.html"))?;
        env.get_template("report.html")?.render(Value::from(Serde(self)))
    }
}

/// The last rollouts that were recorded, the newest first.
fn rollouts(run: &RunDir) -> Result<Vec<RolloutRecord>, RunDirError> {
    let path = run.stage(Stage::Ppo).rollouts();
    if !path.exists() {
        return Ok(Vec::new());
    }
    let records: Vec<RolloutRecord> = read_jsonl(&path)?;
    Ok(records.into_iter().rev().take(N_ROLLOUTS).collect())
}

fn places(run: &RunDir) -> Vec<Placed> {
    let mut candidates = vec![(run.config(), "the resolved recipe"), (run.summary(), "what each stage came to")];
    for stage in Stage::ALL {
        let dir = run.stage(stage);
        candidates.push((dir.model(), "model, in HuggingFace layout"));
        candidates.push((dir.metrics(), "metrics, one JSON object a line"));
        candidates.push((dir.tensorboard(), "metrics for TensorBoard"));
        candidates.push((dir.tasks(), "what people were asked"));
        candidates.push((dir.comparisons(), "what the labelers ranked"));
        candidates.push((dir.rollouts(), "samples with their scores"));
    }
    candidates.extend(run.rounds().iter().map(|round| (round.report(), "the report of a round")));
    let there = candidates.into_iter().filter(|(path, _)| path.exists());
    there
        .map(|(path, what)| {
            let path = path.strip_prefix(run.root()).unwrap_or(&path).display().to_string();
            Placed { path, what }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::tests::summary as a_summary;

    fn run_with_summary(dir: &std::path::Path) -> RunDir {
        let config: toml::Table = toml::from_str("note = \"<script>alert(1)</script>\"").unwrap();
        let run = RunDir::open(dir, &config).unwrap();
        std::fs::write(run.summary(), serde_json::to_string(&a_summary()).unwrap()).unwrap();
        let stage = run.begin(Stage::Sft).unwrap();
        std::fs::write(stage.metrics(), "{\"phase\":\"sft\",\"step\":1,\"loss\":3.5}\n").unwrap();
        run
    }

    #[test]
    fn the_page_holds_table_curves_samples_and_places_and_needs_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_with_summary(dir.path());
        write(&run).unwrap();
        let page = std::fs::read_to_string(run.report()).unwrap();
        for part in ["<svg", "sft: NLL", "gold score", "1.800 ± 0.050", "a happy day", "sft&#x2f;metrics.jsonl"] {
            assert!(page.contains(part), "{part} is missing");
        }
        for outside in ["src=", "href=\"http", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}: the page must be self-contained");
        }
    }

    #[test]
    fn what_a_model_or_a_recipe_wrote_is_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let page = render(&run_with_summary(dir.path())).unwrap();
        assert!(page.contains("It was &lt;b&gt;") && page.contains("a sad day &amp; long"), "{page}");
        assert!(!page.contains("<script>alert"), "{page}");
    }

    #[test]
    fn a_run_that_has_only_begun_has_a_page_too() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &toml::Table::new()).unwrap();
        assert!(render(&run).unwrap().contains("<!doctype html>"));
    }
}
