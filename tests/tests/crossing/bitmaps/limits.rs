//! What is marked when, what is left alone, and what is refused.

use std::fs;
use std::path::Path;

use oxcow::storage::AnyStorage;
use oxcow::{Error, GuestOffset, Image};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::storage::block_on;

use super::image::{
    self, IMAGE, Op, ask, bitmaps_of, bytes_of, clean, contents_of, made, native, qemu_io,
};
use super::stored;

/// Clusters of 4 KiB, data in the first half, and an enabled and a disabled bitmap.
fn image_with_two() -> Scratch {
    let scratch = made(&format!("-o cluster_size=4k {IMAGE} 1M"), &[]);
    let dir = scratch.path();
    qemu_io(dir, &["write -q -P 1 0 512k".into()]).expect("qemu-io writes");
    native(Tool::Img, dir, &format!("bitmap --add -g 4096 {IMAGE} on")).expect("a bitmap");
    native(
        Tool::Img,
        dir,
        &format!("bitmap --add -g 65536 {IMAGE} off"),
    )
    .expect("a bitmap");
    qemu_io(dir, &["write -q -P 2 64k 1k".into()]).expect("qemu-io writes");
    native(Tool::Img, dir, &format!("bitmap --disable {IMAGE} off")).expect("it is disabled");
    scratch
}

fn step(image: &Image<AnyStorage>, op: Op) {
    block_on(image::apply(image, &op)).unwrap_or_else(|error| panic!("{op:?}: {error:#}"));
}

/// Names with (in use, enabled).
fn flags(dir: &Path) -> Vec<(String, bool, bool)> {
    let bitmaps = bitmaps_of(dir).expect("bitmaps");
    bitmaps
        .into_iter()
        .map(|bitmap| (bitmap.name.clone(), bitmap.in_use(), bitmap.enabled()))
        .collect()
}

fn two(on_in_use: bool, off_in_use: bool) -> Vec<(String, bool, bool)> {
    vec![
        ("on".into(), on_in_use, true),
        ("off".into(), off_in_use, false),
    ]
}

#[test]
fn enabled_ones_are_in_use_from_the_first_write_to_the_close() {
    if !oracle::available() {
        return;
    }
    let scratch = image_with_two();
    let dir = scratch.path();
    let image = image::open(dir).expect("the image opens");
    // What changes no guest data marks nothing.
    for op in [
        Op::Create("s".into()),
        Op::Flush,
        Op::Write(5, 0),
        Op::Delete("s".into()),
        Op::Close,
    ] {
        step(&image, op);
        assert_eq!(flags(dir), two(false, false));
    }
    for round in 0..3 {
        let op = [
            Op::Write(0, 1),
            Op::Discard(0, 4096),
            Op::Zeroes(8192, 100, false),
        ][round]
            .clone();
        step(&image, op);
        assert_eq!(flags(dir), two(true, false));
        step(&image, Op::Flush);
        assert_eq!(flags(dir), two(true, false));
        // A transaction that changes no size leaves them so; one that does stores them.
        step(&image, Op::Create(format!("s{round}")));
        assert_eq!(flags(dir), two(true, false));
        if round == 1 {
            step(&image, Op::Resize(2 << 20));
            assert_eq!(flags(dir), two(false, false));
            step(&image, Op::Write(100, 1));
            assert_eq!(flags(dir), two(true, false));
        }
        step(&image, Op::Close);
        assert_eq!(flags(dir), two(false, false));
        clean(dir).expect("a clean image");
    }
    let found = bitmaps_of(dir).expect("bitmaps");
    assert_eq!(found[0].bits, [0, 2, 16].into());
    assert_eq!(found[1].bits, [1].into());
}

#[test]
fn a_writer_that_goes_away_leaves_them_in_use() {
    if !oracle::available() {
        return;
    }
    let scratch = image_with_two();
    let dir = scratch.path();
    for flushes in [false, true] {
        let image = image::open(dir).expect("the image opens");
        step(&image, Op::Write(900_000, 100));
        if flushes {
            step(&image, Op::Flush);
        }
        drop(image);
        // Nobody makes it right any more, and nobody else is touched by that.
        assert_eq!(flags(dir), two(true, false));
        let check = ask(Tool::Img, dir, &format!("check {IMAGE}"));
        assert!(check.code == 0 || check.code == 3, "{check:?}");
        native(Tool::Img, dir, &format!("info {IMAGE}")).expect("QEMU opens it");
    }
    let entry = |file: &[u8]| {
        let at = stored::directory_at(file);
        file[at..at + 32].to_vec()
    };
    let before = entry(&bytes_of(dir));
    let image = image::open(dir).expect("the image opens");
    step(&image, Op::Write(0, 512));
    step(&image, Op::Close);
    assert_eq!(entry(&bytes_of(dir)), before);
    // Its table may be too short for the disk from now on.
    for size in [64 << 20, 1 << 20] {
        step(&image, Op::Resize(size));
        step(&image, Op::Write(size - 512, 512));
        step(&image, Op::Close);
        assert_eq!(flags(dir), two(true, false));
        assert_eq!(entry(&bytes_of(dir))[..16], before[..16]);
        clean(dir).expect("a clean image");
        native(Tool::Img, dir, &format!("info {IMAGE}")).expect("QEMU opens it");
    }
    assert_eq!(bitmaps_of(dir).expect("bitmaps")[1].bits, [1].into());
    native(Tool::Img, dir, &format!("bitmap --remove {IMAGE} on")).expect("QEMU removes it");
    clean(dir).expect("a clean image");
    assert_eq!(flags(dir), [("off".into(), false, false)]);
}

#[test]
fn applying_a_snapshot_may_change_everything() {
    if !oracle::available() {
        return;
    }
    let scratch = image_with_two();
    let dir = scratch.path();
    let image = image::open(dir).expect("the image opens");
    step(&image, Op::Create("small".into()));
    step(&image, Op::Resize(40 << 20));
    step(&image, Op::Create("large".into()));
    let expected = [
        ("small", 256, 1 << 20),
        ("large", 10240, 40 << 20),
        ("small", 256, 1 << 20),
    ];
    for (name, granules, size) in expected {
        step(&image, Op::Write(0, 100));
        step(&image, Op::Apply(name.into()));
        assert_eq!(image.virtual_size(), size);
        // With the switch of the snapshot, and not only with the close.
        assert_eq!(flags(dir), two(false, false));
        let found = bitmaps_of(dir).expect("bitmaps");
        assert!(found[0].bits.iter().copied().eq(0..granules));
        assert_eq!(found[1].bits, [1].into());
        native(Tool::Img, dir, &format!("info {IMAGE}")).expect("QEMU opens it");
        step(&image, Op::Close);
        clean(dir).expect("a clean image");
    }
}

#[test]
fn sizes_that_no_bitmap_can_have_are_refused() {
    if !oracle::available() {
        return;
    }
    let scratch = made(
        &format!("{IMAGE} 1M"),
        &[&format!("bitmap --add -g 512 {IMAGE} fine")],
    );
    let dir = scratch.path();
    let image = image::open(dir).expect("the image opens");
    step(&image, Op::Write(0, 512));
    for size in [0, (2 << 40) + 512, 60 << 40] {
        let refused = block_on(image::apply(&image, &Op::Resize(size)));
        assert!(
            matches!(refused, Err(Error::OutOfRange(_))),
            "{size}: {refused:?}"
        );
        assert_eq!(image.virtual_size(), 1 << 20);
    }
    // The largest there is: 512 MiB of bits.
    step(&image, Op::Resize(2 << 40));
    step(&image, Op::Close);
    clean(dir).expect("a clean image");
    assert_eq!(bitmaps_of(dir).expect("bitmaps")[0].bits, [0].into());
    step(&image, Op::Write((2 << 40) - 1, 1));
    step(&image, Op::Zeroes(1 << 40, 1 << 30, true));
    step(&image, Op::Resize(1 << 20));
    step(&image, Op::Close);
    clean(dir).expect("a clean image");
    assert_eq!(bitmaps_of(dir).expect("bitmaps")[0].bits, [0].into());
}

/// Changes bytes of the image in a folder.
fn patch(dir: &Path, at: usize, bytes: &[u8]) {
    let mut file = bytes_of(dir);
    file[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(dir.join(IMAGE), file).expect("the image is written");
}

#[test]
fn stale_bitmaps_stay_stale_and_unknown_features_go() {
    if !oracle::available() {
        return;
    }
    let scratch = image_with_two();
    let dir = scratch.path();
    // A feature that nobody knows is not kept up to date; the bitmaps are.
    patch(dir, 88, &(1_u64 << 60 | 1).to_be_bytes());
    let image = image::open(dir).expect("the image opens");
    step(&image, Op::Write(0, 512));
    step(&image, Op::Close);
    drop(image);
    assert_eq!(bytes_of(dir)[88..96], 1_u64.to_be_bytes());
    assert_eq!(bitmaps_of(dir).expect("bitmaps")[0].bits, [0, 16].into());
    clean(dir).expect("a clean image");

    // Somebody who knows no bitmaps wrote to the image.
    patch(dir, 88, &0_u64.to_be_bytes());
    let before = bytes_of(dir);
    let directory = stored::directory_at(&before);
    let image = image::open(dir).expect("the image opens");
    for op in [Op::Write(100_000, 512), Op::Resize(2 << 20), Op::Close] {
        step(&image, op);
    }
    let after = bytes_of(dir);
    assert_eq!(after[88..96], 0_u64.to_be_bytes());
    assert_eq!(
        after[directory..directory + 64],
        before[directory..directory + 64]
    );
    assert_eq!(bitmaps_of(dir), Ok(Vec::new()));
}

#[test]
fn a_bitmap_that_cannot_be_stops_writes_and_nothing_else() {
    if !oracle::available() {
        return;
    }
    let scratch = image_with_two();
    let file = bytes_of(scratch.path());
    let directory = stored::directory_at(&file);
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let table = number(directory) as usize;
    let (refcount_table, extension) = (
        number(48) as usize,
        stored::extension_at(&file).expect("bitmaps"),
    );
    let refcount = number(refcount_table) as usize + directory / 4096 * 2;
    let damages: [(&str, usize, &[u8]); 14] = [
        ("type", directory + 16, &[2]),
        ("granularity", directory + 17, &[8]),
        ("unknown flag", directory + 12, &[0x80, 0, 0, 2]),
        ("extra data", directory + 20, &[0, 0, 0, 8]),
        ("name length", directory + 18, &[0xff, 0xff]),
        ("no name", directory + 18, &[0, 0]),
        ("names alike", directory + 32 + 24, b"on"),
        ("table length", directory + 8, &[0, 0, 0, 2]),
        ("table offset", directory, &[0, 0, 0, 0, 0, 0, 0x11, 0]),
        (
            "table past the end",
            directory,
            &[0, 0xff, 0, 0, 0, 0, 0x10, 0],
        ),
        ("table entry", table, &[0, 0, 0, 0, 0, 0, 0x12, 0]),
        ("bits past the end", table, &[0, 0xff, 0, 0, 0, 0, 0x10, 0]),
        ("count", extension, &[0, 0, 0, 3]),
        ("refcount of the directory", refcount, &[0, 2]),
    ];
    for (what, at, bytes) in damages {
        let mut damaged = file.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        if what == "names alike" {
            damaged[directory + 32 + 18..directory + 32 + 20].copy_from_slice(&[0, 2]);
        }
        let image = image::open_bytes(damaged.clone()).expect("the image opens");
        for op in [
            Op::Write(0, 512),
            Op::Zeroes(0, 4096, true),
            Op::Discard(0, 4096),
            Op::Compressed(0, 4096),
            Op::Resize(64 << 20),
        ] {
            let refused = block_on(image::apply(&image, &op));
            let honest = matches!(refused, Err(Error::Corrupt { .. } | Error::Unsupported(_)));
            assert!(honest, "{what}, {op:?}: {refused:?}");
        }
        block_on(image.close()).expect("nothing is to be closed");
        assert_eq!(
            contents_of(&image),
            damaged,
            "{what}: something was written"
        );
        let mut read = [0; 512];
        block_on(image.read_at(GuestOffset(1024), &mut read)).expect("it can be read");
        assert_eq!(read, [1; 512]);
        block_on(image::apply(&image, &Op::Create("s".into()))).expect("a snapshot");
        block_on(image::apply(&image, &Op::Delete("s".into()))).expect("a snapshot less");
        block_on(image.close()).expect("the image is closed");
        let after = contents_of(&image);
        assert_eq!(
            after[directory..directory + 64],
            damaged[directory..directory + 64]
        );
    }
}

#[test]
fn a_broken_bitmap_that_nobody_touches_is_nobodys_business() {
    if !oracle::available() {
        return;
    }
    let scratch = image_with_two();
    let mut file = bytes_of(scratch.path());
    let directory = stored::directory_at(&file);
    // The disabled one's table.
    let entry = directory + 32;
    let table =
        u64::from_be_bytes(file[entry..entry + 8].try_into().expect("eight bytes")) as usize;
    file[table..table + 8].copy_from_slice(&0x1200_u64.to_be_bytes());
    let image = image::open_bytes(file).expect("the image opens");
    block_on(image::apply(&image, &Op::Write(0, 512))).expect("a write");
    block_on(image.close()).expect("the image is closed");
    let refused = block_on(image::apply(&image, &Op::Resize(64 << 20)));
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    assert_eq!(image.virtual_size(), 1 << 20);
}
