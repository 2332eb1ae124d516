//! Reads the body of an answer up to a limit, and unpacks it.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::envelope::Envelope;

/// The limit of an answer's body in bytes, unpacked. Some APIs return all records that they were sent.
pub(super) const BYTES_MAX: usize = 8 << 20;
/// The process holds at most one answer that is longer than this, in bytes.
const LARGE_BYTES: usize = 64 << 10;
/// The number of compressed bytes that are unpacked at once: they can grow about a thousandfold.
const PACKED_BYTES: usize = 1 << 10;

/// The permit to hold an answer over [`LARGE_BYTES`].
static LARGE: Semaphore = Semaphore::const_new(1);

/// Reads a body until `deadline` at the latest. `parse` also reads a body that is whole. For a status other than 2xx
/// the part that was read is enough, because the status decides.
///
/// # Errors
/// The body of a 2xx was cut off or late: the missing part may have said whether the records were imported.
pub(super) async fn read<T>(
    mut response: Response,
    deadline: Instant,
    parse: impl FnOnce(&[u8]) -> T,
) -> Result<(Envelope, Option<T>), String> {
    let is_success = response.status().is_success();
    let content_type = header(&response, &CONTENT_TYPE).map(str::to_owned);
    let is_packed = header(&response, &CONTENT_ENCODING).is_some_and(is_gzip);
    let mut body = if is_packed { Body::packed() } else { Body::Plain(Bounded::default()) };
    let mut large: Option<SemaphorePermit<'static>> = None;
    'body: loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Err(problem) if is_success => return Err(crate::text::chain(&problem.without_url())),
            Ok(None) | Err(_) => break,
        };
        for part in chunk.chunks(PACKED_BYTES) {
            if let Err(why) = body.take(part) {
                let envelope = Envelope::unreadable(body.beginning(), content_type.as_deref(), why);
                return Ok((envelope, None));
            }
            if large.is_none() && body.kept().len() > LARGE_BYTES {
                match timeout_at(deadline, LARGE.acquire()).await {
                    Ok(permit) => large = permit.ok(),
                    Err(_) if is_success => return Err("reading the answer timed out".to_owned()),
                    Err(_) => break 'body,
                }
            }
        }
    }
    Ok(match body.finish() {
        Ok(body) => (Envelope::read(&body, content_type.as_deref()), Some(parse(&body))),
        Err(why) => (Envelope::unreadable(&[], content_type.as_deref(), why), None),
    })
}

fn header<'a>(response: &'a Response, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn is_gzip(encoding: &str) -> bool {
    ["gzip", "x-gzip"].iter().any(|gzip| encoding.trim().eq_ignore_ascii_case(gzip))
}

/// A body while it is read.
enum Body {
    Plain(Bounded),
    Packed(Box<MultiGzDecoder<Bounded>>),
}

impl Body {
    fn packed() -> Self {
        Self::Packed(Box::new(MultiGzDecoder::new(Bounded::default())))
    }

    fn take(&mut self, part: &[u8]) -> Result<(), &'static str> {
        let taken = match self {
            Self::Plain(kept) => kept.write_all(part),
            Self::Packed(decoder) => decoder.write_all(part),
        };
        taken.map_err(|_| self.why())
    }

    fn kept(&self) -> &[u8] {
        match self {
            Self::Plain(kept) => &kept.bytes,
            Self::Packed(decoder) => &decoder.get_ref().bytes,
        }
    }

    /// Returns enough bytes to see what kind of body it is.
    fn beginning(&self) -> &[u8] {
        &self.kept()[..self.kept().len().min(PACKED_BYTES)]
    }

    fn finish(self) -> Result<Vec<u8>, &'static str> {
        match self {
            Self::Plain(kept) => Ok(kept.bytes),
            // No body at all, as after a 204, even if its headers announce gzip.
            Self::Packed(decoder) if decoder.header().is_none() && decoder.get_ref().bytes.is_empty() => {
                Ok(Vec::new())
            }
            Self::Packed(mut decoder) => match decoder.try_finish() {
                Ok(()) => Ok(std::mem::take(&mut decoder.get_mut().bytes)),
                Err(_) => Err(Self::Packed(decoder).why()),
            },
        }
    }

    /// Returns why a part could not be stored.
    fn why(&self) -> &'static str {
        let is_full = match self {
            Self::Plain(kept) => kept.is_full,
            Self::Packed(decoder) => decoder.get_ref().is_full,
        };
        if is_full {
            "the answer is longer than 8 MiB"
        } else {
            "the answer is not the gzip that it says it is"
        }
    }
}

/// Collects bytes, up to [`BYTES_MAX`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > BYTES_MAX {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut body = Body::packed();
        for part in packed.chunks(PACKED_BYTES) {
            body.take(part)?;
        }
        body.finish()
    }

    #[test]
    fn gzip_is_unpacked_whole_or_not_at_all() {
        let text = b"{\"success\":true}".repeat(10_000);
        let packed = gzip(&text);
        assert!(unpacked(&packed).unwrap() == text);
        let mut twice = gzip(b"{\"success\"");
        twice.extend(gzip(b":true}"));
        assert_eq!(unpacked(&twice).unwrap(), b"{\"success\":true}", "as several members");
        assert_eq!(unpacked(b"").unwrap(), b"", "no body at all");
        let broken = Err("the answer is not the gzip that it says it is");
        assert_eq!(unpacked(&packed[..packed.len() - 1]), broken, "cut");
        assert_eq!(unpacked(b"{\"success\":true}"), broken);
        let mut altered = packed.clone();
        let end = altered.len() - 6;
        altered[end] ^= 1;
        assert_eq!(unpacked(&altered), broken, "its checksum is wrong");
    }

    #[test]
    fn an_answer_is_bounded_after_unpacking() {
        let full = vec![b' '; BYTES_MAX];
        assert_eq!(unpacked(&gzip(&full)).unwrap().len(), BYTES_MAX);
        let longer = vec![b' '; BYTES_MAX + 1];
        assert_eq!(unpacked(&gzip(&longer)), Err("the answer is longer than 8 MiB"));
    }
}
