//! Until: when an upload ends before its body does.

use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::Instant;

use super::deadline::Deadline;
use super::problem::Problem;
use crate::shutdown::Shutdown;

/// The time that the client gives an upload, if any, and the server's shutdown.
#[derive(Debug, Clone, Default)]
pub struct Until {
    deadline: Option<(Instant, Deadline)>,
    ending: Shutdown,
}

impl Until {
    /// Of a request whose head has just come. The server's own time limit of requests does not count, for an upload may
    /// be long.
    ///
    /// # Errors
    /// 400 of code `invalid_timeout`.
    pub fn of(headers: &HeaderMap, ending: Shutdown) -> Result<Self, Problem> {
        let deadline = Deadline::of(headers, Duration::MAX)?;
        let at = Instant::now().checked_add(deadline.limit).filter(|_| deadline.by_client);
        Ok(Self { deadline: at.map(|at| (at, deadline)), ending })
    }

    /// Whether it is time.
    ///
    /// # Errors
    /// Why it ends.
    pub fn check(&self) -> Result<(), Problem> {
        match self.deadline {
            Some((at, deadline)) if at <= Instant::now() => Err(passed(deadline)),
            _ if self.ending.started() => Err(shutting_down()),
            _ => Ok(()),
        }
    }

    /// Waits for the client's deadline alone.
    pub async fn late(&self) -> Problem {
        match self.deadline {
            Some((at, deadline)) => {
                tokio::time::sleep_until(at).await;
                passed(deadline)
            }
            None => std::future::pending().await,
        }
    }

    /// What `work` gives, unless it is time before.
    ///
    /// # Errors
    /// Why it ends, or what `work` gives.
    pub async fn unless<T>(&self, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        tokio::select! {
            biased;
            late = self.late() => Err(late),
            () = self.ending.wait() => Err(shutting_down()),
            outcome = work => outcome,
        }
    }
}

fn passed(deadline: Deadline) -> Problem {
    // When to come back is the client's own affair.
    deadline.passed(Duration::ZERO)
}

fn shutting_down() -> Problem {
    let detail = "the server is shutting down: send what has no line yet again";
    Problem::unavailable("shutting_down", detail).retry_after(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn of(pairs: &[(&'static str, &'static str)], ending: &Shutdown) -> Until {
        let pair =
            |&(name, value): &(&'static str, _)| (name.parse().unwrap(), HeaderValue::from_static(value));
        Until::of(&pairs.iter().map(pair).collect(), ending.clone()).unwrap()
    }

    #[tokio::test]
    async fn the_clients_time_counts_and_the_shutdown() {
        let ending = Shutdown::new();
        let (open, timed) = (of(&[], &ending), of(&[("x-request-timeout-ms", "500")], &ending));
        let done = async { Ok(1) };
        assert_eq!(timed.unless(done).await.unwrap(), 1);
        assert!(timed.check().is_ok());
        let never = || std::future::pending::<Result<(), Problem>>();
        assert_eq!(timed.unless(never()).await.unwrap_err().code, "deadline_exceeded");
        assert_eq!(timed.check().unwrap_err().code, "deadline_exceeded");
        assert!(open.check().is_ok());
        // Longer than any clock goes.
        assert!(of(&[("grpc-timeout", "99999999H")], &ending).check().is_ok());
        let (ended, ()) = tokio::join!(open.unless(never()), async { ending.start() });
        assert_eq!(ended.unwrap_err().code, "shutting_down");
        assert_eq!(open.check().unwrap_err().code, "shutting_down");
    }
}
