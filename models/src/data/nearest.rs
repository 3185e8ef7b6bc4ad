//! The name that someone may have meant.

/// Similarity (Jaro and Winkler's, 0 to 1) from which on a name is worth proposing; below this the proposals get
/// silly.
const SIMILAR_ENOUGH: f64 = 0.85;

/// The known name that a misspelling most likely means, where one is like it at all.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.is_empty() {
        return None;
    }
    let name = name.to_lowercase();
    let known: Vec<(String, &str)> = known.into_iter().map(|known| (known.to_lowercase(), known)).collect();
    let n_edits = |known: &str| strsim::damerau_levenshtein(&name, known);
    let likeness = |known: &str| strsim::jaro_winkler(&name, known);

    // Fewer than two where the name is that short: any two letters are two edits from any others.
    let by_edits = known.iter().min_by_key(|(lower, _)| n_edits(lower))?;
    if n_edits(&by_edits.0) <= 2.max(name.len() / 3).min(name.len() / 2) {
        return Some(by_edits.1);
    }
    // Words missing or swapped make many edits: a name that begins, ends with or holds the other is near too.
    let holds = |(lower, _): &&(String, &str)| lower.contains(&name) || name.contains(lower.as_str());
    let like = || known.iter().max_by(|a, b| likeness(&a.0).total_cmp(&likeness(&b.0)));
    let (_, found) =
        known.iter().find(holds).or_else(|| like().filter(|(lower, _)| likeness(lower) >= SIMILAR_ENOUGH))?;
    Some(found)
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
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("prompt", []), None);
    }

    #[test]
    fn a_word_that_is_missing_or_too_many_is_no_matter() {
        let known = ["learning_rate", "batch_size", "kl"];
        assert_eq!(nearest("size", known), Some("batch_size"));
        assert_eq!(nearest("rate", known), Some("learning_rate"));
        assert_eq!(nearest("minibatch_size", known), Some("batch_size"));
    }

    #[test]
    fn a_name_of_two_letters_is_not_like_every_other() {
        assert_eq!(nearest("lr", ["kl", "no"]), None);
    }
}
