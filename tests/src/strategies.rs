//! Random flows of fakes, for property tests.

use collimate::flow::{Capacities, FlowConfig, FlowMode, WeightUpdates};
use proptest::prelude::*;

use crate::fakes::Lengths;
use crate::scenario::Scenario;

fn capacities() -> impl Strategy<Value = Capacities> {
    let size = || 1..=5usize;
    (size(), size(), size(), size(), 1..=2usize, 1..=3usize, 1..=2usize).prop_map(
        |(prompts, rollouts, referenced, scored, batches, pretrain_batches, updates)| Capacities {
            prompts,
            rollouts,
            referenced,
            scored,
            batches,
            pretrain_batches,
            updates,
        },
    )
}

fn configs() -> impl Strategy<Value = FlowConfig> {
    let weight_updates = prop_oneof![Just(WeightUpdates::InFlight), Just(WeightUpdates::BetweenRollouts)];
    // With one rollout a batch, a few samples that are not finite in a row would rightly end the run.
    (1..=6u64, 2..=7usize, 0..=3u64, weight_updates, (1..=5usize, 0..=4usize), capacities()).prop_map(
        |(n_updates, batch_size, max_staleness, weight_updates, (scorer_batch, fewer), capacities)| FlowConfig {
            n_updates,
            batch_size,
            max_staleness,
            mode: FlowMode::Deterministic,
            weight_updates,
            scorer_batch,
            scorer_waits_for: scorer_batch.saturating_sub(fewer).max(1),
            capacities,
            ..FlowConfig::default()
        },
    )
}

/// Stragglers take up to 40 times as long as others, as was measured to break the bound by tickets alone.
fn lengths() -> impl Strategy<Value = Lengths> {
    let stragglers = prop_oneof![Just((0, 1)), (1..=200u64, 2..=40usize)];
    (0..=2usize, 0..=8usize, stragglers).prop_map(|(min, more, (stragglers_per_mille, straggler_factor))| Lengths {
        min,
        max: min + more,
        stragglers_per_mille,
        straggler_factor,
    })
}

/// Flows of any size, with delays, stragglers and numbers that are not finite.
pub fn scenarios() -> impl Strategy<Value = Scenario> {
    let nan_per_mille = prop_oneof![Just(0), 1..=100u64];
    let delays = prop::collection::vec(prop_oneof![Just(0), 0..=5u64, 0..=60u64], 0..10);
    let actors = (1..=3usize, 1..=5usize, 1..=3usize);
    (configs(), 1..=9usize, actors, lengths(), nan_per_mille, 0..=2usize, delays, any::<u64>()).prop_map(
        |(config, n_prompts, (n_generators, n_slots, n_scorers), lengths, nan_per_mille, n_pretrain, delays, seed)| {
            Scenario {
                config,
                n_prompts,
                n_generators,
                n_slots,
                n_scorers,
                lengths,
                nan_per_mille,
                n_pretrain,
                delays,
                seed,
            }
        },
    )
}
