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
    /// Ids that top-k and top-p leave, ascending, and their logits.
    kept: Vec<u32>,
    kept_logits: Vec<f32>,
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
    let Scratch { kept, kept_logits, block_sums } = scratch;
    if params.temperature == 0.0 {
        let distribution = Distribution::new(logits, 1.0, block_sums)?;
        return Ok(distribution.sampled(most_likely(logits)));
    }
    let scale = 1.0 / params.temperature;
    if params.top_k == 0 && params.top_p >= 1.0 {
        let distribution = Distribution::new(logits, scale, block_sums)?;
        return Ok(distribution.sampled(distribution.invert(rng.random())));
    }
    keep_most_likely(logits, scale, params, kept)?;
    kept_logits.clear();
    kept_logits.extend(kept.iter().map(|id| logits[*id as usize]));
    let distribution = Distribution::new(kept_logits, scale, block_sums)?;
    let sampled = distribution.sampled(distribution.invert(rng.random()));
    Ok(SampledToken { token: kept[sampled.token as usize], ..sampled })
}

/// softmax(scale · logits) of a row, as sums of the weights exp(scale · (logit − largest)) over blocks of ids. The
/// weights themselves are computed again where they are needed, which is cheaper than keeping them. Sums run in f64,
/// in a fixed order.
struct Distribution<'a> {
    logits: &'a [f32],
    scale: f32,
    /// The largest of the scaled logits.
    largest: f32,
    block_sums: &'a [f64],
    /// Σ weight.
    total: f64,
    /// Σ weight · (scaled logit − largest).
    weighted: f64,
}

impl<'a> Distribution<'a> {
    fn new(logits: &'a [f32], scale: f32, block_sums: &'a mut Vec<f64>) -> Result<Self> {
        block_sums.clear();
        let (mut largest, mut total, mut weighted) = (f32::NEG_INFINITY, 0.0, 0.0);
        simd::dispatch(
            #[inline(always)]
            || {
                largest = simd::max(logits) * scale;
                for block in logits.chunks(BLOCK) {
                    let block = Block::new(block, scale, largest);
                    block_sums.push(block.sum);
                    total += block.sum;
                    weighted += block.weighted;
                }
            },
        );
        if !(largest.is_finite() && total.is_finite()) {
            return Err(not_finite());
        }
        Ok(Self { logits, scale, largest, block_sums, total, weighted })
    }

    fn sampled(&self, idx: usize) -> SampledToken {
        let logprob = f64::from(self.logits[idx] * self.scale - self.largest) - self.total.ln();
        // −Σ p ln p = ln Z − Σ weight · (scaled logit − largest) / Z.
        let entropy = self.total.ln() - self.weighted / self.total;
        SampledToken { token: idx as u32, logprob: logprob as f32, entropy: entropy as f32 }
    }

    /// The first index at which the running sum of probabilities exceeds `u`, which is in 0..1.
    fn invert(&self, u: f64) -> usize {
        let target = u * self.total;
        let mut below = 0.0;
        // Rounding may leave the target just out of reach: then it is the last token that has any weight.
        let mut last = 0;
        for (block_idx, sum) in self.block_sums.iter().enumerate() {
            if *sum == 0.0 {
                continue;
            }
            let is_last = self.block_sums[block_idx + 1..].iter().all(|sum| *sum == 0.0);
            if below + sum <= target && !is_last {
                below += sum;
                continue;
            }
            let start = block_idx * BLOCK;
            let end = self.logits.len().min(start + BLOCK);
            let block = simd::dispatch(
                #[inline(always)]
                || Block::new(&self.logits[start..end], self.scale, self.largest),
            );
            for (idx, weight) in (start..end).zip(block.weights) {
                if weight > 0.0 {
                    last = idx;
                    below += f64::from(weight);
                    if below > target {
                        break;
                    }
                }
            }
            break;
        }
        last
    }
}

/// The weights of up to [`BLOCK`] neighbouring ids; places past the end weigh 0.
struct Block {
    weights: [f32; BLOCK],
    sum: f64,
    weighted: f64,
}

impl Block {
    #[inline(always)]
    fn new(logits: &[f32], scale: f32, largest: f32) -> Self {
        const LANES: usize = 8;
        let mut shifted = [f32::NEG_INFINITY; BLOCK];
        for (shifted, logit) in shifted.iter_mut().zip(logits) {
            *shifted = logit * scale - largest;
        }
        let (mut weights, mut products) = (shifted, shifted);
        for weight in &mut weights {
            *weight = simd::exp(*weight);
        }
        for (product, weight) in products.iter_mut().zip(&weights) {
            let exact = *weight * *product;
            // 0 · −∞ is 0 here.
            *product = if *weight == 0.0 { 0.0 } else { exact };
        }
        let (mut sums, mut weighted) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        for (weights, products) in weights.as_chunks::<LANES>().0.iter().zip(products.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                sums[lane] += f64::from(weights[lane]);
                weighted[lane] += f64::from(products[lane]);
            }
        }
        Self { weights, sum: sums.iter().sum(), weighted: weighted.iter().sum() }
    }
}

/// Fills `kept` with the ids that top-k, then top-p leave, ascending. Among equal logits the smaller id is kept.
fn keep_most_likely(logits: &[f32], scale: f32, params: &SamplingParams, kept: &mut Vec<u32>) -> Result<()> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return Err(not_finite());
    }
    let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    kept.clear();
    kept.extend(0..logits.len() as u32);
    if params.top_k != 0 && params.top_k < kept.len() {
        kept.select_nth_unstable_by(params.top_k, by_rank);
        kept.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        kept.sort_unstable_by(by_rank);
        let largest = logits[kept[0] as usize];
        let weight = |id: &u32| f64::from((logits[*id as usize] - largest) * scale).exp();
        let enough = f64::from(params.top_p) * kept.iter().map(weight).sum::<f64>();
        let mut mass = 0.0;
        let n_kept = kept.iter().take_while(|id| {
            let needed = mass < enough;
            mass += weight(id);
            needed
        });
        let n_kept = n_kept.count().max(1);
        kept.truncate(n_kept);
    }
    kept.sort_unstable();
    Ok(())
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
