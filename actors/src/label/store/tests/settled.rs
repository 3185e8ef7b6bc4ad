//! What the admin settles, beside what labelers said.

use super::*;
use crate::label::disagreements::{self, N_LISTED};
use crate::label::overview::overview;
use crate::label::store::settled::{of_task, settle, take_back};

impl Project {
    /// With so many tasks on which anna and ben say the opposite.
    fn disagreeing(n_tasks: usize) -> Self {
        let project = Self::new(n_tasks, 2);
        let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
        for _ in 0..n_tasks {
            let task = project.task(anna);
            project.submit_as(anna, &task.handle, &task.handle, &in_task_order(&task)).unwrap();
            let task = project.task(ben);
            project.submit_as(ben, &task.handle, &task.handle, &reversed(&task)).unwrap();
        }
        project
    }

    fn settle(&self, task: i64, draft: &Draft) -> Result<u32> {
        settle(&self.connection, task, self.labeler("admin"), draft, &["untrue".to_owned()], self.now.get())
    }

    fn take_back(&self, task: i64) -> Result<u32> {
        take_back(&self.connection, task, self.labeler("admin"), self.now.get())
    }

    fn who_said_what(&self, which: Which) -> Vec<(String, Vec<u32>)> {
        let ranks = |answer| match answer {
            Answer::Ranking(ranking) => ranking.ranks,
            Answer::Written(_) => Vec::new(),
        };
        self.answers(which).into_iter().map(|one| (one.provenance.labeler, ranks(one.answer))).collect()
    }
}

fn reversed(assignment: &Assignment) -> Draft {
    let mut draft = in_task_order(assignment);
    draft.places.iter_mut().flatten().for_each(|place| *place = 4 - *place);
    draft
}

fn places(places: [u32; 3]) -> Draft {
    Draft { places: places.map(Some).to_vec(), ..Draft::default() }
}

fn said(labeler: &str, ranks: [u32; 3]) -> (String, Vec<u32>) {
    (labeler.to_owned(), ranks.to_vec())
}

#[test]
fn training_reads_what_a_task_is_settled_by_and_every_answer_stays() {
    let project = Project::disagreeing(2);
    project.later(1);
    assert_eq!(project.settle(1, &places([2, 2, 1])).unwrap(), 1);
    let both = [said("anna", [1, 2, 3]), said("ben", [3, 2, 1])];
    let settled = said("admin", [2, 2, 1]);
    assert_eq!(project.who_said_what(Which::Training), [both.as_slice(), std::slice::from_ref(&settled)].concat());
    let with_all = [both.as_slice(), &both, &[settled]].concat();
    assert_eq!(project.who_said_what(Which::WithOverruled), with_all);
    assert_eq!(project.who_said_what(Which::All), with_all);
    let one = project.answers(Which::Training).pop().unwrap();
    assert_eq!((one.task, one.provenance.settled), (ranking(0), true));
    assert_eq!((one.provenance.shown, one.provenance.revision), (vec![0, 1, 2], 1));
    let others = project.answers(Which::WithOverruled);
    assert_eq!(others.iter().filter(|one| one.provenance.settled).count(), 1);
}

#[test]
fn what_is_settled_is_changed_and_taken_back_and_nothing_of_it_is_lost() {
    let project = Project::disagreeing(1);
    let labelers = project.who_said_what(Which::Training);
    assert!(matches!(project.take_back(1), Err(StoreError::Conflict(_))), "it is not settled yet");
    // All of it within one millisecond.
    assert_eq!(project.settle(1, &places([1, 2, 2])).unwrap(), 1);
    assert_eq!(project.settle(1, &places([1, 5, 5])).unwrap(), 1, "the same again is no change");
    assert_eq!(project.settle(1, &places([2, 1, 3])).unwrap(), 2);
    assert_eq!(project.who_said_what(Which::Training), [said("admin", [2, 1, 3])]);
    assert_eq!(project.take_back(1).unwrap(), 3);
    assert!(matches!(project.take_back(1), Err(StoreError::Conflict(_))));
    assert_eq!(of_task(&project.connection, 1).unwrap(), None);
    for which in [Which::Training, Which::WithOverruled, Which::All] {
        assert_eq!(project.who_said_what(which), labelers, "{which:?}");
    }
    assert_eq!(project.settle(1, &places([1, 2, 2])).unwrap(), 4, "as it was at first");
    let settled = of_task(&project.connection, 1).unwrap().unwrap();
    assert_eq!((settled.by.as_str(), settled.revision, settled.ranking.ranks), ("admin", 4, vec![1, 2, 2]));
    let mut all = Vec::new();
    answers::of_task(&project.connection, 1, |answered| -> Result<()> {
        all.push(answered.provenance);
        Ok(())
    })
    .unwrap();
    let revisions: Vec<u32> = all.iter().filter(|one| one.settled).map(|one| one.revision).collect();
    assert_eq!((all.len(), revisions), (5, vec![1, 2, 4]), "a reward model may have read any of them");
}

#[test]
fn agreement_and_pace_are_of_the_labelers_alone() {
    let project = Project::disagreeing(3);
    let before = overview(&project.connection, project.now.get()).unwrap();
    project.settle(2, &places([1, 2, 3])).unwrap();
    let mut after = overview(&project.connection, project.now.get()).unwrap();
    assert_eq!((after.n_disagreements, after.n_settled), (3, 1));
    after.n_settled = 0;
    after.disagreements.clone_from(&before.disagreements);
    assert_eq!(after, before);
}

#[test]
fn what_makes_no_sense_settles_nothing() {
    let project = Project::disagreeing(1);
    let refused = |task: i64, draft: Draft| match project.settle(task, &draft) {
        Err(StoreError::Invalid(problem)) => problem,
        other => panic!("{other:?}"),
    };
    let short = Draft { places: vec![Some(1), Some(2)], ..Draft::default() };
    assert_eq!(refused(1, short), "`places` holds 2, expected one for each of 3 responses");
    assert_eq!(refused(1, places([0, 1, 2])), "`places` holds 0, expected 1 to 9");
    assert_eq!(refused(1, places([1, 2, 10])), "`places` holds 10, expected 1 to 9");
    assert_eq!(refused(1, Draft::default()), "a response has no place yet");
    let flagged = |flag: &str| Draft { flags: vec![vec![flag.to_owned()], vec![], vec![]], ..places([1, 2, 3]) };
    assert_eq!(refused(1, flagged("rude")), "`flags` holds `rude`, which is none of this project's");
    let screening = project.add(&ranking(7), Purpose::Screening { known: vec![1, 2, 3] });
    assert!(refused(screening, places([1, 2, 3])).contains("a screening task are known"));
    let to_write = LabelTask { kind: TaskKind::Write, responses: Vec::new(), ..ranking(8) };
    let to_write = project.add(&to_write, Purpose::Work { wanted: 1 });
    assert!(refused(to_write, Draft::default()).contains("only rankings are settled"));
    assert_eq!(of_task(&project.connection, 1).unwrap(), None);
    project.settle(1, &flagged("untrue")).unwrap();
}

#[test]
fn all_disagreements_are_listed_in_parts_and_those_that_are_settled_come_last() {
    let project = Project::disagreeing(N_LISTED + 3);
    let list = |from: usize| disagreements::list(&project.connection, from).unwrap();
    let prompts = |from: usize| -> Vec<String> { list(from).disagreements.into_iter().map(|one| one.prompt).collect() };
    assert_eq!((prompts(0).len(), prompts(0)[0].as_str()), (N_LISTED, "prompt 0"));
    project.settle(1, &places([1, 1, 1])).unwrap();
    assert_eq!((prompts(0).len(), prompts(0)[0].as_str()), (N_LISTED, "prompt 1"));
    assert_eq!(prompts(N_LISTED), ["prompt 51", "prompt 52", "prompt 0"]);
    assert_eq!(prompts(N_LISTED + 3), [""; 0]);
    let last = list(N_LISTED + 2);
    assert_eq!((last.n_disagreements, last.n_settled), (N_LISTED + 3, 1));
    assert_eq!(last.disagreements[0].settled.as_ref().unwrap().ranking.ranks, [1, 1, 1]);
    project.take_back(1).unwrap();
    assert_eq!((prompts(0)[0].as_str(), list(0).n_settled), ("prompt 0", 0));
}

#[test]
fn a_settled_task_stays_listed_when_its_labelers_come_to_agree() {
    let project = Project::disagreeing(1);
    project.settle(1, &places([1, 2, 3])).unwrap();
    let ben = project.labeler("ben");
    let task = project.undo(ben, None).unwrap();
    project.submit_as(ben, &task.handle, "he agrees", &in_task_order(&task)).unwrap();
    let listed = disagreements::list(&project.connection, 0).unwrap();
    assert_eq!((listed.disagreements.len(), listed.disagreements[0].agreement), (1, Some(1.0)));
    let content = &listed.disagreements[0].task;
    let full = disagreements::of_task(&project.connection, content).unwrap();
    let newest: Vec<(&str, u32)> = full.opinions.iter().map(|one| (one.labeler.as_str(), one.revision)).collect();
    assert_eq!(newest, [("anna", 1), ("ben", 2)]);
    project.take_back(1).unwrap();
    assert_eq!(disagreements::list(&project.connection, 0).unwrap().n_disagreements, 0);
    let none = disagreements::of_task(&project.connection, "none");
    assert!(matches!(none, Err(StoreError::NotFound(problem)) if problem == "there is no such task"));
}

#[test]
fn a_settled_task_is_handed_out_no_more_until_that_is_taken_back() {
    let project = Project::new(3, 2);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    // The second has no answer yet, the first has one.
    let first = project.task(anna);
    project.answer(anna, &first);
    for task in [1, 2] {
        project.settle(task, &places([1, 2, 3])).unwrap();
    }
    assert_eq!(prompts(&project, anna, 1), ["prompt 2"]);
    assert_eq!(prompts(&project, ben, 1), ["prompt 2"]);
    assert_eq!((project.next(anna), project.next(ben)), (Next::Wait, Next::Wait), "the other may leave the third");
    project.take_back(1).unwrap();
    project.take_back(2).unwrap();
    assert_eq!(prompts(&project, anna, 1), ["prompt 1"], "the first has her answer already");
    assert_eq!(prompts(&project, ben, 2), ["prompt 0", "prompt 1"]);
}

#[test]
fn a_settled_task_with_a_place_is_passed_over_and_gets_none_anew() {
    let project = Project::new(4, 1);
    place_backwards(&project);
    project.settle(4, &places([1, 2, 3])).unwrap();
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    assert_eq!(prompts(&project, anna, 1), ["prompt 2"]);
    let open: Vec<i64> = places::open_tasks(&project.connection).unwrap().iter().map(|task| task.id).collect();
    assert_eq!(open, [1, 2]);
    place_backwards(&project);
    project.take_back(4).unwrap();
    assert_eq!(prompts(&project, ben, 3), ["prompt 3", "prompt 1", "prompt 0"]);
}

#[test]
fn who_is_at_a_task_when_it_is_settled_goes_on_and_the_answer_counts() {
    let project = Project::new(2, 1);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let (one, other) = (project.task(anna), project.task(ben));
    let notes = Draft { notes: "half-way".to_owned(), ..Draft::default() };
    project.draft(ben, &other.handle, &notes);
    for task in [1, 2] {
        project.settle(task, &places([3, 2, 1])).unwrap();
    }
    let go_on = |labeler: i64, handle: &str| {
        next(&project.connection, labeler, Some(handle), &project.rules, project.now.get()).unwrap()
    };
    assert!(matches!(go_on(anna, &one.handle), Next::Task(task) if task.handle == one.handle), "loaded anew");
    assert_eq!(project.answer(anna, &one), 1);
    assert_eq!(project.next(anna), Next::Done, "what ben leaves now comes to nobody");
    // He is away for so long that his task goes back.
    project.later(31 * MINUTE);
    assert_eq!(project.next(anna), Next::Done);
    assert!(matches!(go_on(ben, &other.handle), Next::Task(task) if task.draft == notes), "his work is there");
    project.later(31 * MINUTE);
    assert_eq!(project.next(ben), Next::Done, "but does not come by itself");
    assert_eq!(project.answer(ben, &other), 1, "and what he hands in late is not lost");
    let ranked: Vec<(String, Vec<u32>)> = project.who_said_what(Which::WithOverruled);
    assert_eq!(
        ranked.iter().map(|(labeler, _)| labeler.as_str()).collect::<Vec<_>>(),
        ["admin", "admin", "anna", "ben"]
    );
    assert_eq!(project.who_said_what(Which::Training).len(), 2, "it stands beside what the tasks are settled by");
}

#[test]
fn a_settled_task_that_was_left_empty_makes_room_for_another_and_skips_are_gone_back_to() {
    let project = Project::new(3, 2);
    let anna = project.labeler("anna");
    let left = project.task(anna);
    project.settle(1, &places([1, 2, 3])).unwrap();
    project.later(31 * MINUTE);
    let now = project.now.get();
    let got = next(&project.connection, anna, Some(&left.handle), &project.rules, now).unwrap();
    let Next::Task(second) = got else { panic!("{got:?}") };
    assert_eq!(prompt(&second), "prompt 1");
    project.skip(anna, &second.handle, &Draft::default());
    project.settle(2, &places([1, 2, 3])).unwrap();
    assert_eq!(prompts(&project, project.labeler("ben"), 1), ["prompt 2"]);
    let back = project.undo(anna, None).unwrap();
    assert_eq!(back.handle, second.handle);
    assert_eq!(project.answer(anna, &back), 1);
}

#[test]
fn what_is_left_to_do_is_what_is_handed_out() {
    let project = Project::new(4, 2);
    let (anna, ben) = (project.labeler("anna"), project.labeler("ben"));
    let task = project.task(anna);
    project.answer(anna, &task);
    let counts = || {
        let counts = stats::tasks(&project.connection).unwrap();
        (counts.n_open, counts.n_wanted, counts.n_answers)
    };
    assert_eq!(counts(), (4, 8, 1));
    project.settle(1, &places([1, 2, 3])).unwrap();
    project.settle(3, &places([1, 2, 3])).unwrap();
    assert_eq!(counts(), (2, 5, 1), "the one answer that is there, and two to each of the others");
    for labeler in [anna, ben] {
        for _ in 0..2 {
            let task = project.task(labeler);
            project.answer(labeler, &task);
        }
        assert_eq!(project.next(labeler), Next::Done);
    }
    assert_eq!(counts(), (0, 5, 5));
    project.take_back(3).unwrap();
    assert_eq!(counts(), (1, 7, 5));
    let task = project.task(ben);
    assert_eq!(prompt(&task), "prompt 2");
    project.settle(3, &places([1, 2, 3])).unwrap();
    assert_eq!(counts(), (0, 6, 5), "an answer that is under way is waited for");
    project.answer(ben, &task);
    assert_eq!(counts(), (0, 6, 6));
}

#[test]
fn hidden_repeats_and_the_screening_go_on_as_if_nothing_were_settled() {
    let mut project = Project::new(2, 1);
    project.add(&ranking(100), Purpose::Screening { known: vec![1, 2, 3] });
    let anna = project.labeler("anna");
    let screening = project.task(anna);
    assert_eq!(prompt(&screening), "prompt 100");
    project.submit_as(anna, &screening.handle, "k", &in_task_order(&screening)).unwrap();
    let first = project.task(anna);
    project.answer(anna, &first);
    project.settle(1, &places([1, 2, 3])).unwrap();
    project.settle(2, &places([1, 2, 3])).unwrap();
    (project.rules.repeat_share, project.rules.repeat_after) = (1.0, 0);
    let repeat = project.task(anna);
    assert_eq!((prompt(&repeat), repeat.revision), (prompt(&first), 0));
    project.answer(anna, &repeat);
    assert_eq!(project.next(anna), Next::Done);
    assert_eq!(overview(&project.connection, project.now.get()).unwrap().n_repeats, 1);
}

#[test]
fn a_task_that_a_file_settles_is_handed_out_no_more() {
    let (project, other) = (Project::new(1, 1), Project::new(1, 1));
    project.settle(1, &places([1, 2, 3])).unwrap();
    let settled = project.answers(Which::Training).remove(0);
    assert!(answers::add(&other.connection, 1, &settled.answer, &settled.provenance).unwrap());
    let anna = other.labeler("anna");
    assert_eq!(other.next(anna), Next::Done);
    other.take_back(1).unwrap();
    assert_eq!(prompts(&other, anna, 1), ["prompt 0"]);
}

#[test]
fn a_file_of_the_second_version_is_taken_on_with_all_that_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.db");
    file_as_it_was(&path, "DROP VIEW settled; DROP TABLE settlements; PRAGMA user_version = 2;");
    let store = Store::open(&path).unwrap();
    let settled = store.write_now(|connection| {
        let admin = labelers::add(connection, "admin")?;
        settle(connection, 1, admin, &places([3, 2, 1]), &[], 1)?;
        of_task(connection, 1)
    });
    assert_eq!(settled.unwrap().unwrap().ranking.ranks, [3, 2, 1]);
    // And once more: it is of this version now.
    let again = Store::existing(&path).unwrap();
    assert_eq!(again.read(|connection| Ok(answers_of(connection))).unwrap(), 1);
}

fn answers_of(connection: &Connection) -> usize {
    let mut n = 0;
    answers::each(connection, Which::Training, |_| -> Result<()> {
        n += 1;
        Ok(())
    })
    .unwrap();
    n
}
