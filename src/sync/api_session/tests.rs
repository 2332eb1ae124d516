//! Tests of the session of a credential.

use super::*;
use crate::config::Settings;

fn session(requests_per_second: Option<u32>) -> ApiSession {
    let variables = [("ELVEN_API_KEY", "k"), ("ELVEN_API_SECRET", "s")];
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = Settings::load(&crate::config::Flags::default(), environment.into_iter().collect());
    let settings = settings.unwrap();
    let client = Client::new(&settings.api_url, Duration::from_secs(1)).unwrap();
    ApiSession::new(settings.credential("default").unwrap(), client, requests_per_second, None)
}

#[test]
fn the_body_limit_is_learned() {
    let session = session(None);
    assert_eq!(session.body_bytes_max(), usize::MAX);
    // The limit of the API.
    let limit = 100_000;
    let mut refusals = 0;
    let mut body = 120_000;
    for _ in 0..20 {
        if body > limit {
            session.too_large(body);
            refusals += 1;
        } else {
            session.accepted(body);
        }
        body = session.body_bytes_max();
    }
    assert!((95_000..=limit).contains(&body), "{body}");
    assert!(refusals <= 5, "{refusals} refusals");
    // The limit was raised.
    session.accepted(150_000);
    assert_eq!(session.body_bytes_max(), 300_000);
}

/// A refusal of the first key arrives after another request has found the second one.
#[tokio::test]
async fn a_late_refusal_of_an_old_key_does_not_count_against_the_new_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    std::fs::write(&path, "key-1").unwrap();
    let variables = [("ELVEN_API_KEY_FILE", path.as_str()), ("ELVEN_API_SECRET", "s")];
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = Settings::load(&crate::config::Flags::default(), environment.into_iter().collect());
    let settings = settings.unwrap();
    let client = Client::new(&settings.api_url, Duration::from_secs(1)).unwrap();
    let session = ApiSession::new(settings.credential("default").unwrap(), client, None, None);
    let found = async |refused_keys| {
        let found = session.new_keys(&settings, refused_keys).await?;
        session.use_keys(found.clone());
        Some(found.key.expose_secret().to_owned())
    };
    assert_eq!(found(0).await, None, "the file has the key that was refused");
    std::fs::write(&path, "key-2").unwrap();
    for _ in 0..2 {
        assert_eq!((found(0).await.as_deref(), session.keys()), (Some("key-2"), 1));
    }
    assert_eq!(found(1).await, None);
    std::fs::write(&path, "key-1").unwrap();
    assert_eq!(found(1).await, None, "it was refused before");
    std::fs::write(&path, "key-3").unwrap();
    assert_eq!((found(1).await.as_deref(), session.keys()), (Some("key-3"), 2));
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn turns_respect_the_rate_and_the_pause() {
    let session = session(Some(10));
    let begun = Instant::now();
    for _ in 0..11 {
        session.turn(LONG).await.unwrap().end();
    }
    assert_eq!(begun.elapsed().as_millis(), 1000);
    session.pause(Duration::from_secs(5));
    session.turn(LONG).await.unwrap().end();
    assert_eq!(begun.elapsed().as_secs(), 6);
    session.pause(Duration::from_mins(1));
    assert!(session.turn(LONG).await.is_err());
}

/// Requests that waited for their turn, for a pause, or for a permit that they took with their turn.
#[tokio::test(start_paused = true)]
async fn requests_that_waited_do_not_leave_together() {
    let session = session(Some(10));
    let begun = Instant::now();
    let permit = tokio::sync::Semaphore::new(0);
    let requests = (0..30).map(async |number| {
        let turn = session.turn(LONG).await.unwrap();
        // The permits of all requests are free after 10 s.
        permit.acquire().await.unwrap().forget();
        turn.end();
        if number == 4 {
            session.pause(Duration::from_secs(4));
        }
        begun.elapsed().as_millis()
    });
    let later = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        permit.add_permits(30);
    };
    let (left_at, ()) = tokio::join!(futures_util::future::join_all(requests), later);
    let closest = left_at.windows(2).map(|two| two[1] - two[0]).min().unwrap();
    assert!(closest >= 95, "{left_at:?}");
    assert_eq!(left_at[5] - left_at[4], 4000, "{left_at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_was_not_used_is_free_at_once() {
    let session = session(Some(1));
    for _ in 0..5 {
        drop(session.turn(LONG).await.unwrap());
    }
    session.free_turn().unwrap().end();
    assert!(session.free_turn().is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(session.free_turn().is_some());
}
