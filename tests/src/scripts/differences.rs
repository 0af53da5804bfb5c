//! Where QEMU does something else than ours, each with its reason.

use std::fmt;

use crate::scripts::model::Model;
use crate::scripts::operation::Op;
use crate::scripts::setup::{Data, Preallocation, Setup};

/// A difference that is meant to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// QEMU compresses only into clusters that were never allocated; ours replaces what is there.
    CompressedOverData,
    /// QEMU shows what was in the last cluster before the disk was cut in its middle; ours shows zeros.
    OldEndComesBack,
    /// What QEMU allocates beforehand for the new part of a disk holds what was there before in the file; ours
    /// shows zeros.
    PreallocatedRubbish,
    /// QEMU cannot zero the new part of a disk whose backing file is longer where that takes more than a zero
    /// flag: in version 2, or in a compressed last cluster with extended L2 entries. Ours writes zeros.
    GrowsOverBacking,
    /// `qemu-img snapshot -d` looks for names only, other than `-a`; ours takes ids and names everywhere.
    DeleteById,
    /// A refcount of this width cannot count the references that this step would make. Which cluster has how
    /// many depends on where compressed clusters were put, and QEMU needs one more for a moment.
    RefcountsTooNarrow,
    /// QEMU left clusters behind that nothing refers to; ours must take an image without such.
    JudgeLeaked,
}

impl Difference {
    /// The reason, for a person.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::CompressedOverData => "QEMU does not compress over what is allocated",
            Self::OldEndComesBack => {
                "QEMU shows old bytes when a disk cut in a cluster grows again"
            }
            Self::PreallocatedRubbish => "QEMU shows old bytes where it allocated beforehand",
            Self::GrowsOverBacking => "QEMU refuses to grow a disk over a backing file",
            Self::DeleteById => "qemu-img snapshot -d knows no ids",
            Self::RefcountsTooNarrow => "one of both ran out of refcount bits",
            Self::JudgeLeaked => "QEMU leaked clusters",
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// Whether nobody can do this step.
#[must_use]
pub fn refused(op: &Op, setup: &Setup, before: &Model) -> bool {
    match op {
        Op::Apply(which) | Op::Delete(which) => before.find(which).is_none(),
        Op::Create(_) | Op::Compressed(..) => setup.data != Data::Inside,
        // There is no room for the sizes of the snapshots' disks.
        Op::Resize(size, _) => {
            setup.version == 2 && !before.snapshots.is_empty() && *size != before.size
        }
        _ => false,
    }
}

/// How the native tools are brought to do a step.
pub enum Plan {
    /// As it is.
    Same,
    /// By other steps with the same result.
    Instead(Difference, Vec<Op>),
    /// They may refuse in words with this in them, and go on with our image then.
    MayRefuse(Difference, &'static str),
}

/// The plan for `op`.
#[must_use]
pub fn plan(op: &Op, setup: &Setup, before: &Model) -> Plan {
    match op {
        Op::Delete(which) => {
            let name = before
                .find(which)
                .map(|index| &before.snapshots[index].name);
            match name {
                Some(name) if name != which => {
                    Plan::Instead(Difference::DeleteById, vec![Op::Delete(name.clone())])
                }
                _ => Plan::Same,
            }
        }
        Op::Resize(size, preallocation) if *size > before.size => {
            let cut = !before.size.is_multiple_of(setup.cluster());
            if before.backing_size > before.size && (setup.version == 2 || (setup.extended && cut))
            {
                let words = "Failed to zero out new clusters";
                return Plan::MayRefuse(Difference::GrowsOverBacking, words);
            }
            let old_end = before.size;
            if *preallocation != Preallocation::Off {
                let zeroes = Op::Zeroes(old_end..*size, false);
                return Plan::Instead(Difference::PreallocatedRubbish, vec![op.clone(), zeroes]);
            }
            let whole = old_end.next_multiple_of(setup.cluster()).min(*size);
            if whole > old_end && before.was_cut {
                let zeroes = Op::Zeroes(old_end..whole, false);
                return Plan::Instead(Difference::OldEndComesBack, vec![op.clone(), zeroes]);
            }
            Plan::Same
        }
        _ => Plan::Same,
    }
}

/// Whether a refusal of this step is one of [`Difference::RefcountsTooNarrow`].
#[must_use]
pub fn too_narrow(op: &Op, setup: &Setup, words: &str) -> bool {
    let counts = matches!(op, Op::Create(_) | Op::Apply(_) | Op::Compressed(..));
    let says = ["Invalid argument", "refcount"]
        .iter()
        .any(|sign| words.contains(sign));
    counts && says && setup.refcount_bits <= 4
}
