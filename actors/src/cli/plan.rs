//! `plan`: what a run of PPO would come to, for a range of settings.

use std::fmt::Write;
use std::path::Path;

use collimate_protocol::Role;
use serde::Serialize;

use super::args::PlanArgs;
use super::print;
use crate::config;
use crate::observe::Console;
use crate::plan::measured::{self, Measured};
use crate::plan::{Advice, Candidate, Forecast, PlanConfig};
use crate::report::aligned;
use crate::rundir::RunDir;

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    /// Of the run that the assumptions are from.
    measured: Option<PrintedMeasured>,
    #[serde(flatten)]
    advice: &'a Advice,
}

#[derive(Serialize)]
struct PrintedMeasured {
    #[serde(flatten)]
    own: Candidate,
    n_updates: u64,
    updates_per_h: f64,
    simulated_updates_per_h: f64,
}

/// Simulates, and says what came of it.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let measured = args.from.as_deref().map(|dir| measured::read(&RunDir::existing(dir)?)).transpose()?;
    let config: PlanConfig = match (&measured, &args.file) {
        (Some(measured), _) => {
            config::parse(&toml::to_string(&measured.config)?, Path::new("measured.toml"), &args.set)?
        }
        (None, Some(file)) => config::load(file, &args.set)?,
        (None, None) => anyhow::bail!("there is neither a file of assumptions nor a run"),
    };
    config.validate()?;
    if args.toml {
        return Ok(print(&toml::to_string(&config)?)?);
    }
    let console = Console::new(false);
    let n = config.max_staleness.len() * config.n_generators.len();
    let bar = console.bar("plan", n as u64);
    let advice = Advice::of(&config, |n_done| bar.set_position(n_done as u64));
    bar.finish_and_clear();
    let advice = advice?;
    if args.json {
        let measured = measured.map(|measured| PrintedMeasured {
            own: measured.own,
            n_updates: measured.n_updates,
            updates_per_h: measured.updates_per_h,
            simulated_updates_per_h: measured.simulated.updates_per_h,
        });
        return Ok(print(&format!("{}\n", serde_json::to_string(&Printed { measured, advice: &advice })?))?);
    }
    print(&text(measured.as_ref(), &advice))?;
    Ok(())
}

/// The roles that a table has room for: the others' work takes next to no time.
const SHOWN: [(Role, &str); 5] = [
    (Role::Generator, "generator"),
    (Role::ReferenceScorer, "reference"),
    (Role::RewardScorer, "reward"),
    (Role::ExperienceBuffer, "values"),
    (Role::Learner, "learner"),
];

fn text(measured: Option<&Measured>, advice: &Advice) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = text_to(&mut text, measured, advice);
    text
}

fn text_to(text: &mut String, measured: Option<&Measured>, advice: &Advice) -> std::fmt::Result {
    if let Some(measured) = measured {
        let Measured { own, n_updates, elapsed_s, updates_per_h, simulated, .. } = measured;
        let off = 100.0 * (simulated.updates_per_h / updates_per_h - 1.0);
        writeln!(
            text,
            "measured: {n_updates} updates in {elapsed_s:.1} s with max_staleness = {} and n_generators = {}: \
             {updates_per_h:.0} updates an hour; the same simulated: {:.0} ({off:+.1} %)\n",
            own.max_staleness, own.n_generators, simulated.updates_per_h
        )?;
    }
    let mut header = vec!["k", "generators", "updates/h", "tokens/s"];
    header.extend(SHOWN.map(|(_, name)| name));
    header.extend(["devices", "staleness", "at most", "dropped"]);
    let mut rows: Vec<[String; 13]> = vec![std::array::from_fn(|column| header[column].to_owned())];
    rows.extend(advice.forecasts.iter().map(row));
    for line in aligned(rows) {
        writeln!(text, "{line}")?;
    }
    let Some(best) = advice.best() else { return Ok(()) };
    let Candidate { max_staleness, n_generators } = best.candidate;
    writeln!(
        text,
        "\nrecommended: max_staleness = {max_staleness}, n_generators = {n_generators}: the least bound, then the fewest \
         generators, within 5 % of the highest throughput"
    )
}

fn row(forecast: &Forecast) -> [String; 13] {
    let Candidate { max_staleness, n_generators } = forecast.candidate;
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let busy = |role: Role| percent(forecast.busy.get(role.name()).copied().unwrap_or_default());
    let [generator, reference, reward, values, learner] = SHOWN.map(|(role, _)| busy(role));
    let devices: Vec<String> = forecast.device_busy.iter().copied().map(percent).collect();
    [
        max_staleness.to_string(),
        n_generators.to_string(),
        format!("{:.0}", forecast.updates_per_h),
        format!("{:.0}", forecast.tokens_per_s),
        generator,
        reference,
        reward,
        values,
        learner,
        devices.join(" "),
        format!("{:.2}", forecast.mean_staleness),
        forecast.staleness.len().saturating_sub(1).to_string(),
        format!("{:.1} %", 100.0 * forecast.dropped_share),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_is_a_row_and_one_is_recommended() {
        let config =
            PlanConfig { n_updates: 3, max_staleness: vec![0, 1], n_generators: vec![1], ..PlanConfig::default() };
        let advice = Advice::of(&config, |_| ()).unwrap();
        let text = text(None, &advice);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("k  generators  updates/h"), "{text}");
        assert!(lines[1].starts_with('0') && lines[2].starts_with('1'), "{text}");
        assert!(lines[4].starts_with("recommended: max_staleness = "), "{text}");
    }
}
