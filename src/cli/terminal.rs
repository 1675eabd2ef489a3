//! How commands print. Names, reasons and arguments come from agents and tenants: nothing of them may reach a terminal
//! that it would obey.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

/// Whether a character changes what a terminal shows of others.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The text with control and direction characters escaped.
pub fn printable(text: &str) -> String {
    if !text.chars().any(acts) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The same of several lines, whose ends stay.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Standard output. A reader that has gone away (`| head`) is no error: it has what it wanted.
pub fn stdout() -> impl Write {
    Reader(io::stdout().lock())
}

struct Reader<W>(W);

impl<W: Write> Write for Reader<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

/// Prints rows under their titles, like kubectl.
pub fn table(out: &mut impl Write, titles: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let mut widths: Vec<usize> = titles.iter().map(|t| t.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            text.push_str(&format!("{:width$}   ", if cell.is_empty() { "-" } else { cell }));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&mut titles.iter().copied())?;
    for row in &rows {
        line(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

/// Prints indented JSON.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Prints an error and returns the exit code of usage and errors.
pub fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    // It may quote a file's name or text, or a server's words.
    eprintln!("error: {}", printable_lines(&error.to_string()));
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_away_is_no_error_and_a_full_disk_is_one() {
        struct Fails(io::ErrorKind);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(self.0.into())
            }
        }
        let say = |kind| {
            let mut out = Reader(Fails(kind));
            writeln!(out, "x").and_then(|()| out.flush())
        };
        say(io::ErrorKind::BrokenPipe).unwrap();
        assert_eq!(say(io::ErrorKind::StorageFull).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\\n\\u{202e}c");
        assert_eq!(printable("grün"), "grün");
        assert_eq!(printable_lines("a\u{1b}[2J\nb\r"), "a\\u{1b}[2J\nb\\r");
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        table(&mut out, &["A", "B"], &[vec!["ü\u{7}".into(), "x".into()], vec![String::new(), "y".into()]]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A        B\nü\\u{7}   x\n-        y\n");
    }
}
