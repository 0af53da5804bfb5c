//! Where the bitmaps extension stands in the first cluster: what QEMU writes, and what leaves no choice.

use std::fs;
use std::path::Path;

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::storage::block_on;

use super::image::{self, IMAGE, Op, bitmaps_of, bytes_of, clean, made, native, qemu_io};
use super::stored::{self, Stored};

const FEATURE_NAMES: u32 = 0x6803_f857;
const UNKNOWN: u32 = 0x6f78_636f;

/// Does steps with the library, and closes.
fn with_library(dir: &Path, ops: &[Op]) {
    let image = image::open(dir).expect("the image opens");
    for op in ops {
        block_on(image::apply(&image, op)).expect("the step is done");
    }
    block_on(image.close()).expect("the image is closed");
}

/// The data of an extension.
fn extension(file: &[u8], wanted: u32) -> Option<Vec<u8>> {
    extensions(file)
        .into_iter()
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, data)| data)
}

/// All of them.
fn extensions(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let mut at = word(100) as usize;
    let mut found = Vec::new();
    while word(at) != 0 {
        let (kind, length) = (word(at), word(at + 4) as usize);
        found.push((kind, file[at + 8..at + 8 + length].to_vec()));
        at += 8 + length.next_multiple_of(8);
    }
    found
}

/// Puts an extension that nobody knows in front of the others, so long that sector 0 is full of it.
pub fn fill_sector_0(dir: &Path) {
    let mut file = bytes_of(dir);
    let start = u32::from_be_bytes(file[100..104].try_into().expect("four bytes")) as usize;
    let mut all = vec![(UNKNOWN, b"kept".repeat(95))];
    all.extend(extensions(&file));
    let mut bytes = Vec::new();
    for (kind, data) in all {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(&data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend([0; 8]);
    file[start..start + bytes.len()].copy_from_slice(&bytes);
    fs::write(dir.join(IMAGE), file).expect("the image is written");
    clean(dir).expect("QEMU takes the image as it is");
}

/// The images that QEMU writes with clusters of 64 KiB: the extension behind the feature names.
fn qemu_made(create: &str) -> Scratch {
    let scratch = made(
        create,
        &[
            &format!("bitmap --add {IMAGE} first"),
            &format!("bitmap --add --disable -g 4096 {IMAGE} second"),
            &format!("bitmap --add -g 512 {IMAGE} third"),
        ],
    );
    let at = stored::extension_at(&bytes_of(scratch.path())).expect("there is one");
    assert!(at + 24 > 512, "QEMU puts it elsewhere now: {at}");
    scratch
}

#[test]
fn the_extension_moves_into_sector_0_and_nothing_is_lost() {
    if !oracle::available() {
        return;
    }
    let base = Scratch::new("bitmaps-base");
    fs::write(base.path().join("base.raw"), vec![7; 1 << 20]).expect("the folder can be written");
    let backing = format!("-b {} -F raw {IMAGE} 2M", base.file("base.raw"));
    for create in [format!("{IMAGE} 2M"), backing] {
        let ours = qemu_made(&create);
        let theirs = qemu_made(&create);
        let before = bytes_of(ours.path());
        let info_before = native(Tool::Img, ours.path(), &format!("info {IMAGE}")).expect("info");
        for round in 0..3 {
            let ops = [Op::Write(round << 18, 5000), Op::Discard(1 << 20, 1 << 16)];
            with_library(ours.path(), &ops);
            let commands: Vec<String> = ops.iter().filter_map(Op::io_command).collect();
            qemu_io(theirs.path(), &commands).expect("qemu-io writes");
            clean(ours.path()).expect("a clean image");
            assert_eq!(bitmaps_of(ours.path()), bitmaps_of(theirs.path()));

            let after = bytes_of(ours.path());
            let at = stored::extension_at(&after).expect("there are bitmaps");
            assert!(at + 24 <= 512, "the extension is at {at}");
            let (mut old, mut new) = (
                stored::extension_types(&before),
                stored::extension_types(&after),
            );
            old.sort_unstable();
            new.sort_unstable();
            assert_eq!(new, old);
            assert_eq!(
                extension(&after, FEATURE_NAMES),
                extension(&before, FEATURE_NAMES)
            );
            if round == 1 {
                // QEMU puts everything back where it was.
                let command = [Op::Flush, Op::Write(0, 512)]
                    .iter()
                    .filter_map(Op::io_command)
                    .collect::<Vec<_>>();
                for dir in [ours.path(), theirs.path()] {
                    qemu_io(dir, &command).expect("qemu-io writes");
                }
                assert_eq!(
                    stored::extension_at(&bytes_of(ours.path())),
                    stored::extension_at(&before)
                );
            }
        }
        let info = native(Tool::Img, ours.path(), &format!("info {IMAGE}")).expect("info");
        let words = |info: &str| {
            let lines = info
                .lines()
                .filter(|line| !line.contains("disk size") && !line.contains("file length"));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(words(&info), words(&info_before));
    }
}

/// Flags by name.
fn in_use(bitmaps: &[Stored]) -> Vec<(&str, bool)> {
    bitmaps
        .iter()
        .map(|bitmap| (bitmap.name.as_str(), bitmap.in_use()))
        .collect()
}

#[test]
fn with_sector_0_full_they_are_stored_in_place() {
    if !oracle::available() {
        return;
    }
    let (ours, theirs) = (
        qemu_made(&format!("{IMAGE} 2M")),
        qemu_made(&format!("{IMAGE} 2M")),
    );
    for dir in [ours.path(), theirs.path()] {
        fill_sector_0(dir);
    }
    let directory = stored::directory_at(&bytes_of(ours.path()));
    let rounds = [
        vec![Op::Write(0, 5000), Op::Zeroes(1 << 20, 1 << 19, true)],
        vec![Op::Resize(3 << 20), Op::Write(5 << 19, 512)],
        vec![
            Op::Write(70_000, 1),
            Op::Resize(1 << 20),
            Op::Create("s".into()),
        ],
        vec![Op::Zeroes(0, 1 << 20, false), Op::Close, Op::Write(0, 1)],
        // Bits in more clusters than before, and the other way round.
        vec![Op::Resize(300 << 20), Op::Write(290 << 20, 7)],
        vec![
            Op::Resize(1 << 20),
            Op::Write(512, 7),
            Op::Delete("s".into()),
        ],
    ];
    for ops in rounds {
        with_library(ours.path(), &ops);
        let mut io = Vec::new();
        for op in &ops {
            io.extend(op.io_command());
            if let Some(command) = op.img_command() {
                qemu_io(theirs.path(), &io).expect("qemu-io writes");
                io.clear();
                native(Tool::Img, theirs.path(), &command).expect("qemu-img does it");
            }
        }
        qemu_io(theirs.path(), &io).expect("qemu-io writes");
        clean(ours.path()).expect("a clean image");
        assert_eq!(
            bitmaps_of(ours.path()),
            bitmaps_of(theirs.path()),
            "{ops:?}"
        );
        let file = bytes_of(ours.path());
        assert_eq!(
            stored::directory_at(&file),
            directory,
            "the directory stays where it is"
        );
        assert_eq!(extension(&file, UNKNOWN), Some(b"kept".repeat(95)));
    }

    // Making the disk what it was changes everything, and QEMU does not do it.
    with_library(
        ours.path(),
        &[Op::Create("s".into()), Op::Apply("s".into())],
    );
    clean(ours.path()).expect("a clean image");
    let found = bitmaps_of(ours.path()).expect("bitmaps");
    assert_eq!(
        in_use(&found),
        [("first", false), ("second", false), ("third", false)]
    );
    assert_eq!(found[0].bits.len(), 16);
    assert_eq!(found[1].bits.len(), 0);
    assert_eq!(found[2].bits.len(), 2048);
}

#[test]
fn in_place_a_split_entry_cannot_change_its_length() {
    if !oracle::available() {
        return;
    }
    // The second entry begins 8 bytes before the end of a sector.
    let long = "n".repeat(480);
    let scratch = made(
        &format!("{IMAGE} 2M"),
        &[
            &format!("bitmap --add -g 512 {IMAGE} {long}"),
            &format!("bitmap --add -g 512 {IMAGE} split"),
            &format!("bitmap --add -g 512 {IMAGE} whole"),
        ],
    );
    let dir = scratch.path();
    fill_sector_0(dir);
    with_library(dir, &[Op::Write(0, 512)]);
    let bits = |index: usize| bitmaps_of(dir).expect("bitmaps")[index].bits.clone();
    assert_eq!((bits(1), bits(2)), ([0].into(), [0].into()));
    // A longer disk, for which the bits still take one cluster.
    with_library(dir, &[Op::Resize(4 << 20), Op::Write(3 << 20, 512)]);
    clean(dir).expect("a clean image");
    let names = [long.as_str(), "split", "whole"];
    let found = bitmaps_of(dir).expect("bitmaps");
    assert_eq!(in_use(&found), names.map(|name| (name, false)));
    assert_eq!(bits(1), [0, 6144].into());
    // And one for which they take two: the place and the length of the table stand in different sectors.
    with_library(dir, &[Op::Resize(300 << 20), Op::Write(290 << 20, 512)]);
    clean(dir).expect("a clean image");
    let found = bitmaps_of(dir).expect("bitmaps");
    assert_eq!(
        in_use(&found),
        [(names[0], false), (names[1], true), (names[2], false)]
    );
    assert_eq!(bits(2), [0, 6144, 290 << 11].into());
    assert_eq!(bits(1), [0, 6144].into());
    native(Tool::Img, dir, &format!("bitmap --remove {IMAGE} split")).expect("QEMU removes it");
    clean(dir).expect("a clean image");
}
