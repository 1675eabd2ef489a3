//! How near two names are: for messages that say what was perhaps meant. Nothing is ever decided by it.

/// Edit distance with transpositions (optimal string alignment).
pub fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// The known names that are nearest to a name, the nearest first, at most three: those that a few letters turn into it, or that
/// have the same last part (`git/push` and `gitlab/push`).
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let letters = |text: &str| text.chars().take(256).collect::<Vec<_>>();
    let wanted = letters(&name.to_lowercase());
    let last = |text: &'_ str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let most = 2.max(wanted.len() / 3);
    let mut near: Vec<(usize, &str)> = known
        .map(|k| (distance(&wanted, &letters(&k.to_lowercase())), k))
        .filter(|(d, k)| *d <= most || last(k) == last(name))
        .collect();
    near.sort_unstable();
    near.into_iter().map(|(_, k)| k).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_perhaps_meant_comes_first() {
        let known = ["git/push", "git/pull", "gitlab/push", "files/read", "shell/run"];
        assert_eq!(nearest("git/psuh", known.into_iter()), ["git/push"]);
        assert_eq!(nearest("git/pul", known.into_iter()), ["git/pull", "git/push"]);
        assert_eq!(nearest("github/push", known.into_iter()), ["gitlab/push", "git/push"]);
        assert!(nearest("mail/send", known.into_iter()).is_empty());
    }
}
