//! One line an update, for people.

use std::fmt::Write;

use collimate_protocol::records::UpdateMetrics;

/// How roles are spelt where room is short, in the order of the flow.
const SHORT_NAMES: [(&str, &str); 7] = [
    ("prompt_source", "src"),
    ("generator", "gen"),
    ("reference_scorer", "ref"),
    ("reward_scorer", "rew"),
    ("experience_buffer", "buf"),
    ("pretrain_mixer", "mix"),
    ("learner", "lrn"),
];

/// The update in one line: version, score, KL, entropy, clip fraction, value loss, ptx loss, staleness
/// (min/mean/max), queue depths, tokens a second.
pub fn update_line(update: &UpdateMetrics, gold: Option<f64>, n_updates: u64) -> String {
    let (batch, train, flow) = (&update.batch, &update.train, &update.flow);
    let mut line = format!("v{}/{n_updates}  score {:.3}", update.version.0, batch.score);
    // Writing to a String cannot fail.
    let mut add = |text: std::fmt::Arguments<'_>| line.write_fmt(text).unwrap_or_default();
    if let Some(gold) = gold {
        add(format_args!("  gold {gold:.3}"));
    }
    add(format_args!("  kl {:.2}  ent {:.2}  clip {:.3}", batch.kl, batch.entropy, train.clip_fraction));
    add(format_args!("  vloss {:.3}  ptx {:.3}", train.value_loss, train.ptx_loss));
    let staleness = &batch.staleness;
    add(format_args!("  stale {:.0}/{:.1}/{:.0}", staleness.min, staleness.mean, staleness.max));
    let mut queues = SHORT_NAMES.iter().filter_map(|(role, short)| Some((short, flow.queues.get(*role)?))).peekable();
    if queues.peek().is_some() {
        add(format_args!("  queues"));
    }
    for (short, queue) in queues {
        add(format_args!(" {short} {}/{}", queue.len, queue.capacity));
    }
    // A deterministic run knows no clock.
    if flow.tokens_per_s > 0.0 {
        add(format_args!("  {:.0} tok/s", flow.tokens_per_s));
    }
    if batch.empty_share > 0.0 {
        add(format_args!("  empty {:.0} %", 100.0 * batch.empty_share));
    }
    if flow.tickets.dropped > 0 {
        add(format_args!("  dropped {}", flow.tickets.dropped));
    }
    if train.n_skipped > 0 {
        add(format_args!("  SKIPPED {} of {} steps (not finite)", train.n_skipped, train.n_skipped + train.n_steps));
    }
    line
}

#[cfg(test)]
mod tests {
    use collimate_protocol::PolicyVersion;
    use collimate_protocol::records::{QueueDepth, Spread};

    use super::*;

    #[test]
    fn a_line_has_what_one_watches() {
        let mut update = UpdateMetrics { version: PolicyVersion(12), ..UpdateMetrics::default() };
        update.batch.score = 0.53;
        update.batch.kl = 1.25;
        update.batch.entropy = 3.4;
        update.batch.staleness = Spread { min: 0.0, mean: 0.52, max: 1.0 };
        update.train.clip_fraction = 0.04;
        update.train.value_loss = 0.31;
        update.train.ptx_loss = 3.5;
        update.flow.queues.insert("learner".into(), QueueDepth { len: 0, capacity: 1 });
        update.flow.queues.insert("generator".into(), QueueDepth { len: 2, capacity: 8 });
        update.flow.tokens_per_s = 812.4;
        assert_eq!(
            update_line(&update, Some(0.2), 40),
            "v12/40  score 0.530  gold 0.200  kl 1.25  ent 3.40  clip 0.040  vloss 0.310  ptx 3.500  stale 0/0.5/1  \
             queues gen 2/8 lrn 0/1  812 tok/s"
        );
    }
}
