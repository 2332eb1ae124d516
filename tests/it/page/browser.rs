//! The pages in a real browser: wide and narrow, light and dark.

use std::fs;
use std::path::Path;

use sqlx::PgPool;

use super::devtools::{Browser, Screen};
use super::{Page, path};

/// Ids that are long, or that a browser could break the page with.
const LONG: &str = "
    insert into elven_sync.entities (entity_id, timezone) values
        (repeat('x', 300), 'UTC'), ('<b>bold</b>', 'UTC'), (repeat('word ', 40) || '.', 'UTC');
    update elven_sync.sync_state set consecutive_failures = 1, last_error = repeat('0123456789abcdef', 60)
     where entity_id like 'xxx%';
    insert into elven_sync.sync_errors (entity_id, kind, message, api_code)
    select entity_id, 'config', repeat('an_unbroken_word', 40), repeat('y', 200) from elven_sync.entities
     where entity_id like 'xxx%'";

/// The pictures are in `target/tmp/page`, to be looked at.
#[sqlx::test(migrations = false)]
async fn pages_fit_wide_and_narrow_screens(pool: PgPool) {
    let Some(mut browser) = Browser::start().await else {
        println!("NOT TESTED: there is no chromium on this machine; hint: apt-get install chromium");
        return;
    };
    let page = Page::filled(pool).await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    fs::create_dir_all(&folder).unwrap();
    let stark = path("stark industries");
    for (name, place) in [("status", "/"), ("entity", "/entities/globex"), ("errors", stark.as_str())] {
        for (width, is_dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
            let screen = Screen { width, is_dark };
            let url = format!("http://{}{place}", page.service.address);
            browser.open(&url, screen).await;
            let what = format!("{place} at {screen:?}");
            let (viewport, content) = browser.widths().await;
            assert_eq!((viewport, content), (i64::from(width), i64::from(width)), "{what} scrolls sideways");
            assert_eq!(browser.complaints, Vec::<String>::new(), "{what}");
            // The style is in force, so its digest is the one of the policy.
            let background = browser.value("getComputedStyle(document.body).backgroundColor").await;
            let expected = if is_dark { "rgb(16, 20, 24)" } else { "rgb(246, 247, 249)" };
            assert_eq!(background, expected, "{what}");
            let captions =
                browser.value("[...document.querySelectorAll('table')].every(t => t.caption)").await;
            assert_eq!(captions, true, "{what}: each table has a caption");
            let height = if width == 1280 { 3200 } else { 4200 };
            let scheme = if is_dark { "dark" } else { "light" };
            let picture = browser.picture(height, screen).await;
            fs::write(folder.join(format!("{name}-{width}-{scheme}.png")), picture).unwrap();
        }
    }
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn long_names_do_not_widen_the_page(pool: PgPool) {
    let Some(mut browser) = Browser::start().await else {
        println!("NOT TESTED: there is no chromium on this machine; hint: apt-get install chromium");
        return;
    };
    let page = Page::with(pool, LONG).await;
    let long = path(&"x".repeat(300));
    for place in ["/", &long, "/entities/nobody"] {
        for width in [1280, 360] {
            browser
                .open(&format!("http://{}{place}", page.service.address), Screen { width, is_dark: false })
                .await;
            let (viewport, content) = browser.widths().await;
            assert_eq!((viewport, content), (i64::from(width), i64::from(width)), "{place} at {width}");
        }
    }
    // What is not markup is no element.
    browser.open(&format!("http://{}/", page.service.address), Screen { width: 1280, is_dark: false }).await;
    let bold = browser.value("[...document.querySelectorAll('b')].some(b => b.textContent == 'bold')").await;
    assert_eq!(bold, false);
    page.service.stop().await;
}
