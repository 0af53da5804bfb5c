//! Tables that contradict themselves, met while an image is in use: said once, and an image that is open for
//! writing is marked as corrupt by it (QEMU-COMPAT rule 43).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::error::{Error, Place, Result};
use crate::units::HostOffset;

/// What was found wrong with the tables of an image while it was in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// What is wrong.
    pub what: String,
    /// Where.
    pub place: Place,
    /// Whether the image is marked as corrupt because of it, and takes no more reads or writes until it is
    /// repaired: it was open for writing.
    pub marks: bool,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match self.marks {
            true => write!(
                f,
                "Marking image as corrupt: {what}; further corruption events will be suppressed"
            ),
            false => write!(
                f,
                "Image is corrupt: {what}; further non-fatal corruption events will be suppressed"
            ),
        }
    }
}

/// Who is told of a corruption, when it is found.
pub type OnCorruption = Rc<dyn Fn(&Corruption)>;

/// What an open image knows of its own corruption.
#[derive(Default)]
pub(crate) struct Alarm {
    listener: RefCell<Option<OnCorruption>>,
    /// Whether the image is open for writing.
    writable: Cell<bool>,
    told: Cell<bool>,
    /// What the image is to be marked for.
    fatal: RefCell<Option<String>>,
}

impl Alarm {
    pub fn listen(&self, listener: OnCorruption) {
        self.listener.replace(Some(listener));
    }

    pub fn set_writable(&self) {
        self.writable.set(true);
    }

    /// Tables say what must not be followed: `error` is told of, and handed back.
    pub fn raise(&self, error: Error) -> Error {
        if let Some(place) = error.place() {
            self.tell(error.to_string(), place, true);
        }
        error
    }

    /// Raises the alarm where `result` is what the tables should not have said.
    pub fn hear<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.raise(error))
    }

    /// The same of something that keeps nobody from going on.
    pub fn note(&self, what: String, place: Place) {
        self.tell(what, place, false);
    }

    fn tell(&self, what: String, place: Place, fatal: bool) {
        let marks = fatal && self.writable.get();
        let known = self.told.replace(true);
        if known && (!marks || self.fatal.borrow().is_some()) {
            return;
        }
        if marks {
            self.fatal.replace(Some(what.clone()));
        }
        let listener = self.listener.borrow().clone();
        if let Some(listener) = listener {
            listener(&Corruption { what, place, marks });
        }
    }

    /// What the image is to be marked for, or was.
    pub fn fatal(&self) -> Option<String> {
        self.fatal.borrow().clone()
    }
}

/// A number as messages of C programs have it: hexadecimal, and zero without a prefix.
pub(crate) struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            number => write!(f, "{number:#x}"),
        }
    }
}

/// The words for an L1 entry that points to where no cluster begins.
pub(crate) fn unaligned_table(table: HostOffset, l1_index: u64) -> String {
    let index = Hex(l1_index);
    format!("L2 table offset {table:#x} unaligned (L1 index: {index})")
}

/// The words for an entry of the L2 table at `table` that points to where no cluster begins.
pub(crate) fn unaligned_cluster(cluster: HostOffset, table: HostOffset, l2_index: u64) -> String {
    let (table, index) = (Hex(table.0), Hex(l2_index));
    format!(
        "Cluster allocation offset {cluster:#x} unaligned (L2 offset: {table}, L2 index: {index})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Structure;

    fn told_by(alarm: &Alarm) -> Rc<RefCell<Vec<String>>> {
        let told = Rc::new(RefCell::new(Vec::new()));
        let list = told.clone();
        alarm.listen(Rc::new(move |corruption| {
            list.borrow_mut().push(corruption.to_string());
        }));
        told
    }

    fn error(what: &'static str) -> Error {
        Error::corrupt(what, Place::of(Structure::L2Table))
    }

    #[test]
    fn a_reader_is_told_once_and_marks_nothing() {
        let alarm = Alarm::default();
        let told = told_by(&alarm);
        alarm.raise(error("one"));
        alarm.raise(error("two"));
        assert_eq!(
            *told.borrow(),
            ["Image is corrupt: one; further non-fatal corruption events will be suppressed"]
        );
        assert_eq!(alarm.fatal(), None);
    }

    #[test]
    fn a_writer_is_told_of_the_first_and_of_the_first_that_marks() {
        let alarm = Alarm::default();
        alarm.set_writable();
        let told = told_by(&alarm);
        alarm.note("small".into(), Place::of(Structure::L2Table));
        alarm.note("small too".into(), Place::of(Structure::L2Table));
        alarm.raise(error("great"));
        alarm.raise(error("greater"));
        assert_eq!(
            *told.borrow(),
            [
                "Image is corrupt: small; further non-fatal corruption events will be suppressed",
                "Marking image as corrupt: great; further corruption events will be suppressed"
            ]
        );
        assert_eq!(alarm.fatal().as_deref(), Some("great"));
    }

    #[test]
    fn zero_has_no_prefix() {
        assert_eq!(format!("{} {}", Hex(0), Hex(10)), "0 0xa");
    }
}
