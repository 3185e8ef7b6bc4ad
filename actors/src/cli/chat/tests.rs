//! What is typed, what is answered, and what is kept of it.

use std::fs;
use std::path::PathBuf;

use collimate_models::data::Records;
use collimate_protocol::records::{LabelTask, PromptRecord, TaskKind};
use tempfile::TempDir;

use super::*;
use crate::label::store::{Store, stats};
use crate::label::transfer::{ImportAs, Imported, import};

/// Says how many turns it was shown, and has room for no more than some.
struct Counting {
    room: usize,
    shown: Vec<usize>,
}

impl Answers for Counting {
    type Prompt = usize;

    fn fit(&mut self, messages: &mut Vec<Message>) -> anyhow::Result<usize> {
        let n_too_many = messages.len().saturating_sub(self.room);
        messages.drain(..n_too_many);
        Ok(messages.len())
    }

    fn answer(&mut self, n_turns: usize) -> anyhow::Result<String> {
        self.shown.push(n_turns);
        Ok(format!("that makes {n_turns}"))
    }
}

struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn prompts(&self) -> PathBuf {
        self.dir.path().join("prompts.jsonl")
    }

    /// Types this in a chat of its own; `/reset` as at a terminal. Gives how many turns each answer has seen.
    fn type_in(&self, system: Option<&str>, room: usize, lines: &[&str]) -> Vec<usize> {
        chat(Some(SavedPrompts::open(&self.prompts()).unwrap()), system, room, lines)
    }

    fn saved(&self) -> Vec<Vec<(Role, String)>> {
        let records = Records::<PromptRecord>::read(&self.prompts()).unwrap().into_records().into_iter();
        let turns = records.map(|record| match record.prompt {
            PromptText::Messages(messages) => messages.into_iter().map(|one| (one.role, one.content)).collect(),
            PromptText::Text(text) => panic!("{text} is no dialogue"),
        });
        turns.collect()
    }
}

fn chat(saved: Option<SavedPrompts>, system: Option<&str>, room: usize, lines: &[&str]) -> Vec<usize> {
    let messages = system.iter().map(|content| turn(Role::System, content)).collect();
    let mut chat = Chat { answers: Counting { room, shown: Vec::new() }, messages, saved };
    let said = lines.iter().map(|line| match *line {
        "/reset" => Ok(Said::Reset),
        line => Ok(Said::Turn(line.to_owned())),
    });
    chat.go_on(said).unwrap();
    chat.answers.shown
}

fn turn(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}

fn user(content: &str) -> (Role, String) {
    (Role::User, content.to_owned())
}

fn assistant(content: &str) -> (Role, String) {
    (Role::Assistant, content.to_owned())
}

#[test]
fn each_prompt_is_kept_with_the_dialogue_before_it_as_the_model_reads_it() {
    let room = Room::new();
    let seen = room.type_in(None, 99, &["hello", "  ", "and \"you\"?\u{2028}", "/reset", "again"]);
    assert_eq!(seen, [1, 3, 1]);
    let second = vec![user("hello"), assistant("that makes 1"), user("and \"you\"?\u{2028}")];
    assert_eq!(room.saved(), [vec![user("hello")], second, vec![user("again")]]);
}

#[test]
fn what_the_assistant_is_told_is_part_of_the_prompt_and_outlives_a_reset() {
    let room = Room::new();
    assert_eq!(room.type_in(Some("Be brief."), 99, &["hello", "/reset", "again"]), [2, 2]);
    let system = (Role::System, "Be brief.".to_owned());
    assert_eq!(room.saved(), [vec![system.clone(), user("hello")], vec![system, user("again")]]);
}

#[test]
fn turns_that_the_model_no_longer_reads_are_not_in_the_prompt() {
    let room = Room::new();
    room.type_in(None, 1, &["hello", "and you?"]);
    assert_eq!(room.saved(), [vec![user("hello")], vec![user("and you?")]]);
}

#[test]
fn saved_prompts_are_imported_as_tasks_and_twice_is_the_same_as_once() {
    let room = Room::new();
    room.type_in(None, 99, &["hello", "and you?"]);
    let store = Store::open(&room.dir.path().join("label.db")).unwrap();
    let imported = import(&store, &room.prompts(), ImportAs::Work(1)).unwrap();
    assert_eq!(imported, Imported { n_tasks: 2, n_answers: 0, n_known: 0 });
    let imported = import(&store, &room.prompts(), ImportAs::Work(1)).unwrap();
    assert_eq!(imported, Imported { n_tasks: 0, n_answers: 0, n_known: 2 });
    // The same is typed in a later chat, and something new.
    room.type_in(None, 99, &["hello", "/reset", "goodbye"]);
    let imported = import(&store, &room.prompts(), ImportAs::Work(1)).unwrap();
    assert_eq!(imported, Imported { n_tasks: 1, n_answers: 0, n_known: 3 });
    assert_eq!(store.read(stats::tasks).unwrap().n_tasks, 3);
    let tasks = Records::<LabelTask>::read(&room.prompts()).unwrap().into_records();
    assert!(tasks.iter().all(|task| task.kind == TaskKind::Write), "a response is to be written");
}

#[test]
fn prompts_are_added_to_what_the_file_holds_on_lines_of_their_own() {
    let room = Room::new();
    fs::write(room.prompts(), r#"{"prompt": [{"role": "user", "content": "by hand, without a line's end"}]}"#).unwrap();
    room.type_in(None, 99, &["hello"]);
    assert_eq!(room.saved(), [vec![user("by hand, without a line's end")], vec![user("hello")]]);
    let text = fs::read_to_string(room.prompts()).unwrap();
    assert!(text.ends_with("\n") && !text.contains("\n\n"), "{text:?}");
}

#[test]
fn a_file_that_can_not_be_made_is_named() {
    let room = Room::new();
    let path = room.dir.path().join("none/prompts.jsonl");
    let error = SavedPrompts::open(&path).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_the_chat_goes_on() {
    let full = || SavedPrompts::open(std::path::Path::new("/dev/full")).unwrap();
    let error = full().add(&[turn(Role::User, "hello")]).unwrap_err().to_string();
    assert!(error.starts_with("/dev/full: No space left on device"), "{error}");
    assert_eq!(chat(Some(full()), None, 99, &["hello", "and you?"]), [1, 3]);
}

#[cfg(unix)]
#[test]
fn the_file_has_the_permissions_of_any_file_that_the_user_makes() {
    let room = Room::new();
    room.type_in(None, 99, &["hello"]);
    let usual = room.dir.path().join("usual");
    fs::write(&usual, "").unwrap();
    let permissions = |path: PathBuf| fs::metadata(path).unwrap().permissions();
    assert_eq!(permissions(room.prompts()), permissions(usual));
}
