//! Tasks and answers from files and to files.

use std::path::Path;

use collimate::label::draft::Draft;
use collimate::label::store::answers::Which;
use collimate::label::store::{Store, answers, next, tasks, work};
use collimate::label::transfer::{Export, ImportAs, Imported, export, import};
use collimate_models::data::Records;
use collimate_protocol::records::{
    Answer, Arm, Comparison, ComparisonTokens, Demonstration, LabelTask, Message, Origin, PromptText, Provenance,
    Ranking, Role, TaskKind, Written,
};
use collimate_tests::cases::cases;
use collimate_tests::command_line::Home;
use collimate_tests::labeling::{refused_line, tasks as task_lines};
use proptest::prelude::*;
use serde_json::{Value, json};

fn home() -> Home {
    Home::new(env!("CARGO_BIN_EXE_collimate-under-test"))
}

/// An answer with its task.
#[derive(Clone, Debug)]
struct Told {
    task: LabelTask,
    known: Option<Vec<u32>>,
    answer: Answer,
    provenance: Provenance,
}

fn add(store: &Store, all: Vec<Told>) {
    store
        .write_now(move |connection| {
            for Told { task, known, answer, provenance } in all {
                let purpose = match known {
                    Some(known) => tasks::Purpose::Screening { known },
                    None => tasks::Purpose::Work { wanted: 2 },
                };
                let (id, _) = tasks::add(connection, &task, &purpose)?;
                answers::add(connection, id, &answer, &provenance)?;
            }
            Ok(())
        })
        .unwrap();
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z \n]{1,12}", "[\"\\\\\u{5d0}-\u{5ea}\u{4e00}-\u{4e20}\u{1f600}\u{200b},]{1,6}"]
}

/// Rankings and demonstrations with all that they may hold. `is_dialogue`: a Parquet file holds prompts of one kind.
fn told(is_dialogue: bool) -> impl Strategy<Value = Told> {
    let head =
        (text(), 0..4_u32, "(anna|ben|Chlo\u{e9})", 1..4_u32, any::<bool>(), 0..2_000_000_000_000_i64, 0..1_000_u32);
    let ranking = (2_usize..=9).prop_flat_map(|k| {
        (
            prop::collection::vec(text(), k),
            prop::collection::vec(1..=k as u32, k),
            prop::collection::vec(prop::collection::vec("(untrue|harmful)", 0..2), k),
            prop::collection::vec(prop::option::of(1_u8..=7), k),
            Just((0..k).collect::<Vec<usize>>()).prop_shuffle(),
            any::<bool>(),
            prop::option::of(prop::collection::vec(prop::collection::vec(0_u32..50, 0..3), k)),
            any::<bool>(),
        )
    });
    (head, ranking, text(), any::<bool>()).prop_map(move |(head, ranking, written, is_written)| {
        let (asked, origin, labeler, revision, is_repeat, at, seconds) = head;
        let (responses, ranks, flags, scores, shown, all_bad, tokens, is_screening) = ranking;
        let prompt = match is_dialogue {
            true => PromptText::Messages(vec![Message { role: Role::User, content: asked }]),
            false => PromptText::Text(asked),
        };
        let origin = match origin {
            0 => Origin::default(),
            n => Origin {
                policy_version: Some(u64::from(n)),
                model: Some(format!("m{n}")),
                scores: Some(vec![n as f32 / 8.0; responses.len()]),
                versions: (n % 2 == 0).then(|| vec![u64::from(n); responses.len()]),
                ..Origin::default()
            },
        };
        let ranks = collimate_models::feedback::competition_ranks(&ranks);
        let known = (is_screening && !is_written).then(|| ranks.clone());
        let k = responses.len();
        let kind = if is_written {
            TaskKind::Write
        } else if k == 2 {
            TaskKind::Compare
        } else {
            TaskKind::Rank
        };
        let (responses, shown, answer, tokens) = match is_written {
            true => {
                (Vec::new(), Vec::new(), Answer::Written(Written { response: written.clone(), notes: written }), None)
            }
            false => {
                let answer = Answer::Ranking(Ranking { ranks, all_bad, flags, scores, notes: written });
                let tokens = tokens.map(|responses| ComparisonTokens { prompt: vec![1], responses });
                (responses, shown, answer, tokens)
            }
        };
        let time = format!("20{:02}-01-31T12:00:{:02}.{:03}Z", at % 90 + 10, at % 60, at % 1000);
        let provenance = Provenance {
            labeler,
            time,
            revision,
            seconds: f64::from(seconds) / 8.0,
            shown,
            is_repeat: is_repeat && !is_written,
            known_ranks: known.clone(),
            origin: Origin::default(),
            task: String::new(),
            arm: [None, Some(Arm::Random), Some(Arm::Acquired), Some(Arm::Picked)][at as usize % 4],
            settled: known.is_none() && !is_written && !is_repeat && at % 3 == 0,
        };
        Told { task: LabelTask { kind, prompt, responses, tokens, origin }, known, answer, provenance }
    })
}

/// What a file holds.
fn rows(path: &Path) -> Vec<Value> {
    let rows = collimate_models::data::rows::rows(path).unwrap();
    rows.map(|row| Value::Object(row.unwrap().columns)).collect()
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn what_is_exported_and_imported_is_exported_the_same(
        all in any::<bool>().prop_flat_map(|is_dialogue| prop::collection::vec(told(is_dialogue), 1..8)),
        is_parquet in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Store::open(&dir.path().join(name)).unwrap();
        let (one, other) = (open("one.db"), open("other.db"));
        add(&one, all);
        for (what, name) in [(Export::Comparisons, "c"), (Export::Demonstrations, "d")] {
            let layout = if is_parquet { "parquet" } else { "jsonl" };
            let file = |n: u32| dir.path().join(format!("{name}{n}.{layout}"));
            let Ok(n) = export(&one, &file(1), what, Which::All) else { continue };
            let imported = import(&other, &file(1), ImportAs::Work(2)).unwrap();
            prop_assert_eq!(imported.n_answers, n);
            prop_assert_eq!(export(&other, &file(2), what, Which::All).unwrap(), n);
            prop_assert_eq!(rows(&file(1)), rows(&file(2)));
            // Twice neither loses nor doubles.
            let again = import(&other, &file(1), ImportAs::Work(2)).unwrap();
            prop_assert_eq!(again, Imported { n_tasks: 0, n_answers: 0, n_known: n });
            prop_assert_eq!(export(&other, &file(3), what, Which::All).unwrap(), n);
        }
    }
}

/// Ranks tasks in their own order, by two labelers.
fn label(home: &Home, n_tasks: usize, k: usize) {
    home.write("tasks.jsonl", task_lines(n_tasks, k));
    home.succeed(&["label", "import", "label.db", "tasks.jsonl", "--overlap", "2"]);
    let store = Store::existing(&home.path("label.db")).unwrap();
    store
        .write_now(move |connection| {
            for name in ["anna", "ben"] {
                let labeler = collimate::label::store::labelers::add(connection, name)?;
                let rules = next::Rules { lease: 1_000, screening_threshold: 0.0, repeat_share: 0.0, repeat_after: 0 };
                while let next::Next::Task(task) = next::next(connection, labeler, None, &rules, 1_000)? {
                    let places = task.shown.iter().map(|idx| Some(*idx as u32 + 1)).collect();
                    let draft = Draft { places, ..Draft::default() };
                    work::submit(connection, labeler, &task.handle, &task.handle, &draft, &[], &rules, 1_000)?;
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_reward_stage_and_sft_read_what_labelers_made() {
    let home = home();
    label(&home, 5, 3);
    for name in ["out.jsonl", "out.parquet"] {
        home.succeed(&["label", "export", "label.db", name]);
        let read: Records<Comparison> = Records::read(&home.path(name)).unwrap();
        assert_eq!(read.len(), 10);
        assert!(
            read.iter().all(|comparison| comparison.ranks == [1, 2, 3]),
            "in the task's order, however it was shown"
        );
        let row = &rows(&home.path(name))[0];
        for key in ["labeler", "time", "revision", "flags", "scores", "all_bad", "notes", "seconds", "shown", "origin"]
        {
            assert!(!row[key].is_null(), "{name}: {key} of {row}");
        }
        assert_eq!(row["origin"]["model"], "secret-model");
    }
    home.succeed(&["label", "export", "label.db", "pairs.jsonl", "--what", "preferences"]);
    let pairs: Records<Comparison> = Records::read(&home.path("pairs.jsonl")).unwrap();
    assert_eq!(pairs.len(), 30);
    let checked = home.succeed(&["data", "check", "out.jsonl"]);
    assert!(checked.contains("rankings (prompt, responses, ranks)"), "{checked}");

    let written = json!({ "prompt": "a", "response": "b", "labeler": "anna" });
    home.write("written.jsonl", written.to_string());
    home.succeed(&["label", "import", "label.db", "written.jsonl"]);
    home.succeed(&["label", "export", "label.db", "sft.parquet", "--what", "demonstrations"]);
    let read: Records<Demonstration> = Records::read(&home.path("sft.parquet")).unwrap();
    let expected = Demonstration::Response { prompt: "a".into(), response: "b".to_owned() };
    assert_eq!(read.into_records(), [expected]);
}

#[test]
fn a_tie_and_all_bad_come_out_as_they_went_in() {
    let home = home();
    let row =
        json!({ "prompt": "a", "responses": ["x", "y", "z"], "ranks": [1, 1, 2], "all_bad": true, "labeler": "anna" });
    home.write("in.jsonl", row.to_string());
    home.succeed(&["label", "import", "label.db", "in.jsonl"]);
    home.succeed(&["label", "export", "label.db", "out.jsonl"]);
    let row = &rows(&home.path("out.jsonl"))[0];
    assert_eq!((&row["ranks"], &row["all_bad"]), (&json!([1, 1, 3]), &json!(true)));
    home.succeed(&["label", "export", "label.db", "pairs.jsonl", "--what", "preferences"]);
    let pairs = rows(&home.path("pairs.jsonl")).iter().map(|row| row["chosen"].clone()).collect::<Vec<_>>();
    assert_eq!(pairs, ["x", "y"], "the tie makes no pair");
}

#[test]
fn prompts_alone_are_for_demonstrations_and_rankings_without_a_labeler_are_to_be_ranked() {
    let home = home();
    home.write("in.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n");
    let printed = home.succeed(&["label", "import", "label.db", "in.jsonl"]);
    assert_eq!(printed, "in.jsonl: 2 new tasks\n");
    assert_eq!(
        home.succeed(&["label", "import", "label.db", "in.jsonl"]),
        "in.jsonl: 0 new tasks, 2 that were there\n"
    );
    home.write("ranked.jsonl", json!({ "prompt": "a", "responses": ["x", "y"], "ranks": [1, 2] }).to_string());
    assert_eq!(home.succeed(&["label", "import", "label.db", "ranked.jsonl"]), "ranked.jsonl: 1 new tasks\n");
    let error = home.fail(&["label", "export", "label.db", "out.jsonl"]);
    assert!(error.contains("no answer is a ranking"), "{error}");
}

#[test]
fn bad_files_are_named_by_line_and_key() {
    let home = home();
    let refused = |change: Value| refused_line(&home, &change);
    assert!(refused(json!({ "ranks": [1] })).contains("has 2 responses and 1 ranks"));
    assert!(refused(json!({ "time": "yesterday" })).contains("key `time` is \"yesterday\", expected a time"));
    assert!(refused(json!({ "shown": [0, 0] })).contains("key `shown` is [0, 0], expected an order of 2 responses"));
    assert!(refused(json!({ "flags": [["a"]] })).contains("key `flags` holds 1, expected one for each of 2"));
    assert!(refused(json!({ "revision": "x" })).contains("key `revision`"));
    assert!(refused(json!({ "labeler": "" })).contains("is no labeler's name"));
    let error = home.fail(&["label", "export", "label.db", "out.csv"]);
    assert!(error.contains("expected a name that ends in .jsonl or .parquet"), "{error}");
    let error = home.fail(&["label", "export", "none.db", "out.jsonl"]);
    assert!(error.contains("none.db: there is no such file"), "{error}");
}

#[test]
fn prompts_of_both_kinds_do_not_fit_a_parquet_file() {
    let home = home();
    let text = json!({ "prompt": "a", "response": "b", "labeler": "anna" });
    let dialogue = json!({ "prompt": [{ "role": "user", "content": "a" }], "response": "b", "labeler": "anna" });
    home.write("in.jsonl", format!("{text}\n{dialogue}\n"));
    home.succeed(&["label", "import", "label.db", "in.jsonl"]);
    let error = home.fail(&["label", "export", "label.db", "out.parquet", "--what", "demonstrations"]);
    assert!(error.contains("a Parquet column has one type"), "{error}");
    home.succeed(&["label", "export", "label.db", "out.jsonl", "--what", "demonstrations"]);
    assert_eq!(rows(&home.path("out.jsonl")).len(), 2);
}

#[test]
fn fifty_thousand_rankings_are_exported_within_five_seconds() {
    let home = home();
    label(&home, 25_000, 4);
    for name in ["out.jsonl", "out.parquet"] {
        let began = std::time::Instant::now();
        let printed = home.succeed(&["label", "export", "label.db", name]);
        let took = began.elapsed();
        assert_eq!(printed, format!("50000 lines written to {name}\n"));
        assert!(took.as_secs_f64() < 5.0, "{name}: {took:?}");
    }
    let began = std::time::Instant::now();
    let again = home.succeed(&["label", "import", "again.db", "out.parquet"]);
    assert!(again.contains("50000 new answers"), "{again}");
    println!("imported in {:?}", began.elapsed());
}
