//! The known name that a mistyped one most likely meant.
//!
//! Owner: any thread. Cost: product of the lengths, per known name; used for messages only.

/// The known name within an edit distance of a third of the name's length (at least one); the closest, first of equals.
pub fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (unknown.chars().count() / 3).max(1);
    known
        .iter()
        .map(|name| (distance(unknown, name), *name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein distance, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_finds_its_name_and_a_stranger_finds_none() {
        let known = ["podSelector", "policyTypes", "ingress", "egress"];
        assert_eq!(nearest("podselector", &known), Some("podSelector"));
        assert_eq!(nearest("ingres", &known), Some("ingress"));
        assert_eq!(nearest("policyType", &known), Some("policyTypes"));
        assert_eq!(nearest("somethingElse", &known), None);
        assert_eq!(nearest("", &known), None);
    }
}
