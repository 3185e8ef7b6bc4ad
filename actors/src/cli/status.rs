//! `status`: how a run of PPO is, from outside.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use collimate_protocol::messages::RunStatus;

use super::args::StatusArgs;
use super::print;
use crate::observe::server;
use crate::rundir::{Checkpoints, RunDir, Stage, status};
use crate::web::bind::parse_address;

/// Prints the run as it was a moment ago.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    match address(&args.run) {
        Some(address) => {
            let status = server::fetch_status(address)?;
            let kept = status.checkpoint.map_or(String::new(), |version| format!("{version} is the newest"));
            show(args, &status, true, Duration::ZERO, &kept)
        }
        None => {
            let dir = RunDir::existing(&args.run)?;
            let folder = dir.stage(Stage::Ppo);
            let status = status::read(&folder.status())?;
            let is_live = dir.is_in_use()?;
            let age = std::fs::metadata(folder.status())?.modified()?.elapsed().unwrap_or_default();
            let checkpoints = Checkpoints::at(&folder.checkpoints()).versions()?;
            let kept = checkpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            show(args, &status, is_live, age, &kept)
        }
    }
}

/// The address that is meant, where it is one and no folder has that name.
fn address(run: &Path) -> Option<SocketAddr> {
    let text = run.to_str().filter(|_| !run.exists())?;
    parse_address(text, server::EXAMPLE_PORT).ok()
}

fn show(args: &StatusArgs, status: &RunStatus, is_live: bool, age: Duration, kept: &str) -> anyhow::Result<()> {
    if args.json {
        return Ok(print(&format!("{}\n", serde_json::to_string(status)?))?);
    }
    Ok(print(&text(status, is_live, age, kept))?)
}

fn text(status: &RunStatus, is_live: bool, age: Duration, kept: &str) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = text_to(&mut text, status, is_live, age, kept);
    text
}

fn text_to(text: &mut String, status: &RunStatus, is_live: bool, age: Duration, kept: &str) -> std::fmt::Result {
    let state = match (is_live, status.has_ended) {
        (_, true) => "ended",
        (true, false) => "running",
        (false, false) => "gone without an end: the same command goes on from its newest checkpoint",
    };
    let RunStatus { version, n_updates, elapsed_s, tickets, n_issued_again, .. } = status;
    writeln!(text, "{state}: {version} of {n_updates} updates, {elapsed_s:.0} s, as of {} s ago", age.as_secs())?;
    let reasons: Vec<String> = tickets.dropped_by_reason.iter().map(|(why, n)| format!("{n} {}", why.name())).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    writeln!(
        text,
        "tickets: {} issued = {} trained + {} dropped{reasons} + {} in flight; {n_issued_again} issued again",
        tickets.issued, tickets.trained, tickets.dropped, tickets.in_flight
    )?;
    writeln!(text, "checkpoints: {}", if kept.is_empty() { "none" } else { kept })?;
    writeln!(
        text,
        "\n{:<20} {:<11} {:>8} {:>7} {:>10} {:>12} {:>6}",
        "role", "state", "restarts", "queue", "items", "tokens", "busy"
    )?;
    for role in &status.roles {
        let busy = 100.0 * role.busy_s / elapsed_s.max(f64::MIN_POSITIVE);
        let state = format!("{:?}", role.state).to_lowercase();
        writeln!(
            text,
            "{:<20} {state:<11} {:>8} {:>7} {:>10} {:>12} {busy:>4.0} %",
            role.role.to_string(),
            role.n_restarts,
            role.queue_depth,
            role.n_items,
            role.n_tokens
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use collimate_protocol::messages::{RoleState, RoleStatus};
    use collimate_protocol::records::WorkSums;
    use collimate_protocol::{DropReason, PolicyVersion, Role, RoleId, TicketCounts};

    use super::*;

    #[test]
    fn it_shows_the_ledger_the_checkpoints_and_each_role() {
        let role = RoleStatus {
            role: RoleId { role: Role::Generator, idx: 1 },
            state: RoleState::Restarting,
            n_restarts: 2,
            n_items: 70,
            n_tokens: 2000,
            busy_s: 5.0,
            queue_depth: 3,
            work: WorkSums::default(),
        };
        let tickets = TicketCounts {
            issued: 10,
            trained: 4,
            dropped: 1,
            dropped_by_reason: [(DropReason::TooStale, 1)].into(),
            in_flight: 5,
        };
        let status = RunStatus {
            version: PolicyVersion(2),
            n_updates: 40,
            elapsed_s: 10.0,
            tickets,
            n_issued_again: 6,
            checkpoint: Some(PolicyVersion(2)),
            has_ended: false,
            roles: vec![role],
        };
        let shown = text(&status, true, Duration::from_secs(1), "v00, v02");
        assert!(shown.starts_with("running: v2 of 40 updates, 10 s, as of 1 s ago\n"), "{shown}");
        assert!(
            shown.contains("10 issued = 4 trained + 1 dropped (1 too_stale) + 5 in flight; 6 issued again"),
            "{shown}"
        );
        assert!(shown.contains("checkpoints: v00, v02\n"), "{shown}");
        let line = shown.lines().last().unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["generator-1", "restarting", "2", "3", "70", "2000", "50", "%"]);
        assert!(text(&status, false, Duration::ZERO, "").starts_with("gone without an end"));
    }
}
