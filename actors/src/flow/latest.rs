//! The slot of the newest snapshot: the learner publishes, generators and experience buffer read, latest wins.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use collimate_protocol::{PolicyVersion, Snapshot};

/// Holds one immutable snapshot, never none. A clone is another handle on the same slot.
pub struct Latest<W> {
    slot: Arc<RwLock<Snapshot<W>>>,
}

impl<W> Latest<W> {
    /// A slot with its first snapshot.
    pub fn new(first: Snapshot<W>) -> Self {
        Self { slot: Arc::new(RwLock::new(first)) }
    }

    /// Puts a newer snapshot in place. An older one is not taken: versions never go back.
    pub fn publish(&self, snapshot: Snapshot<W>) {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if snapshot.version > slot.version {
            *slot = snapshot;
        }
    }

    /// The newest snapshot. It shares its weights, which never change.
    pub fn newest(&self) -> Snapshot<W> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest snapshot's version.
    pub fn version(&self) -> PolicyVersion {
        self.slot.read().unwrap_or_else(PoisonError::into_inner).version
    }
}

impl<W> Clone for Latest<W> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

impl<W> fmt::Debug for Latest<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latest").field("version", &self.version()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(version: u64) -> Snapshot<u64> {
        Snapshot { version: PolicyVersion(version), policy: Arc::new(version), value: Arc::new(version) }
    }

    #[test]
    fn the_latest_wins_and_an_older_one_never_comes_back() {
        let latest = Latest::new(snapshot(0));
        latest.publish(snapshot(2));
        latest.publish(snapshot(1));
        assert_eq!(latest.version(), PolicyVersion(2));
        assert_eq!(*latest.newest().policy, 2);
    }

    #[test]
    fn a_snapshot_in_use_does_not_change_when_the_next_is_published() {
        let latest = Latest::new(snapshot(0));
        let in_use = latest.newest();
        latest.publish(snapshot(1));
        assert_eq!((in_use.version, *in_use.policy), (PolicyVersion(0), 0));
    }
}
