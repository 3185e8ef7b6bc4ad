//! Gradient checkpointing changes no bit.

use super::*;

/// The step's loss and norm, and the weights after it.
type Outcome = (f64, f64, Vec<(String, Vec<u32>)>);

fn bits(weights: &Weights) -> Vec<(String, Vec<u32>)> {
    let bits = |tensor: &Tensor| {
        let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        numbers.iter().map(|number| number.to_bits()).collect()
    };
    weights.iter().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect()
}

#[test]
fn a_step_has_the_same_bits_with_and_without_it() -> Result<()> {
    for model in testing::each_kind().into_iter().chain([testing::gpt_neox()]) {
        for make in [testing::weights, testing::adapted] {
            let policy = |gradient_checkpointing: bool| -> Result<Outcome> {
                let config = OptimConfig { gradient_checkpointing, ..config(17) };
                let mut trainer = LmTrainer::new(&model, &make(&model, HeadKind::Language, 1), &config, 10)?;
                let step = trainer.step(&demonstrations())?;
                Ok((step.loss, step.grad_norm, bits(&trainer.weights()?)))
            };
            assert_eq!(policy(true)?, policy(false)?, "{:?}", model.family);
            let reward = |gradient_checkpointing: bool| -> Result<Outcome> {
                let config = OptimConfig { gradient_checkpointing, ..config(40) };
                let mut trainer = RewardTrainer::new(&model, &make(&model, HeadKind::Scalar, 1), &config, 10)?;
                let step = trainer.step(&comparisons())?;
                Ok((step.loss, step.grad_norm, bits(&trainer.weights()?)))
            };
            assert_eq!(reward(true)?, reward(false)?, "{:?}", model.family);
        }
    }
    Ok(())
}
