//! What is told over time: each message is counted.

use super::*;

const CRITICAL: Severity = Severity::Critical;
const WARNING: Severity = Severity::Warning;

/// An installation whose alerts a test sets, with a webhook that takes each message at once, unless it is down.
struct World {
    state: AlertsNow,
    begun: DateTime<Utc>,
    min: Severity,
    is_down: bool,
    told: Vec<String>,
}

impl World {
    fn new() -> Self {
        let begun = DateTime::parse_from_rfc3339("2026-12-01T00:00:00Z").unwrap().to_utc();
        let state =
            AlertsNow { now: begun, is_webhook_well: true, alerts: Vec::new(), notifications: Vec::new() };
        Self { state, begun, min: WARNING, is_down: false, told: Vec::new() }
    }

    /// Makes the run of this minute.
    fn run(&mut self, minute: i64, alerts: Vec<Alert>) {
        self.state.now = self.begun + TimeDelta::minutes(minute);
        self.state.alerts = alerts;
        let state = self.state.clone();
        for Decision { name, revision, action } in decide(&state, self.min) {
            let notifications = &mut self.state.notifications;
            if notifications.iter().all(|known| known.name != name) {
                let name = name.to_owned();
                notifications.push(Notification {
                    name,
                    revision: 0,
                    told: None,
                    critical: Vec::new(),
                    is_undelivered: false,
                });
            }
            let known = notifications.iter_mut().find(|known| known.name == name).unwrap();
            assert_eq!(known.revision, revision);
            known.revision += 1;
            match action {
                Action::Keep(subjects) => known.told.as_mut().unwrap().subjects = subjects,
                Action::Tell { .. } if self.is_down => known.is_undelivered = true,
                Action::Tell { told, critical, .. } => {
                    known.critical = critical;
                    let kind = told.kind.as_ref().replace("alert.", "");
                    self.told.push(format!(
                        "{minute} {name} {kind} {} {}",
                        told.severity.as_ref(),
                        told.count
                    ));
                    known.told = Some(told);
                }
            }
        }
    }

    /// Returns what was told since the last call.
    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

fn alert(name: &str, severity: Severity, entity_id: Option<&str>) -> Alert {
    Alert {
        name: name.to_owned(),
        severity,
        entity_id: entity_id.map(str::to_owned),
        since: DateTime::UNIX_EPOCH,
        message: "m".to_owned(),
        hint: "elven-sync status".to_owned(),
    }
}

/// `Failing` of the first `count` entities.
fn failing(severity: Severity, count: usize) -> Vec<Alert> {
    (0..count).map(|n| alert("Failing", severity, Some(&format!("e{n:04}")))).collect()
}

const NONE: [&str; 0] = [];

#[test]
fn outage_of_all_entities_is_told_once_and_its_end_once() {
    let mut world = World::new();
    for minute in (0..1440).step_by(30) {
        let is_out = (60..1200).contains(&minute);
        world.run(minute, if is_out { failing(WARNING, 5_000) } else { Vec::new() });
    }
    assert_eq!(world.told(), ["60 Failing began warning 5000", "1200 Failing ended warning 5000"]);
    let Told { entities, .. } = world.state.notifications[0].told.clone().unwrap();
    assert_eq!((entities.len(), entities[0].as_str(), entities[19].as_str()), (20, "e0000", "e0019"));
}

#[test]
fn severity_that_rises_is_told_once_until_the_end() {
    let mut world = World::new();
    for (minute, severity) in [(0, WARNING), (1, CRITICAL), (2, WARNING), (3, CRITICAL), (200, WARNING)] {
        world.run(minute, failing(severity, 1));
    }
    world.run(300, Vec::new());
    assert_eq!(
        world.told(),
        ["0 Failing began warning 1", "1 Failing worse critical 1", "300 Failing ended critical 1"]
    );
}

/// One more entity each minute for a day: a message each time that their number has doubled, and one an hour.
#[test]
fn outage_that_grows_does_not_post_each_minute() {
    let mut world = World::new();
    for minute in 0..1440 {
        world.run(minute, failing(WARNING, usize::try_from(minute).unwrap() + 1));
    }
    let told = world.told();
    assert_eq!(
        told[..7],
        [
            "0 Failing began warning 1",
            "5 Failing worse warning 6",
            "11 Failing worse warning 12",
            "23 Failing worse warning 24",
            "47 Failing worse warning 48",
            "95 Failing worse warning 96",
            "155 Failing worse warning 156"
        ]
    );
    assert!(told.len() <= 29, "{told:?}");
}

/// A known failure of one entity does not hide that of another one for longer than an hour.
#[test]
fn new_entity_of_an_alert_that_was_told_is_told_within_an_hour() {
    let both = || vec![alert("Failing", CRITICAL, Some("acme")), alert("Failing", CRITICAL, Some("beta"))];
    let mut world = World::new();
    world.run(0, vec![both()[0].clone()]);
    world.run(30, both());
    world.run(59, both());
    assert_eq!(world.told(), ["0 Failing began critical 1"]);
    world.run(60, both());
    world.run(180, both());
    assert_eq!(world.told(), ["60 Failing worse critical 2"]);
    // beta recovers, and fails again.
    world.run(190, vec![both()[0].clone()]);
    world.run(200, both());
    assert_eq!(world.told(), ["200 Failing worse critical 2"]);
    for minute in 201..260 {
        let is_both = minute % 2 == 0;
        world.run(minute, if is_both { both() } else { vec![both()[0].clone()] });
    }
    assert_eq!(world.told(), NONE, "for an hour");
    // The first entity recovers: the alert has not ended.
    world.run(270, vec![both()[1].clone()]);
    assert_eq!(world.told(), ["270 Failing worse critical 1"]);
    world.run(500, Vec::new());
    assert_eq!(world.told(), ["500 Failing ended critical 1"]);
}

#[test]
fn alert_that_begins_again_within_an_hour_is_told_after_it_if_it_still_holds() {
    let mut world = World::new();
    world.run(0, failing(WARNING, 1));
    world.run(10, Vec::new());
    assert_eq!(world.told(), ["0 Failing began warning 1", "10 Failing ended warning 1"]);
    world.run(20, failing(WARNING, 1));
    world.run(69, failing(WARNING, 1));
    assert_eq!(world.told(), NONE);
    world.run(70, failing(WARNING, 1));
    world.run(71, Vec::new());
    assert_eq!(world.told(), ["70 Failing began warning 1", "71 Failing ended warning 1"]);
    world.run(80, failing(WARNING, 1));
    world.run(90, Vec::new());
    world.run(140, Vec::new());
    assert_eq!(world.told(), NONE, "it began and ended within the hour");
    world.run(141, failing(WARNING, 1));
    assert_eq!(world.told(), ["141 Failing began warning 1"], "more than an hour later");
}

/// A warning that has ended must not hide a critical alert of another entity, nor of the same one.
#[test]
fn critical_alert_that_was_not_told_is_told_within_the_hour_after_an_end() {
    let of = |severity, entity_id| vec![alert("Failing", severity, Some(entity_id))];
    for second in ["acme", "beta"] {
        let mut world = World::new();
        world.run(0, of(WARNING, "acme"));
        world.run(10, Vec::new());
        world.run(12, of(WARNING, second));
        assert_eq!(world.told(), ["0 Failing began warning 1", "10 Failing ended warning 1"]);
        world.run(13, of(CRITICAL, second));
        assert_eq!(world.told(), ["13 Failing began critical 1"], "{second}");
        world.run(14, Vec::new());
        assert_eq!(world.told(), ["14 Failing ended critical 1"], "{second}");
        // It was told as critical, so it flaps now.
        world.run(15, of(CRITICAL, second));
        world.run(73, of(CRITICAL, second));
        assert_eq!(world.told(), NONE, "{second}");
        world.run(74, of(CRITICAL, second));
        assert_eq!(world.told(), ["74 Failing began critical 1"], "{second}");
    }
    // Of two critical entities that flap, none is told twice an hour, also if one recovers before the other.
    let mut world = World::new();
    let both = || [of(CRITICAL, "acme"), of(CRITICAL, "beta")].concat();
    for minute in (0..60).step_by(10) {
        world.run(minute, both());
        world.run(minute + 2, of(CRITICAL, "beta"));
        world.run(minute + 4, Vec::new());
    }
    assert_eq!(world.told(), ["0 Failing began critical 2", "4 Failing ended critical 2"]);
    world.run(60, of(CRITICAL, "gamma"));
    assert_eq!(world.told(), ["60 Failing began critical 1"], "which was not told");
}

/// Every ten minutes an outage of five minutes: at most one begin and one end an hour, and never silence.
#[test]
fn flapping_alert_is_told_at_most_once_an_hour() {
    let mut world = World::new();
    for minute in 0..1440 {
        world.run(minute, failing(WARNING, usize::from(minute % 10 < 5)));
    }
    let told = world.told();
    let begun = told.iter().filter(|message| message.contains("began")).count();
    assert!((20..=24).contains(&begun), "{told:?}");
    assert_eq!(told.len(), 2 * begun, "each begin has its end");
}

#[test]
fn names_are_told_apart_and_installations_are_no_entities() {
    let mut world = World::new();
    let mut alerts = failing(WARNING, 2);
    alerts.push(alert("NoPoll", CRITICAL, None));
    alerts.push(alert("WebhookFailing", WARNING, None));
    world.run(0, alerts.clone());
    assert_eq!(world.told(), ["0 Failing began warning 2", "0 NoPoll began critical 1"]);
    alerts.retain(|alert| alert.name != "NoPoll");
    world.run(120, alerts);
    assert_eq!(world.told(), ["120 NoPoll ended critical 1"]);
    // Two backfills that stopped are told apart by their commands.
    let stopped = |hint: &str| Alert { hint: hint.to_owned(), ..alert("BackfillStopped", WARNING, None) };
    let mut world = World::new();
    world.run(0, vec![stopped("elven-sync backfill --resume 1")]);
    world.run(90, vec![stopped("elven-sync backfill --resume 1"), stopped("elven-sync backfill --resume 2")]);
    assert_eq!(world.told(), ["0 BackfillStopped began warning 1", "90 BackfillStopped worse warning 2"]);
}

#[test]
fn alerts_below_min_severity_are_not_told() {
    let mut world = World::new();
    world.min = CRITICAL;
    world.run(0, failing(WARNING, 9));
    assert_eq!(world.told(), NONE);
    let mut mixed = failing(WARNING, 9);
    mixed.push(alert("Failing", CRITICAL, Some("x")));
    world.run(1, mixed);
    assert_eq!(world.told(), ["1 Failing began critical 1"]);
    world.run(2, failing(WARNING, 9));
    assert_eq!(world.told(), ["2 Failing ended critical 1"]);
}

/// Nothing is told because of the change itself but what holds and was not told; two workers with different settings
/// do not contradict each other again and again.
#[test]
fn change_of_min_severity_tells_no_end_of_what_still_holds() {
    let mut world = World::new();
    world.run(0, failing(WARNING, 1));
    assert_eq!(world.told().len(), 1);
    for minute in 1..300 {
        world.min = if minute % 2 == 0 { WARNING } else { CRITICAL };
        world.run(minute, failing(WARNING, 1));
    }
    assert_eq!(world.told(), NONE);
    world.min = CRITICAL;
    world.run(300, failing(CRITICAL, 1));
    assert_eq!(world.told(), ["300 Failing worse critical 1"]);
    world.run(301, Vec::new());
    assert_eq!(world.told(), ["301 Failing ended critical 1"]);
    world.min = WARNING;
    world.run(400, failing(WARNING, 1));
    world.min = CRITICAL;
    world.run(401, Vec::new());
    world.min = WARNING;
    world.run(402, Vec::new());
    assert_eq!(world.told(), ["400 Failing began warning 1", "402 Failing ended warning 1"]);
}

/// Begin and end arrive in order, because nothing is decided before the message before was delivered.
#[test]
fn nothing_is_decided_about_a_name_with_an_undelivered_message() {
    let mut world = World::new();
    world.is_down = true;
    world.run(0, failing(WARNING, 1));
    for minute in 1..100 {
        world.run(minute, failing(WARNING, usize::try_from(minute % 2 * 9).unwrap()));
    }
    let [known] = &world.state.notifications[..] else { panic!("one name") };
    assert_eq!((known.revision, known.is_undelivered), (1, true));
}
