//! From one row of logits to one token: a function of the logits, the settings and one uniform number.

use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::simd;
use crate::rng::SeededRng;

/// How tokens are sampled and when a response ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingParams {
    /// Divides the logits. 0 takes the most likely token always.
    pub temperature: f32,
    /// Samples from this many of the most likely tokens alone; 0 samples from all.
    pub top_k: usize,
    /// Samples from the smallest set of most likely tokens that holds this probability; 1 samples from all.
    pub top_p: f32,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 64 }
    }
}

impl SamplingParams {
    /// Refuses settings that mean nothing.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::invalid(format!("`temperature` is {}, expected 0 or more", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::invalid(format!("`top_p` is {}, expected more than 0 and at most 1", self.top_p)));
        }
        Ok(())
    }

    /// Refuses what PPO can't be trained on. Its ratio compares probabilities of the whole vocabulary: with a
    /// support cut by `top_k` or `top_p` it would not be 1 before any update, and a greedy sampler has none.
    pub fn validate_for_ppo(&self) -> Result<()> {
        self.validate()?;
        if self.top_k != 0 || self.top_p < 1.0 {
            return Err(Error::invalid(format!(
                "PPO samples from the whole vocabulary: `top_k` must be 0 and `top_p` 1, found {} and {}",
                self.top_k, self.top_p
            )));
        }
        if self.temperature == 0.0 {
            return Err(Error::invalid("PPO explores by sampling: `temperature` must be more than 0"));
        }
        Ok(())
    }
}

/// A sampled token and what the sampler knew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub token: u32,
    /// Its log-probability (nats) at the sampling temperature over the support sampled from; greedy: at
    /// temperature 1 over all.
    pub logprob: f32,
    /// The entropy (nats) of the same distribution.
    pub entropy: f32,
}

/// Ids whose weights are summed as one step of the search through the distribution.
const BLOCK: usize = 64;

/// Buffers that live from one row to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    logits: Vec<f32>,
    kept: Vec<u32>,
    weights: Vec<f32>,
    block_sums: Vec<f64>,
}

/// Samples from `softmax(logits / temperature)` over the support that the settings leave. Takes one uniform number
/// from `rng` (none when greedy) and inverts the distribution function in the order of ids, so that the token
/// depends on nothing else. Logits that are not finite are an error.
pub fn sample(logits: &[f32], params: &SamplingParams, rng: &mut SeededRng) -> Result<SampledToken> {
    sample_with(&mut Scratch::default(), logits, params, rng)
}

pub(super) fn sample_with(
    scratch: &mut Scratch,
    logits: &[f32],
    params: &SamplingParams,
    rng: &mut SeededRng,
) -> Result<SampledToken> {
    let greedy = params.temperature == 0.0;
    let scale = if greedy { 1.0 } else { 1.0 / params.temperature };
    scratch.logits.clear();
    scratch.logits.extend(logits.iter().map(|logit| logit * scale));
    let truncated = !greedy && (params.top_k != 0 || params.top_p < 1.0);
    if truncated {
        if scratch.logits.iter().any(|logit| logit.is_nan()) {
            return Err(not_finite());
        }
        scratch.keep_most_likely(params);
    }
    let distribution = scratch.distribution()?;
    let idx =
        if greedy { most_likely(&scratch.logits) } else { scratch.invert(rng.random::<f64>() * distribution.total) };
    Ok(SampledToken {
        token: if truncated { scratch.kept[idx] } else { idx as u32 },
        logprob: distribution.logprob(scratch.logits[idx]),
        entropy: distribution.entropy(),
    })
}

/// softmax of a row: weight i is exp(logit i − largest).
struct Distribution {
    largest: f32,
    /// Σ weight, in f64.
    total: f64,
    /// Σ weight · (logit − largest), in f64.
    weighted: f64,
}

impl Distribution {
    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit - self.largest) - self.total.ln()) as f32
    }

    /// −Σ p ln p = ln Z − Σ w (logit − largest) / Z.
    fn entropy(&self) -> f32 {
        (self.total.ln() - self.weighted / self.total) as f32
    }
}

impl Scratch {
    /// Narrows `logits` to the tokens that top-k, then top-p leave; `kept` are their ids, ascending. Among equal
    /// logits the smaller id is kept.
    fn keep_most_likely(&mut self, params: &SamplingParams) {
        let logits = &self.logits;
        let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        self.kept.clear();
        self.kept.extend(0..logits.len() as u32);
        if params.top_k != 0 && params.top_k < self.kept.len() {
            self.kept.select_nth_unstable_by(params.top_k, by_rank);
            self.kept.truncate(params.top_k);
        }
        if params.top_p < 1.0 {
            self.kept.sort_unstable_by(by_rank);
            let largest = logits[self.kept[0] as usize];
            let weight = |id: &u32| f64::from(logits[*id as usize] - largest).exp();
            let enough = f64::from(params.top_p) * self.kept.iter().map(weight).sum::<f64>();
            let mut mass = 0.0;
            let n_kept = self.kept.iter().take_while(|id| {
                let needed = mass < enough;
                mass += weight(id);
                needed
            });
            let n_kept = n_kept.count().max(1);
            self.kept.truncate(n_kept);
        }
        self.kept.sort_unstable();
        self.logits = self.kept.iter().map(|id| self.logits[*id as usize]).collect();
    }

    /// Fills `weights` and their `block_sums`. Sums run in f64, in a fixed order.
    fn distribution(&mut self) -> Result<Distribution> {
        let Self { logits, weights, block_sums, .. } = self;
        weights.resize(logits.len(), 0.0);
        block_sums.clear();
        let (mut largest, mut total, mut weighted) = (f32::NEG_INFINITY, 0.0, 0.0);
        simd::dispatch(
            #[inline(always)]
            || {
                largest = simd::max(logits);
                for (logits, weights) in logits.chunks(BLOCK).zip(weights.chunks_mut(BLOCK)) {
                    let (sum, weighted_sum) = weigh(logits, largest, weights);
                    block_sums.push(sum);
                    total += sum;
                    weighted += weighted_sum;
                }
            },
        );
        if !(largest.is_finite() && total.is_finite()) {
            return Err(not_finite());
        }
        Ok(Distribution { largest, total, weighted })
    }

    /// The first index at which the running sum of weights exceeds `target`, which is less than their total.
    fn invert(&self, target: f64) -> usize {
        let mut below = 0.0;
        let last_block = self.block_sums.len() - 1;
        for (block_idx, sum) in self.block_sums.iter().enumerate() {
            if below + sum <= target && block_idx != last_block {
                below += sum;
                continue;
            }
            let start = block_idx * BLOCK;
            // Rounding may leave the target just out of reach: then the last token that has any weight.
            let mut chosen = None;
            for (idx, weight) in self.weights.iter().enumerate().skip(start).take(BLOCK) {
                if *weight > 0.0 {
                    chosen = Some(idx);
                    below += f64::from(*weight);
                    if below > target {
                        break;
                    }
                }
            }
            if let Some(idx) = chosen {
                return idx;
            }
        }
        self.weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
    }
}

/// Weights of one block, Σ weight, and Σ weight · (logit − largest).
#[inline(always)]
fn weigh(logits: &[f32], largest: f32, weights: &mut [f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let (mut sums, mut weighted) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    for (logit, weight) in logits.iter().zip(weights.iter_mut()) {
        *weight = simd::exp(logit - largest);
    }
    for (logits, weights) in logits.chunks(LANES).zip(weights.chunks(LANES)) {
        for (lane, (logit, weight)) in logits.iter().zip(weights).enumerate() {
            sums[lane] += f64::from(*weight);
            // A weight of 0 may have a logit of −∞.
            let product = if *weight > 0.0 { weight * (logit - largest) } else { 0.0 };
            weighted[lane] += f64::from(product);
        }
    }
    (sums.iter().sum(), weighted.iter().sum())
}

fn not_finite() -> Error {
    Error::invalid("the model's logits are not finite: there is no distribution to sample from")
}

/// Among equals the smallest id.
fn most_likely(logits: &[f32]) -> usize {
    let mut best = 0;
    for (idx, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = idx;
        }
    }
    best
}

#[cfg(test)]
mod tests;
