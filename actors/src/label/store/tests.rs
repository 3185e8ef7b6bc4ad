//! The store with a clock of its own: nothing here waits.

use collimate_protocol::records::{Answer, Arm, LabelTask, Origin, PromptText, Ranking, TaskKind};

use super::answers::{Answered, Which};
use super::next::{Assignment, Next, Rules, next};
use super::places::{Placed, Told};
use super::tasks::{Purpose, add};
use super::work::{resume, save_draft, skip, submit, undo, unfinished};
use super::*;
use crate::label::draft::Draft;

mod settled;

const MINUTE: Millis = 60_000;

/// A project in memory, with its clock.
struct Project {
    connection: Connection,
    now: std::cell::Cell<Millis>,
    rules: Rules,
}

impl Project {
    /// With so many tasks, each wanted by so many.
    fn new(n_tasks: usize, wanted: u32) -> Self {
        let connection = Connection::open_in_memory().unwrap();
        prepare(&connection).unwrap();
        let rules = Rules { lease: 30 * MINUTE, screening_threshold: 0.75, repeat_share: 0.0, repeat_after: 2 };
        let project = Self { connection, now: 1_700_000_000_000.into(), rules };
        for n in 0..n_tasks {
            project.add(&ranking(n), Purpose::Work { wanted });
        }
        project
    }

    fn add(&self, task: &LabelTask, purpose: Purpose) -> i64 {
        add(&self.connection, task, &purpose).unwrap().0
    }

    fn labeler(&self, name: &str) -> i64 {
        labelers::add(&self.connection, name).unwrap()
    }

    fn later(&self, by: Millis) {
        self.now.set(self.now.get() + by);
    }

    fn next(&self, labeler: i64) -> Next {
        self.later(1);
        next(&self.connection, labeler, None, &self.rules, self.now.get()).unwrap()
    }

    fn task(&self, labeler: i64) -> Assignment {
        match self.next(labeler) {
            Next::Task(assignment) => *assignment,
            other => panic!("{other:?}"),
        }
    }

    fn submit_as(&self, labeler: i64, handle: &str, key: &str, draft: &Draft) -> Result<u32> {
        self.later(1);
        submit(&self.connection, labeler, handle, key, draft, &[], &self.rules, self.now.get())
    }

    fn answer(&self, labeler: i64, assignment: &Assignment) -> u32 {
        let key = format!("{}-{}", assignment.handle, self.now.get());
        self.submit_as(labeler, &assignment.handle, &key, &in_shown_order(assignment)).unwrap()
    }

    fn draft(&self, labeler: i64, handle: &str, draft: &Draft) {
        self.later(1);
        save_draft(&self.connection, labeler, handle, draft, &[], &self.rules, self.now.get()).unwrap();
    }

    fn skip(&self, labeler: i64, handle: &str, draft: &Draft) {
        self.later(1);
        skip(&self.connection, labeler, handle, draft, &[], self.now.get()).unwrap();
    }

    fn undo(&self, labeler: i64, current: Option<&str>) -> Result<Assignment> {
        self.later(1);
        undo(&self.connection, labeler, current, &self.rules, self.now.get())
    }

    fn answers(&self, which: Which) -> Vec<Answered> {
        let mut all = Vec::new();
        answers::each(&self.connection, which, |answered| -> Result<()> {
            all.push(answered);
            Ok(())
        })
        .unwrap();
        all
    }
}

fn ranking(n: usize) -> LabelTask {
    let responses = ["a", "b", "c"].map(|letter| format!("{letter}{n}")).to_vec();
    LabelTask {
        kind: TaskKind::Rank,
        prompt: PromptText::Text(format!("prompt {n}")),
        responses,
        tokens: None,
        origin: Origin { policy_version: Some(3), ..Origin::default() },
    }
}

/// What is shown first is best.
fn in_shown_order(assignment: &Assignment) -> Draft {
    let n = assignment.shown.len() as u32;
    Draft { places: (1..=n).map(Some).collect(), ..Draft::default() }
}

/// The first of the task is best, wherever it is shown.
fn in_task_order(assignment: &Assignment) -> Draft {
    let places = assignment.shown.iter().map(|idx| Some(*idx as u32 + 1)).collect();
    Draft { places, ..Draft::default() }
}

fn prompt(assignment: &Assignment) -> String {
    tasks::last_turn(&assignment.task.prompt).to_owned()
}

#[test]
fn no_two_are_at_one_task_and_two_tabs_of_one_labeler_get_different_ones() {
    let project = Project::new(3, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let mut seen = vec![prompt(&project.task(anna)), prompt(&project.task(ben)), prompt(&project.task(anna))];
    assert_eq!(project.next(ben), Next::Wait, "anna may leave hers");
    seen.sort();
    assert_eq!(seen, ["prompt 0", "prompt 1", "prompt 2"]);
}

#[test]
fn each_task_gets_exactly_as_many_labelers_as_are_wanted() {
    let project = Project::new(4, 2);
    let labelers: Vec<i64> = ["anna", "ben", "cara"].map(|name| project.labeler(name)).to_vec();
    let mut n_answers = 0;
    // In turn, until nobody gets anything.
    while let Some(tasks) = Some(labelers.iter().map(|labeler| (*labeler, project.next(*labeler))).collect::<Vec<_>>())
        && tasks.iter().any(|(_, next)| matches!(next, Next::Task(_)))
    {
        for (labeler, next) in tasks {
            if let Next::Task(assignment) = next {
                project.answer(labeler, &assignment);
                n_answers += 1;
            }
        }
    }
    assert_eq!(n_answers, 8);
    assert!(labelers.iter().all(|labeler| project.next(*labeler) == Next::Done));
    let mut who = project.answers(Which::All).into_iter().map(|one| (one.provenance.task, one.provenance.labeler));
    let distinct: std::collections::BTreeSet<_> = who.by_ref().collect();
    assert_eq!(distinct.len(), 8, "nobody answers a task twice");
}

#[test]
fn a_task_that_is_left_comes_back_and_what_its_labeler_hands_in_late_is_not_lost() {
    let project = Project::new(1, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let left = project.task(anna);
    let draft = Draft { notes: "half-way".to_owned(), ..Draft::default() };
    project.draft(anna, &left.handle, &draft);
    project.later(29 * MINUTE);
    assert_eq!(project.next(ben), Next::Wait, "the draft was touched less than half an hour ago");
    project.later(2 * MINUTE);
    let taken = project.task(ben);
    assert_eq!(prompt(&taken), "prompt 0");
    assert_ne!(taken.handle, left.handle);

    let error = project.submit_as(anna, &left.handle, "k", &in_shown_order(&left)).unwrap_err();
    assert!(matches!(&error, StoreError::Conflict(problem) if problem.contains("somebody else has done")), "{error}");
    assert_eq!(unfinished(&project.connection, anna).unwrap().len(), 1, "her work is kept");
    project.skip(ben, &taken.handle, &Draft::default());
    let again = project.task(anna);
    assert_eq!((&again.handle, &again.draft), (&left.handle, &in_shown_order(&left)), "and comes back with the task");
    assert_eq!(project.answer(anna, &again), 1);
}

#[test]
fn late_work_on_a_task_that_nobody_took_is_taken() {
    let project = Project::new(1, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let left = project.task(anna);
    project.later(31 * MINUTE);
    assert_eq!(project.answer(anna, &left), 1);
    assert_eq!(project.next(ben), Next::Done, "one answer is all that is wanted");
}

#[test]
fn an_answer_again_is_a_revision_and_all_revisions_are_kept() {
    let project = Project::new(2, 1);
    let anna = project.labeler("anna");
    let first = project.task(anna);
    assert_eq!(project.answer(anna, &first), 1);
    let again = project.undo(anna, None).unwrap();
    assert_eq!((&again.handle, again.revision), (&first.handle, 1));
    assert_eq!(again.draft.places, in_shown_order(&first).places, "what was answered is there to change");
    let tied = Draft { places: vec![Some(1); 3], ..Draft::default() };
    assert_eq!(project.submit_as(anna, &again.handle, "again", &tied).unwrap(), 2);
    let revisions: Vec<u32> = project.answers(Which::All).iter().map(|one| one.provenance.revision).collect();
    assert_eq!(revisions, [1, 2]);
    let newest = project.answers(Which::Training);
    let Answer::Ranking(Ranking { ranks, .. }) = &newest[0].answer else { panic!() };
    assert_eq!((newest.len(), ranks), (1, &vec![1, 1, 1]));
}

#[test]
fn a_request_that_is_sent_again_is_not_done_again() {
    let project = Project::new(2, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let task = project.task(anna);
    let send = || project.submit_as(anna, &task.handle, "the key", &in_shown_order(&task));
    assert_eq!((send().unwrap(), send().unwrap()), (1, 1));
    assert_eq!(project.answers(Which::All).len(), 1);
    assert!(matches!(
        project.submit_as(ben, &task.handle, "the key", &in_shown_order(&task)),
        Err(StoreError::Conflict(_))
    ));
    assert!(matches!(project.submit_as(anna, &task.handle, "", &Draft::default()), Err(StoreError::Invalid(_))));
}

#[test]
fn a_labeler_reaches_nothing_of_another_s() {
    let project = Project::new(2, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let task = project.task(anna);
    let not_found = |result: Result<u32>| assert!(matches!(result, Err(StoreError::NotFound(_))));
    not_found(project.submit_as(ben, &task.handle, "k", &in_shown_order(&task)));
    let now = project.now.get();
    let draft = Draft::default();
    not_found(skip(&project.connection, ben, &task.handle, &draft, &[], now).map(|()| 0));
    not_found(save_draft(&project.connection, ben, &task.handle, &draft, &[], &project.rules, now).map(|()| 0));
    not_found(resume(&project.connection, ben, &task.handle, &project.rules, now).map(|_| 0));
    not_found(project.undo(ben, Some(&task.handle)).map(|_| 0));
}

#[test]
fn a_skip_gives_the_task_to_others_and_keeps_what_was_put_down() {
    let project = Project::new(2, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let first = project.task(anna);
    let draft = Draft { notes: "not sure".to_owned(), ..Draft::default() };
    project.skip(anna, &first.handle, &draft);
    assert_ne!(prompt(&project.task(anna)), prompt(&first), "it does not come again by itself");
    assert!(unfinished(&project.connection, anna).unwrap()[0].is_skipped);
    let back = project.undo(anna, None).unwrap();
    assert_eq!((&back.handle, &back.draft), (&first.handle, &draft));
    // Skipped again, without anything put down: nothing is left of it.
    project.skip(anna, &back.handle, &Draft::default());
    assert_eq!(unfinished(&project.connection, anna).unwrap(), []);
    let taken = project.task(ben);
    assert_eq!(prompt(&taken), prompt(&first));
    project.answer(ben, &taken);
    let error = project.undo(anna, None).unwrap_err();
    assert!(error.to_string().contains("somebody else has done that task"), "{error}");
}

#[test]
fn undo_goes_back_one_at_a_time_and_a_page_comes_back_to_where_it_was() {
    let project = Project::new(4, 1);
    let anna = project.labeler("anna");
    assert!(matches!(project.undo(anna, None), Err(StoreError::NotFound(_))));
    let (one, two) = (project.task(anna), project.task(anna));
    project.answer(anna, &one);
    project.skip(anna, &two.handle, &Draft::default());
    let three = project.task(anna);
    let back = project.undo(anna, Some(&three.handle)).unwrap();
    assert_eq!(back.handle, two.handle);
    let back = project.undo(anna, Some(&back.handle)).unwrap();
    assert_eq!(back.handle, one.handle);
    assert!(project.undo(anna, Some(&back.handle)).is_err(), "there is nothing before it");
    project.answer(anna, &back);
    let resumed = next(&project.connection, anna, Some(&three.handle), &project.rules, project.now.get()).unwrap();
    assert!(matches!(resumed, Next::Task(task) if task.handle == three.handle));
}

#[test]
fn a_labeler_who_fails_the_screening_gets_no_task() {
    let project = Project::new(1, 1);
    for n in 100..102 {
        project.add(&ranking(n), Purpose::Screening { known: vec![1, 2, 3] });
    }
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    for _ in 0..2 {
        let task = project.task(anna);
        project.submit_as(anna, &task.handle, &task.handle, &in_task_order(&task)).unwrap();
        let task = project.task(ben);
        let mut reversed = in_task_order(&task);
        reversed.places.iter_mut().flatten().for_each(|place| *place = 4 - *place);
        project.submit_as(ben, &task.handle, &task.handle, &reversed).unwrap();
    }
    assert_eq!(project.next(ben), Next::Screened);
    assert!(project.undo(ben, None).is_err(), "what decided is not changed afterwards");
    assert_eq!(prompt(&project.task(anna)), "prompt 0");
    assert_eq!(project.answers(Which::Training), [], "the screening's answers are not trained on");
    assert_eq!(project.answers(Which::All).len(), 4);
}

#[test]
fn a_hidden_repeat_looks_like_any_task_and_is_shown_the_other_way_round() {
    let mut project = Project::new(6, 1);
    let anna = project.labeler("anna");
    let mut firsts = Vec::new();
    for _ in 0..3 {
        let task = project.task(anna);
        project.answer(anna, &task);
        firsts.push(task);
    }
    project.rules.repeat_share = 1.0;
    let repeat = project.task(anna);
    // Only the first lies two tasks back.
    assert_eq!(prompt(&repeat), prompt(&firsts[0]));
    assert_ne!(repeat.handle, firsts[0].handle);
    assert_eq!((repeat.revision, &repeat.draft), (0, &Draft::default()), "nothing tells that it was there before");
    assert_eq!(repeat.shown, firsts[0].shown.iter().rev().copied().collect::<Vec<_>>());
    project.answer(anna, &repeat);
    let statistics = stats::rankings(&project.connection).unwrap();
    assert_eq!(statistics.iter().filter(|one| one.is_repeat).count(), 1);
    assert_eq!(project.answers(Which::Training).len(), 3, "trained on once");
    // It takes no place of another labeler's.
    assert_eq!(stats::tasks(&project.connection).unwrap().n_open, 3);
}

#[test]
fn more_overlap_opens_tasks_again_for_those_who_have_been_past_them() {
    let project = Project::new(2, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    for _ in 0..2 {
        let task = project.task(anna);
        project.answer(anna, &task);
    }
    assert_eq!((project.next(anna), project.next(ben)), (Next::Done, Next::Done));
    tasks::set_overlap(&project.connection, 2).unwrap();
    assert_eq!(project.next(anna), Next::Done);
    assert_eq!(prompt(&project.task(ben)), "prompt 0");
}

#[test]
fn the_same_content_is_one_task_wherever_it_came_from() {
    let project = Project::new(1, 1);
    let mut same = ranking(0);
    same.origin = Origin::default();
    assert_eq!(add(&project.connection, &same, &Purpose::Work { wanted: 1 }).unwrap(), (1, false));
    same.responses[0].push('!');
    assert_eq!(add(&project.connection, &same, &Purpose::Work { wanted: 1 }).unwrap(), (2, true));
    let one = LabelTask { responses: vec!["a".to_owned()], ..ranking(0) };
    let error = add(&project.connection, &one, &Purpose::Work { wanted: 1 }).unwrap_err().to_string();
    assert_eq!(error, "has 1 responses, expected 2 to 9 (`rank`)");
}

/// All open tasks in the opposite order, each second one drawn at random.
fn place_backwards(project: &Project) {
    let open = places::open_tasks(&project.connection).unwrap();
    let arm = |idx: usize| if idx.is_multiple_of(2) { Arm::Random } else { Arm::Acquired };
    let told = Told { model: "m".to_owned(), scores: vec![1.0, 0.0, -1.0] };
    let order = open.iter().rev().enumerate().map(|(idx, task)| Placed {
        task: task.id,
        arm: arm(idx),
        told: Some(told.clone()),
    });
    places::set(&project.connection, &order.collect::<Vec<_>>()).unwrap();
}

fn prompts(project: &Project, labeler: i64, n: usize) -> Vec<String> {
    (0..n).map(|_| prompt(&project.task(labeler))).collect()
}

#[test]
fn tasks_with_a_place_come_first_in_its_order_and_what_comes_later_after_them() {
    let project = Project::new(4, 1);
    place_backwards(&project);
    project.add(&ranking(9), Purpose::Work { wanted: 1 });
    let anna = project.labeler("anna");
    assert_eq!(prompts(&project, anna, 5), ["prompt 3", "prompt 2", "prompt 1", "prompt 0", "prompt 9"]);
    assert_eq!(stats::tasks(&project.connection).unwrap().n_open, 0);
}

#[test]
fn new_places_are_gone_by_at_once_and_nobody_gets_a_task_twice() {
    let project = Project::new(6, 2);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    assert_eq!(prompts(&project, anna, 2), ["prompt 0", "prompt 1"]);
    place_backwards(&project);
    assert_eq!(prompts(&project, anna, 2), ["prompt 5", "prompt 4"]);
    place_backwards(&project);
    assert_eq!(prompts(&project, anna, 2), ["prompt 3", "prompt 2"], "hers are not hers again");
    assert_eq!(project.next(anna), Next::Done);
    assert_eq!(prompts(&project, ben, 6), [5, 4, 3, 2, 1, 0].map(|n| format!("prompt {n}")));
}

#[test]
fn a_task_that_was_put_first_and_one_that_comes_back_are_before_all_places() {
    let project = Project::new(3, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    place_backwards(&project);
    let picked = project.add(&ranking(7), Purpose::Work { wanted: 1 });
    places::set_arm(&project.connection, picked, Arm::Picked).unwrap();
    places::put_first(&project.connection, picked).unwrap();
    let first = project.task(anna);
    assert_eq!(prompt(&first), "prompt 7");
    let second = project.task(anna);
    assert_eq!(prompt(&second), "prompt 2");
    project.skip(anna, &second.handle, &Draft::default());
    assert_eq!(prompts(&project, ben, 3), ["prompt 2", "prompt 1", "prompt 0"]);
}

#[test]
fn an_arm_is_said_once_and_comes_out_with_the_answer() {
    let project = Project::new(2, 1);
    place_backwards(&project);
    // Now the other way round: the arms stay.
    let open = places::open_tasks(&project.connection).unwrap();
    assert_eq!(open.iter().map(|task| task.arm).collect::<Vec<_>>(), [Some(Arm::Acquired), Some(Arm::Random)]);
    let other = |task: &places::OpenTask| Placed { task: task.id, arm: Arm::Random, told: None };
    places::set(&project.connection, &open.iter().map(other).collect::<Vec<_>>()).unwrap();
    let anna = project.labeler("anna");
    for _ in 0..2 {
        let task = project.task(anna);
        project.answer(anna, &task);
    }
    let arms: Vec<Option<Arm>> = project.answers(Which::All).iter().map(|one| one.provenance.arm).collect();
    assert_eq!(arms, [Some(Arm::Acquired), Some(Arm::Random)]);
    let overview = crate::label::overview::overview(&project.connection, project.now.get()).unwrap();
    assert_eq!(overview.n_chosen, 1);
    let missing = Placed { task: 99, arm: Arm::Random, told: None };
    assert!(matches!(places::set(&project.connection, &[missing]), Err(StoreError::NotFound(_))));
}

#[test]
fn agreement_is_of_the_tasks_that_nobody_chose() {
    let project = Project::new(4, 2);
    place_backwards(&project);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    for _ in 0..4 {
        // They agree on what was drawn at random, and say the opposite of what was chosen.
        let (one, other) = (project.task(anna), project.task(ben));
        let is_random = ["prompt 3", "prompt 1"].contains(&prompt(&one).as_str());
        project.submit_as(anna, &one.handle, &one.handle, &in_task_order(&one)).unwrap();
        let mut draft = in_task_order(&other);
        if !is_random {
            draft.places = draft.places.iter().map(|place| place.map(|place| 4 - place)).collect();
        }
        project.submit_as(ben, &other.handle, &other.handle, &draft).unwrap();
    }
    let overview = crate::label::overview::overview(&project.connection, project.now.get()).unwrap();
    assert_eq!((overview.pairwise.unwrap().value, overview.n_chosen), (1.0, 4));
    assert_eq!(overview.n_disagreements, 2, "disagreements are of all");
}

#[test]
fn a_labeler_s_alpha_is_told_once_enough_is_shared() {
    let project = Project::new(50, 2);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    project.labeler("cleo");
    let alphas = || {
        let overview = crate::label::overview::overview(&project.connection, project.now.get()).unwrap();
        let of_labelers = overview.labelers.into_iter().map(|one| one.alpha.map(|alpha| (alpha.value, alpha.n)));
        of_labelers.collect::<Vec<_>>()
    };
    let both_answer = |n: usize| {
        let (one, other) = (project.task(anna), project.task(ben));
        assert_eq!(prompt(&one), prompt(&other));
        project.submit_as(anna, &one.handle, &one.handle, &in_task_order(&one)).unwrap();
        let mut draft = in_task_order(&other);
        if n.is_multiple_of(2) {
            draft.places = draft.places.iter().map(|place| place.map(|place| 4 - place)).collect();
        }
        project.submit_as(ben, &other.handle, &other.handle, &draft).unwrap();
    };
    (0..49).for_each(both_answer);
    assert_eq!(alphas(), [None; 3], "49 rankings say too little");
    both_answer(49);
    // 150 units of two values, half of them opposite: in both directions 75·2·2·4 = 1200 observed. Values: 300 of -1 and
    // of 1; expected 2·300·300·4/599. Alpha is 1 - 1200·599/720000 = 1/600.
    let told = alphas();
    for alpha in &told[..2] {
        let (value, n) = alpha.unwrap();
        assert!((value - 1.0 / 600.0).abs() < 1e-12, "{value}");
        assert_eq!(n, 50);
    }
    assert_eq!(told[2], None, "cleo ranked nothing");
}

/// A file with one task, made what an earlier version had.
fn file_as_it_was(path: &Path, unmake: &str) {
    let store = Store::open(path).unwrap();
    store.write_now(|connection| add(connection, &ranking(0), &Purpose::Work { wanted: 1 }).map(drop)).unwrap();
    drop(store);
    Connection::open(path).unwrap().execute_batch(unmake).unwrap();
}

#[test]
fn a_file_of_the_first_version_is_taken_on_with_all_that_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.db");
    file_as_it_was(
        &path,
        "DROP VIEW settled; DROP TABLE settlements;
         DROP INDEX tasks_placed; DROP INDEX tasks_open;
         ALTER TABLE tasks DROP COLUMN arm; ALTER TABLE tasks DROP COLUMN place; ALTER TABLE tasks DROP COLUMN told;
         ALTER TABLE labelers DROP COLUMN last_place;
         CREATE INDEX tasks_open ON tasks (id) WHERE known IS NULL AND n_taken < wanted;
         PRAGMA user_version = 1;",
    );
    let store = Store::open(&path).unwrap();
    let open = store.read(places::open_tasks).unwrap();
    assert_eq!((open.len(), open[0].arm), (1, None));
    let placed = Placed { task: open[0].id, arm: Arm::Random, told: None };
    store.write_now(move |connection| places::set(connection, &[placed])).unwrap();
}

#[test]
fn a_token_is_known_by_its_hash_and_a_new_one_ends_the_old_one() {
    let project = Project::new(0, 1);
    let old = labelers::renew_token(&project.connection, "anna").unwrap();
    let found = |token| labelers::by_token(&project.connection, token).unwrap().map(|labeler| labeler.name);
    assert_eq!(found(&old), Some("anna".to_owned()));
    let new = labelers::renew_token(&project.connection, "anna").unwrap();
    assert_eq!((found(&old), found(&new)), (None, Some("anna".to_owned())));
    assert_eq!(found(&crate::web::Token::random()), None);
    for name in ["", " anna", "a\nb", &"x".repeat(65)] {
        assert!(labelers::add(&project.connection, name).is_err(), "{name:?}");
    }
}

#[test]
fn a_request_that_fails_leaves_nothing_and_its_neighbours_stay_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("a.db")).unwrap();
    let failed = store.write_now(|connection| -> Result<()> {
        labelers::add(connection, "half")?;
        Err(StoreError::Invalid("no".to_owned()))
    });
    assert!(matches!(failed, Err(StoreError::Invalid(_))));
    store.write_now(|connection| labelers::renew_token(connection, "whole").map(drop)).unwrap();
    let again = Store::existing(&dir.path().join("a.db")).unwrap();
    let names = again.read(|connection| Ok(labelers::all(connection)?.len())).unwrap();
    let n: i64 = again.read(|c| Ok(c.query_row("SELECT count(*) FROM labelers", [], |row| row.get(0))?)).unwrap();
    assert_eq!((names, n), (1, 1));
}

#[test]
fn a_file_that_is_not_a_project_s_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("is another program's database"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::write(dir.path().join("text.db"), "not a database, and long enough to look like a header of one").unwrap();
    assert!(matches!(Store::open(&dir.path().join("text.db")), Err(StoreError::File { .. })));
    assert!(matches!(Store::existing(&dir.path().join("none.db")), Err(StoreError::File { .. })));
}

/// Run with `cargo test --release -p collimate --lib a_million_tasks -- --ignored --nocapture`.
#[test]
#[ignore = "a minute; makes a file of some 300 MB"]
fn a_million_tasks_are_handed_out_as_fast_as_ten() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("large.db")).unwrap();
    store
        .write_now(|connection| {
            (0..1_000_000).try_for_each(|n| add(connection, &ranking(n), &Purpose::Work { wanted: 3 }).map(drop))?;
            // Half of the tasks are through, and a tenth was skipped by one of them.
            for name in ["anna", "ben", "cara", "dan"] {
                labelers::add(connection, name)?;
            }
            connection.execute_batch(
                "UPDATE tasks SET n_taken = 3 WHERE id <= 500000;
                 INSERT INTO assignments (handle, task, labeler, pass, state, shown, taken_at, expires_at, finished_at)
                 SELECT 'a' || id, id, 1, 0, CASE WHEN id % 5 THEN 'answered' ELSE 'skipped' END, '[0,1,2]', 0, 0, id
                 FROM tasks WHERE id <= 500000;
                 INSERT INTO returns (task) SELECT id FROM tasks WHERE id <= 500000 AND id % 5 = 0;
                 UPDATE tasks SET place = 1000001 - id, arm = 'acquired' WHERE id % 2 = 0;",
            )?;
            Ok(())
        })
        .unwrap();
    let rules = Rules { lease: 30 * MINUTE, screening_threshold: 0.5, repeat_share: 0.05, repeat_after: 20 };
    let mut times: Vec<Duration> = (0..2_000_i64)
        .map(|n| {
            let (labeler, rules) = (1 + n % 4, rules.clone());
            let began = std::time::Instant::now();
            let got = store.write_now(move |connection| {
                let next = next(connection, labeler, None, &rules, 1_700_000_000_000 + n)?;
                stats::progress(connection, labeler, 1_700_000_000_000 + n)?;
                Ok(next)
            });
            assert!(matches!(got.unwrap(), Next::Task(_)));
            began.elapsed()
        })
        .collect();
    times.sort();
    let at = |share: usize| times[times.len() * share / 100];
    println!("1,000,000 tasks: median {:?}, p99 {:?}, worst {:?}", at(50), at(99), times[times.len() - 1]);
    assert!(at(99) < Duration::from_millis(50), "p99 {:?}", at(99));
}
