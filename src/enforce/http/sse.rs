//! Server-sent events (WHATWG HTML, 9.2), read without guessing: what is not UTF-8, or larger than may be, ends the stream.
//!
//! One event is one message. Must never join two events or cut one.

use thiserror::Error;

/// Why the stream can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SseError {
    /// The limit protects memory.
    #[error("an event is larger than {0} bytes")]
    TooLarge(usize),
    /// Readers would repair it, each in its own way.
    #[error("the event stream is not UTF-8")]
    NotUtf8,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The type; empty: `message`.
    pub kind: String,
    /// The data; several `data` lines are joined with LF.
    pub data: String,
}

impl Event {
    /// Whether it carries a message of MCP. Events of other types are nobody's.
    pub fn is_message(&self) -> bool {
        matches!(self.kind.as_str(), "" | "message") && !self.data.is_empty()
    }
}

/// Cuts a stream of bytes into events.
#[derive(Debug)]
pub struct Reader {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    /// Nothing was read yet: a byte order mark may stand here.
    at_start: bool,
    event: Event,
    has_data: bool,
    largest: usize,
    /// `Last-Event-ID`, if the stream has ids.
    pub last_id: Option<String>,
    /// How long to wait before reconnecting, milliseconds, if the server said so.
    pub retry: Option<u64>,
}

impl Reader {
    /// Events of at most so many bytes.
    pub fn new(largest: usize) -> Self {
        Self {
            line: Vec::new(),
            after_return: false,
            at_start: true,
            event: Event::default(),
            has_data: false,
            largest,
            last_id: None,
            retry: None,
        }
    }

    /// Takes the next bytes, and gives the events that end in them. What the stream ends within is no event.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_of_line(&line)?);
                }
                _ => {
                    self.line.push(byte);
                    if self.line.len() + self.event.data.len() > self.largest {
                        return Err(SseError::TooLarge(self.largest));
                    }
                }
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self, line: &[u8]) -> Result<Option<Event>, SseError> {
        let line = std::str::from_utf8(line).map_err(|_| SseError::NotUtf8)?;
        let line = if std::mem::take(&mut self.at_start) { line.trim_start_matches('\u{feff}') } else { line };
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return Ok(std::mem::take(&mut self.has_data).then_some(event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.kind = value.to_owned(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            "retry" if value.bytes().all(|b| b.is_ascii_digit()) => self.retry = value.parse().ok().or(self.retry),
            // Comments begin with a colon, so their field is empty.
            _ => {}
        }
        Ok(None)
    }
}

/// A message as one event.
pub fn write(message: &[u8]) -> Vec<u8> {
    let mut out = b"event: message\n".to_vec();
    // A carriage return would end a line, too; in JSON both are white space between tokens.
    for line in message.split(|b| matches!(b, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(pieces: &[&[u8]]) -> Result<Vec<String>, SseError> {
        let mut reader = Reader::new(64);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(reader.push(piece)?.into_iter().map(|e| format!("{}|{}", e.kind, e.data)));
        }
        Ok(out)
    }

    #[test]
    fn an_event_ends_at_an_empty_line_however_lines_end() {
        let wanted = Ok(vec!["|a\nb".to_owned(), "x|c".to_owned()]);
        assert_eq!(data(&[b"data: a\ndata:b\n\n: hi\nevent: x\ndata: c\n\ndata: cut"]), wanted);
        assert_eq!(data(&[b"data: a\r\ndata:b\r\n\r\nevent: x\r\ndata: c\r\n\r\n"]), wanted);
        assert_eq!(data(&[b"data: a\rdata:b\r\revent: x\rdata: c\r\r"]), wanted);
        assert_eq!(data(&[b"data: a\r", b"\ndata:b\r", b"\n\r", b"\nevent: x\r\ndata: c\n", b"\n"]), wanted);
        assert_eq!(data(&["\u{feff}data: a\n\n".as_bytes()]), Ok(vec!["|a".into()]));
    }

    #[test]
    fn what_has_no_data_is_no_event_but_its_id_counts() {
        let mut reader = Reader::new(64);
        assert_eq!(reader.push(b"id: 7\nretry: 250\nevent: x\n\n").unwrap(), []);
        assert_eq!((reader.last_id.as_deref(), reader.retry), (Some("7"), Some(250)));
        // A priming event: `data` without a value.
        let primed = reader.push(b"id: 8\ndata:\n\nretry: soon\nid: a\0b\n").unwrap();
        assert!(primed.iter().all(|e| !e.is_message()), "{primed:?}");
        assert_eq!((reader.last_id.as_deref(), reader.retry), (Some("8"), Some(250)));
        let other = reader.push(b"event: ping\ndata: {}\n\n").unwrap();
        assert!(!other[0].is_message());
    }

    #[test]
    fn limits_and_bytes_that_are_no_text_end_the_stream() {
        assert_eq!(data(&[b"data: \xff\n"]), Err(SseError::NotUtf8));
        assert_eq!(data(&[&[b'x'; 65]]), Err(SseError::TooLarge(64)));
        let many = b"data: 1234567890\n".repeat(7);
        assert_eq!(data(&[&many]), Err(SseError::TooLarge(64)));
        assert!(data(&[b"data: 1234567890\n\n".repeat(70).as_slice()]).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_one_event(text in "[ -~\u{e9}\n\r]{1,60}", cut in 0usize..80) {
            let bytes = write(text.as_bytes());
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let mut reader = Reader::new(4096);
            let mut events = reader.push(a).unwrap();
            events.extend(reader.push(b).unwrap());
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(&events[0].data, &text.replace('\r', "\n"));
        }
    }
}
