//! `summary.json`: what each finished stage came to.

use collimate_protocol::records::Summary;
use serde::de::DeserializeOwned;

use super::layout::{RunDir, Stage};
use super::{RunDirError, StageMarker, atomic};

/// The summary that the stages' markers give.
pub fn collect(run: &RunDir, seed: u64) -> Result<Summary, RunDirError> {
    Ok(Summary {
        seed,
        pretrain: of_stage(run, Stage::Pretrain)?,
        sft: of_stage(run, Stage::Sft)?,
        collect: of_stage(run, Stage::Collect)?,
        reward: of_stage(run, Stage::Reward)?,
        ppo: of_stage(run, Stage::Ppo)?,
        rounds: run.rounds().iter().map(read).collect::<Result<_, _>>()?,
    })
}

fn of_stage<S: DeserializeOwned + serde::Serialize>(run: &RunDir, stage: Stage) -> Result<Option<S>, RunDirError> {
    Ok(StageMarker::read(&run.stage(stage).marker())?.map(|marker| marker.summary))
}

/// Writes `summary.json` anew from the stages' markers, and returns it.
pub fn write(run: &RunDir, seed: u64) -> Result<Summary, RunDirError> {
    let summary = collect(run, seed)?;
    let path = run.summary();
    let text = serde_json::to_string_pretty(&summary).map_err(|error| RunDirError::bad(&path, error.to_string()))?;
    atomic::write(&path, format!("{text}\n").as_bytes())?;
    Ok(summary)
}

/// Reads `summary.json`; the empty summary where no stage has finished yet.
pub fn read(run: &RunDir) -> Result<Summary, RunDirError> {
    let path = run.summary();
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| RunDirError::bad(&path, error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Summary::default()),
        Err(error) => Err(RunDirError::io(&path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::records::SftSummary;

    use super::*;

    #[test]
    fn the_summary_holds_the_stages_that_have_finished() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &toml::Table::new()).unwrap();
        assert_eq!(read(&run).unwrap(), Summary::default());

        let sft = SftSummary { heldout_nll: 3.5, n_demonstrations: 7, ..SftSummary::default() };
        let stage = run.begin(Stage::Sft).unwrap();
        let marker = StageMarker { config: serde_json::Value::Null, summary: sft.clone() };
        marker.write(&stage.marker()).unwrap();
        let written = write(&run, 5).unwrap();
        assert_eq!(written, Summary { seed: 5, sft: Some(sft), ..Summary::default() });
        assert_eq!(read(&run).unwrap(), written);
    }
}
