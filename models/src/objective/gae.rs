//! Generalised advantage estimation (Schulman et al. 2016).

/// Advantages of one response's tokens: `A_t = Σ_l (γλ)^l δ_{t+l}` with `δ_t = r_t + γ V_{t+1} − V_t`, where `V_t` is
/// the value before token t. After the last token there is nothing to come: its next value is 0, also where the
/// response was cut off by its length, since the score was given for the response as it stands.
pub fn gae(rewards: &[f32], values: &[f32], gamma: f32, gae_lambda: f32) -> Vec<f32> {
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * gae_lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    advantages
}

/// What the value model is fitted to: `advantages + values`, with the advantages as [`gae`] gives them, not whitened.
pub fn returns(advantages: &[f32], values: &[f32]) -> Vec<f32> {
    advantages.iter().zip(values).map(|(advantage, value)| advantage + value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_response_never_enters() {
        // With a value of 100 behind its two tokens, a recursion that read it would give 5.7 and 6.0.
        let advantages = gae(&[0.0, 1.0], &[0.0, 0.0], 1.0, 0.95);
        assert_eq!(advantages, [0.95, 1.0]);
    }

    #[test]
    fn lambda_one_gives_the_rewards_to_come_and_lambda_zero_the_temporal_difference() {
        let (rewards, values) = ([1.0, 2.0, 4.0], [0.5, 1.0, 3.0]);
        assert_eq!(returns(&gae(&rewards, &values, 1.0, 1.0), &values), [7.0, 6.0, 4.0]);
        assert_eq!(gae(&rewards, &values, 0.5, 0.0), [1.0, 2.5, 1.0]);
    }

    #[test]
    fn an_empty_response_has_no_advantages() {
        assert!(gae(&[], &[], 1.0, 0.95).is_empty());
    }
}
