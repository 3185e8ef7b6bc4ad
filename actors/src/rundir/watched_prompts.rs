//! Which rollouts of a batch are recorded: first those of prompts that were recorded before, so that there is something
//! to compare over versions. Pure: no score and no length decides, so what is recorded is a fair sample.

use std::collections::HashMap;

use collimate_protocol::PromptId;

/// Prompts that are watched: few of a pass over all prompts, so that most of what is recorded is new.
const N_WATCHED: usize = 64;

/// The prompts that were recorded first. They follow from the file alone: a run that goes on with it watches the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchedPrompts {
    /// Each prompt's place in the order in which they were first recorded.
    places: HashMap<PromptId, usize>,
}

impl WatchedPrompts {
    /// A rollout of this prompt is recorded.
    pub fn see(&mut self, prompt: PromptId) {
        let place = self.places.len();
        if place < N_WATCHED {
            self.places.entry(prompt).or_insert(place);
        }
    }

    /// At most `n` rollouts of a batch, whose prompts these are in its order: those of watched prompts, the one watched
    /// longest first, then the others as they come.
    pub fn choose(&self, batch: &[PromptId], n: usize) -> Vec<usize> {
        let mut chosen: Vec<usize> = (0..batch.len()).collect();
        chosen.sort_by_key(|idx| self.places.get(&batch[*idx]).copied().unwrap_or(N_WATCHED));
        chosen.truncate(n);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(prompts: impl IntoIterator<Item = u64>) -> WatchedPrompts {
        let mut watched = WatchedPrompts::default();
        prompts.into_iter().for_each(|prompt| watched.see(PromptId(prompt)));
        watched
    }

    fn chosen(watched: &WatchedPrompts, batch: &[u64], n: usize) -> Vec<usize> {
        watched.choose(&batch.iter().copied().map(PromptId).collect::<Vec<_>>(), n)
    }

    #[test]
    fn prompts_that_were_recorded_before_come_first_and_the_rest_as_it_comes() {
        assert_eq!(chosen(&watched([]), &[5, 3, 9], 2), [0, 1]);
        let watched = watched([9, 4, 3]);
        assert_eq!(chosen(&watched, &[5, 3, 7, 9, 8], 4), [3, 1, 0, 2]);
        assert_eq!(chosen(&watched, &[3, 9, 3], 2), [1, 0]);
        assert_eq!(chosen(&watched, &[5, 3], 9), [1, 0]);
        assert!(chosen(&watched, &[], 4).is_empty() && chosen(&watched, &[3], 0).is_empty());
    }

    #[test]
    fn few_are_watched_however_many_are_recorded_and_however_often() {
        let (few, many) = (0..N_WATCHED as u64, 0..10_000);
        assert_eq!(watched(few.clone()), watched(many));
        assert_eq!(watched(few.clone().chain(few.clone())), watched(few));
        assert_ne!(watched([1, 2]), watched([2, 1]));
    }

    /// 1,000 prompts in two passes, the second in another order, eight of each batch of fifty recorded.
    #[test]
    fn a_watched_prompt_is_recorded_in_every_pass() {
        let passes = [(0..1000).collect::<Vec<u64>>(), (0..1000).map(|n| n * 7 % 1000).collect()];
        let mut watched = WatchedPrompts::default();
        let mut recorded = HashMap::<u64, usize>::new();
        for batch in passes.iter().flat_map(|pass| pass.chunks(50)) {
            for idx in chosen(&watched, batch, 8) {
                watched.see(PromptId(batch[idx]));
                *recorded.entry(batch[idx]).or_default() += 1;
            }
        }
        assert_eq!(recorded.values().sum::<usize>(), 320);
        let n_twice = recorded.values().filter(|n| **n == 2).count();
        assert!(n_twice >= N_WATCHED, "{n_twice}");
    }
}
