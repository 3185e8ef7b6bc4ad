//! What the scorers of one kind know together: how many rollouts are still on their way to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Select, Sender, bounded};

use super::office::TicketOffice;

/// One scorer's view. Every ticket that is issued comes to one of the scorers of a kind once, unless the run stops: what
/// none of them has taken yet will come.
pub(super) struct Approach {
    office: TicketOffice,
    /// Tickets that one of them has taken.
    n_taken: Arc<AtomicU64>,
    /// Says to each that nothing more is on its way.
    all_are_here: Arc<[Sender<()>]>,
    notice: Receiver<()>,
}

impl Approach {
    /// One for each of `n` scorers. `n_past` tickets will not come any more: they ended before the run went on.
    pub fn of(n: usize, office: &TicketOffice, n_past: u64) -> Vec<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..n).map(|_| bounded(1)).unzip();
        let (all_are_here, n_taken): (Arc<[_]>, _) = (senders.into(), Arc::new(AtomicU64::new(n_past)));
        let one = |notice| Self {
            office: office.clone(),
            n_taken: n_taken.clone(),
            all_are_here: all_are_here.clone(),
            notice,
        };
        receivers.into_iter().map(one).collect()
    }

    /// One has come, and was taken. Where it was the last, all scorers are told: those that wait for more wait in vain.
    pub fn took_one(&self) {
        self.n_taken.fetch_add(1, Ordering::SeqCst);
        if !self.is_more_to_come() {
            // A full channel holds a notice that was not yet read: it stands for this one too.
            for scorer in self.all_are_here.iter() {
                let _ = scorer.try_send(());
            }
        }
    }

    /// Takes the notice, if there is one. To be followed by a look, which answers it.
    pub fn hear(&self) {
        let _ = self.notice.try_recv();
    }

    /// Whether any is still on its way.
    pub fn is_more_to_come(&self) -> bool {
        self.n_taken.load(Ordering::SeqCst) < self.office.n_issued()
    }

    /// Waits for the notice that none is on its way.
    pub fn wait<'a>(&'a self, select: &mut Select<'a>) {
        select.recv(&self.notice);
    }
}
