//! Lines: one line is one message, and whoever reads on must cut the bytes at the same places.
//!
//! Readers differ in what ends a line: many take a lone carriage return for an end, and would find a second message in the
//! white space of the first. So a line with one is refused, as are NUL, a byte order mark and what is no UTF-8. Must never
//! repair or re-encode anything: what passes is passed on as it came.

/// Longest message of a client, bytes. What is larger could not be checked either: Remit takes questions of 1 MiB.
pub const MAX_CLIENT_LINE: usize = 4 << 20;
/// Longest message of a server, bytes: results may carry images and files.
pub const MAX_SERVER_LINE: usize = 32 << 20;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A line without its end; may be empty.
    Line(Vec<u8>),
    /// A line longer than may be; its bytes are gone.
    TooLong,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes of the buffer in which no line ends.
    searched: usize,
    longest: usize,
    /// Within a line that is too long.
    skipping: bool,
}

impl Lines {
    /// Lines of at most so many bytes.
    pub fn new(longest: usize) -> Self {
        Self { buffer: Vec::new(), searched: 0, longest, skipping: false }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line.
    pub fn next_line(&mut self) -> Option<Frame> {
        let end = self.buffer[self.searched..].iter().position(|b| *b == b'\n').map(|at| self.searched + at);
        match end {
            Some(end) => {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                let too_long = std::mem::take(&mut self.skipping) || line.len() > self.longest;
                Some(if too_long { Frame::TooLong } else { Frame::Line(line) })
            }
            None => {
                self.searched = self.buffer.len();
                if self.searched > self.longest {
                    self.buffer = Vec::new();
                    self.searched = 0;
                    self.skipping = true;
                }
                None
            }
        }
    }
}

/// The line as text, without the carriage return of a Windows line end. None if nothing but white space.
pub fn text(line: &[u8]) -> Result<Option<&str>, &'static str> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.contains(&b'\r') {
        return Err("a carriage return within a message: some readers would take it for the end of a line");
    }
    if line.contains(&0) {
        return Err("a NUL byte within a message");
    }
    let text = std::str::from_utf8(line).map_err(|_| "not valid UTF-8")?;
    if text.starts_with('\u{feff}') {
        return Err("a byte order mark before the message");
    }
    Ok((!text.bytes().all(|b| matches!(b, b' ' | b'\t'))).then_some(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(longest: usize, pieces: &[&[u8]]) -> Vec<Frame> {
        let mut lines = Lines::new(longest);
        let mut out = Vec::new();
        for piece in pieces {
            lines.push(piece);
            while let Some(frame) = lines.next_line() {
                out.push(frame);
            }
        }
        out
    }

    fn line(text: &str) -> Frame {
        Frame::Line(text.as_bytes().to_vec())
    }

    #[test]
    fn a_line_is_what_ends_with_a_line_feed() {
        assert_eq!(all(9, &[b"ab\nc", b"d\r\n\n", b"e"]), [line("ab"), line("cd\r"), line("")]);
        assert_eq!(all(9, &[]), []);
    }

    #[test]
    fn what_is_too_long_is_left_out_and_the_next_line_is_read() {
        assert_eq!(all(3, &[b"abc\nabcd\nab\n"]), [line("abc"), Frame::TooLong, line("ab")]);
        assert_eq!(all(3, &[b"abcd", b"efgh", b"i\nok\n"]), [Frame::TooLong, line("ok")]);
    }

    #[test]
    fn bytes_that_readers_cut_differently_are_refused() {
        for bad in [&b"{\r}"[..], b"\r{}", b"{}\r\r", b"{\0}", b"{\"a\":\"\xff\"}", b"\xef\xbb\xbf{}"] {
            assert!(text(bad).is_err(), "{bad:?}");
        }
        assert_eq!(text(b"{}\r"), Ok(Some("{}")));
        for empty in [&b""[..], b"\r", b" \t"] {
            assert_eq!(text(empty), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_arrive_changes_nothing(bytes in proptest::collection::vec(0u8..4, 0..60), cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let bytes: Vec<u8> = bytes.iter().map(|b| b"a\nb\r"[usize::from(*b)]).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(all(5, &pieces), all(5, &[&bytes]));
        }
    }
}
