//! What the bytes of an image say after it was changed, where scripts look at them: the order of the header
//! extensions, where the tables are, and the snapshot table. Every script runs once with the oracle's tools alone, and
//! once with ours in place of qemu-img.
use std::path::Path;

use crate::answers::{Folder, oracle_is_missing, shell};

/// Prints what stands in the first cluster: the roots, then type and length of every extension; what is behind a
/// missing `bitmaps` is not the same with ours, which has those in sector 0.
const DUMP: &str = r#"
dump() {
  set -- $1 $(od -An -v -tu1 -w65536 -N65536 $1)
  echo "$1"; shift
  awk 'BEGIN {
    for (i = 1; i < ARGC; i++) b[i - 1] = ARGV[i]
    split("8:8 16:4 24:8 36:4 40:8 48:8 56:4 60:4 64:8", fields, " ")
    line = "v" b[7]
    for (f = 1; f <= 9; f++) { split(fields[f], p, ":"); line = line " " be(p[1], p[2]) }
    print line
    at = b[7] == 3 ? be(100, 4) : 72
    while ((kind = be(at, 4)) != 0) {
      length_ = be(at + 4, 4)
      printf "%x:%d\n", kind, length_
      at += 8 + int((length_ + 7) / 8) * 8
    }
  }
  function be(at, count,  i, value) {
    value = 0
    for (i = 0; i < count; i++) value = value * 256 + b[at + i]
    return value
  }' "$@"
}
# type, length of the data and the data of an extension that nobody knows
unknown() {
  at=$(dump $1 | awk -v header=${2:-112} 'NR > 2 { split($0, p, ":"); header += 8 + int((p[2] + 7) / 8) * 8 }
    END { print header }')
  printf '\022\064\126\170\0\0\0\037This is a test header extension\0\0\0\0\0\0\0\0\0' |
    dd of=$1 bs=1 seek=$at conv=notrunc 2>/dev/null
}
"#;

/// What is done, and looked at.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "rebase",
        "for compat in 0.10 1.1; do
           qemu-img create -q -f qcow2 -o compat=$compat a 64M
           [ $compat = 1.1 ] && unknown a || unknown a 72
           dump a
           qemu-img rebase -u -b '' a; dump a
           qemu-img rebase -u -b /some/backing/file/path -F host_device a; dump a
           qemu-img rebase -u -b /other -F raw a; dump a
           qemu-img rebase -u -b '' a; dump a
           qemu-img check a
         done",
    ),
    (
        "data file",
        "qemu-img create -q -f qcow2 -o data_file=d.raw a 64M; unknown a; dump a
         qemu-img amend -o data_file=other.raw --image-opts data-file.filename=d.raw,file.filename=a; dump a
         qemu-img rebase -u -b x -F raw --image-opts data-file.filename=d.raw,file.filename=a; dump a",
    ),
    (
        "snapshots of an empty image",
        "for compat in 0.10 1.1; do
           qemu-img create -q -f qcow2 -o compat=$compat a 64M
           for name in one two three; do qemu-img snapshot -c $name a; dump a; done
           qemu-img amend -o compat=1.1 a; dump a
           qemu-img snapshot -d two a; dump a
           qemu-img snapshot -c four a; dump a
           qemu-img check a
         done",
    ),
    (
        "downgrade",
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on a 64M
         qemu-io -c 'write -q -z 0 128k' -c 'write -q -z 32M 128k' a
         qemu-img amend -o compat=0.10 a; dump a
         qemu-io -r -c 'read -q -P 0 0 64M' a; qemu-img check a
         qemu-img create -q -f qcow2 base 4G
         for snapshot in no yes; do
           qemu-img create -q -f qcow2 -b base -F qcow2 a 4G
           qemu-io -c 'write -q -z 0 64k' -c 'write -q -z 1G 64k' -c 'write -q -z 3G 64k' a
           [ $snapshot = yes ] && qemu-img snapshot -c one a
           qemu-img amend -p -o compat=0.10 a; qemu-img check a | grep -v '^Image end'
           qemu-img map --output=json a | sed 's/\"zero\": [a-z]*, //; s/\"offset\": [0-9]*/offset/'
         done",
    ),
    (
        "a dirty image",
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on a 64M
         qemu-io -c 'write -q -P 42 0 128k' -c flush -c 'sigraise 9' a 2>/dev/null
         cp a b
         qemu-img amend -o lazy_refcounts=off a; dump a; qemu-img check a
         qemu-img snapshot -c one b; qemu-img check b | grep -v '^Image end'",
    ),
    (
        "zeros from nowhere",
        r#"for sparse in 512 0; do
             qemu-img convert -O qcow2 -S $sparse 'json:{"driver": "null-co", "size": 1048576, "read-zeroes": true}' a
             qemu-img map a; dump a
           done
           qemu-img convert -O raw --image-opts driver=raw,file.driver=null-co,file.size=3M,file.read-zeroes=on r
           stat -c %s r"#,
    ),
    (
        "too much extra data",
        "qemu-img create -q -f qcow2 a 64M
         for name in one two; do qemu-img snapshot -c $name a; done
         dump a
         table=$(dump a | awk 'NR == 2 { print $10 }')
         printf '\\0\\001\\0\\0' | dd of=a bs=1 seek=$((table + 36)) conv=notrunc 2>/dev/null
         for line in 'info a' 'snapshot -l a' 'check a' 'check -r leaks a' 'check -r all a' 'snapshot -l a'; do
           qemu-img $line | sed 's/ *20[0-9-]* [0-9:.]*//; /disk size/d; /file length/d; /Image end/d'
         done",
    ),
    (
        "too many snapshots",
        "qemu-img create -q -f qcow2 -o compat=0.10 a 64M
         printf '\\0\\002\\0\\0\\0\\0\\0\\0\\0\\020\\0\\0' | dd of=a bs=1 seek=60 conv=notrunc 2>/dev/null
         truncate -s $((1048576 + 40 * 131072)) a
         i=16; while [ $i -lt 96 ]; do
           printf '\\0\\001' | dd of=a bs=1 seek=$((131072 + 2 * i)) conv=notrunc 2>/dev/null; i=$((i + 1))
         done
         qemu-img info a
         qemu-img check a; qemu-img check -r leaks a; qemu-img check -r all a
         dump a | awk 'NR == 2 { print $9, $10 }'; qemu-img check a | grep -v '^Image end'",
    ),
];

fn outcome(script: &str, ours: Option<&Path>) -> String {
    let folder = Folder::prepared("headers", "");
    let tool = match ours {
        Some(path) => format!(
            "mkdir bin; ln -s '{}' bin/qemu-img; PATH=$PWD/bin:$PATH",
            path.display()
        ),
        None => String::new(),
    };
    let script = format!("{DUMP}\n{tool}\nexec 2>&1\n{script}");
    let output = shell(&folder.0, &script).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn images_are_changed_as_qemu_img_changes_them() {
    if oracle_is_missing() {
        return;
    }
    let ours = Path::new(env!("CARGO_BIN_EXE_oxcow"));
    for (name, script) in SCRIPTS {
        let expected = outcome(script, None);
        let got = outcome(script, Some(ours));
        assert!(expected.lines().count() > 5, "{name}: {expected}");
        assert_eq!(got, expected, "{name}");
    }
}
