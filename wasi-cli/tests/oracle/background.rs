//! `hydrate` and `backup`: what goes on while an image is in use, judged by the native tools.
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::answers::{Answer, Folder, answer, oracle_is_missing, shell, words};

const PREPARE: &str = "
set -e
yes data | head -c 8388608 > base.raw
dd if=/dev/zero of=base.raw bs=64k seek=100 count=4 conv=notrunc status=none
qemu-img convert -O qcow2 -c base.raw base.qcow2
qemu-img create -q -f qcow2 -b base.raw -F raw a.qcow2 9M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o extended_l2=on b.qcow2 7M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o compat=0.10,cluster_size=512 c.qcow2 8M
for image in a b c; do
  qemu-io -c 'write -q -P 7 1000 70000' -c 'discard 1M 64k' $image.qcow2
  qemu-img convert -O raw $image.qcow2 $image.expected
done
qemu-img convert -O qcow2 base.raw d.qcow2
qemu-img create -q -f qcow2 -b base.raw -F raw held.qcow2
qemu-img snapshot -c s1 held.qcow2
";

fn ours(folder: &Folder, line: &str) -> Answer {
    answer(
        &folder.0,
        Path::new(env!("CARGO_BIN_EXE_oxcow")),
        "oxcow",
        &words(line),
    )
}

/// The native tools' word that `script` succeeds.
fn native(folder: &Folder, script: &str) {
    let status = shell(&folder.0, script).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

#[track_caller]
fn says(answer: &Answer, code: i32, stdout: &str) {
    assert_eq!(
        (answer.code, answer.stdout.as_str()),
        (Some(code), stdout),
        "{}",
        answer.stderr
    );
}

#[test]
fn an_overlay_fills_itself_and_needs_nobody() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("hydrate", PREPARE);
    // Clusters 0 and 1 are written, cluster 16 is discarded.
    says(
        &ours(&folder, "hydrate status a.qcow2"),
        0,
        "128 3/128 0 idle\n",
    );
    for image in ["a", "b", "c"] {
        let filled = ours(&folder, &format!("hydrate --batch 256k {image}.qcow2"));
        says(&filled, 0, "Image hydrated.\n");
        native(
            &folder,
            &format!(
                "mv base.raw gone.raw; mv base.qcow2 gone.qcow2
                qemu-img compare -q {image}.qcow2 {image}.expected && qemu-img check -q {image}.qcow2
                code=$?; mv gone.raw base.raw; mv gone.qcow2 base.qcow2; exit $code"
            ),
        );
        let again = ours(&folder, &format!("hydrate -q {image}.qcow2"));
        says(&again, 0, "");
    }
}

#[test]
fn a_snapshot_that_needs_the_backing_file_is_named() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("hydrate-held", PREPARE);
    let filled = ours(&folder, "hydrate held.qcow2");
    says(&filled, 1, "");
    assert_eq!(
        filled.stderr,
        "oxcow: Everything of 'held.qcow2' itself is there, but snapshot 1 still needs the backing file\n"
    );
    says(
        &ours(&folder, "hydrate status held.qcow2"),
        0,
        "128 128/128 0 complete\n",
    );
    native(&folder, "qemu-img snapshot -d s1 held.qcow2");
    let kept = ours(&folder, "hydrate --keep-backing held.qcow2");
    says(&kept, 0, "Image hydrated.\n");
    native(
        &folder,
        "qemu-img info held.qcow2 | grep -q 'backing file: base.raw'",
    );
    says(&ours(&folder, "hydrate held.qcow2"), 0, "Image hydrated.\n");
    native(
        &folder,
        "! qemu-img info held.qcow2 | grep 'backing file' && qemu-img check -q held.qcow2",
    );
}

#[test]
fn a_killed_one_goes_on() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("hydrate-killed", PREPARE);
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxcow"));
    command
        .args(["hydrate", "--batch", "64k", "--limit-rate", "1M", "a.qcow2"])
        .current_dir(&folder.0)
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let there = |line: &str| -> u64 {
        let of = line.split(' ').nth(1).unwrap();
        of.split('/').next().unwrap().parse().unwrap()
    };
    // Long enough that something was committed, however busy the machine is.
    let mut before = 3;
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(100));
        let status = ours(&folder, "hydrate -U status a.qcow2");
        if status.code == Some(0) {
            before = there(&status.stdout);
        }
        if before > 10 {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    native(&folder, "qemu-img check -q a.qcow2 || test $? = 3");
    native(&folder, "qemu-img compare -q a.qcow2 a.expected");
    let status = ours(&folder, "hydrate status a.qcow2");
    assert!(
        (11..128).contains(&there(&status.stdout)),
        "{}",
        status.stdout
    );
    says(&ours(&folder, "hydrate a.qcow2"), 0, "Image hydrated.\n");
    native(
        &folder,
        "mv base.raw gone.raw; qemu-img compare -q a.qcow2 a.expected && qemu-img check -q a.qcow2",
    );
}

#[test]
fn a_backup_is_of_the_moment_it_began() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("backup", PREPARE);
    let commands = "-c 'write -q -P 9 0 1M' -c 'discard -q 2M 1M' -c 'write -q -z 4M 64k' \
        -c 'read -P 9 0 1M' -c 'flush' -c 'write -q -P 3 6500k 3k' -c 'write -q -P 4 5M 512'";
    for (mode, image) in [
        ("snapshot", "a.qcow2"),
        ("copy", "b.qcow2"),
        ("copy", "c.qcow2"),
        ("snapshot", "d.qcow2"),
        ("copy", "base.raw"),
    ] {
        native(&folder, &format!("qemu-img convert -O raw {image} before"));
        let format = if image.ends_with("raw") {
            "raw"
        } else {
            "qcow2"
        };
        let line = format!("backup -f {format} --mode {mode} {commands} {image} out.raw");
        let done = ours(&folder, &line);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert!(
            done.stdout.ends_with("Backup complete.\n"),
            "{}",
            done.stdout
        );
        native(&folder, "cmp out.raw before");
        native(
            &folder,
            &format!(
                "qemu-io -f {format} -c 'read -P 9 0 1M' -c 'read -P 0 2M 1M' -c 'read -P 3 6500k 3k' \
                 -c 'read -P 4 5M 512' {image} | grep -v 'verification failed' > /dev/null"
            ),
        );
        if format == "qcow2" {
            native(
                &folder,
                &format!("qemu-img check -q {image}; test -z \"$(qemu-img snapshot -l {image})\""),
            );
        }
    }
}

#[test]
fn mistakes_are_told() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("background-mistakes", PREPARE);
    for (line, words) in [
        ("hydrate base.raw", "raw image has no backing file"),
        ("hydrate gone.qcow2", "No such file or directory"),
        (
            "hydrate --threshold 0 a.qcow2",
            "Invalid threshold specified",
        ),
        ("hydrate --batch 1 a.qcow2", "Invalid batch size specified"),
        ("hydrate", "Expecting one image file name"),
        ("backup a.qcow2", "Expecting two image file names"),
        ("backup --mode both a.qcow2 out", "Invalid mode: 'both'"),
        ("backup a.qcow2 a.qcow2", "lock"),
        ("backup a.qcow2 base.raw", "lock"),
        (
            "backup --mode snapshot base.raw out",
            "no internal snapshots",
        ),
    ] {
        let answer = ours(&folder, line);
        assert_eq!(answer.code, Some(1), "{line}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{line}: {}", answer.stderr);
    }
    native(&folder, "qemu-img compare -q a.qcow2 a.expected");
}
