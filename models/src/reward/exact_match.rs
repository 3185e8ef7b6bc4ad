//! Reward by listed answers.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use collimate_protocol::RoleError;
use collimate_protocol::records::{Demonstration, PromptText};
use collimate_protocol::roles::{RewardFunction, RewardRequest};

use crate::data::stream;
use crate::error::{Error, Result};

/// How much of an unknown prompt an error quotes, in characters.
const N_QUOTED: usize = 80;

/// 1 where the response is one of the answers to its prompt, white space around both ignored, else 0.
#[derive(Clone, Debug)]
pub struct ExactMatch {
    path: PathBuf,
    answers: HashMap<String, HashSet<String>>,
}

impl ExactMatch {
    /// Reads the answers from a demonstrations file. A prompt may stand there several times.
    ///
    /// # Errors
    /// Names the file, the line, and what is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let mut answers: HashMap<String, HashSet<String>> = HashMap::new();
        for record in stream(path)? {
            let (line, demonstration): (usize, Demonstration) = record?;
            let Demonstration::Response { prompt: PromptText::Text(prompt), response } = demonstration else {
                return Err(Error::bad_line(path, line, "holds a dialogue, expected `prompt` and `response` as text"));
            };
            answers.entry(prompt.trim().to_owned()).or_default().insert(response.trim().to_owned());
        }
        if answers.is_empty() {
            return Err(Error::bad_file(path, "holds no demonstration"));
        }
        Ok(Self { path: path.to_owned(), answers })
    }
}

impl RewardFunction for ExactMatch {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        let score = |request: &RewardRequest| {
            let answers = self.answers.get(request.prompt.trim()).ok_or_else(|| {
                let prompt: String = request.prompt.chars().take(N_QUOTED).collect();
                Error::bad_file(&self.path, format!("has no answer for the prompt {prompt:?}"))
            })?;
            Ok(f32::from(u8::from(answers.contains(request.response.trim()))))
        };
        requests.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::tests::request;
    use super::*;

    #[test]
    fn every_answer_of_a_prompt_counts_and_no_other() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for (prompt, response) in [("2 + 2 =", " 4"), ("2 + 2 =", "four"), ("3 + 3 =", "6")] {
            writeln!(file, "{}", serde_json::json!({"prompt": prompt, "response": response})).unwrap();
        }
        let mut reward = ExactMatch::load(file.path()).unwrap();
        let requests = ["4\n", " four", "6", "4.", ""].map(|response| request("2 + 2 = ", response));
        assert_eq!(reward.scores(&requests).unwrap(), [1.0, 1.0, 0.0, 0.0, 0.0]);

        let message = reward.scores(&[request("5 + 5 =", "10")]).unwrap_err().to_string();
        let expected = format!("{}: has no answer for the prompt \"5 + 5 =\"", file.path().display());
        assert_eq!(message, expected);
    }
}
