//! Runs a flow on the caller's thread, without actors.

use collimate_protocol::messages::RoleReport;
use crossbeam_channel::never;

use super::driver::run_in_turn;
use super::error::RunError;
use super::overseer::Overseer;
use super::wiring::{FlowOutcome, Graph};

impl<W, T> Graph<W, T> {
    /// Runs the flow on this thread to its end, in turn as in a deterministic run, without actors: for tests. Returns
    /// what was reported, in order, too.
    pub fn run_here(self) -> (Vec<RoleReport>, Result<FlowOutcome<W, T>, RunError>) {
        // In a run without a clock every failure is recent.
        let overseer = Overseer::new(&self.config.restarts, false);
        let seats = overseer.seats(self.workers, &self.state);
        run_in_turn(seats, never(), &self.state);
        overseer.result(&self.state, self.remains)
    }
}
