//! What a PPO run shows of itself while it runs, through the `metrics` crate: without a recorder installed it costs
//! nothing, with [`super::server`] it is served.

use std::sync::{Mutex, PoisonError};

use collimate_protocol::messages::RunStatus;
use collimate_protocol::records::{QueueDepth, Spread, UpdateMetrics};
use collimate_protocol::{Role, TicketCounts};
use metrics::{Unit, describe_gauge, gauge};

/// Tells the recorder what the gauges mean. Call it after the recorder is installed.
pub fn describe() {
    describe_gauge!("collimate_policy_version", "Updates done");
    describe_gauge!("collimate_queue_depth", "Items waiting in a role's inbox");
    describe_gauge!("collimate_queue_capacity", "Items that fit in a role's inbox");
    describe_gauge!("collimate_tickets", "Tickets by state: issued = trained + dropped + in_flight");
    describe_gauge!("collimate_tickets_dropped", "Dropped tickets by reason");
    describe_gauge!("collimate_staleness", "Updates between sampling and training, over the last batch's tokens");
    describe_gauge!("collimate_tokens_per_second", "Tokens a second of a role since the last update");
    describe_gauge!("collimate_busy_share", "Share of the time since the last update that a role computed");
    describe_gauge!("collimate_score", "Mean score of the last batch's responses");
    describe_gauge!(
        "collimate_labels",
        "Rankings that the reward model in force has learnt from; NaN where nothing tells"
    );
    describe_gauge!("collimate_kl", "Mean over the last batch's responses of the summed k1 estimate (nats)");
    describe_gauge!("collimate_entropy", "Mean entropy of the last batch's sampling distributions (nats a token)");
    describe_gauge!("collimate_response_length", "Response length in tokens, over the last batch");
    describe_gauge!("collimate_clip_fraction", "Share of tokens whose ratio was clipped in the last update");
    describe_gauge!("collimate_loss", "Losses of the last update");
    describe_gauge!("collimate_update_seconds", Unit::Seconds, "Seconds the last update took in the learner");
}

/// Shows an update.
pub fn show_update(update: &UpdateMetrics) {
    gauge!("collimate_policy_version").set(update.version.0 as f64);
    show_tickets(&update.flow.tickets);
    for (role, queue) in &update.flow.queues {
        show_queue(role, *queue);
    }
    for (role, share) in &update.flow.busy {
        gauge!("collimate_busy_share", "role" => role.clone()).set(*share);
    }
    for (role, rate) in &update.flow.role_tokens_per_s {
        gauge!("collimate_tokens_per_second", "role" => role.clone()).set(*rate);
    }
    show_spread("collimate_staleness", update.batch.staleness);
    show_spread("collimate_response_length", update.batch.length);
    gauge!("collimate_score").set(update.batch.score);
    gauge!("collimate_kl").set(update.batch.kl);
    gauge!("collimate_entropy").set(update.batch.entropy);
    gauge!("collimate_clip_fraction").set(update.train.clip_fraction);
    gauge!("collimate_loss", "of" => "policy").set(update.train.policy_loss);
    gauge!("collimate_loss", "of" => "value").set(update.train.value_loss);
    gauge!("collimate_loss", "of" => "ptx").set(update.train.ptx_loss);
    gauge!("collimate_update_seconds").set(update.flow.update_s);
}

/// Shows how many labels the reward model has learnt from that scored the update's batch.
pub fn show_labels(n_labels: Option<u64>) {
    gauge!("collimate_labels").set(n_labels.map_or(f64::NAN, |n| n as f64));
}

/// The process' run as it was last shown.
static LATEST: Mutex<Option<RunStatus>> = Mutex::new(None);

/// The status that was shown last; `None` before the first.
pub fn latest_status() -> Option<RunStatus> {
    LATEST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Shows the ledger and the queues as they are between updates.
pub fn show_status(status: &RunStatus) {
    *LATEST.lock().unwrap_or_else(PoisonError::into_inner) = Some(status.clone());
    gauge!("collimate_policy_version").set(status.version.0 as f64);
    show_tickets(&status.tickets);
    for role in Role::ALL {
        let depth: usize = status.roles.iter().filter(|line| line.role.role == role).map(|line| line.queue_depth).sum();
        gauge!("collimate_queue_depth", "role" => role.name()).set(depth as f64);
    }
}

fn show_tickets(tickets: &TicketCounts) {
    let states = [
        ("issued", tickets.issued),
        ("trained", tickets.trained),
        ("dropped", tickets.dropped),
        ("in_flight", tickets.in_flight),
    ];
    for (state, n) in states {
        gauge!("collimate_tickets", "state" => state).set(n as f64);
    }
    for (reason, n) in &tickets.dropped_by_reason {
        gauge!("collimate_tickets_dropped", "reason" => reason.name()).set(*n as f64);
    }
}

fn show_queue(role: &str, queue: QueueDepth) {
    gauge!("collimate_queue_depth", "role" => role.to_owned()).set(queue.len as f64);
    gauge!("collimate_queue_capacity", "role" => role.to_owned()).set(queue.capacity as f64);
}

fn show_spread(name: &'static str, spread: Spread) {
    for (stat, number) in [("min", spread.min), ("mean", spread.mean), ("max", spread.max)] {
        gauge!(name, "stat" => stat).set(number);
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::{DropReason, PolicyVersion};
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn an_update_shows_as_prometheus_text() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let mut update = UpdateMetrics { version: PolicyVersion(3), ..UpdateMetrics::default() };
        update.batch.staleness = Spread { min: 0.0, mean: 0.5, max: 1.0 };
        update.flow.queues.insert("learner".into(), QueueDepth { len: 1, capacity: 2 });
        update.flow.busy.insert("generator".into(), 0.75);
        update.flow.role_tokens_per_s.insert("generator".into(), 1200.0);
        update.flow.tickets = TicketCounts {
            issued: 10,
            trained: 6,
            dropped: 1,
            dropped_by_reason: [(DropReason::TooStale, 1)].into(),
            in_flight: 3,
        };
        metrics::with_local_recorder(&recorder, || {
            describe();
            show_update(&update);
            show_labels(Some(800));
        });
        let text = handle.render();
        for line in [
            "collimate_policy_version 3",
            "collimate_queue_depth{role=\"learner\"} 1",
            "collimate_tickets{state=\"in_flight\"} 3",
            "collimate_tickets_dropped{reason=\"too_stale\"} 1",
            "collimate_staleness{stat=\"mean\"} 0.5",
            "collimate_tokens_per_second{role=\"generator\"} 1200",
            "collimate_busy_share{role=\"generator\"} 0.75",
            "collimate_labels 800",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
