//! `bench`: what qemu-img says, but for the time, and the bytes that it writes.
use std::path::Path;

use crate::answers::{Answer, Folder, answer, oracle_is_missing, words};

const PREPARE: &str = "
set -e
qemu-img create -q -f qcow2 a.qcow2 2M
qemu-img create -q -f raw r.raw 2M
";

const LINES: &[&str] = &[
    "bench -c 10 a.qcow2",
    "bench -c 10 -d 4 -o 1M -S 8k -s 2k a.qcow2",
    "bench -c 600 a.qcow2",
    "bench -w -c 20 --pattern 5 a.qcow2",
    "bench -w -c 20 -d 4 --flush-interval 5 -S 100k --pattern 7 a.qcow2",
    "bench -w -c 20 -d 4 --flush-interval 5 --no-drain a.qcow2",
    "bench -w -c 20 -f raw -s 1000 --pattern 9 r.raw",
    "bench -w -c 20 -d 4 --flush-interval 2 a.qcow2",
    "bench --flush-interval 2 a.qcow2",
    "bench -c 3 -s 1000 a.qcow2",
    "bench -o 3M -c 1 a.qcow2",
    "bench -w -c 1 -s 1M -o 1500k a.qcow2",
    "bench -S 0 -c 3 a.qcow2",
    "bench -q -U -c 2 -i threads a.qcow2",
    "bench -n -c 2 a.qcow2",
    "bench -i foo a.qcow2",
    "bench -t foo a.qcow2",
    "bench -t writeback -c 2 a.qcow2",
    "bench -c 0 a.qcow2",
    "bench -d x a.qcow2",
    "bench --pattern 300 a.qcow2",
    "bench -U -w -c 2 a.qcow2",
    "bench -c 2 gone",
    "bench",
];

fn without_time(mut answer: Answer) -> Answer {
    let is_time = |line: &&str| line.starts_with("Run completed in ");
    assert!(answer.stdout.lines().filter(is_time).count() <= 1);
    let lines = answer.stdout.lines().map(|line| match is_time(&line) {
        true => "Run completed\n".to_owned(),
        false => format!("{line}\n"),
    });
    answer.stdout = lines.collect();
    answer
}

#[test]
fn benchmarks_are_told_of_in_the_same_words_and_write_the_same() {
    if oracle_is_missing() {
        return;
    }
    let ours = Path::new(env!("CARGO_BIN_EXE_oxcow"));
    for line in LINES {
        let folder = |name| Folder::prepared(name, PREPARE);
        let (here, there) = (folder("bench-ours"), folder("bench-theirs"));
        let words = words(line);
        let expected = answer(&there.0, Path::new("qemu-img"), "qemu-img", &words);
        let found = answer(&here.0, ours, "qemu-img", &words);
        assert_eq!(without_time(found), without_time(expected), "{line}");
        for (format, image) in [("qcow2", "a.qcow2"), ("raw", "r.raw")] {
            let compared = std::process::Command::new("qemu-img")
                .args(["compare", "-f", format, "-F", format])
                .args([here.0.join(image), there.0.join(image)])
                .output()
                .unwrap();
            assert_eq!(compared.status.code(), Some(0), "{line}: {image}");
        }
    }
}
