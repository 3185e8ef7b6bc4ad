//! A hop: the bounded channel between two roles, with what did not fit and a gauge.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use collimate_protocol::RoleError;
use collimate_protocol::records::QueueDepth;
use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, TrySendError, bounded};

use super::ledger::LedgerError;
use super::office::{CarriesTickets, TicketOffice};
use super::worker::Step;

/// A hop that holds `capacity` items (at least 1).
pub fn hop<T>(capacity: usize) -> (Outlet<T>, Inlet<T>) {
    let (sender, receiver) = bounded(capacity.max(1));
    let gauge = Gauge { len: Arc::new(AtomicUsize::new(0)), capacity };
    let outlet = Outlet { sender, gauge: gauge.clone(), waiting: VecDeque::new(), receiver_is_gone: false };
    (outlet, Inlet { receiver, gauge, has_ended: false })
}

/// How full a hop is. It counts on its own: a handle on the channel would keep it from ever being disconnected.
#[derive(Clone, Debug)]
pub struct Gauge {
    len: Arc<AtomicUsize>,
    capacity: usize,
}

impl Gauge {
    /// How full it is now.
    pub fn depth(&self) -> QueueDepth {
        // An item is counted before it is sent, so one that does not fit shows for an instant.
        QueueDepth { len: self.len.load(Ordering::Relaxed).min(self.capacity), capacity: self.capacity }
    }
}

/// The sending end. What does not fit waits here: a role sends without ever blocking, and takes no new work before
/// [`flush`](Outlet::flush) has emptied this.
#[derive(Debug)]
pub struct Outlet<T> {
    sender: Sender<T>,
    gauge: Gauge,
    waiting: VecDeque<T>,
    receiver_is_gone: bool,
}

impl<T> Outlet<T> {
    /// Sends, now or later.
    pub fn push(&mut self, item: T) {
        self.waiting.push_back(item);
        self.flush();
    }

    /// Sends what waits, as far as it fits; whether nothing waits any more.
    pub fn flush(&mut self) -> bool {
        while let Some(item) = self.waiting.pop_front() {
            self.gauge.len.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.sender.try_send(item) {
                self.gauge.len.fetch_sub(1, Ordering::Relaxed);
                self.receiver_is_gone = matches!(error, TrySendError::Disconnected(_));
                self.waiting.push_front(error.into_inner());
                return false;
            }
        }
        true
    }

    /// Whether something waits.
    pub fn is_blocked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the receiver was found gone. That alone does not say that it ended in good order.
    pub fn receiver_is_gone(&self) -> bool {
        self.receiver_is_gone
    }

    /// Takes back what waits.
    pub fn take_back(&mut self) -> impl Iterator<Item = T> + '_ {
        self.waiting.drain(..)
    }

    /// Waits for room. Not once the receiver is gone: room will never come, only the command to stop.
    pub fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if !self.receiver_is_gone {
            select.send(&self.sender);
        }
    }

    /// How full the hop is.
    pub fn gauge(&self) -> Gauge {
        self.gauge.clone()
    }

    /// Another sending end of the same hop.
    pub fn another(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            gauge: self.gauge.clone(),
            waiting: VecDeque::new(),
            receiver_is_gone: false,
        }
    }
}

/// What an inlet had.
#[derive(Debug)]
pub enum Taken<T> {
    /// The next item.
    Item(T),
    /// Nothing at the moment.
    Nothing,
    /// Nothing any more: every sender is gone. That alone does not say that they ended in good order.
    Ended,
}

/// The receiving end. A clone takes from the same hop.
#[derive(Clone, Debug)]
pub struct Inlet<T> {
    receiver: Receiver<T>,
    gauge: Gauge,
    has_ended: bool,
}

impl<T> Inlet<T> {
    /// Takes an item if there is one.
    pub fn take(&mut self) -> Taken<T> {
        match self.receiver.try_recv() {
            Ok(item) => {
                self.gauge.len.fetch_sub(1, Ordering::Relaxed);
                Taken::Item(item)
            }
            Err(TryRecvError::Empty) => Taken::Nothing,
            Err(TryRecvError::Disconnected) => {
                self.has_ended = true;
                Taken::Ended
            }
        }
    }

    /// Whether every sender is gone and nothing is left.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Waits for an item, or for the last sender to go. Not once it has gone.
    pub fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if !self.has_ended {
            select.recv(&self.receiver);
        }
    }

    /// How full the hop is.
    pub fn gauge(&self) -> Gauge {
        self.gauge.clone()
    }
}

impl<T: CarriesTickets> Inlet<T> {
    /// Part of stopping: sends home what is in the hop. Finished once nothing can come any more.
    pub fn shut_down(&mut self, office: &TicketOffice) -> Result<Step, RoleError> {
        let mut step = Step::Starved;
        loop {
            match self.take() {
                Taken::Item(item) => {
                    office.shut_down(&item)?;
                    step = Step::Progressed;
                }
                Taken::Nothing => return Ok(step),
                Taken::Ended => return Ok(Step::Finished),
            }
        }
    }
}

impl<T: CarriesTickets> Outlet<T> {
    /// Part of stopping: sends home what has not been sent on.
    pub fn shut_down(&mut self, office: &TicketOffice) -> Result<(), LedgerError> {
        self.take_back().try_for_each(|item| office.shut_down(&item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_waits_and_keeps_its_order() {
        let (mut outlet, mut inlet) = hop(2);
        for item in 0..4 {
            outlet.push(item);
        }
        assert!(outlet.is_blocked());
        assert_eq!(inlet.gauge().depth(), QueueDepth { len: 2, capacity: 2 });
        let mut taken = Vec::new();
        while let Taken::Item(item) = inlet.take() {
            taken.push(item);
            outlet.flush();
        }
        assert_eq!(taken, [0, 1, 2, 3]);
        assert_eq!(inlet.gauge().depth().len, 0);
    }

    #[test]
    fn the_end_shows_once_every_sender_is_gone_and_all_is_taken() {
        let (mut outlet, mut inlet) = hop(2);
        let another = outlet.another();
        outlet.push(1);
        drop(outlet);
        assert!(matches!(inlet.take(), Taken::Item(1)));
        assert!(matches!(inlet.take(), Taken::Nothing));
        drop(another);
        assert!(matches!(inlet.take(), Taken::Ended));
        assert!(inlet.has_ended());
    }

    #[test]
    fn what_could_not_be_sent_to_a_receiver_that_is_gone_can_be_taken_back() {
        let (mut outlet, inlet) = hop(1);
        drop(inlet);
        outlet.push(7);
        assert_eq!(outlet.take_back().collect::<Vec<_>>(), [7]);
    }
}
