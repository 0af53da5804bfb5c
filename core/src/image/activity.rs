//! What the guest is doing: background work goes on when it rests.

use std::cell::Cell;

/// Counts the guest's operations.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    under_way: Cell<u64>,
    begun: Cell<u64>,
}

impl Activity {
    /// An operation begins; it ends when what is returned is dropped.
    pub fn begin(&self) -> UnderWay<'_> {
        self.under_way.set(self.under_way.get() + 1);
        self.begun.set(self.begun.get() + 1);
        UnderWay(self)
    }

    /// How many operations have begun.
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether no operation is under way.
    pub fn is_resting(&self) -> bool {
        self.under_way.get() == 0
    }
}

/// An operation of the guest's that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay<'a>(&'a Activity);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Self(activity) = self;
        activity.under_way.set(activity.under_way.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_when_nothing_is_under_way() {
        let activity = Activity::default();
        assert!(activity.is_resting());
        let first = activity.begin();
        let second = activity.begin();
        drop(first);
        assert!(!activity.is_resting());
        drop(second);
        assert!(activity.is_resting());
        assert_eq!(activity.begun(), 2);
    }
}
