//! Texts from outside on their way into the database, whose encoding may not have all of their characters.

use sqlx::PgExecutor;

/// Replaces in texts what the encoding of the database does not have by question marks. Sent as it is, such a character
/// is refused, and with it the write that the text belongs to.
///
/// Nothing is asked for texts of ASCII alone, which each encoding has.
pub(super) async fn storable<const N: usize>(
    executor: impl PgExecutor<'_>,
    texts: [&mut Vec<Option<String>>; N],
) -> Result<(), sqlx::Error> {
    let mut odd: Vec<&mut String> =
        texts.into_iter().flatten().flatten().filter(|text| is_odd(text)).collect();
    if odd.is_empty() {
        return Ok(());
    }
    // No encoding has NUL in a text.
    let utf8: Vec<Vec<u8>> = odd.iter().map(|text| text.replace('\0', "?").into_bytes()).collect();
    let stored = sqlx::query_scalar!(
        r#"select elven_sync.storable(t.utf8) as "text!"
             from unnest($1::bytea[]) with ordinality t (utf8, place) order by t.place"#,
        &utf8
    )
    .fetch_all(executor)
    .await?;
    for (text, stored) in odd.iter_mut().zip(stored) {
        **text = stored;
    }
    Ok(())
}

/// The same for one text.
pub(super) async fn storable_one(
    executor: impl PgExecutor<'_>,
    text: Option<&str>,
) -> Result<Option<String>, sqlx::Error> {
    let mut texts = vec![text.map(str::to_owned)];
    storable(executor, [&mut texts]).await?;
    Ok(texts.pop().flatten())
}

fn is_odd(text: &str) -> bool {
    !text.is_ascii() || text.contains('\0')
}
