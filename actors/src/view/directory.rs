//! What a run directory tells of a run: all of it at once, or as another process writes it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::history::History;
use super::hub::{Hub, Known, Message};
use super::live::{self, Watched};
use super::rounds;
use crate::rundir::event_log::LoggedEvent;
use crate::rundir::{RunDir, Stage, StageDir, read_jsonl, status};

/// How often a run of another process is looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// A status younger than this is of a run that goes on.
const FRESH: Duration = Duration::from_secs(3);
/// How often a lock is looked at.
const LOCK_INTERVAL: Duration = Duration::from_secs(5);

/// Reads all of PPO's folder; a part that can't be read is told of, and the rest is shown.
pub fn load(dir: &StageDir, hub: &Hub) {
    read(dir, &mut Tail::default(), &mut Tail::default(), hub);
}

/// The same of a run that nobody is at, with how it was last.
pub fn load_as_it_was(dir: &StageDir, hub: &Hub) {
    load(dir, hub);
    let status = status::read(&dir.status()).ok();
    hub.write(|known| known.status = status);
}

/// The same as [`load`], with the ends of what was read.
fn read(dir: &StageDir, metrics: &mut Tail, events: &mut Tail, hub: &Hub) {
    let (mut problem, mut main) = (None, Vec::new());
    for (idx, line) in all_lines(metrics, &dir.metrics(), &mut problem).iter().enumerate() {
        match serde_json::from_str::<Value>(line) {
            Ok(record) => main.push(record),
            Err(error) => problem = Some(format!("{}: line {}: {error}", dir.metrics().display(), idx + 1)),
        }
    }
    let abandoned =
        if dir.abandoned_metrics().exists() { read_jsonl(&dir.abandoned_metrics()) } else { Ok(Vec::new()) };
    let abandoned: Vec<Value> = abandoned.unwrap_or_else(|error| {
        problem = Some(error.to_string());
        Vec::new()
    });
    let history = History::of(&main, &abandoned);
    let events = all_lines(events, &dir.events(), &mut problem);
    // A line that a process left unfinished is followed by whole ones.
    let events: Vec<LoggedEvent> = events.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    hub.write(|known| {
        (known.history, known.problem) = (history, problem);
        known.events.clear();
        events.into_iter().for_each(|event| known.add_event(event));
        known.tell(Message::Reset);
    });
}

fn all_lines(tail: &mut Tail, path: &Path, problem: &mut Option<String>) -> Vec<String> {
    *tail = Tail::default();
    match tail.more(path) {
        Ok(More::Lines(lines)) => lines,
        Ok(More::Another) => Vec::new(),
        Err(error) => {
            *problem = Some(format!("{}: {error}", path.display()));
            Vec::new()
        }
    }
}

/// A file that another process adds lines to.
#[derive(Debug, Default)]
struct Tail {
    end: u64,
    /// The last line that was read.
    last: Vec<u8>,
}

/// What a file has more than before.
#[derive(Debug, PartialEq)]
enum More {
    Lines(Vec<String>),
    /// It is another file now: cut, or written anew.
    Another,
}

impl Tail {
    fn more(&mut self, path: &Path) -> std::io::Result<More> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(if self.end == 0 { More::Lines(Vec::new()) } else { More::Another });
            }
            Err(error) => return Err(error),
        };
        let since = self.end - self.last.len() as u64;
        file.seek(SeekFrom::Start(since))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Some(new) = bytes.strip_prefix(self.last.as_slice()) else { return Ok(More::Another) };
        let n_whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |idx| idx + 1);
        let whole = &new[..n_whole];
        if let Some(last) = whole.split_inclusive(|byte| *byte == b'\n').next_back() {
            self.last = last.to_vec();
            self.end += n_whole as u64;
        }
        Ok(More::Lines(String::from_utf8_lossy(whole).lines().map(str::to_owned).collect()))
    }
}

/// Tells a hub what a run directory comes to hold; of one with rounds, the newest in which PPO has begun.
pub struct Follower {
    /// The directory that was named.
    home: RunDir,
    /// The round that is followed, where there are some.
    round: Option<RunDir>,
    ppo: StageDir,
    metrics: Tail,
    events: Tail,
    /// Whether a process had the run locked when that was last asked.
    is_locked: bool,
    lock_seen: Option<Instant>,
}

impl Follower {
    /// Reads all of it, and is ready to go on from there.
    pub fn start(home: RunDir, watched: &Watched) -> Self {
        let ppo = home.stage(Stage::Ppo);
        let (metrics, events) = (Tail::default(), Tail::default());
        let mut follower = Self { home, round: None, ppo, metrics, events, is_locked: false, lock_seen: None };
        if !follower.turn_to_newest(watched) {
            follower.load(&watched.hub);
        }
        follower
    }

    /// Looks again and again, until nobody holds the run any more.
    pub fn follow(mut self, watched: &Weak<Watched>) {
        while let Some(watched) = watched.upgrade() {
            self.look(&watched);
            drop(watched);
            std::thread::sleep(INTERVAL);
        }
    }

    /// Whether there is a round newer than the one that was followed, which is followed now.
    fn turn_to_newest(&mut self, watched: &Watched) -> bool {
        let Some(newest) = rounds::newest(self.home.root()) else { return false };
        if self.round.as_ref().is_some_and(|round| round.root() == newest.root()) {
            return false;
        }
        watched.follow(newest.root());
        self.ppo = newest.stage(Stage::Ppo);
        (self.round, self.is_locked, self.lock_seen) = (Some(newest), false, None);
        self.load(&watched.hub);
        true
    }

    fn load(&mut self, hub: &Hub) {
        read(&self.ppo, &mut self.metrics, &mut self.events, hub);
        self.show_status(hub);
    }

    /// Takes in what is new.
    pub fn look(&mut self, watched: &Watched) {
        if self.turn_to_newest(watched) {
            return;
        }
        let hub = &watched.hub;
        let (metrics, events) = (self.metrics.more(&self.ppo.metrics()), self.events.more(&self.ppo.events()));
        match (metrics, events) {
            (Ok(More::Lines(metrics)), Ok(More::Lines(events))) => {
                if !metrics.is_empty() || !events.is_empty() {
                    hub.write(|known| add(known, &metrics, &events));
                }
                self.show_status(hub);
            }
            (Err(error), _) | (_, Err(error)) => {
                let problem = format!("{}: {error}", self.ppo.path().display());
                if hub.read(|known| known.problem.as_deref() != Some(problem.as_str())) {
                    hub.write(|known| {
                        known.problem = Some(problem);
                        known.tell(Message::Reset);
                    });
                }
            }
            _ => self.load(hub),
        }
    }

    fn show_status(&mut self, hub: &Hub) {
        let status = status::read(&self.ppo.status()).ok();
        let is_live = self.is_live();
        hub.write(|known| {
            if known.is_live != is_live || status.is_some() && known.status != status {
                known.status = status.or(known.status.take());
                known.is_live = is_live;
                known.status_serial += 1;
            }
        });
    }

    /// Whether a process has the run open. One that runs PPO writes its status again and again; of others the lock tells,
    /// which is not asked for often: whoever looks at a lock holds it for an instant.
    fn is_live(&mut self) -> bool {
        let modified = std::fs::metadata(self.ppo.status()).and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) && self.is_locked {
            return true;
        }
        if self.lock_seen.is_none_or(|seen| seen.elapsed() > LOCK_INTERVAL) {
            let dir = self.round.as_ref().unwrap_or(&self.home);
            (self.is_locked, self.lock_seen) = (dir.is_in_use().unwrap_or(false), Some(Instant::now()));
        }
        self.is_locked
    }
}

fn add(known: &mut Known, metrics: &[String], events: &[String]) {
    for record in metrics.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        known.history.push(&record);
        let at = known.history.last().unwrap_or_default();
        known.tell(live::updated(at, &record));
    }
    for event in events.iter().filter_map(|line| serde_json::from_str::<LoggedEvent>(line).ok()) {
        known.add_event(event.clone());
        known.tell(Message::Event(event));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use collimate_protocol::PolicyVersion;
    use collimate_protocol::messages::RunEvent;

    use super::*;

    fn append(path: &Path, text: &str) {
        File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn update(version: u64) -> String {
        format!("{{\"version\":{version},\"batch\":{{\"score\":0.5}}}}\n")
    }

    fn run() -> (tempfile::TempDir, RunDir, StageDir, Watched) {
        let dir = tempfile::tempdir().unwrap();
        drop(RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Ppo).unwrap());
        let run = RunDir::existing(dir.path()).unwrap();
        let (ppo, watched) = (run.stage(Stage::Ppo), Watched::of(dir.path()));
        (dir, run, ppo, watched)
    }

    #[test]
    fn what_another_process_writes_is_told_line_by_line() {
        let (_dir, run, ppo, watched) = run();
        append(&ppo.metrics(), &update(1));
        let hub = &watched.hub;
        let mut follower = Follower::start(run, &watched);
        let since = hub.read(|known| {
            assert_eq!((known.history.n_updates(), known.is_live), (1, false));
            known.last_id()
        });
        let second = update(2);
        append(&ppo.metrics(), &second[..10]);
        follower.look(&watched);
        assert_eq!(hub.read(|known| known.last_id()), since, "half a line is no update");
        append(&ppo.metrics(), &second[10..]);
        let event = LoggedEvent::now(PolicyVersion(2), RunEvent::Paused);
        append(&ppo.events(), &format!("{}\n", serde_json::to_string(&event).unwrap()));
        follower.look(&watched);
        follower.look(&watched);
        let heard = hub.read(|known| known.since(since)).unwrap();
        let [(_, Message::Updated { at, numbers }), (_, Message::Event(told))] = &heard[..] else {
            panic!("{heard:?}")
        };
        assert_eq!((at[0], &numbers["batch/score"], &told.event), (Some(2.0), &0.5.into(), &RunEvent::Paused));
    }

    #[test]
    fn a_run_that_goes_on_from_an_earlier_update_is_read_anew() {
        let (_dir, run, ppo, watched) = run();
        (1..=250).for_each(|version| append(&ppo.metrics(), &update(version)));
        let hub = &watched.hub;
        let mut follower = Follower::start(run, &watched);
        let since = hub.read(|known| known.last_id());
        crate::rundir::branches::set_aside(&ppo.metrics(), &ppo.abandoned_metrics(), 200).unwrap();
        std::fs::write(ppo.metrics(), (1..=201).map(update).collect::<String>()).unwrap();
        follower.look(&watched);
        hub.read(|known| {
            assert_eq!(known.since(since).unwrap(), [(since + 1, Message::Reset)]);
            assert_eq!((known.history.n_updates(), known.history.branches()), (201, vec![[200.0, 250.0]]));
        });
    }

    #[test]
    fn the_newest_round_is_followed_once_ppo_has_begun_in_it() {
        let (dir, run, _, watched) = run();
        let begin = |round: usize| {
            let round = RunDir::open(&dir.path().join(format!("round-{round}")), &toml::Table::new()).unwrap();
            round.begin(Stage::Ppo).unwrap()
        };
        let mut follower = Follower::start(run, &watched);
        assert_eq!(watched.root(), dir.path());
        append(&begin(1).metrics(), &[1, 2].map(update).concat());
        follower.look(&watched);
        let n_updates = || watched.hub.read(|known| known.history.n_updates());
        assert_eq!((watched.root(), n_updates()), (dir.path().join("round-1"), 2));
        let second = begin(2);
        follower.look(&watched);
        assert_eq!(watched.root(), dir.path().join("round-1"), "nothing is to be seen of the second yet");
        let since = watched.hub.read(|known| known.last_id());
        append(&second.metrics(), &update(1));
        follower.look(&watched);
        assert_eq!((watched.root(), n_updates()), (dir.path().join("round-2"), 1));
        assert_eq!(watched.hub.read(|known| known.since(since)).unwrap(), [(since + 1, Message::Reset)]);
    }

    #[test]
    fn a_broken_line_is_named_and_the_rest_is_shown() {
        let (_dir, run, ppo, watched) = run();
        append(&ppo.metrics(), &format!("{}nonsense\n{}", update(1), update(2)));
        Follower::start(run, &watched);
        watched.hub.read(|known| {
            assert_eq!(known.history.n_updates(), 2);
            assert!(known.problem.as_ref().unwrap().contains("metrics.jsonl: line 2: "), "{:?}", known.problem);
        });
    }
}
