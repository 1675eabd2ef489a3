//! The unified diff of two short texts, such as two versions of a policy.

/// Lines around a change.
const CONTEXT: usize = 3;
/// Pairs of lines that are compared; beyond, everything between what both begin and end with counts as changed.
const MAX_PAIRS: usize = 4_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    Old,
    New,
}

struct Line<'a> {
    kind: Kind,
    text: &'a str,
}

/// Unified diff with three lines of context; empty where the texts are equal.
pub fn unified(old: &str, new: &str, old_name: &str, new_name: &str) -> String {
    if old == new {
        return String::new();
    }
    let lines = compare(&split(old), &split(new));
    let mut out = format!("--- {old_name}\n+++ {new_name}\n");
    let changed: Vec<usize> = (0..lines.len()).filter(|n| lines[*n].kind != Kind::Same).collect();
    let mut from = 0;
    while let Some(first) = changed.get(from) {
        // A hunk reaches as far as no more than twice the context lies between changes.
        let mut last = from;
        while changed.get(last + 1).is_some_and(|next| next - changed[last] <= 2 * CONTEXT + 1) {
            last += 1;
        }
        let begin = first.saturating_sub(CONTEXT);
        let end = (changed[last] + CONTEXT + 1).min(lines.len());
        hunk(&lines, begin, end, &mut out);
        from = last + 1;
    }
    out
}

fn hunk(lines: &[Line<'_>], begin: usize, end: usize, out: &mut String) {
    let count = |range: &[Line<'_>], not: Kind| range.iter().filter(|l| l.kind != not).count();
    let place = |not: Kind| {
        let (before, of) = (count(&lines[..begin], not), count(&lines[begin..end], not));
        // An empty side is named by the line before it.
        format!("{},{of}", if of == 0 { before } else { before + 1 })
    };
    out.push_str(&format!("@@ -{} +{} @@\n", place(Kind::New), place(Kind::Old)));
    for line in &lines[begin..end] {
        out.push(match line.kind {
            Kind::Same => ' ',
            Kind::Old => '-',
            Kind::New => '+',
        });
        out.push_str(line.text.strip_suffix('\n').unwrap_or(line.text));
        out.push('\n');
        if !line.text.ends_with('\n') {
            out.push_str("\\ No newline at end of file\n");
        }
    }
}

fn split(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// What is the same, from the old only or from the new only, in the order of a diff.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let line = |kind| move |text: &&'a str| Line { kind, text };
    let mut out: Vec<Line<'a>> = old[..head].iter().map(line(Kind::Same)).collect();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    if a.len().saturating_mul(b.len()) > MAX_PAIRS {
        out.extend(a.iter().map(line(Kind::Old)).chain(b.iter().map(line(Kind::New))));
    } else {
        middle(a, b, &mut out);
    }
    out.extend(old[old.len() - tail..].iter().map(line(Kind::Same)));
    out
}

/// By the longest common subsequence.
fn middle<'a>(a: &[&'a str], b: &[&'a str], out: &mut Vec<Line<'a>>) {
    let width = b.len() + 1;
    let mut longest = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = if a[i] == b[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            out.push(Line { kind: Kind::Same, text: a[i] });
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
            out.push(Line { kind: Kind::Old, text: a[i] });
            i += 1;
        } else {
            out.push(Line { kind: Kind::New, text: b[j] });
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffs_are_as_diff_writes_them() {
        let cases = [
            ("a\nb\nc\n", "a\nB\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"),
            ("", "x\n", "@@ -0,0 +1,1 @@\n+x\n"),
            ("x\n", "", "@@ -1,1 +0,0 @@\n-x\n"),
            ("x", "x\n", "@@ -1,1 +1,1 @@\n-x\n\\ No newline at end of file\n+x\n"),
            ("1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\n5\n6\n7\n8\nn\n", "@@ -6,4 +6,4 @@\n 6\n 7\n 8\n-9\n+n\n"),
        ];
        for (old, new, hunks) in cases {
            assert_eq!(unified(old, new, "v1", "v2"), format!("--- v1\n+++ v2\n{hunks}"));
        }
        assert_eq!(unified("a", "a", "v1", "v2"), "");
        let far: String = (0..20).map(|n| format!("{n}\n")).collect();
        let both = far.replace("0\n1\n2\n", "zero\n1\n2\n").replace("19\n", "last\n");
        assert_eq!(unified(&far, &both, "a", "b").matches("@@ -").count(), 2);
    }

    /// Applied to the old, a diff gives the new.
    #[test]
    fn what_is_compared_is_all_of_both() {
        let texts = ["a\nb\nc\nd\n", "b\nc\nx\nd\ne\n", "c\na\nb\n", "", "q\n"];
        for old in texts {
            for new in texts {
                let lines = compare(&split(old), &split(new));
                let side = |not: Kind| lines.iter().filter(|l| l.kind != not).map(|l| l.text).collect::<String>();
                assert_eq!((side(Kind::New).as_str(), side(Kind::Old).as_str()), (old, new));
            }
        }
    }

    #[test]
    fn long_texts_are_compared_in_bounds() {
        let old: String = (0..3000).map(|n| format!("{n}\n")).collect();
        let new: String = (0..3000).map(|n| format!("{}\n", n * 7)).collect();
        assert!(unified(&old, &new, "a", "b").lines().count() > 3000);
    }
}
