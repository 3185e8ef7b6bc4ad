//! The rounds of `collimate iterate`, each a run of its own: which there are, and which of them a request is about.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Serialize;

use super::live::Watched;
use super::server::Shared;
use crate::rundir::{RunDir, Stage};
use crate::web::ApiError;

/// A round that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    /// Its number, from 1.
    pub round: usize,
    /// Whether PPO has begun in it.
    pub has_ppo: bool,
}

impl Round {
    /// Those that have begun in a directory, in order; none where it holds another run.
    pub fn all(home: &Path) -> Vec<Self> {
        let numbers = 1..;
        numbers.zip(begun(home)).map(|(round, dir)| Self { round, has_ppo: has_ppo(&dir) }).collect()
    }
}

/// The newest round of a directory in which PPO has begun.
pub fn newest(home: &Path) -> Option<RunDir> {
    begun(home).into_iter().rfind(has_ppo)
}

/// The directories of the rounds that have begun, in order.
pub(super) fn begun(home: &Path) -> Vec<RunDir> {
    RunDir::existing(home).map(|dir| dir.rounds()).unwrap_or_default()
}

fn has_ppo(dir: &RunDir) -> bool {
    dir.stage(Stage::Ppo).metrics().exists()
}

/// The run that a request is about: a round's under `/api/rounds/ROUND`, else the one that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its directory.
    pub root: PathBuf,
    /// Which round it is, from 1, where it is one.
    pub round: Option<usize>,
    /// The round that is followed, where one is.
    pub followed: Option<usize>,
}

impl Asked {
    /// By the round's number as it was sent: no other part of a path comes from outside. `None` if there is no such round.
    fn of(watched: &Watched, round: Option<&str>) -> Option<Self> {
        let (rounds, root) = (begun(watched.home()), watched.root());
        let followed = rounds.iter().position(|dir| dir.root() == root).map(|place| place + 1);
        let Some(number) = round else { return Some(Self { root, round: followed, followed }) };
        let number = number.parse::<usize>().ok()?;
        let root = rounds.get(number.checked_sub(1)?)?.root().to_owned();
        Some(Self { root, round: Some(number), followed })
    }

    /// Whether it is the run that the hub tells of.
    pub fn is_followed(&self) -> bool {
        self.round == self.followed
    }
}

impl FromRequestParts<Arc<Shared>> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let unknown = || ApiError::new(StatusCode::NOT_FOUND, "there is no such round");
        let params = RawPathParams::from_request_parts(parts, shared).await.map_err(|_| unknown())?;
        let round = params.iter().find_map(|(name, value)| (name == "round").then_some(value));
        Self::of(&shared.watched, round).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_asked_for_by_its_number_and_nothing_else_is_one() {
        let home = tempfile::tempdir().unwrap();
        let dir = RunDir::open(home.path(), &toml::Table::new()).unwrap();
        for round in 1..=3 {
            let round_dir = RunDir::open(&dir.round(round), &toml::Table::new()).unwrap();
            if round < 3 {
                std::fs::write(round_dir.begin(Stage::Ppo).unwrap().metrics(), "").unwrap();
            }
        }
        let has_ppo: Vec<bool> = Round::all(home.path()).iter().map(|round| round.has_ppo).collect();
        assert_eq!(has_ppo, [true, true, false]);
        let followed = newest(home.path()).unwrap();
        assert_eq!(followed.root(), dir.round(2));
        let watched = Watched::of(home.path());
        assert_eq!(Asked::of(&watched, None).unwrap().round, None, "before a round is followed");
        watched.follow(followed.root());
        let asked = |round| Asked::of(&watched, round).map(|asked| (asked.is_followed(), asked.round, asked.root));
        assert_eq!(asked(None), Some((true, Some(2), dir.round(2))));
        assert_eq!(asked(Some("2")), asked(None));
        assert_eq!(asked(Some("1")), Some((false, Some(1), dir.round(1))));
        for other in ["0", "4", "-1", "", "round-1", "../round-1", "1/../1", "99999999999999999999"] {
            assert_eq!(asked(Some(other)), None, "{other}");
        }
    }
}
