//! Intake: the place in the server that a body takes while it is read a part at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::problem::Problem;
use super::until::Until;
use crate::admission::Permit;
use crate::transfer::Transfer;

/// How long it waits at a time for a place.
const REST: Duration = Duration::from_millis(100);

/// How long it waits before slow bodies are asked for theirs.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// Takes in bytes as they come, and hands their place over with what is made of them.
pub struct Intake {
    arrival: Arc<Transfer>,
    permit: Option<Permit>,
    wait: Duration,
    until: Until,
}

impl Intake {
    /// Of the body that arrives, waiting at most so long for a place, and not once it is time to end.
    pub fn new(arrival: Arc<Transfer>, wait: Duration, until: Until) -> Self {
        Self { arrival, permit: None, wait, until }
    }

    /// Takes in so many bytes more, as soon as there is a place for them.
    ///
    /// # Errors
    /// When there is none for too long, or it is time to end.
    pub async fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        let began = Instant::now();
        loop {
            let taken = match &mut self.permit {
                Some(permit) => permit.grow(0, bytes),
                None => {
                    self.arrival.beside().admission().admit(0, bytes).map(|permit| self.permit = Some(permit))
                }
            };
            match taken {
                Err(overloaded) if began.elapsed() >= self.wait => return Err(overloaded.into()),
                Err(_) => {
                    // A place may come by itself, when batches in hand are done.
                    if began.elapsed() >= ASK_AFTER {
                        self.arrival.beside().make_room(bytes);
                    }
                    self.until.unless(rest()).await?;
                }
                Ok(()) => {
                    self.tell();
                    return Ok(());
                }
            }
        }
    }

    /// The place of so many bytes of what was taken in; that of the others stays here.
    pub fn hand_over(&mut self, bytes: usize) -> Option<Permit> {
        let place = self.permit.as_mut().map(|permit| permit.split(bytes));
        self.tell();
        place
    }

    /// Gives back the place of so many bytes, which nobody holds any longer.
    pub fn give_back(&mut self, bytes: usize) {
        drop(self.hand_over(bytes));
    }

    fn tell(&self) {
        self.arrival.holds(self.permit.as_ref().map_or(0, Permit::bytes));
    }
}

async fn rest() -> Result<(), Problem> {
    tokio::time::sleep(REST).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::transfer::Transfers;

    #[tokio::test]
    async fn it_waits_for_a_place_and_not_for_ever() {
        let admission = Admission::new(1, 10);
        let (arrival, wait) =
            (Transfers::new(admission.clone(), Duration::MAX).begin(), Duration::from_millis(300));
        let mut intake = Intake::new(Arc::new(arrival), wait, Until::default());
        intake.take(4).await.unwrap();
        intake.take(5).await.unwrap();
        intake.give_back(1);
        let place = intake.hand_over(7);
        assert_eq!(admission.bytes(), 8);
        assert_eq!(intake.take(3).await.unwrap_err().status, 503);
        let (taken, ()) = tokio::join!(intake.take(3), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(place);
        });
        taken.unwrap();
        assert_eq!(admission.bytes(), 4);
        drop(intake);
        assert_eq!(admission.bytes(), 0);
    }
}
