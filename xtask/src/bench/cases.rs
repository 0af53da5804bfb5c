//! What is measured.
use std::path::Path;

use super::case::{Case, What};
use super::disks::{self, WRITTEN};
use super::script::{CLUSTER, Script};
use crate::project::Result;

const HALF: &str = "wall <= 0.5";
const HALF_AND_TWO_FLUSHES: &str = "wall <= 0.5, 2 flushes for one";

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = reading();
    cases.extend(writing());
    cases.extend(whole_image());
    cases.extend(whole_disk());
    cases
}

/// Cases that leave the images as they are.
fn reading() -> Vec<Case> {
    let image = |name, target, prepare, line| Case {
        fresh: disks::unconverted,
        ..once(name, target, prepare, line)
    };
    let to_raw = "wall <= 1.0, CPU <= 0.8";
    vec![
        image(
            "convert plain to raw",
            "wall <= 1.0",
            disks::real,
            "convert -O raw plain.qcow2 out.raw",
        ),
        image(
            "convert zlib to raw",
            to_raw,
            disks::real,
            "convert -O raw zlib.qcow2 out.raw",
        ),
        image(
            "convert zstd to raw",
            to_raw,
            disks::real,
            "convert -O raw zstd.qcow2 out.raw",
        ),
        Case {
            name: "4 KiB random read".into(),
            target: HALF,
            prepare: disks::full,
            fresh: unchanged,
            what: What::Repeated(
                Script {
                    command: "read",
                    bytes: 4 << 10,
                    apart: 4 << 10,
                    size: disks::FULL_BYTES,
                    sequential: false,
                    count: 20_000,
                    flush_every: None,
                },
                "full.qcow2",
            ),
        },
        image("info", "", disks::real, "info plain.qcow2"),
        image("check 700 MB", "", disks::real, "check plain.qcow2"),
        image("check 1 TiB", HALF, disks::tebibyte, "check tebibyte.qcow2"),
    ]
}

/// Cases in which a guest writes. Each run ends with a flush.
fn writing() -> Vec<Case> {
    let scattered = |bytes, count| Script {
        command: "write",
        bytes,
        apart: CLUSTER,
        size: disks::EMPTY_BYTES,
        sequential: false,
        count,
        flush_every: None,
    };
    let to = |name: &str, target, prepare, fresh, image, script: Script| {
        let flushes = script.flush_every;
        let flushes = flushes.map_or(String::new(), |every| format!(", flush after {every}"));
        Case {
            name: format!("{name}{flushes}"),
            target,
            prepare,
            fresh,
            what: What::Repeated(script, image),
        }
    };
    let every_16 = |script| Script {
        flush_every: Some(16),
        ..script
    };
    let allocating =
        |name, target, script| to(name, target, nothing, disks::empty, WRITTEN, script);
    let (small, large) = ("4 KiB allocating write", "64 KiB allocating write");
    let copying = Script {
        size: disks::FULL_BYTES,
        ..scattered(4 << 10, 2000)
    };
    let in_place = Script {
        apart: 4 << 10,
        size: disks::FULL_BYTES,
        ..scattered(4 << 10, 4000)
    };
    let sequential = Script {
        apart: 1 << 20,
        sequential: true,
        ..scattered(1 << 20, 256)
    };
    vec![
        allocating(small, HALF, scattered(4 << 10, 4000)),
        allocating(
            small,
            HALF_AND_TWO_FLUSHES,
            every_16(scattered(4 << 10, 2000)),
        ),
        allocating(large, "", scattered(CLUSTER, 2000)),
        allocating(
            large,
            "2 flushes for one",
            every_16(scattered(CLUSTER, 1000)),
        ),
        to(
            "4 KiB copy-on-write",
            "",
            disks::full,
            disks::overlay,
            WRITTEN,
            copying,
        ),
        to(
            "4 KiB overwrite",
            "",
            disks::full,
            unchanged,
            "full.qcow2",
            in_place,
        ),
        allocating("1 MiB sequential write", "", sequential),
    ]
}

/// Cases that change an image as a whole.
fn whole_image() -> Vec<Case> {
    let image = |name, fresh, line: &str| Case {
        fresh,
        ..once(name, "", nothing, &line.replace("IMAGE", WRITTEN))
    };
    vec![
        image(
            "snapshot create 100 GiB",
            disks::allocated,
            "snapshot -c one IMAGE",
        ),
        image(
            "snapshot delete 100 GiB",
            disks::snapshotted,
            "snapshot -d one IMAGE",
        ),
        image(
            "resize 100 GiB to 200",
            disks::allocated,
            "resize IMAGE 200G",
        ),
        image("repair 16,386 leaks", disks::leaky, "check -r leaks IMAGE"),
        image(
            "create 100 GiB",
            disks::absent,
            "create -f qcow2 IMAGE 100G",
        ),
        image(
            "create 100 GiB, metadata",
            disks::absent,
            "create -f qcow2 -o preallocation=metadata IMAGE 100G",
        ),
    ]
}

/// Cases that read or write all of a disk's content.
fn whole_disk() -> Vec<Case> {
    let no_slower = "wall <= 1.0";
    let compress = "CPU <= 0.6";
    let image = |name, target, prepare, fresh, line: &str| Case {
        fresh,
        ..once(name, target, prepare, &line.replace("IMAGE", WRITTEN))
    };
    let convert = |name, target, prepare, line| image(name, target, prepare, disks::absent, line);
    vec![
        convert(
            "convert raw to plain",
            no_slower,
            disks::raw,
            "convert -f raw -O qcow2 real.raw IMAGE",
        ),
        // Without it qemu-img leaves the data to the system, which oxcow never does.
        convert(
            "convert raw to plain, flushed by both",
            no_slower,
            disks::raw,
            "convert -t writeback -f raw -O qcow2 real.raw IMAGE",
        ),
        // No holes, which qemu-img skips and a sandbox has to read.
        convert(
            "convert dense raw to plain",
            no_slower,
            disks::dense,
            "convert -f raw -O qcow2 dense.raw IMAGE",
        ),
        convert(
            "convert dense raw to plain, flushed by both",
            no_slower,
            disks::dense,
            "convert -t writeback -f raw -O qcow2 dense.raw IMAGE",
        ),
        convert(
            "convert raw to zlib",
            compress,
            disks::raw,
            "convert -f raw -O qcow2 -c real.raw IMAGE",
        ),
        convert(
            "convert raw to zstd",
            "",
            disks::raw,
            "convert -f raw -O qcow2 -c -o compression_type=zstd real.raw IMAGE",
        ),
        convert(
            "convert qcow2 to qcow2",
            no_slower,
            disks::real,
            "convert -O qcow2 plain.qcow2 IMAGE",
        ),
        convert(
            "convert qcow2 to qcow2, flushed by both",
            no_slower,
            disks::real,
            "convert -t writeback -O qcow2 plain.qcow2 IMAGE",
        ),
        convert(
            "convert raw to LUKS",
            "",
            disks::raw,
            "convert --object secret,id=s,data=secret -f raw -O qcow2 \
             -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 real.raw IMAGE",
        ),
        image(
            "convert LUKS to raw",
            "",
            disks::luks,
            disks::unconverted,
            "convert --object secret,id=s,data=secret --image-opts -O raw \
             driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s out.raw",
        ),
        image(
            "compare plain with zlib",
            "",
            disks::real,
            unchanged,
            "compare plain.qcow2 zlib.qcow2",
        ),
        image(
            "commit 256 MiB",
            "",
            disks::full,
            disks::to_commit,
            "commit IMAGE",
        ),
        image(
            "rebase 512 MiB onto another file",
            "",
            disks::full,
            disks::to_rebase,
            "rebase -b other.qcow2 -F qcow2 IMAGE",
        ),
    ]
}

fn once(name: &str, target: &'static str, prepare: fn(&Path) -> Result<()>, line: &str) -> Case {
    let words = line.split_whitespace().map(str::to_owned);
    Case {
        name: name.into(),
        target,
        prepare,
        fresh: unchanged,
        what: What::Once(words.collect()),
    }
}

/// For cases that need no images beforehand.
fn nothing(folder: &Path) -> Result<()> {
    Ok(std::fs::create_dir_all(folder)?)
}

/// For cases after which the image is as it was, or as good.
fn unchanged(_: &Path) -> Result<()> {
    Ok(())
}
