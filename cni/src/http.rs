//! The part of HTTP/1.1 that a client of the agent's socket needs: write one request, read one answer.
//!
//! An answer's body ends by `Content-Length`, by chunked coding or by the end of the connection. The head is at most
//! [`MAX_HEAD`] bytes; how much of a body is kept is the caller's to say. One request per connection.
//! Source: RFC 9112 sections 4 (status line), 5 (fields), 6.3 (message body length) and 7.1 (chunked coding).
//! Invariant: whatever bytes arrive, reading ends with an answer or an error and keeps no more than was allowed.

use std::io::{self, BufRead, Read, Write};

/// Longest head (status line and fields) of an answer in bytes, and longest line within a chunked body.
pub const MAX_HEAD: usize = 16 * 1024;

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection failed, or ended within the answer.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no HTTP answer; the text says where.
    #[error("not an HTTP/1.1 answer: {0}")]
    Malformed(&'static str),
}

/// Writes one request with an optional JSON body. The agent is told that the connection ends with its answer.
pub fn write_request(to: &mut impl Write, method: &str, path: &str, body: Option<&[u8]>) -> io::Result<()> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: sluiced\r\nAccept: application/json\r\n");
    head.push_str("Connection: close\r\n");
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    to.write_all(head.as_bytes())?;
    to.write_all(body.unwrap_or_default())?;
    to.flush()
}

/// The head of an answer, read; its body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code, 200 to 599.
    pub status: u16,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Reads the head of the final answer; interim answers (1xx) are skipped.
pub fn read_head(from: &mut impl BufRead) -> Result<Head, HttpError> {
    let mut budget = MAX_HEAD;
    loop {
        let head = read_one_head(from, &mut budget)?;
        if head.status >= 200 {
            return Ok(head);
        }
    }
}

fn read_one_head(from: &mut impl BufRead, budget: &mut usize) -> Result<Head, HttpError> {
    let status = parse_status(&read_line(from, budget)?)?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let line = read_line(from, budget)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(HttpError::Malformed("a field without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return Err(HttpError::Malformed("a Content-Length that is no number"));
            }
            let parsed = value.parse().map_err(|_| HttpError::Malformed("a Content-Length out of range"))?;
            if length.is_some_and(|earlier: u64| earlier != parsed) {
                return Err(HttpError::Malformed("two Content-Lengths"));
            }
            length = Some(parsed);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::Malformed("a transfer coding other than chunked"));
            }
            chunked = true;
        }
    }
    let framing = match (status, chunked, length) {
        (100..200 | 204 | 304, ..) => Framing::Length(0),
        (_, true, Some(_)) => return Err(HttpError::Malformed("both Content-Length and chunked coding")),
        (_, true, None) => Framing::Chunked,
        (_, false, Some(length)) => Framing::Length(length),
        (_, false, None) => Framing::UntilClose,
    };
    Ok(Head { status, framing })
}

fn parse_status(line: &str) -> Result<u16, HttpError> {
    let rest = line.strip_prefix("HTTP/1.").ok_or(HttpError::Malformed("the first line is no status line"))?;
    let mut words = rest.split(' ');
    let minor = words.next().unwrap_or_default();
    let code = words.next().unwrap_or_default();
    let digits = minor.len() == 1 && code.len() == 3 && (minor.bytes().chain(code.bytes())).all(|b| b.is_ascii_digit());
    match code.parse() {
        Ok(code @ 100..=599) if digits => Ok(code),
        _ => Err(HttpError::Malformed("no status code")),
    }
}

/// One line without its end (CRLF or LF), charged to `budget`.
fn read_line(from: &mut impl BufRead, budget: &mut usize) -> Result<String, HttpError> {
    let mut line = Vec::new();
    from.by_ref().take(*budget as u64).read_until(b'\n', &mut line)?;
    *budget -= line.len();
    if line.pop() != Some(b'\n') {
        return Err(if *budget == 0 { HttpError::Malformed("a head or line too long") } else { cut_short().into() });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| HttpError::Malformed("a head that is no text"))
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended within the answer")
}

/// The body of an answer as a stream; the coding is taken off. Errors of the coding come as [`io::ErrorKind::InvalidData`].
#[derive(Debug)]
pub struct Body<R> {
    from: R,
    state: BodyState,
}

#[derive(Debug)]
enum BodyState {
    /// So many bytes are still to come, of the body or of the present chunk.
    Length(u64),
    Chunk(u64),
    /// Before a chunk's size line; the flag says that the end of an earlier chunk comes first.
    ChunkSize {
        after_chunk: bool,
    },
    UntilClose,
    Done,
}

impl<R: BufRead> Body<R> {
    /// The body that follows `head` on `from`.
    pub fn new(head: Head, from: R) -> Self {
        let state = match head.framing {
            Framing::Length(length) => BodyState::Length(length),
            Framing::Chunked => BodyState::ChunkSize { after_chunk: false },
            Framing::UntilClose => BodyState::UntilClose,
        };
        Self { from, state }
    }

    fn next_chunk(&mut self, after_chunk: bool) -> Result<BodyState, HttpError> {
        let mut budget = MAX_HEAD;
        if after_chunk && !read_line(&mut self.from, &mut budget)?.is_empty() {
            return Err(HttpError::Malformed("a chunk longer than its size"));
        }
        let line = read_line(&mut self.from, &mut budget)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(HttpError::Malformed("a chunk without a size"));
        }
        let size = u64::from_str_radix(digits, 16).map_err(|_| HttpError::Malformed("a chunk without a size"))?;
        if size > 0 {
            return Ok(BodyState::Chunk(size));
        }
        while !read_line(&mut self.from, &mut budget)?.is_empty() {}
        Ok(BodyState::Done)
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                BodyState::Done | BodyState::Length(0) => return Ok(0),
                BodyState::UntilClose => return self.from.read(out),
                BodyState::Chunk(0) => self.state = BodyState::ChunkSize { after_chunk: true },
                BodyState::ChunkSize { after_chunk } => {
                    self.state = self.next_chunk(after_chunk).map_err(|error| match error {
                        HttpError::Io(error) => error,
                        malformed => io::Error::new(io::ErrorKind::InvalidData, malformed),
                    })?;
                }
                BodyState::Length(ref mut left) | BodyState::Chunk(ref mut left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
                    let got = self.from.read(&mut out[..most])?;
                    if got == 0 {
                        return Err(cut_short());
                    }
                    *left -= got as u64;
                    return Ok(got);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(bytes: &[u8]) -> Result<(u16, Vec<u8>), String> {
        let mut from = bytes;
        let head = read_head(&mut from).map_err(|e| e.to_string())?;
        let mut body = Vec::new();
        Body::new(head, from).read_to_end(&mut body).map_err(|e| e.to_string())?;
        Ok((head.status, body))
    }

    #[test]
    fn a_body_ends_by_length_by_chunks_or_by_the_end_of_the_connection() {
        let ok = |bytes: &str| answer(bytes.as_bytes()).unwrap();
        assert_eq!(ok("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}tail"), (200, b"{}".to_vec()));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nT: v\r\n\r\n";
        assert_eq!(ok(chunked), (200, b"abcd".to_vec()));
        assert_eq!(ok("HTTP/1.0 503 \r\n\r\nbusy"), (503, b"busy".to_vec()));
        assert_eq!(ok("HTTP/1.1 204 No Content\r\n\r\n"), (204, vec![]));
        assert_eq!(ok("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\ncontent-length: 0\n\n"), (200, vec![]));
    }

    #[test]
    fn answers_that_are_none_are_refused_with_what_is_wrong() {
        let err = |bytes: &str| answer(bytes.as_bytes()).unwrap_err();
        assert!(err("").contains("ended within"));
        assert!(err("SSH-2.0-OpenSSH\r\n").contains("status line"));
        assert!(err("HTTP/1.1 2x0 OK\r\n\r\n").contains("status code"));
        assert!(err("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n").contains("colon"));
        assert!(err("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n").contains("no number"));
        assert!(err("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n").contains("two"));
        assert!(err("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").contains("ended within"));
        assert!(err("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n").contains("chunked"));
        let both = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n";
        assert!(err(both).contains("both"));
        assert!(err("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").contains("size"));
        assert!(err("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n").contains("longer"));
        assert!(err(&format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD))).contains("too long"));
    }

    #[test]
    fn a_request_says_how_long_its_body_is() {
        let mut out = Vec::new();
        write_request(&mut out, "POST", "/v1/cni/add", Some(b"{}")).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("POST /v1/cni/add HTTP/1.1\r\n"));
        assert!(text.contains("Content-Length: 2\r\n") && text.ends_with("\r\n\r\n{}"));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = answer(&bytes);
            let mut chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            chunked.extend_from_slice(&bytes);
            let _ = answer(&chunked);
        }

        #[test]
        fn chunked_coding_gives_back_what_was_cut(parts in proptest::collection::vec("[a-z]{1,40}", 0..8)) {
            let mut wire = String::from("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            for part in &parts {
                wire.push_str(&format!("{:x}\r\n{part}\r\n", part.len()));
            }
            wire.push_str("0\r\n\r\n");
            prop_assert_eq!(answer(wire.as_bytes()).unwrap().1, parts.concat().into_bytes());
        }
    }
}
