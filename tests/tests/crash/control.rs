//! The rows of ORDERING's table "What QEMU 10.0.2 does today": the model of QEMU's order violates where QEMU
//! was seen to, so the harness can see it; oxcow violates nowhere.

use oxcow_tests::crash::count::{Count, count};
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::qemu_order::QemuOrder;
use oxcow_tests::crash::script::Op::{self, *};
use oxcow_tests::crash::starts::StartKind::{self, *};

/// Counts the violating images of a row in both engines.
fn row(name: &str, scripts: &[(StartKind, &[Op])]) -> Count {
    let mut sums = [Count::default(), Count::default()];
    for (start, script) in scripts {
        let counts = [
            count::<QemuOrder>(*start, script, false).expect("the model does it"),
            count::<Oxcow>(*start, script, true).expect("the engine does it"),
        ];
        for (sum, count) in sums.iter_mut().zip(counts) {
            sum.images += count.images;
            sum.violating += count.violating;
            for (rule, images) in count.rules {
                *sum.rules.entry(rule).or_default() += images;
            }
            sum.example = sum.example.take().or(count.example);
        }
    }
    let [qemu, ours] = sums;
    println!(
        "{name}: QEMU's order {} of {} {:?}, oxcow {} of {}",
        qemu.violating, qemu.images, qemu.rules, ours.violating, ours.images
    );
    assert!(ours.images > 0, "{name}: nothing was looked at");
    assert_eq!(ours.violating, 0, "{name}: {:?}", ours.example);
    qemu
}

fn safe_in_both(name: &str, scripts: &[(StartKind, &[Op])]) {
    let qemu = row(name, scripts);
    assert_eq!(qemu.violating, 0, "{name}: {:?}", qemu.example);
}

fn unsafe_in_qemu(name: &str, scripts: &[(StartKind, &[Op])], rule: &str) {
    let qemu = row(name, scripts);
    assert!(qemu.rules.contains_key(rule), "{name}: {qemu:?}");
}

#[test]
fn fresh_allocating_writes() {
    let scripts: &[(StartKind, &[Op])] = &[
        (Empty, &[WriteHole, WriteFar]),
        (Empty, &[WriteAcrossTables, Flush, WriteHole]),
        (Mixed, &[WriteHole, WriteFar]),
        (BlockFull, &[WriteHole, WriteFar]),
    ];
    safe_in_both("fresh allocating writes", scripts);
}

#[test]
fn copy_on_write_after_a_snapshot() {
    let scripts: &[(StartKind, &[Op])] = &[
        (Snapshot, &[WriteBytes]),
        (Snapshot, &[WriteAcross, WriteAcrossTables]),
        (LargerClusters, &[WriteBytes]),
    ];
    safe_in_both("copy-on-write after a snapshot", scripts);
}

#[test]
fn sequential_compressed_writes() {
    let scripts: &[(StartKind, &[Op])] = &[(Empty, &[CompressOne, CompressMany])];
    safe_in_both("sequential compressed writes", scripts);
}

#[test]
fn grow() {
    let scripts: &[(StartKind, &[Op])] = &[
        (Mixed, &[GrowLittle]),
        (Mixed, &[GrowTable, WriteFar]),
        (Snapshot, &[GrowTable]),
    ];
    safe_in_both("grow", scripts);
}

#[test]
fn refcount_table_growth() {
    safe_in_both(
        "refcount table growth",
        &[(TableFull, &[WriteHole, WriteFar])],
    );
}

#[test]
fn overwrite_in_a_compressed_cluster_then_allocate() {
    let scripts: &[(StartKind, &[Op])] = &[(CompressedAlone, &[WriteBytes, WriteHole])];
    let name = "overwrite in a compressed cluster, then allocate";
    unsafe_in_qemu(name, scripts, "I3/I4");
}

#[test]
fn zeroes_or_discard_then_allocate() {
    let scripts: &[(StartKind, &[Op])] = &[
        (Mixed, &[ZeroesUnmap, WriteHole]),
        (Mixed, &[Discard, WriteHole]),
    ];
    unsafe_in_qemu("write-zeroes or discard, then allocate", scripts, "I3/I4");
}

#[test]
fn lazy_refcounts_and_a_recycled_cluster() {
    let scripts: &[(StartKind, &[Op])] = &[(Lazy, &[Discard, WriteAcrossTables, WriteFar])];
    unsafe_in_qemu("lazy refcounts and a recycled cluster", scripts, "I3/I4");
}

#[test]
fn apply() {
    unsafe_in_qemu("apply", &[(TwoSnapshots, &[Apply])], "M2");
}

#[test]
fn apply_over_a_long_l1_table() {
    unsafe_in_qemu("apply, L1 of two sectors", &[(LongL1, &[Apply])], "I1/I2");
}

#[test]
fn create_and_delete() {
    unsafe_in_qemu("create", &[(Mixed, &[Create])], "M2");
    unsafe_in_qemu("delete", &[(Snapshot, &[DeleteFirst])], "M2");
}

#[test]
fn shrink() {
    unsafe_in_qemu("shrink", &[(Mixed, &[Shrink])], "I1/I2");
}
