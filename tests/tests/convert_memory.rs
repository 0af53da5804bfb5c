//! The memory that a copy takes. A program of its own: a process that is started counts the memory of the one that
//! starts it, and other tests take more than the copy may.

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::run;
use oxcow_tests::scratch::Scratch;

/// However large the disk, the copy takes a few MiB: buffers, and tables up to their limit.
#[test]
fn memory_does_not_grow_with_the_disk() {
    const MOST: u64 = 24 << 20;
    if !oracle::available() {
        return;
    }
    let folder = Scratch::new("convert-memory");
    let script = "
set -e
qemu-img create -q -f qcow2 huge.qcow2 1T
qemu-io -c 'write -q -P 1 0 4M' -c 'write -q -P 2 500G 2M' -c 'write -q -P 3 1023G 1M' huge.qcow2
";
    let made = run::run(run::command("sh", folder.path()).args(["-c", script]));
    assert_eq!(made.code, 0, "{}", made.stderr);
    for how in ["-O qcow2", "-c -O qcow2", "-W -m 16 -O qcow2"] {
        let args: Vec<String> = format!("convert {how} huge.qcow2 new")
            .split(' ')
            .map(str::to_owned)
            .collect();
        let outcome = Build::Native.stand_in(Tool::Img, folder.path(), None, &args);
        assert_eq!(outcome.code, 0, "{how}: {}", outcome.stderr);
        assert!(
            outcome.peak_rss < MOST,
            "{how}: {} MiB",
            outcome.peak_rss >> 20
        );
    }
}
