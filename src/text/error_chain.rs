//! The message of an error with its causes.

/// An error and its causes in one line, without repetitions.
pub fn chain(problem: &(dyn std::error::Error + 'static)) -> String {
    let mut last = words(problem);
    let mut text = last.clone();
    let mut source = problem.source();
    while let Some(cause) = source {
        let next = words(cause);
        if !next.starts_with(&last) && !text.contains(&next) {
            text = format!("{text}: {next}");
            last = next;
        }
        source = cause.source();
    }
    text
}

/// The message of an error. For an error of PostgreSQL it is the message alone, without the place in the server's
/// source that raised it.
fn words(problem: &(dyn std::error::Error + 'static)) -> String {
    let raised = problem.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    raised.map_or_else(|| problem.to_string(), |raised| raised.message().to_owned())
}
