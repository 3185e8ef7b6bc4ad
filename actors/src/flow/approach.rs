//! What the scorers of one kind know together: how many rollouts are still on their way to them, and where a batch ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Select, Sender, bounded};

use super::office::TicketOffice;

/// One scorer's view. Every ticket that is issued comes to one of the scorers of a kind once, unless the run stops: what
/// none of them has taken yet will come.
pub(super) struct Approach {
    office: TicketOffice,
    batch_size: u64,
    /// Tickets that one of them has taken.
    n_taken: Arc<AtomicU64>,
    /// Says to each that it may wait in vain.
    calls: Arc<[Sender<()>]>,
    called: Receiver<()>,
}

impl Approach {
    /// One for each of `n` scorers. `n_past` tickets will not come any more: they ended before the run went on.
    pub fn of(n: usize, office: &TicketOffice, n_past: u64, batch_size: u64) -> Vec<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..n).map(|_| bounded(1)).unzip();
        let (calls, n_taken): (Arc<[_]>, _) = (senders.into(), Arc::new(AtomicU64::new(n_past)));
        let one = |called| Self {
            office: office.clone(),
            batch_size,
            n_taken: n_taken.clone(),
            calls: calls.clone(),
            called,
        };
        receivers.into_iter().map(one).collect()
    }

    /// One has come, and was taken: its number, from 0. All scorers are called where it was the last that is on its way,
    /// or the last of a batch.
    pub fn took_one(&self) -> u64 {
        let number = self.n_taken.fetch_add(1, Ordering::SeqCst);
        if !self.is_more_to_come() || self.has_whole_batch(number) {
            for scorer in self.calls.iter() {
                // A full channel holds a call that was not yet heard: it stands for this one too.
                let _ = scorer.try_send(());
            }
        }
        number
    }

    /// Takes the call, if there is one. To be followed by a look, which answers it.
    pub fn hear(&self) {
        let _ = self.called.try_recv();
    }

    /// Whether any is still on its way.
    pub fn is_more_to_come(&self) -> bool {
        self.n_taken.load(Ordering::SeqCst) < self.office.n_issued()
    }

    /// Whether the batch that the rollout of this number belongs to has been taken to its end: then the buffer waits for
    /// it. What is dropped behind the scorers moves the ends, and is known late; a wait is a little too long then.
    pub fn has_whole_batch(&self, number: u64) -> bool {
        let n_dropped = self.office.n_dropped();
        let batch_of = |n: u64| n.saturating_sub(n_dropped) / self.batch_size;
        batch_of(self.n_taken.load(Ordering::SeqCst)) > batch_of(number)
    }

    /// Waits for a call.
    pub fn wait<'a>(&'a self, select: &mut Select<'a>) {
        select.recv(&self.called);
    }
}
