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
    /// QEMU compresses into the rest of the cluster that it compressed into last, even where that was freed and
    /// given to someone else since, whose data is lost: the image is opened anew in between. Ours is not.
    CompressedIntoOthers,
    /// QEMU shows what was in the last cluster before the disk was cut in its middle; ours shows zeros.
    OldEndComesBack,
    /// What QEMU allocates beforehand for the new part of a disk holds what was there before in the file; ours
    /// shows zeros.
    PreallocatedRubbish,
    /// QEMU loses the disk's last, partial cluster where that is compressed, has subclusters, and clusters are
    /// allocated beforehand behind it; ours keeps it.
    GrowthLosesCompressed,
    /// QEMU leaves the state of a machine that was gone back to where a longer disk has its next clusters; ours
    /// shows zeros.
    MachineOnDisk,
    /// QEMU cannot allocate beforehand in a file with so much room behind its last cluster that it would have
    /// to become shorter.
    RoomAtTheEnd,
    /// QEMU cannot zero the new part of a disk whose backing file is longer where that takes more than a zero
    /// flag: in version 2, or in a compressed last cluster with extended L2 entries. Ours writes zeros.
    GrowsOverBacking,
    /// `qemu-img snapshot -a` refuses an image with a bitmap, and so does our program; the library says in the
    /// bitmap that everything changed.
    ActiveBitmap,
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
            Self::CompressedIntoOthers => "QEMU may compress into a cluster of someone else's",
            Self::OldEndComesBack => {
                "QEMU shows old bytes when a disk cut in a cluster grows again"
            }
            Self::PreallocatedRubbish => "QEMU shows old bytes where it allocated beforehand",
            Self::GrowthLosesCompressed => {
                "QEMU loses a compressed last cluster when it allocates beforehand behind it"
            }
            Self::MachineOnDisk => "QEMU shows a machine's state when a disk grows",
            Self::RoomAtTheEnd => "QEMU does not allocate beforehand where the file is too long",
            Self::ActiveBitmap => "QEMU does not go back to a snapshot while there is a bitmap",
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
    /// They cannot do it without a loss of data: they go on with our image.
    Leave(Difference),
    /// By steps with the same result.
    Do(Steps),
}

/// What they do, and what may come in between.
#[derive(Default)]
pub struct Steps {
    /// One after the other.
    pub steps: Vec<Op>,
    /// Why these are others than the step itself.
    pub instead: Vec<Difference>,
    /// They may refuse in words with this in them, and go on with our image then.
    pub may_refuse: Vec<(Difference, &'static str)>,
}

impl Steps {
    /// One more step, that makes up for the difference.
    fn then(&mut self, difference: Difference, op: Op) {
        self.steps.push(op);
        self.instead.push(difference);
    }
}

/// The plan for `op`.
#[must_use]
pub fn plan(op: &Op, setup: &Setup, before: &Model) -> Plan {
    let mut plan = Steps {
        steps: vec![op.clone()],
        ..Steps::default()
    };
    if let Op::Delete(which) = op
        && let Some(index) = before.find(which)
        && before.snapshots[index].name != *which
    {
        let by_name = Op::Delete(before.snapshots[index].name.clone());
        plan.steps.clear();
        plan.then(Difference::DeleteById, by_name);
    }
    if let Some(size) = before.grows_to(op) {
        plan.may_refuse
            .extend(may_not_grow(setup, before).map(|words| (Difference::GrowsOverBacking, words)));
        if let Op::Resize(_, preallocation) = op {
            if *preallocation == Preallocation::Off {
                zero_what_comes_up(&mut plan, size, setup, before);
            } else if setup.extended && before.ends_in_compressed() {
                return Plan::Leave(Difference::GrowthLosesCompressed);
            } else {
                let zeroes = Op::Zeroes(before.size..size, false);
                plan.then(Difference::PreallocatedRubbish, zeroes);
                let words = "Cannot use preallocation for shrinking files";
                plan.may_refuse.push((Difference::RoomAtTheEnd, words));
            }
        }
    }
    Plan::Do(plan)
}

/// The words in which a disk may be refused to grow over a longer backing file.
#[must_use]
pub fn may_not_grow(setup: &Setup, before: &Model) -> Option<&'static str> {
    let cut = !before.size.is_multiple_of(setup.cluster());
    let possible =
        before.backing_size > before.size && (setup.version == 2 || (setup.extended && cut));
    possible.then_some("Failed to zero out new clusters")
}

/// Zeros what a disk that grows to `size` shows of what was in the file before.
fn zero_what_comes_up(plan: &mut Steps, size: u64, setup: &Setup, before: &Model) {
    let whole = before.size.next_multiple_of(setup.cluster()).min(size);
    if whole > before.size && before.was_cut {
        let zeroes = Op::Zeroes(before.size..whole, false);
        plan.then(Difference::OldEndComesBack, zeroes);
    }
    for machine in before.machines_behind() {
        if machine.start < size {
            let zeroes = Op::Zeroes(machine.start..machine.end.min(size), false);
            plan.then(Difference::MachineOnDisk, zeroes);
        }
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
