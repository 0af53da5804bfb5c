//! How many storage flushes each operation costs: part of the protocol, and half of its speed.

use std::rc::Rc;

use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::run::{End, Run};
use oxcow_tests::crash::script::Op::{self, *};
use oxcow_tests::crash::starts::StartKind::{self, *};

/// Storage flushes of `ops` on an image that was opened, prepared for changes, and flushed.
fn flushes(start: StartKind, before: &[Op], ops: &[Op]) -> u64 {
    let bench: Rc<Bench> = Bench::new(start);
    bench.begin();
    let mut run = Run::<Oxcow>::new(&bench);
    assert_eq!(run.open(), End::Done);
    for op in before.iter().chain(&[Flush]) {
        assert_eq!(run.op(*op), End::Done, "{start:?} {op:?}");
    }
    let flushed = bench.machine.counts().flushes;
    for op in ops {
        assert_eq!(run.op(*op), End::Done, "{start:?} {op:?}");
    }
    bench.machine.counts().flushes - flushed
}

/// Starts with which a write of a cluster has to allocate.
const ALLOCATING: [StartKind; 8] = [
    Empty, Mixed, Compressed, Snapshot, Backing, Lazy, Version2, Leaky,
];

#[test]
fn an_allocating_write_and_its_flush_cost_two() {
    for start in ALLOCATING {
        for write in [WriteHole, WriteFar, CompressOne] {
            assert_eq!(
                flushes(start, &[], &[write, Flush]),
                2,
                "{start:?} {write:?}"
            );
        }
    }
    // Into a table that is not there: QEMU was seen to use five.
    assert_eq!(flushes(Empty, &[], &[WriteAcrossTables, Flush]), 2);
    // Copied out of a snapshot, a backing file, a compressed cluster.
    assert_eq!(flushes(Snapshot, &[], &[WriteBytes, Flush]), 2);
    assert_eq!(flushes(BackingSnapshot, &[], &[WriteHole, Flush]), 2);
    assert_eq!(flushes(CompressedAlone, &[], &[WriteBytes, Flush]), 2);
    assert_eq!(flushes(ExtendedL2, &[], &[WriteZeroed, Flush]), 2);
    // However much is written before it.
    assert_eq!(
        flushes(
            Mixed,
            &[],
            &[WriteHole, WriteFar, ZeroesUnmap, CompressMany, Flush]
        ),
        2
    );
}

#[test]
fn where_no_table_changes_a_flush_costs_one() {
    for start in [Preallocated, Mixed, Lazy, Leaky] {
        assert_eq!(flushes(start, &[], &[WriteBytes, Flush]), 1, "{start:?}");
        assert_eq!(
            flushes(start, &[], &[WriteAcross, Rewrite, Flush]),
            1,
            "{start:?}"
        );
    }
    assert_eq!(flushes(Mixed, &[], &[WriteBytes]), 0);
    assert_eq!(flushes(Mixed, &[WriteHole], &[Flush]), 1);
}

#[test]
fn a_data_file_is_flushed_for_itself() {
    // The data, then the entry that says that it is there.
    assert_eq!(flushes(DataFile, &[], &[WriteHole, Flush]), 2);
    assert_eq!(flushes(DataFile, &[], &[WriteFar, Flush]), 2);
    // No entry changes: the data alone, and the image itself, which costs nothing where nothing was written.
    assert_eq!(flushes(DataFile, &[], &[WriteBytes, Flush]), 2);
}

#[test]
fn transactions_cost_at_most_two() {
    let starts = [
        Empty,
        Mixed,
        Compressed,
        Snapshot,
        TwoSnapshots,
        Lazy,
        ExtendedL2,
        LargerClusters,
        LongL1,
    ];
    for start in starts {
        for op in [Create, GrowTable, Shrink] {
            let count = flushes(start, &[], &[op]);
            assert!((1..=2).contains(&count), "{start:?} {op:?}: {count}");
        }
        for op in [Apply, DeleteFirst, DeleteLast] {
            let count = flushes(start, &[Create, WriteCluster], &[op]);
            assert!((1..=2).contains(&count), "{start:?} {op:?}: {count}");
        }
    }
}
