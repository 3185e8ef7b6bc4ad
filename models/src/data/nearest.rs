//! The name that someone may have meant.

/// Similarity (Jaro and Winkler's, 0 to 1) from which on a name is worth proposing. `promt` and `prompt` have 0.96,
/// `lr` and `kl` 0.0; below this the proposals get silly.
const SIMILAR_ENOUGH: f64 = 0.75;

/// The known name that is most like `name`, where one is like it at all.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_misspelt_name_finds_what_was_meant_and_a_strange_one_nothing() {
        let known = ["prompt", "responses", "ranks"];
        assert_eq!(nearest("promt", known), Some("prompt"));
        assert_eq!(nearest("Response", known), Some("responses"));
        assert_eq!(nearest("ranking", known), Some("ranks"));
        assert_eq!(nearest("id", known), None);
    }
}
