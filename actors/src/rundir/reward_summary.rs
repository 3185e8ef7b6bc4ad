//! What the reward stage says of the model that it left: its summary lies beside it. A model directory from elsewhere has
//! none.

use std::path::Path;

use serde_json::Value;

use super::{StageDir, StageMarker};

/// The reward stage's summary of the model in `model`; `None` where nothing beside the model tells.
pub fn beside(model: &Path) -> Option<Value> {
    let marker = StageDir::at(model.parent()?).marker();
    let summary = StageMarker::<Value>::read(&marker).ok().flatten()?.summary;
    // Other stages leave models too, and no bias that shifts a score.
    summary["bias"].is_number().then_some(summary)
}

/// The labels that the reward model in `model` has learnt from: rankings, whoever gave them, without those held out.
pub fn n_labels(model: &Path) -> Option<u64> {
    beside(model)?["n_comparisons"].as_u64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_reward_stage_tells_of_labels_and_only_of_the_model_in_its_own_folder() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        assert_eq!(n_labels(&model), None, "a model from elsewhere");
        let write = |summary: Value| {
            let marker = StageMarker { config: Value::Null, summary };
            marker.write(&StageDir::at(dir.path()).marker()).unwrap();
        };
        write(json!({ "n_comparisons": 12, "n_new": 12 }));
        assert_eq!((beside(&model), n_labels(&model)), (None, None), "another stage's");
        write(json!({ "n_comparisons": 12, "bias": -0.5, "heldout_accuracy_stderr": null }));
        assert_eq!((n_labels(&model), n_labels(&dir.path().join("adapter"))), (Some(12), Some(12)));
        assert_eq!(n_labels(&model.join("copy")), None);
    }
}
