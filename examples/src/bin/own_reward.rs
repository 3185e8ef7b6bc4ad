//! PPO with a reward function of your own, as a library call. Runs in seconds on a CPU:
//!
//! ```text
//! cargo run --release -p collimate-examples --bin own_reward
//! ```

use anyhow::Result;
use collimate::flow::{Factory, FlowConfig};
use collimate_examples::TinyModels;
use collimate_protocol::RoleError;
use collimate_protocol::messages::RunEvent;
use collimate_protocol::records::UpdateMetrics;
use collimate_protocol::roles::{RewardFunction, RewardRequest};

/// The share of a response's characters that are vowels.
struct Vowels;

impl RewardFunction for Vowels {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        let share = |request: &RewardRequest| {
            let n_vowels = request.response.chars().filter(|c| "aeiou".contains(*c)).count();
            n_vowels as f32 / request.response.chars().count().max(1) as f32
        };
        Ok(requests.iter().map(share).collect())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let config = FlowConfig { n_updates: 30, batch_size: 32, ..FlowConfig::default() };
    train(&config, |update| {
        let batch = &update.batch;
        println!(
            "update {:2}: score {:.3}, kl {:6.3}, staleness at most {}",
            update.version.0, batch.score, batch.kl, batch.staleness.max
        );
    })
    .await
}

async fn train(config: &FlowConfig, mut updated: impl FnMut(UpdateMetrics)) -> Result<()> {
    let reward = Factory::new(|| -> Result<Box<dyn RewardFunction>, RoleError> { Ok(Box::new(Vowels)) });
    let flow = TinyModels::new(1)?.flow(config, reward)?;
    let run = flow.start(config).await?;
    let mut events = run.events();
    while let Ok(event) = events.recv().await {
        if let RunEvent::Updated(update) = event {
            updated(*update);
        }
    }
    // The events end with the run. The outcome has the weights; `collimate_models::arch::save_model` writes them.
    let outcome = run.wait().await?;
    println!("{} responses trained on, {} dropped", outcome.tickets.trained, outcome.tickets.dropped);
    Ok(())
}

#[cfg(test)]
mod tests {
    use collimate::flow::FlowMode;

    use super::*;

    #[tokio::test]
    async fn the_policy_learns_what_it_is_rewarded_for() {
        let mode = FlowMode::Deterministic;
        let config = FlowConfig { n_updates: 20, batch_size: 24, mode, ..FlowConfig::default() };
        let mut scores = Vec::new();
        train(&config, |update| scores.push(update.batch.score)).await.unwrap();
        assert_eq!(scores.len(), 20);
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
        assert!(mean(&scores[15..]) > 2.0 * mean(&scores[..5]), "{scores:?}");
    }
}
