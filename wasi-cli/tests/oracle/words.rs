//! The command line word for word: what qemu-img and qemu-io say to a line, ours says too, with the same exit
//! code. `img-lines.txt` and `io-lines.txt` hold the lines, right and wrong ones.
use std::path::Path;

use crate::answers::{Folder, answer, oracle_is_missing, words};

/// Prepared by the oracle itself, once; every line then finds them in its working folder.
const PREPARE: &str = "
set -e
qemu-img create -q -f qcow2 a.qcow2 64M
qemu-img create -q -f qcow2 c1.qcow2 64M
qemu-io -c 'write -q -P 1 1M 64k' c1.qcow2
qemu-img create -q -f qcow2 c2.qcow2 65M
qemu-io -c 'write -q -P 1 1M 64k' -c 'write -q -P 2 64M 64k' c2.qcow2
# Without holes: who sees them tells more than who does not.
yes data | head -c 1048576 > base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw ov.qcow2
qemu-img bitmap --add -g 128k ov.qcow2 b0
qemu-img bitmap --add --disable ov.qcow2 b1
qemu-img snapshot -c s1 ov.qcow2
qemu-img snapshot -c 'second one' ov.qcow2
mkdir sub
qemu-img create -q -f qcow2 -b ../base.raw -F raw sub/over.qcow2
qemu-img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on,extended_l2=on df.qcow2 10M
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 10M
qemu-img snapshot -c old v2.qcow2
qemu-img create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 10M
qemu-img create -q -f qcow2 odd.qcow2 1024
qemu-img create -q -f qcow2 lost.qcow2 1M
qemu-img rebase -q -u -b gone.raw -F raw lost.qcow2
# An image inside of another one, and one behind a sector of something else.
qemu-img create -q -f qcow2 nest.qcow2 8M
qemu-img convert -n -f raw -O qcow2 c1.qcow2 nest.qcow2
{ head -c 512 base.raw; cat c1.qcow2; } > behind.img
head -c 1000 base.raw > odd.raw
head -c 1 base.raw > one.raw
: > empty.raw
head -c 1024 base.raw > txt.raw
";

fn compare(name: &str, lines: &str) {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared(name, PREPARE);
    let ours = Path::new(env!("CARGO_BIN_EXE_oxcow"));
    let mut different = Vec::new();
    for line in lines.lines() {
        let words = words(line);
        let expected = answer(&folder.0, Path::new(name), name, &words);
        let got = answer(&folder.0, ours, name, &words);
        if got != expected {
            different.push(format!(
                "{name} {line}\nexpected {expected:#?}\ngot {got:#?}"
            ));
        }
    }
    assert!(
        different.is_empty(),
        "{} lines:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn every_line_is_answered_as_qemu_img_answers_it() {
    compare("qemu-img", include_str!("img-lines.txt"));
}

#[test]
fn every_line_is_answered_as_qemu_io_answers_it() {
    compare("qemu-io", include_str!("io-lines.txt"));
}
