//! A disk with a partition table, FAT and ext4, full of real files, read out of qcow2 in three ways.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use oxcow_tests::disk::{self, Disk, EXT4_START, FAT_START, succeed, tool, tree_differences};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::scratch::{Scratch, cache};

const SIZE: u64 = 200 << 20;
const CONTENT: u64 = 100 << 20;

fn ready() -> bool {
    let missing = disk::missing_tools();
    if !missing.is_empty() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "not installed: {missing:?} (packages gdisk, dosfstools, mtools, e2fsprogs)"
        );
        println!(
            "SKIPPED: not installed: {missing:?} (packages gdisk, dosfstools, mtools, e2fsprogs)"
        );
    }
    oracle::available() && missing.is_empty()
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn same_content(left: &Path, right: &Path) -> io::Result<bool> {
    let (mut left, mut right) = (fs::File::open(left)?, fs::File::open(right)?);
    if left.metadata()?.len() != right.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        a.clear();
        b.clear();
        (&mut left).take(1 << 20).read_to_end(&mut a)?;
        (&mut right).take(1 << 20).read_to_end(&mut b)?;
        if a != b || a.is_empty() {
            return Ok(a == b);
        }
    }
}

/// The files that other programs find in a raw disk.
fn check_files(raw: &Path, disk: &Disk) -> io::Result<()> {
    let scratch = Scratch::new("files");
    let (fat, ext4) = (scratch.path().join("fat"), scratch.path().join("ext4"));
    fs::create_dir_all(&fat)?;
    fs::create_dir_all(&ext4)?;
    succeed(
        tool("mcopy")
            .args(["-s", "-n", "-i"])
            .arg(format!("{}@@{FAT_START}", raw.display()))
            .arg("::*")
            .arg(&fat),
    )?;
    let dump = format!("rdump / {}", ext4.display());
    succeed(
        tool("debugfs")
            .args(["-R", &dump])
            .arg(format!("{}?offset={EXT4_START}", raw.display())),
    )?;
    assert!(
        disk::files(&disk.ext4)?.len() > 500,
        "the disk has many files"
    );
    assert_eq!(
        tree_differences(&disk.fat, &fat)?,
        Vec::<String>::new(),
        "FAT"
    );
    assert_eq!(
        tree_differences(&disk.ext4, &ext4)?,
        Vec::<String>::new(),
        "ext4"
    );
    Ok(())
}

#[test]
fn a_real_disk_comes_out_of_qcow2_as_it_went_in() {
    if !ready() {
        return;
    }
    let dir = cache().join("real-disk");
    let disk = disk::make(&dir, SIZE, CONTENT).expect("the disk can be made");
    for (name, options) in [
        ("plain", ""),
        ("zlib", "-c "),
        ("zstd", "-c -o compression_type=zstd "),
    ] {
        let image = format!("{name}.qcow2");
        if !dir.join(&image).exists() {
            let made = oracle::run(
                Tool::Img,
                &dir,
                &words(&format!("convert -O qcow2 {options}disk.raw {image}")),
            );
            assert_eq!(made.code, 0, "{}", made.stderr);
        }
        let scratch = Scratch::new("real-disk");
        let output = scratch.path().join("out.raw");
        for build in [Build::Wasm, Build::Native] {
            let args = words(&format!("convert -O raw {image} {}", output.display()));
            let ours = build.run("oxcow", &dir, Some(scratch.path()), &args);
            assert_eq!(
                (ours.code, ours.stderr.as_str()),
                (0, ""),
                "{name} {build:?}"
            );
            assert!(
                same_content(&disk.raw, &output).expect("both can be read"),
                "{name} {build:?}"
            );
            println!("{name} {build:?}: {:?} of CPU time", ours.user);
        }
        if name == "zstd" {
            check_files(&output, &disk).expect("other programs can read it");
        }
        let compared = Build::Wasm.run(
            "oxcow",
            &dir,
            None,
            &words(&format!("compare {image} disk.raw")),
        );
        assert_eq!(
            (compared.code, compared.stdout.as_str()),
            (0, "Images are identical.\n"),
            "{}",
            compared.stderr
        );
        let checked = Build::Wasm.run("oxcow", &dir, None, &words(&format!("check {image}")));
        let expected = oracle::ask(Tool::Img, &dir, &words(&format!("check {image}")));
        assert_eq!(
            (checked.code, checked.stdout),
            (expected.code, expected.stdout),
            "{}",
            checked.stderr
        );
    }
}
