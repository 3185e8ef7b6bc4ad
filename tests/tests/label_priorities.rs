//! From a reward model to what people are asked first, and from what they say to the next reward model.

use std::collections::BTreeMap;

use collimate_protocol::records::{LabelUse, UsedFor};
use collimate_tests::command_line::Home;
use collimate_tests::labeling::{Served, tasks};
use serde_json::{Value, json};

/// A home with a reward model.
fn home(n_tasks: usize) -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    for stage in ["pretrain", "sft", "reward"] {
        home.succeed(&[stage, "recipe.toml", "--out", "before"]);
    }
    // Short, so that they fit into 32 tokens.
    let short = |n: usize| json!({ "prompt": format!("p{n}"), "responses": [format!("a {n}"), format!("b {n}"), "c"] });
    home.write("tasks.jsonl", (0..n_tasks).map(|n| short(n).to_string() + "\n").collect::<String>());
    home
}

const MODEL: [&str; 2] = ["--model", "before/reward/model"];

fn lines(home: &Home, name: &str) -> Vec<Value> {
    home.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_reward_model_chooses_what_comes_first_and_every_fifth_task_at_least_is_a_random_one() {
    let home = home(40);
    for by in ["disagreement", "margin", "random"] {
        home.succeed(&["label", "import", "label.db", "tasks.jsonl"]);
        let told = home.succeed(&[&["label", "prioritize", "label.db", "--by", by][..], &MODEL].concat());
        let expected = match by {
            "random" => "40 open tasks: 40 drawn at random\n",
            _ => "40 open tasks: 8 drawn at random, 32 to be chosen, of which the reward model has looked at 32",
        };
        assert!(told.starts_with(expected), "{by}: {told}");
        let served = Served::start(&home, &["--labeler", "anna", "--set", "label.repeat_share=0"]);
        let anna = served.client("anna");
        let mut n_answered = 0;
        while let Some(task) = anna.next() {
            n_answered += 1;
            assert_eq!(anna.answer(&task, &format!("{by}-{n_answered}")).0, 200);
        }
        assert_eq!(n_answered, 40, "{by}");
        drop(served);
        home.succeed(&["label", "export", "label.db", "out.jsonl"]);
        for file in ["label.db", "label.db-wal", "label.db-shm"] {
            // The database itself is there, the others may be.
            let _ = std::fs::remove_file(home.path(file));
        }
        // Lines are in the order in which they were answered.
        let arms: Vec<String> =
            lines(&home, "out.jsonl").iter().map(|line| line["arm"].as_str().unwrap().to_owned()).collect();
        for n in 1..=arms.len() {
            let n_random = arms[..n].iter().filter(|arm| *arm == "random").count();
            assert!(5 * n_random >= n, "{by}: {n_random} of the first {n}");
        }
        assert_eq!(arms.iter().filter(|arm| *arm == "acquired").count(), if by == "random" { 0 } else { 32 });
    }
}

#[test]
fn heads_learn_from_what_people_ranked_and_arms_stay_as_they_were_drawn() {
    let home = home(20);
    home.succeed(&["label", "import", "label.db", "tasks.jsonl", "--overlap", "2"]);
    home.succeed(&[&["label", "prioritize", "label.db"][..], &MODEL].concat());
    let served = Served::start(&home, &["--labeler", "anna", "--overlap", "2", "--set", "label.repeat_share=0"]);
    let anna = served.client("anna");
    for n in 0..6 {
        let task = anna.next().unwrap();
        assert_eq!(anna.answer(&task, &n.to_string()).0, 200);
    }
    // The server goes on while places are given anew.
    let told = home.succeed(&[&["label", "prioritize", "label.db", "--seed", "5"][..], &MODEL].concat());
    assert!(told.contains("20 open tasks: 4 drawn at random, 16 to be chosen"), "{told}");
    assert!(told.contains("its heads learnt from 6 rankings"), "{told}");
    assert!(anna.next().is_some());
    home.succeed(&["label", "export", "label.db", "out.parquet"]);
    let overview = home.succeed(&["label", "agreement", "label.db"]);
    assert!(overview.contains("rankings of tasks that a reward model or a person chose"), "{overview}");
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let home = home(5);
    home.succeed(&["label", "import", "label.db", "tasks.jsonl"]);
    let refused = |arguments: &[&str]| home.fail(&[&["label", "prioritize", "label.db"], arguments].concat());
    let floor = refused(&[&["--random-share", "0.1"][..], &MODEL].concat());
    assert!(floor.contains("the random share is 0.1, expected 0.2 to 1"), "{floor}");
    assert!(refused(&[]).contains("--model is missing"));
    assert!(refused(&[&["--heads", "1"][..], &MODEL].concat()).contains("1 heads can't disagree"));
    let policy = refused(&["--model", "before/sft/model"]);
    assert!(policy.contains("before/sft/model"), "{policy}");
    let missing = home.fail(&["label", "prioritize", "none.db", "--by", "random"]);
    assert!(missing.contains("there is no such file"), "{missing}");
    home.write("long.jsonl", tasks(1, 2).replace("response 0", &"long ".repeat(60)));
    home.succeed(&["label", "import", "label.db", "long.jsonl"]);
    let told = home.succeed(&[&["label", "prioritize", "label.db", "--by", "margin"][..], &MODEL].concat());
    assert!(told.starts_with("6 open tasks"), "{told}");
}

/// A recipe's reward stage on labels, for a run of its own.
fn reward_on_labels(home: &Home, out: &str) {
    let recipe = home.read("recipe.toml");
    let (head, rest) = recipe.split_once("[reward.labeler]").unwrap();
    let (_, ppo) = rest.split_once("[ppo]").unwrap();
    let labels = "comparisons = \"out.jsonl\"\nheldout_share = 0.3\n";
    let recipe = format!("{head}{labels}\n[ppo]{ppo}");
    home.write("labels.toml", recipe);
    for stage in ["reward", "ppo"] {
        let sets = ["--set", "reward.sft=before/sft/model", "--set", "ppo.sft=before/sft/model"];
        home.succeed(&[&[stage, "labels.toml", "--out", out][..], &sets].concat());
    }
}

#[test]
fn labels_of_a_prompt_are_on_one_side_and_their_page_tells_what_became_of_them() {
    let home = home(12);
    home.succeed(&["label", "import", "label.db", "tasks.jsonl"]);
    home.succeed(&[&["label", "prioritize", "label.db"][..], &MODEL].concat());
    let arguments = ["--labeler", "anna", "--labeler", "ben", "--overlap", "2", "--set", "label.repeat_share=0"];
    let served = Served::start(&home, &arguments);
    for name in ["anna", "ben"] {
        let client = served.client(name);
        while let Some(task) = client.next() {
            assert_eq!(client.answer(&task, &format!("{name}-{}", task["handle"])).0, 200);
        }
    }
    drop(served);
    home.succeed(&["label", "export", "label.db", "out.jsonl"]);
    home.write("out.jsonl", home.read("out.jsonl").replacen(r#""all_bad":false"#, r#""all_bad":true"#, 5));
    reward_on_labels(&home, "r");
    let reward = home.summary("r").reward.unwrap();
    assert_eq!((reward.n_all_bad, reward.n_all_tied), (5, 0));
    let used: Vec<LabelUse> =
        home.read("r/reward/labels.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(used.len(), 24);
    let mut sides = BTreeMap::<&str, Vec<UsedFor>>::new();
    used.iter().for_each(|label| sides.entry(&label.task).or_default().push(label.used));
    assert!(sides.values().all(|of_task| of_task.len() == 2 && of_task[0] == of_task[1]), "{sides:?}");
    assert_eq!(sides.values().filter(|of_task| of_task[0] == UsedFor::Heldout).count(), 3, "30 % of 12 prompts");
    assert!(used.iter().all(|label| label.scores.as_ref().is_some_and(|scores| scores.len() == 3)));

    let mut served = Served::start(&home, &[&arguments[..], &["--run", "r"]].concat());
    served.renew(&home, "admin");
    let admin = served.client("admin");
    let effect: Value = serde_json::from_str(&admin.get(&format!("/api/effects/{}", used[0].task)).1).unwrap();
    assert_eq!(effect["labels"].as_array().unwrap().len(), 2);
    let label = &effect["labels"][0];
    let acquired = effect["arm"] == "acquired";
    // What the model that chose the task made of it; of one that was drawn at random, nothing is known from before.
    assert_eq!(label["before"]["margin"].is_number(), acquired, "{label}");
    let of_label = &label["uses"][0];
    assert!(of_label["run"].as_str().unwrap().ends_with("/r"), "{of_label}");
    assert_eq!(of_label["n_updates"], 3);
    let told: Vec<f64> = serde_json::from_value(of_label["after"]["scores"].clone()).unwrap();
    let ranks: Vec<u32> = serde_json::from_value(label["ranks"].clone()).unwrap();
    let pairs = [(0, 1), (0, 2), (1, 2)].map(|(i, j): (usize, usize)| {
        let difference = told[i] - told[j];
        if ranks[i] < ranks[j] { difference } else { -difference }
    });
    let margin = of_label["after"]["margin"].as_f64().unwrap();
    assert!((margin - pairs.iter().sum::<f64>() / 3.0).abs() < 1e-6, "{margin} of {told:?} by {ranks:?}");
    let all: Value = serde_json::from_str(&admin.get("/api/effects").1).unwrap();
    assert_eq!((&all["n_labels"], &all["labels"][0]["n_uses"]), (&json!(24), &json!(1)));
    assert_eq!(all["series"], json!([]), "nobody ranked what a run's policy wrote");
}
