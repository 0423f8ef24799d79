//! Tuning: how many sessions and how large runs are best here, from a short measurement at start.
//!
//! The cores are those that the cgroup's quota leaves. What a setting fixes is not measured. On a GPU nothing is: its
//! first runs take seconds to choose kernels, and one session with runs as large as may be is best.

use std::time::{Duration, Instant};

use latentd_model::{Manifest, Pixels};
use serde::Serialize;
use utoipa::ToSchema;

use crate::backend::{Backend, BackendError, Backends};
use crate::config::{self, Config};

/// Pictures of a run where nothing was measured.
pub const DEFAULT_MAX_BATCH: usize = 32;

/// Sizes of a run that are tried, the smallest first.
const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Time for all sizes of a run, enough for runs of 4 where a picture takes 30 ms; for each of them, where runs are
/// short; and for each number of sessions.
const BATCH_BUDGET: Duration = Duration::from_millis(260);
const EACH_BATCH: Trial = Trial { time: Duration::from_micros(7500), rest: Duration::ZERO, least: 1 };
const SESSIONS_BUDGET: Duration = Duration::from_millis(30);

/// One picture after another, on one thread and on all, with rests in between, as there are while the next request is
/// read and decoded: threads that fell asleep have to be woken then.
const ALONE: Trial = Trial { time: Duration::from_millis(20), rest: Duration::from_millis(1), least: 2 };

/// A run beside which waking a thread is nothing.
const LONG_RUN: Duration = Duration::from_millis(10);

/// How much faster all cores must be for a picture alone: it may not stay alone, and then they are wanted elsewhere.
const WORTHWHILE_ALONE: f64 = 1.3;

/// Longest run that is chosen: what comes meanwhile waits for it.
const LONGEST_RUN: Duration = Duration::from_millis(200);

/// How much faster something must be than what is simpler, or what is smaller, to be chosen.
const WORTHWHILE: f64 = 1.05;

/// What was chosen and why.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Tuned {
    /// Milliseconds that measuring took; 0 where the settings fixed everything.
    pub took_ms: f64,
    /// Pictures per second of one session by the size of a run, as far as the time sufficed.
    pub batches: Vec<Rate>,
    /// Pictures per second of several sessions at the same time.
    pub sessions: Vec<Rate>,
    /// Pictures per second, one after another, of a session with so many threads, for a picture that is alone.
    pub solo: Vec<Rate>,
}

/// What was measured of one choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Rate {
    /// Pictures of a run, sessions, or threads of one.
    pub of: usize,
    /// Pictures per second.
    pub images_per_s: f64,
}

/// Measures what `config` leaves open, fixes it there, and drops the sessions that are too many.
///
/// # Errors
/// When the model fails on a grey picture.
pub fn tune(
    config: &mut Config,
    manifest: &Manifest,
    backends: &mut Backends,
) -> Result<Tuned, BackendError> {
    let began = Instant::now();
    let mut tuned = Tuned::default();
    let preprocess = &manifest.preprocess;
    let (height, width) = (preprocess.height, preprocess.width);
    let grey = Pixels::new(height, width, vec![127; height as usize * width as usize * 3])
        .map_err(|error| BackendError(error.to_string()))?;
    let on_cpu = backends.device.used == "cpu";
    if config.max_batch == 0 {
        config.max_batch = DEFAULT_MAX_BATCH;
        if let (Some(session), true) = (backends.sessions.first_mut(), on_cpu) {
            tuned.batches = batch_rates(session.as_mut(), &grey)?;
            config.max_batch = best_batch(&tuned.batches);
        }
    }
    if config.sessions == 0 {
        let all = backends.sessions.len();
        if on_cpu && all > 1 {
            for count in [all, all / 2] {
                let images_per_s = together(&mut backends.sessions[..count], &grey)?;
                tuned.sessions.push(Rate { of: count, images_per_s });
            }
            backends.sessions.truncate(best_sessions(&tuned.sessions, all));
        }
        config.sessions = backends.sessions.len();
    }
    if let (Some(solo), Some(session)) = (&mut backends.solo, backends.sessions.first_mut()) {
        tuned.solo = solo_rates(config, &tuned.batches, session.as_mut(), solo.as_mut(), &grey)?;
        let faster = |rates: &[Rate]| rates[1].images_per_s > rates[0].images_per_s * WORTHWHILE_ALONE;
        if !faster(&tuned.solo) {
            backends.solo = None;
            // Nor for an encoder that follows this one.
            config.solo_session = false;
        }
    }
    if !(tuned.batches.is_empty() && tuned.sessions.is_empty() && tuned.solo.is_empty()) {
        tuned.took_ms = (began.elapsed().as_secs_f64() * 1e4).round() / 10.0;
    }
    tracing::info!(
        sessions = config.sessions,
        max_batch = config.max_batch,
        solo_session = backends.solo.is_some(),
        took_ms = tuned.took_ms,
        "tuned to this machine"
    );
    Ok(tuned)
}

/// Pictures per second of each size, the smallest first, until the time is up.
fn batch_rates(session: &mut dyn Backend, picture: &Pixels) -> Result<Vec<Rate>, BackendError> {
    let until = Instant::now() + BATCH_BUDGET;
    // The first run allocates.
    session.embed(std::slice::from_ref(picture))?;
    let mut rates: Vec<Rate> = Vec::new();
    for size in BATCHES {
        // The next size takes about its share of the rate so far; a run once more than that is of no use.
        let expected = rates.last().map_or(0.0, |rate| size as f64 / rate.images_per_s);
        let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
        if !rates.is_empty() && (expected > left || expected > LONGEST_RUN.as_secs_f64()) {
            break;
        }
        let batch = vec![picture.clone(); size];
        rates.push(Rate { of: size, images_per_s: best_rate(session, &batch, EACH_BATCH)? });
    }
    Ok(rates)
}

/// Pictures per second, one by one, of one of the sessions and of that for a picture that is alone.
fn solo_rates<'a>(
    config: &Config,
    known: &[Rate],
    session: &'a mut dyn Backend,
    solo: &'a mut dyn Backend,
    picture: &Pixels,
) -> Result<Vec<Rate>, BackendError> {
    let one = std::slice::from_ref(picture);
    let alone = |session: &mut dyn Backend| {
        // The first run allocates.
        session.embed(one)?;
        best_rate(session, one, ALONE)
    };
    let long = |rate: &&Rate| rate.of == 1 && rate.images_per_s * LONG_RUN.as_secs_f64() < 1.0;
    let on_one = match known.iter().find(long) {
        Some(rate) => rate.images_per_s,
        None => alone(session)?,
    };
    let on_all = Rate { of: config::cores(), images_per_s: alone(solo)? };
    Ok(vec![Rate { of: config.intra_threads, images_per_s: on_one }, on_all])
}

/// For how long to run, with which rest before each run, and how often at least.
#[derive(Clone, Copy)]
struct Trial {
    time: Duration,
    rest: Duration,
    least: usize,
}

/// The rate of the fastest run of a trial, which other work on the machine disturbs least.
fn best_rate(session: &mut dyn Backend, batch: &[Pixels], trial: Trial) -> Result<f64, BackendError> {
    let until = Instant::now() + trial.time;
    let (mut fastest, mut runs) = (f64::INFINITY, 0);
    loop {
        if !trial.rest.is_zero() {
            std::thread::sleep(trial.rest);
        }
        let began = Instant::now();
        session.embed(batch)?;
        fastest = fastest.min(began.elapsed().as_secs_f64());
        runs += 1;
        if runs >= trial.least && Instant::now() >= until {
            return Ok(batch.len() as f64 / fastest.max(1e-9));
        }
    }
}

/// The smallest size that no larger one beats by enough.
fn best_batch(rates: &[Rate]) -> usize {
    let best = rates.iter().map(|rate| rate.images_per_s).fold(0.0, f64::max);
    let enough = rates.iter().find(|rate| rate.images_per_s * WORTHWHILE >= best);
    enough.map_or(DEFAULT_MAX_BATCH, |rate| rate.of)
}

/// All, unless fewer are faster by enough: where cores are only threads of a core, or are not there after all.
fn best_sessions(rates: &[Rate], all: usize) -> usize {
    let rate = |of| rates.iter().find(|rate| rate.of == of).map_or(0.0, |rate| rate.images_per_s);
    let fewer = rates.iter().filter(|other| other.images_per_s > rate(all) * WORTHWHILE);
    fewer.max_by(|a, b| a.images_per_s.total_cmp(&b.images_per_s)).map_or(all, |rate| rate.of)
}

/// Pictures per second of sessions that run at the same time, one by one each.
fn together(sessions: &mut [Box<dyn Backend>], picture: &Pixels) -> Result<f64, BackendError> {
    let batch = std::slice::from_ref(picture);
    let work = |session: &mut Box<dyn Backend>| {
        session.embed(batch)?;
        let (began, mut runs) = (Instant::now(), 0u32);
        while runs == 0 || began.elapsed() < SESSIONS_BUDGET {
            session.embed(batch)?;
            runs += 1;
        }
        Ok(f64::from(runs) / began.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| work(session))).collect();
        let failed = |_| BackendError("a session panicked on a grey picture".to_owned());
        threads.into_iter().map(|thread| thread.join().map_err(failed)?).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(pairs: &[(usize, f64)]) -> Vec<Rate> {
        pairs.iter().map(|&(of, images_per_s)| Rate { of, images_per_s }).collect()
    }

    #[test]
    fn larger_runs_and_fewer_sessions_must_be_worth_it() {
        assert_eq!(best_batch(&rates(&[(1, 100.0), (2, 103.0), (4, 104.0)])), 1);
        assert_eq!(best_batch(&rates(&[(1, 100.0), (2, 150.0), (4, 190.0), (8, 195.0)])), 4);
        assert_eq!(best_batch(&[]), DEFAULT_MAX_BATCH);
        assert_eq!(best_sessions(&rates(&[(8, 100.0), (4, 104.0)]), 8), 8);
        assert_eq!(best_sessions(&rates(&[(8, 100.0), (4, 120.0)]), 8), 4);
    }
}
