//! What goes wrong with a machine, and when.

use std::io;

use super::machine::Refusal;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed before the change.
    Kill,
    /// The process is killed, and a part of a write has landed.
    KillTorn,
    /// An I/O error, once.
    ErrorOnce,
    /// An I/O error, and one for every change that follows.
    ErrorForever,
    /// Nothing grows any more: there is no space left.
    NoSpace,
    /// A part of a write lands, then comes an I/O error.
    ShortWrite,
    /// A flush fails, and everything that it should have made durable is gone.
    FlushDrops,
    /// A read fails, once.
    ReadError,
}

impl Fault {
    /// Those that the engine sees as an error.
    pub const ERRORS: [Self; 6] = [
        Self::ErrorOnce,
        Self::ErrorForever,
        Self::NoSpace,
        Self::ShortWrite,
        Self::FlushDrops,
        Self::ReadError,
    ];

    /// The fault with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let kills = [Self::Kill, Self::KillTorn];
        let mut all = kills.into_iter().chain(Self::ERRORS);
        all.find(|fault| format!("{fault:?}") == name)
    }

    /// Whether it strikes reads rather than changes.
    #[must_use]
    pub fn strikes_reads(self) -> bool {
        self == Self::ReadError
    }
}

/// A fault at a moment.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    fault: Option<Fault>,
    /// How many operations of the kind that it strikes come before.
    after: u64,
    struck: bool,
}

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A write, past the end or not.
    Write {
        /// Whether it makes the file longer.
        grows: bool,
    },
    /// A change of length.
    Length {
        /// Whether it makes the file longer.
        grows: bool,
    },
    /// A flush.
    Flush,
}

/// How a change fails.
#[derive(Debug)]
pub struct Damage {
    /// Whether a part of the write lands.
    pub part: bool,
    /// Whether what was not flushed is lost.
    pub drops: bool,
    /// What the caller is told.
    pub refusal: Refusal,
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn error(code: i32) -> Refusal {
    Refusal::Error(io::Error::from_raw_os_error(code))
}

impl Plan {
    /// `fault` at the operation that `after` others of its kind come before.
    #[must_use]
    pub fn new(fault: Fault, after: u64) -> Self {
        Self {
            fault: Some(fault),
            after,
            struck: false,
        }
    }

    /// Whether anything went wrong yet.
    #[must_use]
    pub fn struck(&self) -> bool {
        self.struck
    }

    /// Whether a read fails.
    pub(super) fn before_read(&mut self) -> Result<(), Refusal> {
        match self.fault {
            Some(Fault::Kill | Fault::KillTorn) if self.struck => Err(Refusal::Killed),
            Some(Fault::ReadError) if !self.struck => {
                if self.after > 0 {
                    self.after -= 1;
                    return Ok(());
                }
                self.struck = true;
                Err(error(EIO))
            }
            _ => Ok(()),
        }
    }

    /// Whether a change fails, and how.
    pub(super) fn before(&mut self, change: Change) -> Option<Damage> {
        let fault = self.fault.filter(|fault| !fault.strikes_reads())?;
        let goes_on = matches!(
            fault,
            Fault::Kill | Fault::KillTorn | Fault::ErrorForever | Fault::NoSpace
        );
        if self.struck && !goes_on {
            return None;
        }
        if !self.struck && self.after > 0 {
            self.after -= 1;
            return None;
        }
        let is_write = matches!(change, Change::Write { .. });
        let damage = |part, drops, refusal| {
            Some(Damage {
                part,
                drops,
                refusal,
            })
        };
        let first = !self.struck;
        let damage = match fault {
            Fault::Kill => damage(false, false, Refusal::Killed),
            Fault::KillTorn => damage(first && is_write, false, Refusal::Killed),
            Fault::ErrorOnce | Fault::ErrorForever => damage(false, false, error(EIO)),
            Fault::NoSpace => match change {
                Change::Write { grows: true } | Change::Length { grows: true } => {
                    damage(false, false, error(ENOSPC))
                }
                _ => None,
            },
            Fault::ShortWrite if is_write => damage(true, false, error(EIO)),
            Fault::FlushDrops if change == Change::Flush => damage(false, true, error(EIO)),
            Fault::ShortWrite | Fault::FlushDrops | Fault::ReadError => None,
        };
        self.struck |= damage.is_some();
        damage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Change = Change::Write { grows: false };

    fn failing(plan: &mut Plan, changes: &[Change]) -> Vec<bool> {
        changes
            .iter()
            .map(|change| plan.before(*change).is_some())
            .collect()
    }

    #[test]
    fn faults_strike_when_and_what_they_should() {
        let mut once = Plan::new(Fault::ErrorOnce, 1);
        assert_eq!(
            failing(&mut once, &[WRITE, Change::Flush, WRITE]),
            [false, true, false]
        );
        let mut forever = Plan::new(Fault::ErrorForever, 1);
        assert_eq!(
            failing(&mut forever, &[WRITE, Change::Flush, WRITE]),
            [false, true, true]
        );
        let mut full = Plan::new(Fault::NoSpace, 0);
        assert_eq!(
            failing(&mut full, &[WRITE, Change::Write { grows: true }, WRITE]),
            [false, true, false]
        );
        let mut drops = Plan::new(Fault::FlushDrops, 0);
        assert_eq!(
            failing(&mut drops, &[WRITE, Change::Flush, Change::Flush]),
            [false, true, false]
        );
        let mut read = Plan::new(Fault::ReadError, 1);
        assert!(read.before(WRITE).is_none());
        assert!(read.before_read().is_ok() && read.before_read().is_err());
        assert!(read.before_read().is_ok() && read.struck());
    }
}
