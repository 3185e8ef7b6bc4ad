//! Which curves a run has: read from the stages' `metrics.jsonl`.

use std::collections::{BTreeMap, BTreeSet};

use collimate_protocol::records::{PolicyEvaluation, Summary};
use serde_json::Value;

use super::chart::{Chart, Series};
use crate::rundir::{RunDir, RunDirError, Stage, read_jsonl};

/// Every curve of the run, PPO's first, since they are what one looks for.
pub fn of_run(run: &RunDir, summary: &Summary) -> Result<Vec<Chart>, RunDirError> {
    let mut charts = rounds(&summary.rounds);
    charts.extend(ppo(&lines(run, Stage::Ppo)?, summary));
    for stage in [Stage::Reward, Stage::Collect, Stage::Sft, Stage::Pretrain] {
        charts.extend(training(stage, &lines(run, stage)?));
    }
    charts.retain(|chart| !chart.is_empty());
    Ok(charts)
}

/// What the policy is after each round; round 0 is the SFT model.
fn rounds(rounds: &[Summary]) -> Vec<Chart> {
    let evaluated = |of: &dyn Fn(&PolicyEvaluation) -> Option<f64>| -> Vec<(f64, f64)> {
        let after = |(idx, round): (usize, &Summary)| Some(((idx + 1) as f64, of(&round.ppo.as_ref()?.after)?));
        let sft = rounds.first().and_then(|round| of(&round.ppo.as_ref()?.before));
        let sft = sft.map(|number| (0.0, number));
        sft.into_iter().chain(rounds.iter().enumerate().filter_map(after)).collect()
    };
    let chart = |title: &str, caption: &str, points: Vec<(f64, f64)>| Chart {
        title: title.into(),
        caption: caption.into(),
        x_label: "round".into(),
        series: vec![Series { name: "policy".into(), points }],
    };
    let accuracy = rounds.iter().enumerate();
    let accuracy =
        accuracy.filter_map(|(idx, round)| Some(((idx + 1) as f64, round.reward.as_ref()?.heldout_accuracy))).collect();
    vec![
        chart("Gold score by round", "on held-out prompts", evaluated(&|policy| policy.gold.map(|gold| gold.mean))),
        chart("KL by round", "to the SFT model, nats a response", evaluated(&|policy| Some(policy.kl.mean))),
        chart("Reward model by round", "share of held-out pairs ordered as ranked", accuracy),
    ]
}

/// A stage's lines; none for a stage that the run does not have.
fn lines(run: &RunDir, stage: Stage) -> Result<Vec<Value>, RunDirError> {
    let path = run.stage(stage).metrics();
    if path.exists() { read_jsonl(&path) } else { Ok(Vec::new()) }
}

fn ppo(lines: &[Value], summary: &Summary) -> Vec<Chart> {
    let line = |title: &str, caption: &str, names: &[(&str, &str)]| {
        let series = names.iter().map(|(name, pointer)| numbers(name, lines, "/version", pointer)).collect();
        Chart { title: title.into(), caption: caption.into(), x_label: "update".into(), series }
    };
    let by_role = |title: &str, caption: &str, field: &str| {
        let roles: BTreeSet<&String> =
            lines.iter().filter_map(|line| line.pointer(field)?.as_object()).flat_map(|roles| roles.keys()).collect();
        let mut series: Vec<Series> =
            roles.iter().map(|role| numbers(role, lines, "/version", &format!("{field}/{role}"))).collect();
        // A role that never does any of it is no news.
        series.retain(|series| series.points.iter().any(|(_, y)| *y > 0.0));
        Chart { title: title.into(), caption: caption.into(), x_label: "update".into(), series }
    };
    let spread = |title: &str, caption: &str, field: &str| {
        let pointers = ["mean", "min", "max"].map(|stat| format!("{field}/{stat}"));
        line(title, caption, &[("mean", &pointers[0]), ("min", &pointers[1]), ("max", &pointers[2])])
    };

    let mut nll = line(
        "NLL of pretraining text",
        "nats a token: in training (PPO-ptx), and held out before and after",
        &[("ptx loss", "/train/ptx_loss")],
    );
    // Without PPO-ptx there is no such loss, and its 0 is no measurement.
    nll.series.retain(|series| series.points.iter().any(|(_, y)| *y > 0.0));
    if let (Some(ppo), Some(last)) =
        (&summary.ppo, lines.iter().filter_map(|line| line["version"].as_f64()).next_back())
    {
        let ends = |name: &str, nll: f64| Series { name: name.into(), points: vec![(0.0, nll), (last, nll)] };
        nll.series.push(ends("held out, before", ppo.before.nll.mean));
        nll.series.push(ends("held out, after", ppo.after.nll.mean));
    }

    vec![
        line("Score", "mean score of the batch's responses, by the reward that PPO sees", &[("score", "/batch/score")]),
        line("Gold score", "mean gold score of the batch's responses; PPO never sees it", &[("gold", "/gold")]),
        line("KL to the SFT model", "nats a response (summed k1)", &[("kl", "/batch/kl")]),
        nll,
        spread("Response length", "tokens", "/batch/length"),
        spread("Staleness", "updates between sampling and training, over tokens", "/batch/staleness"),
        by_role("Throughput by role", "tokens a second", "/flow/role_tokens_per_s"),
        by_role("Busy share by role", "share of the time that a role computed", "/flow/busy"),
        line("Policy loss", "clipped surrogate, a token", &[("policy", "/train/policy_loss")]),
        line("Value loss", "clipped, a token, before its coefficient", &[("value", "/train/value_loss")]),
        line("Entropy", "nats a token, of the sampling distributions", &[("entropy", "/batch/entropy")]),
        line(
            "KL estimators",
            "nats a token: k1, k2, k3",
            &[("k1", "/batch/kl_k1"), ("k2", "/batch/kl_k2"), ("k3", "/batch/kl_k3")],
        ),
        line("Clip fraction", "share of tokens whose ratio was clipped", &[("clipped", "/train/clip_fraction")]),
        line(
            "Gradient norm",
            "before clipping",
            &[("policy", "/train/policy_grad_norm"), ("value", "/train/value_grad_norm")],
        ),
        line(
            "How responses end",
            "share of responses",
            &[("with an end token", "/batch/ended_share"), ("empty", "/batch/empty_share")],
        ),
        line("Explained variance", "of the returns by the values", &[("value model", "/train/explained_variance")]),
    ]
}

/// A training stage's losses and accuracies, a chart for each kind of number, a line for each phase.
fn training(stage: Stage, lines: &[Value]) -> Vec<Chart> {
    let mut by_phase: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for line in lines {
        by_phase.entry(line["phase"].as_str().unwrap_or_default()).or_default().push(line.clone());
    }
    let (loss, unit) = match stage {
        Stage::Reward => ("ranking loss", "nats a pair"),
        _ => ("NLL", "nats a token, in training"),
    };
    [("loss", loss, unit), ("accuracy", "pair accuracy", "share of pairs ordered as ranked, in training")]
        .map(|(key, title, caption)| Chart {
            title: format!("{}: {title}", stage.name()),
            caption: caption.into(),
            x_label: "step".into(),
            series: by_phase
                .iter()
                .map(|(phase, lines)| numbers(phase, lines, "/step", &format!("/{key}")))
                .filter(|series| !series.points.is_empty())
                .collect(),
        })
        .into()
}

/// One number of each line. A line that lacks it is left out; one where it is `null` (not finite) is a gap.
fn numbers(name: &str, lines: &[Value], x: &str, y: &str) -> Series {
    let point = |line: &Value| Some((line.pointer(x)?.as_f64()?, line.pointer(y)?.as_f64().unwrap_or(f64::NAN)));
    Series { name: name.to_owned(), points: lines.iter().filter_map(point).collect() }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::PolicyVersion;
    use collimate_protocol::records::{PpoSummary, UpdateMetrics};
    use serde_json::json;

    use super::*;

    #[test]
    fn ppo_has_every_curve_that_its_lines_have_numbers_for() {
        let mut lines = Vec::new();
        for version in 1..=3 {
            let mut update = UpdateMetrics { version: PolicyVersion(version), ..UpdateMetrics::default() };
            update.batch.score = version as f64;
            update.flow.role_tokens_per_s = [("generator".to_owned(), 100.0), ("recorder".to_owned(), 0.0)].into();
            lines.push(serde_json::to_value(update).unwrap());
        }
        let mut summary = Summary { ppo: Some(PpoSummary::default()), ..Summary::default() };
        summary.ppo.as_mut().unwrap().before.nll.mean = 3.5;
        let charts = ppo(&lines, &summary);
        let chart = |title: &str| charts.iter().find(|chart| chart.title == title).unwrap();
        assert_eq!(chart("Score").series[0].points, [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]);
        assert!(chart("Gold score").is_empty(), "no gold scorer, no curve");
        let names = |title: &str| chart(title).series.iter().map(|series| series.name.clone()).collect::<Vec<_>>();
        assert_eq!(names("NLL of pretraining text"), ["held out, before", "held out, after"], "ptx was off");
        assert_eq!(names("Throughput by role"), ["generator"]);
    }

    #[test]
    fn rounds_are_drawn_from_the_sft_model_on() {
        let charts = rounds(&crate::report::table::tests::of_rounds().rounds);
        assert_eq!(charts[0].series[0].points, [(0.0, -0.1), (1.0, 0.9), (2.0, 0.9)]);
        assert_eq!(charts[1].series[0].points, [(0.0, 0.0), (1.0, 6.4), (2.0, 6.4)]);
        assert_eq!(charts[2].series[0].points, [(1.0, 0.67), (2.0, 0.67)]);
        assert!(rounds(&[]).iter().all(Chart::is_empty));
    }

    #[test]
    fn training_has_a_line_for_each_phase_and_null_is_a_gap() {
        let lines = [
            json!({"phase": "a", "step": 1, "loss": 2.0}),
            json!({"phase": "a", "step": 2, "loss": null}),
            json!({"phase": "b", "step": 1, "loss": 1.0, "accuracy": 0.5}),
        ];
        let [loss, accuracy] = <[Chart; 2]>::try_from(training(Stage::Reward, &lines)).unwrap();
        assert_eq!(loss.series.iter().map(|series| series.points.len()).collect::<Vec<_>>(), [2, 1]);
        assert!(loss.series[0].points[1].1.is_nan());
        assert_eq!(accuracy.series.len(), 1);
    }
}
