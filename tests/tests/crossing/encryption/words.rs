//! What is said where a key is missing, wrong or asked for in a wrong way: the same as qemu-img says.

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::scripts::place;

const PREPARE: &[&str] = &[
    "create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 q 1M",
    "create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s a 1M",
    "create -q -f luks --object secret,id=s,data=abc -o key-secret=s,iter-time=10 l 1M",
    "create -q -f qcow2 p 1M",
    "create -q -f qcow2 -u -b q -F qcow2 over 1M",
];

/// Command lines; `{s}` stands for a secret that opens all images, `{w}` for one that opens none.
const LINES: &[&str] = &[
    // No key.
    "convert -O raw q out",
    "convert -O raw a out",
    "convert -O raw l out",
    "convert -O raw over out",
    "map q",
    "map --output=json l",
    "check q",
    "check l",
    "resize q 2M",
    "resize l 2M",
    "compare q l",
    "compare p l",
    "snapshot -l q",
    "snapshot -c one a",
    "measure -O raw q",
    "dd if=l of=out",
    "rebase -u -b p q",
    "info -f luks p",
    "info -f luks q",
    "convert -O raw -f luks p out",
    // Keys of other names, and other passphrases.
    "map --image-opts driver=qcow2,encrypt.key-secret=none,file.filename=q",
    "map --image-opts driver=luks,key-secret=none,file.filename=l",
    "map {w} --image-opts driver=qcow2,encrypt.key-secret=w,file.filename=q",
    "map {w} --image-opts driver=luks,key-secret=w,file.filename=l",
    "map {w} --image-opts driver=qcow2,encrypt.key-secret=w,file.filename=a",
    "map {s} --image-opts driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=q",
    "map {s} --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=a",
    "map {s} --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=q",
    "map {s} --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=p",
    "map {s} --image-opts driver=raw,encrypt.key-secret=s,file.filename=q",
    "map {s} --image-opts driver=luks,file.filename=l",
    "map {s} --image-opts driver=luks,key-secret=s,file.filename=l",
    "map {s} --output=json --image-opts driver=luks,key-secret=s,file.filename=l",
    "map {s} json:{\"driver\":\"qcow2\",\"encrypt.key-secret\":\"s\",\"file.filename\":\"q\"}",
    "map {s} --image-opts driver=qcow2,file.filename=over,backing.encrypt.key-secret=s",
    "map {s} --image-opts driver=qcow2,file.filename=over",
    "snapshot {s} -c one --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=q",
    // Secrets.
    "map --object secret,id=s p",
    "map --object secret,id=s,data=a,file=b p",
    "map --object secret,data=a p",
    "map --object secret p",
    "map --object id=s,data=a p",
    "map --object foo,id=s p",
    "map --object secret,id=s,file=none p",
    "map --object secret,id=s,data=!!!,format=base64 p",
    "map --object secret,id=s,data=YWJj,format=hex p",
    "map --object secret,id=s,data=a,foo=b p",
    "map --object secret,id=1s,data=a p",
    "map {s} {s} p",
    "map --object secret,id=s,data=/w==,format=base64 --image-opts driver=luks,key-secret=s,file.filename=l",
    "map --object secret,id=s,data=YWJj,format=base64 --image-opts driver=luks,key-secret=s,file.filename=l",
    "map --object {\"qom-type\":\"secret\",\"id\":\"s\",\"data\":\"abc\"} --image-opts driver=luks,key-secret=s,file.filename=l",
    // New images.
    "create -f luks new 1M",
    "create -f luks -o help",
    "create -f luks -o help new",
    "create -f luks -o key-secret=none new 1M",
    "create -f qcow2 -o encrypt.format=luks new 1M",
    "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=none new 1M",
    "create -f qcow2 -o encrypt.format=aes,encrypt.key-secret=none new 1M",
    "create -f qcow2 -o encrypt.key-secret=none new 1M",
    "create -f qcow2 {s} -o encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-256 new 1M",
    "create -f qcow2 {s} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo new 1M",
    "create -f qcow2 {s} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=foo new 1M",
    "create -f qcow2 {s} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.ivgen-alg=foo new 1M",
    "create -f qcow2 {s} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.hash-alg=foo new 1M",
    "create -f luks {s} -o key-secret=s,ivgen-hash-alg=foo new 1M",
    "create -f luks {s} -o key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha1 new 1M",
    "create -f luks {s} -o key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha512 new 1M",
    "create -f luks {s} -o key-secret=s,detached-header=on new 1M",
    "create -f luks {s} -o key-secret=s,preallocation=foo new 1M",
    "create -f luks {s} -o key-secret=s,hash-alg=sha1,cipher-mode=cbc,cipher-alg=aes-128,iter-time=10 new 1M",
    "create -f luks {s} -o key-secret=s,iter-time=foo new 1M",
    "convert -O luks p new",
    "convert {s} -c -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s p new",
    "convert {s} -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s l new",
];

#[test]
fn the_same_words() {
    if !oracle::available() {
        return;
    }
    let words = |line: &str| -> Vec<String> {
        let line = line
            .replace("{s}", "--object secret,id=s,data=abc")
            .replace("{w}", "--object secret,id=w,data=wrong");
        line.split(' ').map(str::to_owned).collect()
    };
    let folder = place::scratch("encryption-words");
    for line in PREPARE {
        let outcome = oracle::run(Tool::Img, folder.path(), &words(line));
        assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
    }
    let mut failures = Vec::new();
    for (index, line) in LINES.iter().enumerate() {
        let args = words(line);
        let theirs = oracle::run(Tool::Img, folder.path(), &args);
        let _ = std::fs::remove_file(folder.path().join("new"));
        let builds: &[Build] = match index.is_multiple_of(8) {
            true => &[Build::Native, Build::Wasm],
            false => &[Build::Native],
        };
        for &build in builds {
            let ours = build.stand_in(Tool::Img, folder.path(), None, &args);
            let _ = std::fs::remove_file(folder.path().join("new"));
            if (ours.code, &ours.stdout, &ours.stderr)
                != (theirs.code, &theirs.stdout, &theirs.stderr)
            {
                failures.push(Failure {
                    case: format!("{build:?}"),
                    doing: (*line).to_owned(),
                    what: format!(
                        "- {} {}{}+ {} {}{}",
                        theirs.code,
                        theirs.stdout,
                        theirs.stderr,
                        ours.code,
                        ours.stdout,
                        ours.stderr
                    ),
                });
            }
        }
    }
    finish("encryption-words", LINES.len(), &failures);
}
