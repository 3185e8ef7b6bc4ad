//! `config`: a stage's settings, every key with its default and its meaning.

use crate::config::with_comments;
use crate::label::config::LabelConfig;
use crate::plan::PlanConfig;
use crate::stages::collect::config::CollectConfig;
use crate::stages::iterate::IterateConfig;
use crate::stages::ppo_config::PpoStageConfig;
use crate::stages::pretrain::PretrainConfig;
use crate::stages::recipe::{CorpusConfig, Recipe};
use crate::stages::reward::RewardConfig;
use crate::stages::sft::SftConfig;

use super::args::ConfigOf;

/// The text, which is itself a recipe, or a file of assumptions.
pub fn text(of: ConfigOf) -> Result<String, toml::ser::Error> {
    let parts = match of {
        ConfigOf::Recipe => vec![recipe()?, with_comments::<CorpusConfig>("corpus")?],
        ConfigOf::Pretrain => vec![with_comments::<PretrainConfig>("pretrain")?],
        ConfigOf::Sft => vec![with_comments::<SftConfig>("sft")?],
        ConfigOf::Collect => vec![with_comments::<CollectConfig>("collect")?],
        ConfigOf::Iterate => vec![with_comments::<IterateConfig>("iterate")?],
        ConfigOf::Reward => vec![with_comments::<RewardConfig>("reward")?],
        ConfigOf::Ppo => vec![with_comments::<PpoStageConfig>("ppo")?],
        ConfigOf::All => {
            let stages = [ConfigOf::Recipe, ConfigOf::Pretrain, ConfigOf::Sft, ConfigOf::Reward, ConfigOf::Ppo];
            stages.into_iter().map(text).collect::<Result<_, _>>()?
        }
        ConfigOf::Plan => vec![with_comments::<PlanConfig>("")?],
        ConfigOf::Label => vec![with_comments::<LabelConfig>("label")?],
    };
    Ok(parts.join("\n"))
}

/// The keys outside of the tables; each table is printed as its stage.
fn recipe() -> Result<String, toml::ser::Error> {
    let text = with_comments::<Recipe>("")?;
    let keys: Vec<&str> = text.split("\n\n").take(1).collect();
    Ok(keys.join("\n\n") + "\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::ValueEnum;

    use super::*;
    use crate::config;
    use crate::label::config::LabelFile;

    #[test]
    fn everything_that_is_printed_reads_as_a_recipe_of_defaults() {
        let files_of_their_own = [ConfigOf::Plan, ConfigOf::Label];
        for of in ConfigOf::value_variants().iter().filter(|of| !files_of_their_own.contains(of)) {
            let text = text(*of).unwrap();
            let read: Recipe =
                config::parse(&text, Path::new("printed.toml"), &[]).unwrap_or_else(|error| panic!("{error}\n{text}"));
            if *of == ConfigOf::All {
                assert_eq!(read.ppo, Some(PpoStageConfig::default()));
                assert_eq!((read.sft, read.reward), (Some(SftConfig::default()), Some(RewardConfig::default())));
                assert_eq!(read.corpus, Some(CorpusConfig::default()));
            }
        }
    }

    #[test]
    fn the_printed_assumptions_read_as_the_defaults() {
        let text = text(ConfigOf::Plan).unwrap();
        let read: PlanConfig = config::parse(&text, Path::new("printed.toml"), &[]).unwrap();
        assert_eq!(read, PlanConfig::default());
    }

    #[test]
    fn the_printed_settings_of_labelling_read_as_the_defaults() {
        let text = text(ConfigOf::Label).unwrap();
        let read: LabelFile = config::parse(&text, Path::new("printed.toml"), &[]).unwrap();
        assert_eq!(read.label, LabelConfig::default());
    }

    #[test]
    fn every_key_has_a_comment() {
        let all = [ConfigOf::All, ConfigOf::Collect, ConfigOf::Iterate, ConfigOf::Plan, ConfigOf::Label];
        let text = all.map(|of| text(of).unwrap()).concat();
        let lines: Vec<&str> = text.lines().collect();
        for (idx, line) in lines.iter().enumerate() {
            let key = line.trim_start_matches('#').split_once(" = ").map(|(key, _)| key);
            let is_key =
                key.is_some_and(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()));
            if is_key && !line.starts_with("# ") {
                assert!(lines[idx - 1].starts_with('#'), "no comment above: {line}");
            }
        }
    }
}
