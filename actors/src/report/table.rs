//! The policies before and after PPO, as rows of text.

use collimate_protocol::records::{Estimate, PolicyEvaluation, PpoSummary, RewardSummary, Summary};
use serde::Serialize;

/// A measure of both policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What is measured.
    pub label: String,
    /// Of the SFT policy.
    pub before: String,
    /// Of the policy that was shipped.
    pub after: String,
}

/// The table before/after.
pub fn before_after(ppo: &PpoSummary) -> Vec<Row> {
    let row = |label: &str, show: &dyn Fn(&PolicyEvaluation) -> Option<String>| {
        let (before, after) = (show(&ppo.before)?, show(&ppo.after)?);
        Some(Row { label: label.to_owned(), before, after })
    };
    [
        row("score", &|policy| Some(estimate(&policy.score, 3))),
        row("gold score", &|policy| policy.gold.as_ref().map(|gold| estimate(gold, 3))),
        row("KL to the SFT model (nats a response)", &|policy| Some(estimate(&policy.kl, 2))),
        row("response length (tokens)", &|policy| Some(estimate(&policy.length, 1))),
        row("share of empty responses", &|policy| Some(estimate(&policy.empty_share, 3))),
        row("held-out NLL of pretraining text (nats a token)", &|policy| Some(estimate(&policy.nll, 3))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The names of a round's numbers.
pub const OF_ROUNDS: [&str; 7] = ["round", "comparisons", "RM accuracy", "gold score", "score", "KL", "held-out NLL"];

/// The rounds of `collimate iterate`, a row each, after one of the SFT policy. A score is by the round's own reward model.
pub fn rounds(rounds: &[Summary]) -> Vec<[String; 7]> {
    let policy = |name: String, comparisons: String, accuracy: String, policy: &PolicyEvaluation| {
        let gold = policy.gold.as_ref().map(|gold| estimate(gold, 2)).unwrap_or_default();
        let [score, kl, nll] = [(&policy.score, 2), (&policy.kl, 1), (&policy.nll, 3)].map(|(e, n)| estimate(e, n));
        [name, comparisons, accuracy, gold, score, kl, nll]
    };
    let mut rows = Vec::new();
    for (idx, round) in rounds.iter().enumerate() {
        let Some(ppo) = &round.ppo else { continue };
        if idx == 0 {
            rows.push(policy("SFT".into(), String::new(), String::new(), &ppo.before));
        }
        let comparisons = round.collect.as_ref().map(|collect| collect.n_comparisons.to_string());
        let accuracy = round.reward.as_ref().map(|reward| {
            let RewardSummary { heldout_accuracy, heldout_accuracy_stderr, .. } = reward;
            format!("{heldout_accuracy:.3} ± {heldout_accuracy_stderr:.3}")
        });
        let name = (idx + 1).to_string();
        rows.push(policy(name, comparisons.unwrap_or_default(), accuracy.unwrap_or_default(), &ppo.after));
    }
    rows
}

/// What the other stages came to, in a line each.
pub fn stages(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(pretrain) = &summary.pretrain {
        lines.push(format!(
            "pretrain: held-out NLL {:.3} nats a token; {} parameters, {} tokens, {}",
            pretrain.heldout_nll,
            pretrain.n_parameters,
            pretrain.n_tokens,
            duration(pretrain.elapsed_s)
        ));
    }
    if let Some(sft) = &summary.sft {
        lines.push(format!(
            "sft: held-out NLL of responses {:.3} -> {:.3} nats a token; {} demonstrations, {}",
            sft.heldout_nll_before,
            sft.heldout_nll,
            sft.n_demonstrations,
            duration(sft.elapsed_s)
        ));
    }
    if let Some(collect) = &summary.collect {
        lines.push(format!(
            "collect: {} rankings of K = {} responses, {} with earlier ones; {}",
            collect.n_new,
            collect.k,
            collect.n_comparisons,
            duration(collect.elapsed_s)
        ));
    }
    if let Some(reward) = &summary.reward {
        let of_whole = match (reward.n_all_bad, reward.n_all_tied) {
            (0, 0) => String::new(),
            (n_all_bad, n_all_tied) => {
                format!(" ({n_all_bad} read with all responses bad, {n_all_tied} with all tied)")
            }
        };
        lines.push(format!(
            "reward: held-out pair accuracy {:.3} ± {:.3} over {} pairs, K = {}; {} comparisons{of_whole}, {}",
            reward.heldout_accuracy,
            reward.heldout_accuracy_stderr,
            reward.n_heldout_pairs,
            reward.k,
            reward.n_comparisons,
            duration(reward.elapsed_s)
        ));
    }
    if let Some(ppo) = &summary.ppo {
        let tickets = &ppo.tickets;
        let reasons: Vec<String> =
            tickets.dropped_by_reason.iter().map(|(reason, n)| format!("{n} {}", reason.name())).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        lines.push(format!(
            "ppo: {} updates, ptx_coef {}; tickets: {} issued = {} trained + {} dropped{reasons} + {} in flight; {}",
            ppo.n_updates,
            ppo.ptx_coef,
            tickets.issued,
            tickets.trained,
            tickets.dropped,
            tickets.in_flight,
            duration(ppo.elapsed_s)
        ));
    }
    lines
}

fn estimate(estimate: &Estimate, digits: usize) -> String {
    let mean = format!("{:.digits$}", estimate.mean);
    // A mean of -0.001 is no negative number in two digits.
    let is_zero = mean.strip_prefix('-').is_some_and(|digits| digits.chars().all(|c| c == '0' || c == '.'));
    format!("{} ± {:.digits$}", if is_zero { &mean[1..] } else { &mean }, estimate.stderr)
}

fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 60.0 => format!("{seconds:.1} s"),
        _ if seconds < 3600.0 => format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0),
        _ => format!("{:.0} h {:02.0} min", (seconds / 3600.0).floor(), (seconds % 3600.0) / 60.0),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use collimate_protocol::records::{CollectSummary, SampleRecord};
    use collimate_protocol::{DropReason, TicketCounts};

    use super::*;

    pub(crate) fn summary() -> Summary {
        let estimate = |mean| Estimate { mean, stderr: 0.05, n: 256 };
        let evaluation = |score, kl| PolicyEvaluation {
            score: estimate(score),
            gold: Some(estimate(score / 2.0)),
            kl: estimate(kl),
            nll: estimate(3.45),
            length: estimate(24.0),
            empty_share: estimate(0.0),
        };
        let sample = SampleRecord {
            prompt: "It was <b>".into(),
            before: "a sad day & long".into(),
            before_score: -0.5,
            after: "a happy day".into(),
            after_score: 1.25,
        };
        let tickets = TicketCounts {
            issued: 10,
            trained: 8,
            dropped: 2,
            dropped_by_reason: [(DropReason::Shutdown, 2)].into(),
            in_flight: 0,
        };
        let ppo = PpoSummary {
            before: evaluation(-0.2, 0.0),
            after: evaluation(1.8, 6.4),
            tickets,
            n_updates: 40,
            ptx_coef: 1.0,
            samples: vec![sample],
            elapsed_s: 75.0,
        };
        let reward =
            RewardSummary { heldout_accuracy: 0.67, heldout_accuracy_stderr: 0.01, k: 4, ..RewardSummary::default() };
        Summary { seed: 3, reward: Some(reward), ppo: Some(ppo), ..Summary::default() }
    }

    #[test]
    fn each_measure_is_a_row_with_its_error() {
        let rows = before_after(summary().ppo.as_ref().unwrap());
        let score = Row { label: "score".into(), before: "-0.200 ± 0.050".into(), after: "1.800 ± 0.050".into() };
        assert_eq!(rows[0], score);
        assert_eq!(rows.len(), 6);
        let mut without_gold = summary().ppo.unwrap();
        without_gold.after.gold = None;
        assert_eq!(before_after(&without_gold).len(), 5);
    }

    pub(crate) fn of_rounds() -> Summary {
        let round = |n_comparisons| {
            let collect = CollectSummary { n_comparisons, ..CollectSummary::default() };
            Summary { collect: Some(collect), ..summary() }
        };
        Summary { rounds: vec![round(80), round(160), Summary::default()], ..Summary::default() }
    }

    #[test]
    fn a_round_is_a_row_after_the_sft_policy_and_one_that_has_only_begun_has_none() {
        let rows = rounds(&of_rounds().rounds);
        let first = |idx: usize| rows[idx].iter().take(4).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(rows.len(), 3);
        assert_eq!(first(0), ["SFT", "", "", "-0.10 ± 0.05"]);
        assert_eq!(first(2), ["2", "160", "0.670 ± 0.010", "0.90 ± 0.05"]);
    }

    #[test]
    fn stages_are_told_in_a_line_each() {
        let lines = stages(&summary());
        assert!(lines[0].starts_with("reward: held-out pair accuracy 0.670 ± 0.010"), "{}", lines[0]);
        assert!(lines[0].ends_with("; 0 comparisons, 0.0 s"), "{}", lines[0]);
        assert!(
            lines[1].contains("10 issued = 8 trained + 2 dropped (2 shutdown) + 0 in flight; 1 min 15 s"),
            "{}",
            lines[1]
        );
    }

    #[test]
    fn comparisons_that_are_all_bad_or_all_tied_are_told_with_the_reward_stage() {
        let reward = RewardSummary { n_comparisons: 13, n_all_bad: 2, n_all_tied: 1, ..RewardSummary::default() };
        let lines = stages(&Summary { reward: Some(reward), ..Summary::default() });
        assert!(
            lines[0].ends_with("; 13 comparisons (2 read with all responses bad, 1 with all tied), 0.0 s"),
            "{}",
            lines[0]
        );
    }
}
