//! Reading of the files that settings name. No other code reads them.
//!
//! A setting may name anything: a regular file, a pipe (`<(pass show elven)`), a device, a directory. A pipe without a
//! writer blocks its reader without an end, and a device may never end. So anything but a regular file is read by a
//! thread of its own, for a limited time, and everything only up to a limited size.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::{Handle, RuntimeFlavor};

/// The most bytes of a file with a key, a secret or an address.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The most bytes of a configuration file.
const CONFIGURATION_BYTES_MAX: u64 = 1 << 20;

/// How long a pipe or a device may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Reads a file that holds a key, a secret or an address.
///
/// # Errors
/// Returns why it cannot be read, without its name: a name that does not exist may be the secret itself.
pub fn read_secret(path: &Path) -> io::Result<SecretString> {
    read(path, SECRET_BYTES_MAX)
}

/// Reads a configuration file.
pub(super) fn read_configuration(path: &Path) -> io::Result<String> {
    read(path, CONFIGURATION_BYTES_MAX).map(|text| text.expose_secret().to_owned())
}

fn read(path: &Path, bytes_max: u64) -> io::Result<SecretString> {
    let found = std::fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    if found.is_file() {
        return text_of(path, bytes_max);
    }
    let answered = || ReadOnce::of(path).answer(path, &found, bytes_max);
    // A runtime with several threads gives the other tasks of this thread to another one.
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(answered)
        }
        _ => answered(),
    }
}

fn text_of(path: &Path, bytes_max: u64) -> io::Result<SecretString> {
    let mut text = String::new();
    File::open(path)?.take(bytes_max + 1).read_to_string(&mut text).map_err(|problem| {
        // The size decides first: a large file may be cut within a character.
        if problem.kind() == io::ErrorKind::InvalidData {
            io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8, or it is too large")
        } else {
            problem
        }
    })?;
    if text.len() as u64 > bytes_max {
        let limit = format!("it has more than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, limit));
    }
    Ok(SecretString::from(text))
}

/// What a pipe or a device answered. It is read once per process: the content of a pipe can be read only once, and each
/// thread that waits for a pipe would take away what the next one expects.
#[derive(Default)]
struct ReadOnce {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    /// Nobody reads it.
    #[default]
    Unread,
    /// A thread reads it since this time.
    Reading(Instant),
    /// It was read.
    Read(SecretString),
    /// It could not be read. It is read again when it is needed again.
    Failed(io::ErrorKind, String),
}

/// The pipes and devices that were read or are being read.
static READ: Mutex<BTreeMap<PathBuf, Arc<ReadOnce>>> = Mutex::new(BTreeMap::new());

impl ReadOnce {
    fn of(path: &Path) -> Arc<Self> {
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        read.entry(path.to_owned()).or_default().clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what was read, or waits for it. All that wait together wait as long as the first one, so that a pipe
    /// without a writer delays a run once.
    fn answer(self: Arc<Self>, path: &Path, found: &Metadata, bytes_max: u64) -> io::Result<SecretString> {
        let mut state = self.state();
        if matches!(*state, State::Unread | State::Failed(..)) {
            *state = State::Reading(Instant::now());
            let (this, path) = (self.clone(), path.to_owned());
            let is_pipe = found.file_type().is_fifo();
            // A thread of the runtime would keep the process from ending.
            std::thread::Builder::new().name("reads a pipe".to_owned()).spawn(move || {
                let read = text_of(&path, bytes_max);
                *this.state() = match read {
                    Ok(text) if is_pipe && text.expose_secret().is_empty() => State::Failed(
                        io::ErrorKind::UnexpectedEof,
                        "the pipe was closed without content".to_owned(),
                    ),
                    Ok(text) => State::Read(text),
                    Err(problem) => State::Failed(problem.kind(), problem.to_string()),
                };
                this.changed.notify_all();
            })?;
        }
        loop {
            let since = match &*state {
                State::Read(text) => return Ok(text.clone()),
                State::Failed(kind, why) => return Err(io::Error::new(*kind, why.clone())),
                State::Unread => Instant::now(),
                State::Reading(since) => *since,
            };
            let left = ANSWER_MAX.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Err(no_answer(path, found));
            }
            let waited = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
        }
    }
}

/// The name is no secret: something of this name is there.
fn no_answer(path: &Path, found: &Metadata) -> io::Error {
    let what = if found.file_type().is_fifo() { "a pipe that nothing writes to" } else { "no regular file" };
    let name = path.display().to_string();
    let limit = ANSWER_MAX.as_secs();
    let said = format!("{} gave no answer within {limit} s, because it is {what}", name.escape_debug());
    io::Error::new(io::ErrorKind::TimedOut, said)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn pipe(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        path
    }

    fn shown(read: io::Result<SecretString>) -> Result<String, String> {
        read.map(|text| text.expose_secret().to_owned()).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_pipe_is_read_once_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = pipe(&folder);
        let writer = std::thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, "s3cret\n").unwrap()
        });
        assert_eq!(shown(read_secret(&path)), Ok("s3cret\n".to_owned()));
        writer.join().unwrap();
        assert_eq!(shown(read_secret(&path)), Ok("s3cret\n".to_owned()));
    }

    /// What comes late is not lost, and nobody waits twice.
    #[test]
    fn a_pipe_that_nothing_writes_to_is_given_up_and_read_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = pipe(&folder);
        let refused = shown(read_secret(&path)).unwrap_err();
        assert!(refused.contains("pipe gave no answer within 5 s"), "{refused}");
        let again = Instant::now();
        shown(read_secret(&path)).unwrap_err();
        assert!(again.elapsed() < ANSWER_MAX / 2);
        // A reader waits, so that this does not block.
        let mut late =
            std::fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
        std::io::Write::write_all(&mut late, b"late").unwrap();
        drop(late);
        let deadline = Instant::now() + Duration::from_secs(20);
        while shown(read_secret(&path)) != Ok("late".to_owned()) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(shown(read_secret(folder.path())).unwrap_err().contains("directory"));
        let large = shown(read_secret(Path::new("/dev/zero"))).unwrap_err();
        assert!(large.contains("more than 65536 bytes"), "{large}");
        let path = folder.path().join("large");
        std::fs::write(&path, "x".repeat(70_000)).unwrap();
        assert!(shown(read_secret(&path)).unwrap_err().contains("more than 65536 bytes"));
        assert_eq!(read_configuration(&path).unwrap().len(), 70_000);
        std::fs::write(&path, [0xff]).unwrap();
        assert!(shown(read_secret(&path)).unwrap_err().contains("not UTF-8"));
        assert!(shown(read_secret(&folder.path().join("missing"))).is_err());
    }
}
