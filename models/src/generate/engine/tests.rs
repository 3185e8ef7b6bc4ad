use collimate_protocol::PromptId;

use candle_core::{Device, Tensor};

use super::*;
use crate::arch::{HeadKind, LanguageModel, PackedSequences};
use crate::generate::pass::PARALLEL_FROM;
use crate::rng;
use crate::testing::{CONTEXT_LEN, END, VOCAB_SIZE, gpt2, llama, tokens, weights};

type Tag = usize;

fn params(temperature: f32, max_new_tokens: usize) -> SamplingParams {
    SamplingParams { temperature, max_new_tokens, ..SamplingParams::default() }
}

fn engine(config: &Arc<ModelConfig>, seed: u64, n_slots: usize) -> Engine<Tag> {
    let weights = weights(config, HeadKind::Language, seed);
    Engine::new(config, &weights, PolicyVersion(0), n_slots).unwrap()
}

/// The same model, no token of which ends a response.
fn without_end(config: &ModelConfig) -> Arc<ModelConfig> {
    Arc::new(ModelConfig { eos_token_ids: Vec::new(), ..config.clone() })
}

fn rng_of(tag: Tag) -> SeededRng {
    rng::for_sample(3, PromptId(tag as u64), 0)
}

/// Runs these prompts through, each admitted as soon as a slot is free. Responses by tag.
fn run(engine: &mut Engine<Tag>, prompts: &[(Tag, Vec<u32>)], params: SamplingParams) -> Vec<Response<Tag>> {
    let (mut waiting, mut responses) = (prompts.iter(), Vec::new());
    loop {
        while engine.n_free_slots() > 0 {
            let Some((tag, prompt)) = waiting.next() else { break };
            engine.admit(*tag, prompt, rng_of(*tag), params).unwrap();
        }
        if engine.n_running() == 0 {
            responses.sort_by_key(|response: &Response<Tag>| response.tag);
            return responses;
        }
        responses.extend(engine.step().unwrap());
    }
}

fn prompts(lengths: &[usize]) -> Vec<(Tag, Vec<u32>)> {
    lengths.iter().enumerate().map(|(tag, n)| (tag, tokens(*n, tag as u64))).collect()
}

/// What `logprobs_at` of a model in training layout says of a response.
fn trained_on(config: &Arc<ModelConfig>, seed: u64, prompt: &[u32], response: &[u32], t: f32) -> (Vec<f32>, Vec<f32>) {
    let model = LanguageModel::new(config, &weights(config, HeadKind::Language, seed)).unwrap();
    let sequence = [prompt, response].concat();
    let rows: Vec<u32> = (prompt.len() - 1..sequence.len() - 1).map(|row| row as u32).collect();
    let found = model.logprobs_at(&PackedSequences::new(&[sequence]), &rows, response, t).unwrap();
    (found.logprobs.to_vec1().unwrap(), found.entropies.to_vec1().unwrap())
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?}\n{b:?}");
}

#[test]
fn the_sampler_and_the_trainer_agree_on_every_token_at_every_temperature() {
    let prompts = prompts(&[3, 7, 12, 5]);
    for config in [without_end(&gpt2()), without_end(&llama())] {
        for temperature in [0.5, 0.7, 1.0, 1.3] {
            for n_slots in [1, 4] {
                let responses = run(&mut engine(&config, 1, n_slots), &prompts, params(temperature, 12));
                for (response, (_, prompt)) in responses.iter().zip(&prompts) {
                    assert_eq!(response.tokens.len(), 12);
                    let (logprobs, entropies) = trained_on(&config, 1, prompt, &response.tokens, temperature);
                    assert_close(&response.logprobs, &logprobs);
                    assert_close(&response.entropies, &entropies);
                }
            }
        }
    }
}

#[test]
fn a_response_depends_on_no_slot_no_company_and_no_order() {
    let prompts = prompts(&[3, 12, 1, 7, 9, 4, 6, 2]);
    for config in [gpt2(), llama()] {
        let params = params(0.9, 15);
        let alone: Vec<_> = prompts
            .iter()
            .flat_map(|prompt| run(&mut engine(&config, 2, 1), std::slice::from_ref(prompt), params))
            .collect();
        let mut backwards = prompts.clone();
        backwards.reverse();
        for n_slots in [1, 3, 8] {
            assert_eq!(run(&mut engine(&config, 2, n_slots), &prompts, params), alone);
            assert_eq!(run(&mut engine(&config, 2, n_slots), &backwards, params), alone);
        }
    }
}

#[test]
fn two_samples_of_one_prompt_differ() {
    let (config, prompt) = (gpt2(), tokens(5, 0));
    let mut engine = engine(&config, 1, 2);
    for sample_idx in [0, 1] {
        let rng = rng::for_sample(3, PromptId(9), sample_idx);
        engine.admit(sample_idx as usize, &prompt, rng, params(1.0, 12)).unwrap();
    }
    let mut responses = Vec::new();
    while engine.n_running() > 0 {
        responses.extend(engine.step().unwrap());
    }
    assert_ne!(responses[0].tokens, responses[1].tokens);
}

#[test]
fn a_response_ends_with_the_end_token_or_by_length_and_no_end_is_invented() {
    let prompts = prompts(&[4; 40]);
    let responses = run(&mut engine(&gpt2(), 1, 4), &prompts, params(1.0, 8));
    let (ended, cut): (Vec<_>, Vec<_>) = responses.iter().partition(|response| response.finish == FinishReason::End);
    assert!(!ended.is_empty() && !cut.is_empty());
    for response in ended {
        assert_eq!(response.tokens.iter().position(|token| *token == END), Some(response.tokens.len() - 1));
    }
    for response in cut {
        assert_eq!(response.tokens.len(), 8);
        assert!(!response.tokens.contains(&END));
    }
}

#[test]
fn each_of_several_end_tokens_ends_a_response() {
    let mut config = ModelConfig::clone(&gpt2());
    config.eos_token_ids = (0..VOCAB_SIZE as u32).collect();
    let responses = run(&mut engine(&Arc::new(config), 1, 1), &prompts(&[4]), params(1.0, 8));
    assert_eq!((responses[0].tokens.len(), responses[0].finish), (1, FinishReason::End));
}

#[test]
fn end_tokens_inside_a_prompt_are_tokens_like_any_other() {
    let config = gpt2();
    let prompt = vec![3, END, END, 5, END];
    let responses = run(&mut engine(&config, 4, 2), &[(0, prompt.clone()), (1, tokens(5, 1))], params(1.0, 6));
    let (logprobs, _) = trained_on(&config, 4, &prompt, &responses[0].tokens, 1.0);
    assert!(!responses[0].tokens.is_empty());
    assert_close(&responses[0].logprobs, &logprobs);
}

#[test]
fn an_empty_response_is_legal() {
    let mut engine = engine(&gpt2(), 1, 2);
    engine.admit(0, &[1, 2], rng_of(0), params(1.0, 0)).unwrap();
    engine.admit(1, &[1, 2], rng_of(1), params(1.0, 2)).unwrap();
    let ended = engine.step().unwrap();
    assert_eq!((ended[0].tag, ended[0].tokens.len(), ended[0].finish), (0, 0, FinishReason::Length));
    assert_eq!(engine.step().unwrap().len() + ended.len(), 2);
}

#[test]
fn a_response_stays_within_the_context() {
    let config = llama();
    let prompts = prompts(&[CONTEXT_LEN - 1, CONTEXT_LEN - 2]);
    for response in run(&mut engine(&config, 1, 2), &prompts, params(1.0, 100)) {
        assert!(response.tokens.len() <= CONTEXT_LEN - prompts[response.tag].1.len());
    }
}

#[test]
fn prompts_that_can_not_be_continued_are_refused() {
    let mut engine = engine(&gpt2(), 1, 1);
    let mut refusal = |prompt: &[u32]| engine.admit(0, prompt, rng_of(0), params(1.0, 1)).unwrap_err().to_string();
    assert!(refusal(&[]).contains("without any token"));
    assert!(refusal(&tokens(CONTEXT_LEN, 1)).contains("a prompt of 40 tokens leaves no room for a response"));
    assert!(refusal(&[1, VOCAB_SIZE as u32]).contains("token 17 is outside the model's vocabulary of 17"));
    engine.admit(0, &[1], rng_of(0), params(1.0, 1)).unwrap();
    let message = engine.admit(1, &[1], rng_of(1), params(1.0, 1)).unwrap_err().to_string();
    assert!(message.contains("all 1 slots"), "{message}");
}

#[test]
fn a_slot_is_free_as_soon_as_its_sequence_ends() {
    let mut engine = engine(&gpt2(), 1, 2);
    engine.admit(0, &tokens(30, 0), rng_of(0), params(1.0, 1)).unwrap();
    engine.admit(1, &tokens(3, 1), rng_of(1), SamplingParams { temperature: 0.0, ..params(1.0, 3) }).unwrap();
    assert_eq!(engine.step().unwrap()[0].tag, 0);
    assert_eq!(engine.n_free_slots(), 1);
}

#[test]
fn new_weights_are_used_from_the_next_token_on_and_new_prompts_see_nothing_else() {
    let config = without_end(&llama());
    let mut changing = engine(&config, 1, 2);
    let greedy = params(0.0, 6);
    changing.admit(0, &tokens(5, 0), rng_of(0), greedy).unwrap();
    changing.step().unwrap();
    changing.step().unwrap();
    let newer = weights(&config, HeadKind::Language, 2);
    changing.set_weights(&newer, PolicyVersion(7)).unwrap();
    assert_eq!(changing.version(), PolicyVersion(7));
    changing.admit(1, &tokens(9, 1), rng_of(1), greedy).unwrap();
    let mut responses = Vec::new();
    while changing.n_running() > 0 {
        responses.extend(changing.step().unwrap());
    }
    assert_eq!(responses[0].versions, [0, 0, 7, 7, 7, 7].map(PolicyVersion));
    let mut fresh = Engine::new(&config, &newer, PolicyVersion(7), 1).unwrap();
    assert_eq!(run(&mut fresh, &[(1, tokens(9, 1))], greedy), responses[1..]);
}

#[test]
fn a_prompt_in_common_is_computed_once_and_changes_no_response() {
    let prompt = tokens(9, 1);
    for config in [without_end(&gpt2()), without_end(&llama())] {
        let alone: Vec<_> =
            (0..4).flat_map(|tag| run(&mut engine(&config, 1, 1), &[(tag, prompt.clone())], params(1.0, 6))).collect();
        let mut sharing = engine(&config, 1, 4);
        for tag in 0..3 {
            sharing.admit(tag, &prompt, rng_of(tag), params(1.0, 6)).unwrap();
        }
        let mut responses = sharing.step().unwrap();
        // One that comes later takes over all but the row from which it samples.
        sharing.admit(3, &prompt, rng_of(3), params(1.0, 6)).unwrap();
        sharing.take_over_prompts();
        assert_eq!(sharing.running().map(|running| running.n_cached).collect::<Vec<_>>(), [9, 9, 9, 8]);
        while sharing.n_running() > 0 {
            responses.extend(sharing.step().unwrap());
        }
        responses.sort_by_key(|response| response.tag);
        assert_eq!(responses, alone);
    }
}

#[test]
fn a_prompt_read_under_other_weights_is_not_taken_over() {
    let (config, prompt) = (without_end(&llama()), tokens(9, 1));
    let newer = weights(&config, HeadKind::Language, 2);
    for cache_policy in [CachePolicy::Keep, CachePolicy::Recompute] {
        let mut changing = engine(&config, 1, 2).with_cache(cache_policy);
        changing.admit(0, &prompt, rng_of(0), params(1.0, 6)).unwrap();
        changing.step().unwrap();
        changing.set_weights(&newer, PolicyVersion(1)).unwrap();
        changing.admit(1, &prompt, rng_of(1), params(1.0, 6)).unwrap();
        changing.take_over_prompts();
        assert!(changing.running().any(|running| running.response.tag == 1 && running.n_cached == 0));
        let mut responses = Vec::new();
        while changing.n_running() > 0 {
            responses.extend(changing.step().unwrap());
        }
        let mut fresh = Engine::new(&config, &newer, PolicyVersion(1), 1).unwrap();
        assert_eq!(run(&mut fresh, &[(1, prompt.clone())], params(1.0, 6)), responses[1..]);
    }
}

#[test]
fn a_prompt_that_waits_is_read_by_the_weights_that_sample_its_first_token() {
    let config = without_end(&gpt2());
    let mut engine = engine(&config, 1, 1);
    engine.admit(0, &tokens(4, 1), rng_of(0), params(1.0, 2)).unwrap();
    engine.set_weights(&weights(&config, HeadKind::Language, 2), PolicyVersion(3)).unwrap();
    engine.step().unwrap();
    let response = engine.step().unwrap().remove(0);
    assert_eq!((response.prompt_version, response.versions), (PolicyVersion(3), vec![PolicyVersion(3); 2]));
}

#[test]
fn no_number_of_threads_changes_a_response() {
    let lengths: Vec<usize> = (0..11).map(|i| 1 + i * 7 % 30).collect();
    for config in [without_end(&gpt2()), without_end(&llama())] {
        let on = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| run(&mut engine(&config, 1, 7), &prompts(&lengths), params(1.0, 8)))
        };
        let on_one = on(1);
        assert_eq!((on(2), on(4)), (on_one.clone(), on_one));
    }
}

#[test]
fn sampling_in_parallel_changes_nothing() {
    let mut config = without_end(&gpt2());
    Arc::make_mut(&mut config).vocab_size = PARALLEL_FROM / 3;
    let prompts = prompts(&[3, 4, 5, 6]);
    let one_by_one = run(&mut engine(&config, 1, 1), &prompts, params(1.0, 2));
    for n_slots in [2, 4] {
        assert_eq!(run(&mut engine(&config, 1, n_slots), &prompts, params(1.0, 2)), one_by_one);
    }
}

#[test]
fn a_policy_that_is_not_finite_is_an_error() {
    let config = gpt2();
    let mut broken = weights(&config, HeadKind::Language, 1);
    broken.insert("transformer.ln_f.bias", Tensor::new(&[f32::NAN; 16], &Device::Cpu).unwrap());
    let mut engine = Engine::new(&config, &broken, PolicyVersion(0), 1).unwrap();
    engine.admit(0, &[1, 2], rng_of(0), params(1.0, 2)).unwrap();
    assert!(engine.step().unwrap_err().to_string().contains("not finite"));
}
