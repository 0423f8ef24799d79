//! Deadlines: how long a client wants to wait, by header, within what the server allows.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};

use super::problem::Problem;

/// Milliseconds, as a plain number.
const TIMEOUT_MS: &str = "x-request-timeout-ms";

/// gRPC's form, which proxies pass on: 1 to 8 digits and a unit, `H`, `M`, `S`, `m`, `u` or `n`.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Reads the value of a header.
type Form = fn(&str) -> Option<Duration>;

/// The time a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// From the end of its head on.
    pub limit: Duration,
    /// Whether the client set it, rather than the server.
    pub by_client: bool,
}

impl Deadline {
    /// The shortest of what the client asks for and what the server allows.
    ///
    /// # Errors
    /// 400 of code `invalid_timeout`.
    pub fn of(headers: &HeaderMap, max: Duration) -> Result<Self, Problem> {
        let mut deadline = Self { limit: max, by_client: false };
        for (name, read) in [(TIMEOUT_MS, milliseconds as Form), (GRPC_TIMEOUT, grpc)] {
            for value in headers.get_all(name) {
                let asked = value.to_str().ok().and_then(read).ok_or_else(|| invalid(name))?;
                if asked < deadline.limit {
                    deadline = Self { limit: asked, by_client: true };
                }
            }
        }
        Ok(deadline)
    }

    /// What a request gets that was not finished in time, `busy` being when to come back.
    #[must_use]
    pub fn passed(self, busy: Duration) -> Problem {
        let ms = self.limit.as_millis();
        if self.by_client {
            let detail = format!("the request was not finished within the {ms} ms that the client gave it");
            return Problem::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", detail);
        }
        let detail = format!("the request was not finished within {ms} ms");
        Problem::unavailable("request_timeout", detail).retry_after(busy)
    }
}

fn milliseconds(text: &str) -> Option<Duration> {
    // As many as a u64 surely holds.
    digits(text, 19).map(Duration::from_millis)
}

fn grpc(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = digits(number, 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A positive number of at most `most` digits.
fn digits(text: &str, most: usize) -> Option<u64> {
    let plain = text.len() <= most && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok().filter(|&number| number > 0) } else { None }
}

fn invalid(name: &str) -> Problem {
    let form = match name {
        TIMEOUT_MS => "a positive number of milliseconds",
        _ => "1 to 8 digits and a unit, H, M, S, m, u or n, as in 250m",
    };
    Problem::bad_request("invalid_timeout", format!("the header {name} must be {form}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> Result<Deadline, Problem> {
        let mut headers = HeaderMap::new();
        for &(name, value) in pairs {
            headers.append(name, axum::http::HeaderValue::from_static(value));
        }
        Deadline::of(&headers, Duration::from_secs(60))
    }

    #[test]
    fn the_shortest_time_holds() {
        let client = |ms| Deadline { limit: Duration::from_millis(ms), by_client: true };
        let server = Deadline { limit: Duration::from_secs(60), by_client: false };
        assert_eq!(of(&[]).unwrap(), server);
        assert_eq!(of(&[(TIMEOUT_MS, "250")]).unwrap(), client(250));
        assert_eq!(of(&[(TIMEOUT_MS, "60001")]).unwrap(), server);
        assert_eq!(of(&[(TIMEOUT_MS, "9999999999999999999")]).unwrap(), server);
        assert_eq!(of(&[(GRPC_TIMEOUT, "2S")]).unwrap(), client(2000));
        assert_eq!(of(&[(GRPC_TIMEOUT, "99999999H")]).unwrap(), server);
        assert_eq!(of(&[(GRPC_TIMEOUT, "100m"), (TIMEOUT_MS, "300")]).unwrap(), client(100));
        assert_eq!(of(&[(TIMEOUT_MS, "300"), (TIMEOUT_MS, "200")]).unwrap(), client(200));
    }

    #[test]
    fn anything_else_is_refused() {
        for value in ["", "0", "-1", "1.5", "1e3", "+5", " 5", "10000000000000000000", "ten"] {
            assert_eq!(of(&[(TIMEOUT_MS, value)]).unwrap_err().code, "invalid_timeout", "{value:?}");
        }
        for value in ["", "S", "0S", "5", "5s", "123456789S", "1 S"] {
            assert_eq!(of(&[(GRPC_TIMEOUT, value)]).unwrap_err().code, "invalid_timeout", "{value:?}");
        }
    }
}
