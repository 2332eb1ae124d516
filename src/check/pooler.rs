//! A pooler in front of the database: the statements of a transaction have to stay together.

use super::connection::{refuses_transactions, stay_together};
use super::finding::{Finding, Outcome, Unmade};
use super::surroundings::Surroundings;

/// Statements of a transaction stay together, also behind a pooler.
pub(super) async fn pooler(surroundings: &Surroundings) -> Outcome {
    match surroundings.processes().await? {
        Ok(processes) => Ok(of_processes(processes)),
        Err(Unmade::Failed(refused)) if refuses_transactions(refused) => {
            Ok(Finding::failed("the pooler refuses transactions, because it is in statement mode", POOL_MODE))
        }
        Err(problem) => Err(problem.clone()),
    }
}

const POOL_MODE: &str = "set pool_mode = transaction (or session) in the pooler";

fn of_processes(processes: &[(i32, i32)]) -> Finding {
    if !stay_together(processes) {
        return Finding::failed(
            "the statements of one transaction went to different server processes",
            POOL_MODE,
        );
    }
    let mut distinct: Vec<i32> = processes.iter().map(|(first, _)| *first).collect();
    distinct.sort_unstable();
    distinct.dedup();
    Finding::ok(format!(
        "each of {} transactions had one server process, {} in all",
        processes.len(),
        distinct.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn a_transaction_with_two_server_processes_is_found() {
        let split = of_processes(&[(1, 1), (2, 3)]);
        assert_eq!((split.status, split.hint.as_deref()), (Status::Failed, Some(POOL_MODE)));
        let together = of_processes(&[(1, 1), (2, 2), (1, 1)]);
        assert_eq!(
            (together.status, &*together.message),
            (Status::Ok, "each of 3 transactions had one server process, 2 in all")
        );
    }
}
