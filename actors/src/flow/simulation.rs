//! Runs a flow in virtual time: each role takes its work at one moment and has done it at a later one, as long after as
//! the work would take on a machine that is described in numbers.
//!
//! The workers are those of a real run; only what computes behind them is fake, and only the clock is not theirs. On a
//! device that several roles share, each piece of work gets an equal part of the cores, and what it can't use goes to
//! the others: as an operating system does with roles that have threads of their own. (In one pool of threads, long work
//! gets more than short work.)

use std::collections::BTreeMap;
use std::time::Duration;

use collimate_protocol::messages::RoleReport;
use collimate_protocol::roles::Unmendable;
use collimate_protocol::{Role, RoleId};

use super::driver::stuck;
use super::error::RunError;
use super::overseer::Overseer;
use super::seat::{Seat, Turn};
use super::wiring::{FlowOutcome, Graph};
use super::worker::Workload;

/// What a piece of work asks of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// On which device.
    pub device_idx: usize,
    /// Seconds that it would take on one core.
    pub core_s: f64,
    /// Most cores that it can use at once, above 0.
    pub most_cores: f64,
}

/// What a simulated run came to.
#[derive(Debug)]
pub struct Simulated<W, T> {
    /// Virtual seconds from start to end.
    pub elapsed_s: f64,
    /// Virtual seconds that each role was at work.
    pub busy_s: BTreeMap<RoleId, f64>,
    /// Core seconds used on each device.
    pub core_s: Vec<f64>,
    /// What was reported, in order.
    pub reports: Vec<RoleReport>,
    /// The outcome; its `elapsed_s` is virtual too.
    pub outcome: Result<FlowOutcome<W, T>, RunError>,
}

impl<W, T> Graph<W, T> {
    /// Runs the flow to its end in virtual time, on devices with so many cores. `load` says what each piece of work
    /// asks of them; it is called in the order in which the work begins.
    pub fn simulate(self, cores: &[f64], mut load: impl FnMut(RoleId, Workload) -> Load) -> Simulated<W, T> {
        let overseer = Overseer::new(&self.config.restarts, true);
        let mut seats = overseer.seats(self.workers, &self.state);
        let mut floor = Floor::new(cores, seats.len());
        let mut attention = Attention::new(&seats);
        seats.iter().for_each(|seat| seat.report(RoleReport::Started(seat.role())));
        loop {
            // What one takes makes room for another: until nobody has anything to look at.
            while let Some(seat_idx) =
                attention.next(overseer.n_commands(), |idx| !floor.is_at_work(idx) && !seats[idx].has_ended())
            {
                let seat = &mut seats[seat_idx];
                match seat.begin() {
                    Turn::Ready => {
                        floor.start(seat_idx, load(seat.role(), seat.workload()));
                        attention.acted(seat_idx);
                    }
                    Turn::Progressed | Turn::Ended => attention.acted(seat_idx),
                    Turn::Starved | Turn::Paused | Turn::Failed => {}
                }
            }
            if seats.iter().all(Seat::has_ended) {
                break;
            }
            let Some(at) = floor.next_end().into_iter().chain(overseer.next_due()).min() else {
                let error = Unmendable(stuck(&seats, &self.state).into()).into();
                if let Some(seat) = seats.iter_mut().find(|seat| !seat.has_ended()) {
                    seat.fail(&error);
                }
                continue;
            };
            let ended = floor.advance(at);
            overseer.advance(floor.now);
            for seat_idx in ended {
                seats[seat_idx].finish();
                attention.acted(seat_idx);
            }
        }
        let (reports, outcome) = overseer.result(&self.state, self.remains);
        let elapsed_s = floor.now.as_secs_f64();
        Simulated {
            elapsed_s,
            busy_s: seats.iter().map(Seat::role).zip(floor.busy_s).collect(),
            core_s: floor.devices.into_iter().map(|device| device.core_s).collect(),
            reports,
            outcome: outcome.map(|outcome| FlowOutcome { elapsed_s, ..outcome }),
        }
    }
}

/// Who is to look again whether there is something to do. With hundreds of generators it matters that not all look
/// whenever one of them has sampled a token.
struct Attention {
    roles: Vec<Role>,
    /// Of each seat.
    is_called: Vec<bool>,
    /// Commands given when all were called because of them.
    n_commands: u64,
}

impl Attention {
    fn new(seats: &[Seat]) -> Self {
        let roles: Vec<Role> = seats.iter().map(|seat| seat.role().role).collect();
        Self { is_called: vec![true; roles.len()], roles, n_commands: 0 }
    }

    /// The first who is called and can come. All are called where commands have been given since the last call of all.
    fn next(&mut self, n_commands: u64, can_come: impl Fn(usize) -> bool) -> Option<usize> {
        if n_commands > self.n_commands {
            self.n_commands = n_commands;
            self.is_called.fill(true);
        }
        let seat_idx = (0..self.roles.len()).find(|seat_idx| self.is_called[*seat_idx] && can_come(*seat_idx))?;
        self.is_called[seat_idx] = false;
        Some(seat_idx)
    }

    /// A seat did something. All others may have something to do now, and itself; but what a generator does, takes
    /// prompts and fills a hop, never lets another generator go on.
    fn acted(&mut self, seat_idx: usize) {
        let by_generator = self.roles[seat_idx] == Role::Generator;
        for (is_called, role) in self.is_called.iter_mut().zip(&self.roles) {
            *is_called |= !(by_generator && *role == Role::Generator);
        }
        self.is_called[seat_idx] = true;
    }
}

/// Where the work is done: devices, and what is in progress on each.
struct Floor {
    now: Duration,
    devices: Vec<Device>,
    /// Of each seat.
    at_work: Vec<bool>,
    busy_s: Vec<f64>,
}

struct Device {
    cores: f64,
    /// Core seconds used so far.
    core_s: f64,
    in_progress: Vec<InProgress>,
}

struct InProgress {
    seat_idx: usize,
    core_s_left: f64,
    most_cores: f64,
    /// Cores that it has now.
    cores: f64,
}

impl Floor {
    fn new(cores: &[f64], n_seats: usize) -> Self {
        let device = |&cores: &f64| Device { cores, core_s: 0.0, in_progress: Vec::new() };
        Self {
            now: Duration::ZERO,
            devices: cores.iter().map(device).collect(),
            at_work: vec![false; n_seats],
            busy_s: vec![0.0; n_seats],
        }
    }

    fn is_at_work(&self, seat_idx: usize) -> bool {
        self.at_work[seat_idx]
    }

    fn start(&mut self, seat_idx: usize, load: Load) {
        let Load { device_idx, core_s, most_cores } = load;
        self.at_work[seat_idx] = true;
        let device = &mut self.devices[device_idx];
        device.in_progress.push(InProgress { seat_idx, core_s_left: core_s, most_cores, cores: 0.0 });
        device.share();
    }

    /// When the next piece of work will be done, if nothing else begins.
    fn next_end(&self) -> Option<Duration> {
        let in_progress = self.devices.iter().flat_map(|device| &device.in_progress);
        in_progress.map(|piece| self.now + piece.time_left()).min()
    }

    /// Lets time pass; who has done their work by then, in the order of their seats.
    fn advance(&mut self, to: Duration) -> Vec<usize> {
        let passed_s = to.saturating_sub(self.now).as_secs_f64();
        let mut ended = Vec::new();
        for device in &mut self.devices {
            let n_before = device.in_progress.len();
            for piece in &mut device.in_progress {
                piece.core_s_left -= passed_s * piece.cores;
                device.core_s += passed_s * piece.cores;
                self.busy_s[piece.seat_idx] += passed_s;
            }
            device.in_progress.retain(|piece| {
                let is_done = piece.time_left().is_zero();
                if is_done {
                    ended.push(piece.seat_idx);
                }
                !is_done
            });
            if device.in_progress.len() < n_before {
                device.share();
            }
        }
        self.now = to;
        ended.sort_unstable();
        ended.iter().for_each(|seat_idx| self.at_work[*seat_idx] = false);
        ended
    }
}

impl Device {
    /// Gives each piece of work an equal part of the cores, and what one can't use to the others.
    fn share(&mut self) {
        let mut by_need: Vec<&mut InProgress> = self.in_progress.iter_mut().collect();
        by_need.sort_by(|a, b| a.most_cores.total_cmp(&b.most_cores));
        let (mut cores, mut n_left) = (self.cores, by_need.len());
        for piece in by_need {
            piece.cores = piece.most_cores.min(cores / n_left as f64);
            cores -= piece.cores;
            n_left -= 1;
        }
    }
}

impl InProgress {
    /// Rounded up to whole nanoseconds; what is left of less than half of one is rounding.
    fn time_left(&self) -> Duration {
        let nanos = self.core_s_left / self.cores * 1e9;
        if nanos < 0.5 { Duration::ZERO } else { Duration::from_nanos(nanos.ceil() as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(core_s: f64, most_cores: f64) -> Load {
        Load { device_idx: 0, core_s, most_cores }
    }

    /// Who is done when, in seconds.
    fn ends(floor: &mut Floor) -> Vec<(f64, Vec<usize>)> {
        let mut ends = Vec::new();
        while let Some(at) = floor.next_end() {
            let ended = floor.advance(at);
            if !ended.is_empty() {
                ends.push(((at.as_secs_f64() * 1e6).round() / 1e6, ended));
            }
        }
        ends
    }

    #[test]
    fn two_pieces_of_work_share_the_cores_and_the_one_that_is_left_gets_all_that_it_can_use() {
        let mut floor = Floor::new(&[2.0], 2);
        floor.start(0, load(1.0, 2.0));
        floor.start(1, load(3.0, 1.5));
        // A core each for a second; then 2 core seconds are left for 1.5 cores.
        assert_eq!(ends(&mut floor), [(1.0, vec![0]), (2.333_333, vec![1])]);
        assert!((floor.devices[0].core_s - 4.0).abs() < 1e-6);
        assert!((floor.busy_s[0] - 1.0).abs() < 1e-6 && (floor.busy_s[1] - 7.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn what_one_cannot_use_goes_to_the_others() {
        let mut floor = Floor::new(&[4.0], 3);
        floor.start(0, load(0.5, 0.5));
        floor.start(1, load(1.0, 8.0));
        floor.start(2, load(1.75, 8.0));
        // 0.5, 1.75 and 1.75 cores: the second is done after 4/7 s, the first after 1 s.
        let ends = ends(&mut floor);
        assert_eq!(ends[0], (0.571_429, vec![1]));
        assert_eq!(ends[1].1, [2]);
        assert_eq!(ends[2], (1.0, vec![0]));
    }

    #[test]
    fn devices_know_nothing_of_one_another() {
        let mut floor = Floor::new(&[1.0, 1.0], 2);
        floor.start(0, load(1.0, 1.0));
        floor.start(1, Load { device_idx: 1, ..load(1.0, 1.0) });
        assert_eq!(ends(&mut floor), [(1.0, vec![0, 1])]);
    }

    #[test]
    fn work_that_takes_no_time_is_done_at_once() {
        let mut floor = Floor::new(&[1.0], 1);
        floor.start(0, load(0.0, 1.0));
        assert_eq!(ends(&mut floor), [(0.0, vec![0])]);
    }
}
