//! Lines that follow one another: small scripts in which each step finds what those before it left, run once
//! with qemu-img and qemu-io, once with ours under their names. All that is printed is the same, down to where
//! in the file things lie.
#![cfg(unix)]

#[allow(dead_code)] // Single lines are asked for by the other tests.
mod answers;

use std::path::Path;

use answers::{Folder, oracle_is_missing, shell};

/// Runs `script` in a folder of its own, with `programs` found first; what it prints, without times.
fn printed(name: &str, script: &str, programs: Option<&Path>) -> String {
    let whose = if programs.is_some() { "ours" } else { "theirs" };
    let folder = Folder::prepared(&format!("steps-{name}-{whose}"), "");
    let mut command = shell(&folder.0, &format!("exec 2>&1\n{script}"));
    if let Some(programs) = programs {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", programs.display()));
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| match line.split_once(" ops; ") {
        Some((request, _)) => format!("{request}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// The script prints the same with both.
fn alike(name: &str, script: &str) {
    if oracle_is_missing() {
        return;
    }
    let programs = Folder::prepared(&format!("steps-{name}-programs"), "");
    for program in ["qemu-img", "qemu-io"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_oxcow"), programs.0.join(program)).unwrap();
    }
    let theirs = printed(name, script, None);
    let ours = printed(name, script, Some(&programs.0));
    assert!(!theirs.is_empty(), "{name}: the script prints nothing");
    assert_eq!(ours, theirs, "{name}");
}

#[test]
fn an_l2_table_lies_before_the_clusters_it_names() {
    alike(
        "layout",
        "
        qemu-img create -q -f qcow2 a 64M
        qemu-io -c 'write -P 1 1M 3M' -c 'write -c -P 2 8M 64k' a
        qemu-img map --output=json a
        for options in '' '-o compat=0.10' '-S 0' '-o extended_l2=on,cluster_size=16k'; do
            qemu-img convert -O qcow2 $options a b && qemu-img map --output=json b
        done
        qemu-img create -q -f qcow2 -o cluster_size=512 small 4M
        qemu-io -c 'write 0 100k' small
        qemu-img map --output=json small",
    );
}

#[test]
fn a_feature_name_table_that_is_cut_short_still_names() {
    alike(
        "features",
        r#"
        poke() { printf "$2" | dd of=a bs=1 seek=$1 conv=notrunc 2>/dev/null; }
        qemu-img create -q -f qcow2 a 1M
        poke 72 '\200'
        qemu-img info a
        poke 108 '\0\0\0\016\0\077Test feature\0\0\0\0\0\0\0\0\0\0'
        qemu-img info a"#,
    );
}

#[test]
fn a_repair_forgets_unknown_autoclear_bits_and_tells_of_old_refcounts() {
    alike(
        "repairs",
        r#"
        poke() { printf "$2" | dd of=a bs=1 seek=$1 conv=notrunc 2>/dev/null; }
        fresh() { qemu-img create -q -f qcow2 a 64M; qemu-io -c 'write -q 0 64k' a; }
        mend() { qemu-img check -r all a | grep -v 'allocated\|end offset'; }
        fresh; poke 88 '\200'; mend; od -An -tx1 -j88 -N8 a
        fresh; poke 131082 '\0\0'; mend
        fresh; poke 48 '\0\0\0\0\0\0\0\0\0\0\0\0'; mend
        fresh; poke 65544 '\0\0\0\0\0\020\0\0'; mend
        fresh; poke 65544 '\177\377\377\377\377\377\0\0'; mend"#,
    );
}

#[test]
fn zeros_are_marked_and_written_where_qemu_does_it() {
    alike(
        "zeros",
        "
        qemu-img create -q -f qcow2 base 4M
        qemu-io -c 'write -P 9 1M 1k' -c 'write -z 100 200' -c 'write -z -u 2000001 70000' base
        qemu-io -c map base
        qemu-img map --output=json base
        for compat in 0.10 1.1; do
            qemu-img create -q -f qcow2 -o compat=$compat -b base -F qcow2 a
            qemu-io -c 'write -z 0 64k' -c 'write -z 1050000 1k' -c 'write -z 2M 3k' a
            qemu-img map --output=json a
            qemu-img create -q -f qcow2 empty 4M
            qemu-img convert -n -O qcow2 empty a
            qemu-img map --output=json a
        done
        qemu-img create -q -f qcow2 -b base -F qcow2 grown 1M
        qemu-img resize --preallocation=metadata grown 6M
        qemu-io -c 'read -P 0 1M 5M' grown
        qemu-img map --output=json grown | grep -o '\"depth.*\"zero\": [a-z]*'
        qemu-img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on d 8M
        qemu-io -c 'write -P 1 1M 4M' -c 'discard 2M 2M' -c 'write -z 3M 3M' d
        qemu-img map --output=json d
        qemu-io -f raw -c 'read -P 1 1M 1M' -c 'read -P 0 3M 3M' d.raw",
    );
}

#[test]
fn options_name_other_files_than_the_image_does() {
    alike(
        "files",
        "
        qemu-img create -q -f qcow2 base 1M; qemu-io -c 'write -q -P 5 0 64k' base
        qemu-img create -q -f qcow2 a 1M
        open() { qemu-io -c \"open -o $1 a\" -c 'read -P 5 0 64k'; }
        open backing.file.filename=base
        open backing.driver=qcow2,backing.file.filename=base
        open backing.driver=raw,backing.file.filename=base
        open backing.file.filename=gone
        open backing.driver=qcow2,backing.file.filename=base,backing.foo=1
        qemu-io -r -c 'read -P 5 0 64k' \
            \"json:{'driver':'qcow2','file.filename':'a','backing':{'driver':'qcow2','file':{'driver':'file','filename':'base'}}}\"
        qemu-img compare --image-opts driver=qcow2,file.filename=base driver=qcow2,file.filename=a,backing.driver=qcow2,backing.file.filename=base
        qemu-img create -q -f qcow2 -o data_file=d.raw d 1M
        qemu-io -c 'write -q -P 7 0 64k' d
        cp d.raw other.raw
        mv d.raw away.raw
        qemu-img info --output=json d | grep -c data-file
        qemu-io -c 'open d'
        qemu-io -c 'open -o data-file.filename=other.raw d' -c 'read -P 7 0 64k'
        qemu-io -c 'open -o data-file.filename=gone.raw d'
        qemu-io -c 'open -o data-file.filename=other.raw a'
        qemu-io -c 'open -o data-file.driver=file,data-file.filename=other.raw d' -c 'read -P 7 0 64k'",
    );
}

#[test]
fn settings_are_checked_though_they_change_nothing() {
    let mut script = "qemu-img create -q -f qcow2 base 1M
        qemu-img create -q -f qcow2 -b base -F qcow2 a
        open() { qemu-io -c \"open -o $1 a\" -c 'read 0 512'; }
        again() { qemu-io -c \"reopen $1\" -c 'read 0 512' a; }\n"
        .to_owned();
    let settings = [
        "cache-size=1M",
        "l2-cache-size=0",
        "cache-size=2M,refcount-cache-size=1M",
        "cache-size=1.25M,l2-cache-size=1M,refcount-cache-size=0.25M",
        "cache-size=1M,l2-cache-size=2M",
        "cache-size=1M,refcount-cache-size=2M",
        "l2-cache-entry-size=4k",
        "l2-cache-entry-size=33k",
        "l2-cache-entry-size=128k",
        "refcount-cache-size=256T",
        "cache-clean-interval=5",
        "cache-clean-interval=-1",
        "lazy-refcounts=on,pass-discard-other=off",
        "lazy-refcounts=42",
        "overlap-check=none",
        "overlap-check=blubb",
        "overlap-check.template=all,overlap-check.inactive-l2=off",
        "overlap-check=constant,overlap-check.template=all",
        "node-name=x",
    ];
    for setting in settings {
        script += &format!("open {setting}\nagain '-o {setting}'\n");
    }
    let reopened = [
        "-o driver=qcow2",
        "-o driver=raw",
        "-o file.driver=file",
        "-o file.driver=qcow2",
        "-o backing.driver=qcow2",
        "-o backing.driver=file",
        "-o read-only=foo",
        "-o cache.direct=baz",
        "-o cache.no-flush=bar",
        "-o auto-read-only=qux",
        "-r -o read-only=on",
        "-c none -o cache.direct=on",
    ];
    for options in reopened {
        script += &format!("again '{options}'\n");
    }
    for level in ["", "file.", "backing."] {
        script += &format!(
            "qemu-io -c 'open -o {level}node-name=n a' -c 'reopen -o {level}node-name=n' -c 'reopen' \
             -c 'reopen -o {level}node-name=m'\n"
        );
    }
    alike("settings", &script);
}

#[test]
fn words_about_the_way() {
    alike(
        "words",
        "
        qemu-img create -q -f qcow2 a 128M
        for at in 0 2M 32M; do qemu-io -c \"write -q $at 1M\" a; done
        qemu-img convert -p -O qcow2 a b | tr '\\r' '\\n'
        echo 'read 0 512' | qemu-io a
        qemu-io a < /dev/null
        for format in bochs foo; do qemu-img create -f $format -o help; qemu-img create -f $format x 1M; done
        qemu-img measure -O qcow2 -l snapshot.foo a
        qemu-img bitmap --add a b0
        for compat in 0.10 1.1; do qemu-img measure -O qcow2 -o compat=$compat a; done",
    );
}

#[test]
fn a_compressed_cluster_that_ends_early() {
    alike(
        "compressed",
        r#"
        qemu-img create -q -f qcow2 -o cluster_size=2M a 8M
        qemu-io -c 'write -c -P 17 0 2M' -c 'write -c -P 17 2M 2M' a
        printf '\100\6' | dd of=a bs=1 seek=8388608 conv=notrunc 2>/dev/null
        qemu-io -c 'read -P 17 0 4M' a
        qemu-img check a"#,
    );
}
