//! Models by name: a directory, `file:DIRECTORY`, or `hf:OWNER/NAME@REVISION` on the HuggingFace hub.
//!
//! What the hub gives lies in its own cache (`HF_HUB_CACHE`, or `hub` under `HF_HOME`, by default
//! `~/.cache/huggingface`), which other tools share. Once all files of a model are there, the network is not asked any
//! more; a download that broke off goes on where it stopped. `HF_ENDPOINT` names another hub, `HF_TOKEN` or the file
//! that `hf auth login` writes holds the token, `HF_HUB_OFFLINE=1` forbids the network.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use collimate_models::arch::shard_names;

const HUB: &str = "hf:";
const FILE: &str = "file:";
const DEFAULT_REVISION: &str = "main";

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
/// Files that a model may lack.
const OPTIONAL: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"];

/// Retries of a request that fails, each after a longer wait.
const N_RETRIES: usize = 4;

/// What goes wrong on the way to a model.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is none.
    #[error("`{0}` names no model of the hub: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION")]
    Name(String),
    /// Not all files are here, and the network is not allowed.
    #[error("{name}: `{file}` is not in the cache at {}, and HF_HUB_OFFLINE forbids to fetch it", cache.display())]
    Offline {
        /// The model.
        name: String,
        /// The first file that is missing.
        file: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The model has no file that is needed.
    #[error("{name}: the hub has no `{file}` of it{hint}")]
    Lacks {
        /// The model.
        name: String,
        /// The file.
        file: &'static str,
        /// What may help.
        hint: &'static str,
    },
    /// The hub refused, or could not be reached.
    #[error("{name}: {problem}")]
    Hub {
        /// The model.
        name: String,
        /// What happened, and what may help.
        problem: String,
    },
}

/// Whether a path is the name of a model on the hub.
pub fn is_hub_name(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.starts_with(HUB))
}

/// The path that `file:` stands before, or the path itself.
pub fn without_scheme(path: &Path) -> &Path {
    path.to_str().and_then(|name| name.strip_prefix(FILE)).map_or(path, Path::new)
}

/// The directory of a model: of one on the hub, its place in the cache, where it is fetched to if need be, with bars on
/// standard error where that is a terminal.
pub fn model_dir(path: &Path) -> Result<PathBuf, HubError> {
    if !is_hub_name(path) {
        return Ok(without_scheme(path).to_owned());
    }
    let name = path.to_str().expect("it begins with the hub's letters");
    let (id, revision) = parse(name).ok_or_else(|| HubError::Name(name.to_owned()))?;
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    let cache = cache();
    let missing = match complete(&cache, &repo) {
        Ok(dir) => return Ok(dir),
        Err(missing) => missing,
    };
    if std::env::var_os("HF_HUB_OFFLINE").is_some_and(|value| value != "0") {
        let cache = cache.path().clone();
        return Err(HubError::Offline { name: name.to_owned(), file: missing, cache });
    }
    let mut builder = ApiBuilder::from_env()
        .with_cache_dir(cache.path().clone())
        .with_progress(std::io::stderr().is_terminal())
        .with_retries(N_RETRIES)
        .with_user_agent("collimate", env!("CARGO_PKG_VERSION"));
    if let Some(token) = token(&cache) {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|error| hub_error(name, &error))?;
    fetch(name, &api.repo(repo.clone()))?;
    complete(&cache, &repo).map_err(|file| HubError::Hub {
        name: name.to_owned(),
        problem: format!("`{file}` was fetched and is not in the cache at {}", cache.path().display()),
    })
}

/// Owner and name, and the revision.
fn parse(name: &str) -> Option<(&str, &str)> {
    let (id, revision) = match name.strip_prefix(HUB)?.split_once('@') {
        Some((id, revision)) => (id, revision),
        None => (name.strip_prefix(HUB)?, DEFAULT_REVISION),
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (owner, model) = id.split_once('/')?;
    let is_revision = !revision.is_empty() && revision.split('/').all(is_part);
    (is_part(owner) && is_part(model) && is_revision).then_some((id, revision))
}

fn cache() -> Cache {
    let dir = std::env::var_os("HF_HUB_CACHE").filter(|dir| !dir.is_empty());
    dir.map_or_else(Cache::from_env, |dir| Cache::new(dir.into()))
}

fn token(cache: &Cache) -> Option<String> {
    let given = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| std::env::var(name).ok());
    given.filter(|token| !token.trim().is_empty()).map(|token| token.trim().to_owned()).or_else(|| cache.token())
}

/// The directory where all files of the model lie, or the first that is missing.
fn complete(cache: &Cache, repo: &Repo) -> Result<PathBuf, String> {
    let cached = cache.repo(repo.clone());
    let file = |name: &str| cached.get(name).ok_or_else(|| name.to_owned());
    let config = file(CONFIG)?;
    file(TOKENIZER)?;
    if cached.get(WEIGHTS).is_none() {
        let index = cached.get(INDEX).ok_or_else(|| WEIGHTS.to_owned())?;
        // What is wrong with an index is said when the model is read.
        let shards = shard_names(&index).unwrap_or_default();
        shards.iter().try_for_each(|shard| file(shard).map(drop))?;
    }
    Ok(config.parent().expect("a file in a directory").to_owned())
}

/// Fetches what is not in the cache. The optional files come first: once the weights are there, all is.
fn fetch(name: &str, repo: &ApiRepo) -> Result<(), HubError> {
    let failed = |error: ApiError| hub_error(name, &error);
    let files: Vec<String> =
        repo.info().map_err(failed)?.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let has = |wanted: &str| files.iter().any(|file| file == wanted);
    let lacks = |file, hint| Err(HubError::Lacks { name: name.to_owned(), file, hint });
    for file in [CONFIG, TOKENIZER] {
        if !has(file) {
            return lacks(file, "");
        }
    }
    for file in OPTIONAL.into_iter().filter(|file| has(file)).chain([CONFIG, TOKENIZER]) {
        repo.get(file).map_err(failed)?;
    }
    if has(WEIGHTS) {
        repo.get(WEIGHTS).map_err(failed)?;
    } else if has(INDEX) {
        let index = repo.get(INDEX).map_err(failed)?;
        let broken =
            |error: collimate_models::Error| HubError::Hub { name: name.to_owned(), problem: error.to_string() };
        for shard in shard_names(&index).map_err(broken)? {
            repo.get(&shard).map_err(failed)?;
        }
    } else {
        return lacks(WEIGHTS, "; weights in other formats are not read (pickles can run code)");
    }
    Ok(())
}

fn hub_error(name: &str, error: &ApiError) -> HubError {
    let text = error.to_string();
    let has_status = |codes: &[u16]| codes.iter().any(|code| text.contains(&format!("status code {code}")));
    let problem = if has_status(&[401, 403]) {
        "the hub refuses access (401 or 403): there is no such model, or it is gated or private; accept its terms on its \
         page, and log in with `hf auth login` or set HF_TOKEN"
            .to_owned()
    } else if has_status(&[404]) {
        "the hub has no such model, or no such revision of it (404)".to_owned()
    } else {
        format!("can't be fetched from the hub: {text}")
    };
    HubError::Hub { name: name.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_have_an_owner_a_name_and_perhaps_a_revision() {
        assert_eq!(parse("hf:owner/name"), Some(("owner/name", "main")));
        assert_eq!(parse("hf:HuggingFaceTB/SmolLM2-135M@v1.0"), Some(("HuggingFaceTB/SmolLM2-135M", "v1.0")));
        assert_eq!(parse("hf:owner/name@refs/pr/1"), Some(("owner/name", "refs/pr/1")));
        for name in ["hf:", "hf:name", "hf:a/b/c", "hf:a/", "hf:../b", "hf:a/..", "hf:a/b@", "hf:a/b@../x", "hf:a b/c"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn directories_are_taken_as_they_are() {
        assert_eq!(model_dir(Path::new("runs/x")).unwrap(), Path::new("runs/x"));
        assert_eq!(model_dir(Path::new("file:/models/x")).unwrap(), Path::new("/models/x"));
        assert!(matches!(model_dir(Path::new("hf:x")), Err(HubError::Name(_))));
    }
}
