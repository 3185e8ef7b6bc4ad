//! What a policy thinks of responses that are there already.

use crate::arch::LanguageModel;
use crate::error::{Error, Result};
use crate::passes::over_sequences;
use crate::train::{NextTokens, check_length};

/// Tokens in one forward pass over several sequences: enough for the matrix products to run at full speed, few
/// enough that a layer's activations stay in tens of megabytes.
pub const TOKENS_PER_PASS: usize = 4096;

/// For each `(prompt, response)` the log-probability (nats) of each response token under `model`, its logits divided
/// by `temperature`. Several sequences go through one forward pass, which changes no bit of any of them.
///
/// # Errors
/// The temperature is not above 0, a prompt is empty, or a sequence is longer than the context.
pub fn response_logprobs<P: AsRef<[u32]>, R: AsRef<[u32]>>(
    model: &LanguageModel,
    sequences: &[(P, R)],
    temperature: f32,
) -> Result<Vec<Vec<f32>>> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::invalid(format!("log-probabilities at temperature {temperature}: it must be above 0")));
    }
    let mut joined = Vec::with_capacity(sequences.len());
    for (prompt, response) in sequences {
        let (prompt, response) = (prompt.as_ref(), response.as_ref());
        if prompt.is_empty() {
            return Err(Error::invalid("a response without a prompt: nothing gives its first token a probability"));
        }
        check_length(model.decoder().config(), prompt.len() + response.len())?;
        joined.push(([prompt, response].concat(), prompt.len()));
    }
    let lengths: Vec<usize> = joined.iter().map(|(tokens, _)| tokens.len()).collect();
    let passes = over_sequences(model.decoder(), &lengths, TOKENS_PER_PASS, |run| {
        let next = NextTokens::new(joined[run].iter().map(|(tokens, n_prompt)| (tokens.as_slice(), *n_prompt)));
        if next.targets.is_empty() {
            return Ok(next.split(&[]));
        }
        let found = model.logprobs_at(&next.packed, &next.rows, &next.targets, temperature)?;
        Ok(next.split(&found.logprobs.to_vec1::<f32>()?))
    })?;
    Ok(passes.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::HeadKind;
    use crate::testing::{CONTEXT_LEN, gpt2, llama, tokens, weights};

    fn pairs(lengths: &[(usize, usize)]) -> Vec<(Vec<u32>, Vec<u32>)> {
        let pair = |(i, (p, r)): (usize, &(usize, usize))| (tokens(*p, i as u64), tokens(*r, 100 + i as u64));
        lengths.iter().enumerate().map(pair).collect()
    }

    #[test]
    fn company_changes_no_bit_of_a_response() {
        for config in [gpt2(), llama()] {
            let model = LanguageModel::frozen(&config, &weights(&config, HeadKind::Language, 1)).unwrap();
            let pairs = pairs(&[(3, 4), (1, 0), (7, 1), (12, 9), (1, 1)]);
            let together = response_logprobs(&model, &pairs, 0.7).unwrap();
            assert_eq!(together.iter().map(Vec::len).collect::<Vec<_>>(), [4, 0, 1, 9, 1]);
            for (pair, expected) in pairs.iter().zip(&together) {
                assert_eq!(&response_logprobs(&model, std::slice::from_ref(pair), 0.7).unwrap()[0], expected);
            }
        }
    }

    #[test]
    fn responses_beyond_the_budget_of_one_pass_are_all_scored() {
        let config = gpt2();
        let model = LanguageModel::frozen(&config, &weights(&config, HeadKind::Language, 1)).unwrap();
        let pairs = pairs(&[(1, 30); TOKENS_PER_PASS / 31 + 2]);
        let logprobs = response_logprobs(&model, &pairs, 1.0).unwrap();
        assert_eq!(logprobs.len(), pairs.len());
        let last = response_logprobs(&model, &pairs[pairs.len() - 1..], 1.0).unwrap();
        assert_eq!(logprobs.last(), last.first());
    }

    #[test]
    fn what_has_no_logprobs_is_refused() {
        let config = gpt2();
        let model = LanguageModel::frozen(&config, &weights(&config, HeadKind::Language, 1)).unwrap();
        let refusal = |pairs: &[(Vec<u32>, Vec<u32>)], temperature| {
            response_logprobs(&model, pairs, temperature).unwrap_err().to_string()
        };
        assert!(refusal(&pairs(&[(1, 1)]), 0.0).contains("above 0"));
        assert!(refusal(&pairs(&[(0, 1)]), 1.0).contains("without a prompt"));
        assert!(refusal(&pairs(&[(CONTEXT_LEN, 1)]), 1.0).contains("41 tokens"));
        assert_eq!(response_logprobs(&model, &pairs(&[(CONTEXT_LEN, 0)]), 1.0).unwrap(), [Vec::<f32>::new()]);
    }
}
