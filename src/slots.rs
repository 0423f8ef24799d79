//! Slots: the places of a request's items, which keep those that failed early while the others go on.

/// A place for each item: its error, or none where its outcome is still to come.
#[derive(Debug)]
pub struct Slots<E>(Vec<Option<E>>);

impl<E> Slots<E> {
    /// The items that are sound, in order, and the places of all.
    pub fn split<T>(items: impl IntoIterator<Item = Result<T, E>>) -> (Vec<T>, Self) {
        let items = items.into_iter();
        let (mut sound, mut slots) =
            (Vec::with_capacity(items.size_hint().0), Vec::with_capacity(items.size_hint().0));
        for item in items {
            slots.push(item.map(|item| sound.push(item)).err());
        }
        (sound, Self(slots))
    }

    /// The outcomes of the sound items, in order, among the others; `lost` for each that is missing.
    pub fn fill<T, F: Into<E>>(
        self,
        outcomes: impl IntoIterator<Item = Result<T, F>>,
        lost: impl Fn() -> E,
    ) -> Vec<Result<T, E>> {
        let mut outcomes = outcomes.into_iter().map(|outcome| outcome.map_err(Into::into));
        let outcome = |slot: Option<E>| match slot {
            Some(error) => Err(error),
            None => outcomes.next().unwrap_or_else(|| Err(lost())),
        };
        self.0.into_iter().map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_in_its_place() {
        let (sound, slots) = Slots::split([Ok('a'), Err(1), Ok('b'), Ok('c'), Err(2)]);
        assert_eq!(sound, ['a', 'b', 'c']);
        let filled = slots.fill([Ok("A"), Err(3)], || 4);
        assert_eq!(filled, [Ok("A"), Err(1), Err(3), Err(4), Err(2)]);
    }
}
