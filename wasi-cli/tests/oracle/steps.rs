//! Lines that follow one another: small scripts in which each step finds what those before it left, run once
//! with qemu-img and qemu-io, once with ours under their names. All that is printed is the same, down to where
//! in the file things lie.
use std::path::Path;

use crate::answers::{Folder, oracle_is_missing, shell};

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
        fresh; poke 65544 '\177\377\377\377\377\377\0\0'; mend
        # What is not repaired is told of again, and all of that before the summary.
        qemu-img create -q -f raw base 128k
        for also in '' 'write -q -z 4k 2k'; do
            qemu-img create -q -f qcow2 -o extended_l2=on -b base -F raw a
            qemu-io -c 'write -q -P 1 4k 2k' a; [ -z "$also" ] || qemu-io -c "$also" a
            poke 262150 '\2'; mend
        done"#,
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
        # What the backing file has under the zeros is no reason to write them.
        qemu-img create -q -f qcow2 -o cluster_size=512 fine 1M
        qemu-io -c 'write -q -P 17 5k 1k' -c 'write -q -P 17 12k 2k' fine
        qemu-img create -q -f qcow2 -o cluster_size=4k -b fine -F qcow2 a
        qemu-io -c 'write -z 5k 2k' -c 'write -z 13k 1k' a
        qemu-img map --output=json a
        qemu-img create -q -f qcow2 -b base -F qcow2 grown 1M
        qemu-img resize --preallocation=metadata grown 6M
        qemu-io -c 'read -P 0 1M 5M' grown
        qemu-img map --output=json grown | grep -o '\"depth.*\"zero\": [a-z]*'
        qemu-img create -q -f qcow2 -o data_file=d.raw,data_file_raw=on d 8M
        qemu-io -c 'write -P 1 1M 4M' -c 'discard 2M 2M' -c 'write -z 3M 3M' d
        qemu-img map --output=json d
        qemu-io -f raw -c 'read -P 1 1M 1M' -c 'read -P 0 3M 3M' d.raw
        # A disk that is all of its data file grows into what is there.
        truncate -s 16M d.raw; qemu-io -f raw -c 'write -q -P 8 8M 1M' d.raw
        qemu-img resize d 12M; qemu-io -c 'read -P 8 8M 1M' -c 'read -P 0 9M 3M' d
        qemu-img resize d 20M; qemu-io -c 'read -P 8 8M 1M' -c 'read -P 0 16M 4M' d
        qemu-img map --output=json d; qemu-img check d",
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
        mkdir sub
        qemu-img create -q -f qcow2 -o data_file=here.raw sub/d 1M
        qemu-io -c 'write -q -P 9 0 64k' sub/d; ls here.raw; qemu-img map sub/d
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
    script += "qemu-img create -q -f qcow2 -o cluster_size=256k large 32P
        qemu-io -c 'open -o l2-cache-entry-size=512,l2-cache-size=1T large'
        qemu-io -c 'reopen -o l2-cache-entry-size=512,l2-cache-size=1T' large\n";
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

#[test]
fn the_state_of_a_virtual_machine_lies_behind_the_disk() {
    alike(
        "vm-state",
        r#"
        io() { qemu-io "$@"; echo "exit code $?"; }
        check() { qemu-img check "$@" | grep -v 'allocated\|end offset'; }
        qemu-img create -q -f qcow2 a 64M
        io -c 'read -b -P 0 0 4k' -c 'write -b -P 0x22 0 4k' -c 'write -b -P 0x11 1T 4k' a
        qemu-img snapshot -c foo a; echo $?
        qemu-img snapshot -l a | cut -c 1-40
        qemu-img info --output=json a | grep 'vm-state\|virtual-size": 67'
        od -An -tx1 -j36 -N4 a
        check a; qemu-img map a
        io -c 'write -b -P 0x33 512 512' -c 'read -bv 512 512' -c 'read -b -P 0x11 1T 4k' a
        io -c 'read -b -s 512 -l 512 -P 0x33 0 4k' -c 'read -b -P 0x22 1k 3k' a
        check a
        qemu-img snapshot -a foo a; echo $?
        io -c 'read -b -P 0x22 0 4k' -c 'read -b -P 0x11 1T 4k' a
        check a
        qemu-img convert -l foo -O qcow2 a b; qemu-img compare a b
        qemu-img snapshot -d foo a; check a
        qemu-img amend -o compat=0.10 a; io -c 'read -b -P 0x22 0 4k' a; check a
        # As far as it goes, and further.
        io -c 'write -b 1E 4k' -c 'write -b 7E 4k' -c 'read -b -P 0 7E 4k' a
        io -c 'write -b 9223372036854771712 4k' -c 'read -b 9223372036854771712 4k' a
        io -c 'write -b 9223372036317380608 4k' -c 'write -b 9223372036854771712 8k' a
        io -c 'read -b 9223372036317380608 4k' -c 'read -b 9223372035243638272 4k' a
        io -c 'write -b 100 512' -c 'write -b 512 100' -c 'read -b 0 100' -c 'write -b 1T 0' a
        io -c 'write -b -z 0 64k' -c 'write -b -f 0 4k' -c 'write -b -c 64k 64k' a
        io -r -c 'write -b 0 512' -c 'read -b -P 0x22 0 4k' a
        io -C -c 'read -b -q 0 512' -c 'write -b -q -s b 0 4k' a
        check a
        # Other sizes of clusters and of disks, other versions.
        for options in cluster_size=512 cluster_size=2M,compat=0.10 extended_l2=on,cluster_size=16k; do
            qemu-img create -q -f qcow2 -o $options a 16M
            qemu-img snapshot -c before a
            io -c 'write -b -P 1 0 1M' -c 'write -b -P 2 1000k 100k' -c 'write -b -P 3 4M 512' a
            io -c 'read -b -P 1 0 1000k' -c 'read -b -P 2 1000k 96k' -c 'read -b -P 3 4M 512' a
            io -c 'read -P 0 0 16M' -c 'write -P 4 15M 100k' -c 'read -b -P 1 0 512' a
            qemu-img snapshot -c after a
            io -c 'write -b -P 5 500k 3k' a
            check a
            qemu-img snapshot -a before a
            io -c 'read -P 0 0 16M' -c 'read -b -P 0 0 5M' a
            check a
            qemu-img snapshot -a after a
            io -c 'read -b -P 1 0 1000k' -c 'read -P 4 15M 100k' a
            check a
        done
        # The offsets of the test 022.
        qemu-img create -q -f qcow2 -o cluster_size=4k a 6G
        for at in 10485760 4294967296; do
            for part in '0 4k' '1024 512' '2560 4k' '16k 32k' '20k 41472'; do
                set -- $part
                io -c "write -b -P $((at % 251)) $((at + ${1%k} * 512)) $2" a
            done
            io -c "read -b -P $((at % 251)) $((at + 1280 * 1024)) 32k" a
            io -c "read -bv $at 8k" -c "read -bv $((at + 8192)) 64k" a | grep -v ops | cksum
        done
        check a
        # An L1 table that is longer in a snapshot than in the disk.
        qemu-img create -q -f qcow2 -o cluster_size=512 a 64M
        io -c 'write -q -P 6 0 64k' a
        qemu-img snapshot -c foo a
        printf '\0\0\0\0\0\0\2\0' | dd of=a bs=1 seek=24 conv=notrunc 2>/dev/null
        printf '\0\0\0\1' | dd of=a bs=1 seek=36 conv=notrunc 2>/dev/null
        qemu-img convert -l foo -O raw a b; echo $?
        head -c 512 b | cksum
        qemu-img create -q -f qcow2 a 0
        io -c 'write -b -P 9 0 4k' -c 'read -b -P 9 0 4k' a
        check a
        # What lies below at this place shows, and is copied.
        qemu-img create -q -f raw base 600M
        qemu-io -f raw -c 'write -q -P 4 512M 1M' base
        qemu-img create -q -f qcow2 -b base -F raw a 64M
        io -c 'read -b -P 4 0 4k' -c 'write -b -P 5 512 512' a
        io -c 'read -b -P 4 0 512' -c 'read -b -P 4 1k 63k' -c 'read -b -P 5 512 512' a
        check a
        qemu-img create -q -f qcow2 --object secret,id=s,data=x \
            -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 a 64M
        locked=driver=qcow2,file.filename=a,encrypt.key-secret=s
        io --object secret,id=s,data=x --image-opts -c 'write -b -P 5 0 4k' -c 'read -b -P 5 0 4k' $locked
        check --object secret,id=s,data=x --image-opts $locked
        qemu-img create -q -f raw a 1M
        io -f raw -c 'write -b 0 512' -c 'read -b 0 512' a"#,
    );
}

#[test]
fn each_reads_the_machine_state_that_the_other_wrote() {
    if oracle_is_missing() {
        return;
    }
    let programs = Folder::prepared("steps-both-programs", "");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_oxcow"), programs.0.join("ours")).unwrap();
    for (writer, reader) in [("qemu-io", "ours io"), ("ours io", "qemu-io")] {
        let script = format!(
            "set -e
            PATH={}:$PATH
            qemu-img create -q -f qcow2 -o cluster_size=4k a 40M
            {writer} -c 'write -q -P 1 0 40M' -c 'write -q -b -P 2 1000k 20M' a
            qemu-img snapshot -c kept a
            {writer} -c 'write -q -b -P 3 3M 5000' -c 'write -q -b -P 4 3M 4608' a | grep -c aligned
            {reader} -c 'read -q -P 1 0 40M' -c 'read -q -b -P 0 0 1000k' a
            {reader} -c 'read -q -b -P 4 3M 4608' -c 'read -q -b -P 2 4M 16M' a
            {reader} -c 'write -q -b -P 5 100M 64k' a
            qemu-img check -q a
            qemu-img snapshot -a kept a
            {writer} -c 'read -q -b -P 2 1000k 20M' -c 'read -q -b -P 0 100M 64k' a
            qemu-img check -q a",
            programs.0.display()
        );
        let folder = Folder::prepared("steps-both", "");
        let output = shell(&folder.0, &script).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{writer}: {said}");
        assert_eq!(output.stdout, b"1\n", "{writer}");
    }
}

#[test]
fn key_slots_change_together_with_other_options() {
    let mut script = r#"
        secrets='--object secret,id=s,data=letmein --object secret,id=n,data=other'
        image=driver=qcow2,file.filename=a,encrypt.key-secret
        amend() {
            qemu-img create -q -f qcow2 --object secret,id=s,data=letmein \
                -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 a 1M
            qemu-img amend $secrets --image-opts -o $1 $image=s $2; echo "exit code $?"
            qemu-img info --output=json a | grep 'compat\|lazy\|refcount-bits\|"active": true'
            for key in s n; do
                qemu-img check $secrets --image-opts $image=$key | grep -v 'allocated\|offset'
                qemu-io $secrets --image-opts -c 'read -q -P 0 0 512' -c length $image=$key
            done
        }
    "#
    .to_owned();
    let new = "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10";
    for other in [
        "lazy_refcounts=on",
        "compat=0.10",
        "refcount_bits=64",
        "size=2M",
        "size=512k,refcount_bits=1,lazy_refcounts=on",
        "encrypt.iter-time=20,compat=0.10,refcount_bits=16",
        "encrypt.new-secret=gone,lazy_refcounts=on,size=2M",
        "encrypt.keyslot=0,lazy_refcounts=on,size=2M,refcount_bits=64",
        "refcount_bits=3",
        "encrypt.keyslot=8,lazy_refcounts=on",
    ] {
        script += &format!("amend {new},{other}\n");
    }
    let old = "encrypt.state=inactive,encrypt.old-secret";
    for line in [
        "s,lazy_refcounts=on",
        "s,lazy_refcounts=on,size=2M,refcount_bits=64 --force",
        "n,lazy_refcounts=on,size=2M",
    ] {
        script += &format!("amend {old}={line}\n");
    }
    alike("key-slots", &script);
}

#[test]
fn secrets_that_are_encrypted_themselves() {
    let mut script = r#"
        printf '0123456789abcdef0123456789abcdef' > key
        printf 'f72U6mC6gq/xKz2RaHQEsA==\n' > coded
        base64 -d coded > plain
        qemu-img create -q -f qcow2 --object secret,id=s,data=letmein \
            -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 a 1M
        try() {
            qemu-io --object secret,id=m,file=key --object secret,id=short,data=abc --object "secret,id=x,$1" \
                --image-opts -c 'read -P 0 0 512' driver=qcow2,file.filename=a,encrypt.key-secret=x
            echo "exit code $?"
        }
    "#
    .to_owned();
    // Encrypted by `openssl enc -aes-256-cbc`, with the key in the file and the vector ABCDEFGHIJKLMNOP.
    let letmein = "data=f72U6mC6gq/xKz2RaHQEsA==";
    let iv = "iv=QUJDREVGR0hJSktMTU5PUA==";
    for secret in [
        &format!("keyid=m,{iv},format=base64,{letmein}"),
        &format!("keyid=m,{iv},format=base64,file=coded"),
        &format!("keyid=m,{iv},file=plain"),
        &format!("{iv},data=letmein"),
        "iv=QUJD,data=letmein",
        &format!("keyid=m,format=base64,{letmein}"),
        &format!("keyid=gone,{iv},format=base64,{letmein}"),
        &format!("keyid=x,{iv},format=base64,{letmein}"),
        &format!("keyid=,{iv},format=base64,{letmein}"),
        &format!("keyid=short,{letmein}"),
        &format!("keyid=m,iv=QUJD,format=base64,{letmein}"),
        &format!("keyid=m,iv=,{letmein}"),
        &format!("keyid=m,iv=!!,{letmein}"),
        &format!("keyid=m,{iv},format=base64,data=!!"),
        &format!("keyid=m,{iv},format=base64,data=QUJD"),
        &format!("keyid=m,{iv},data=abc"),
        &format!("keyid=gone,{iv},file=gone"),
        &format!("keyid=m,{iv}"),
        &format!("keyid=m,{iv},{letmein},file=plain"),
        // Text that ends in y, in a byte of 17, and is no UTF-8.
        &format!("keyid=m,{iv},format=base64,data=HyheKoFUyuS070rWSK/rmQ=="),
        &format!("keyid=m,{iv},format=base64,data=hS90xddNpdzDyPiFbKr5Jg=="),
        &format!("keyid=m,{iv},format=base64,data=lFOM0XzgBtTd7DC88ETOqA=="),
    ] {
        script += &format!("try '{secret}'\n");
    }
    alike("secrets", &script);
}

#[test]
fn tables_stand_where_people_look_for_them() {
    alike(
        "places",
        r#"
        words() { od -A x -t x8 --endian=big -j $1 -N $2 -w16 a; }
        places() {
            echo "$1"
            words 0x28 32
            for at in 0x20000 0x30000 0x40000; do words $at 32; done
            # The snapshot's L1 table, in which COPIED means nothing, and the snapshot table up to the date.
            words 0x70000 16 | sed 's/ 8/ 0/g'
            words 0x80000 16
            qemu-img check a
        }
        qemu-img create -q -f qcow2 a 64M
        qemu-io -c 'write -q -P 1 0 128k' a
        qemu-img snapshot -c one a; places created
        qemu-io -c 'write -q -P 2 0 512' a; places written
        qemu-img snapshot -a one a; qemu-io -c 'read -q -P 1 0 128k' a
        qemu-img snapshot -d one a; words 0x28 8; qemu-img check a
        qemu-img create -q -f qcow2 -o cluster_size=2M a 2T
        for granularity in 512 2M 64k; do
            qemu-img bitmap --add -g $granularity a b$granularity
            qemu-img measure -O qcow2 -f raw a | grep fully
        done
        qemu-img check a
        # Refcounts, active tables and bitmaps after changes of more than one step.
        qemu-img create -q -f qcow2 a 10M
        qemu-io -c 'write -q 0 1M' -c 'discard -q 64k 640k' a
        qemu-img bitmap --add -g 32k a one; words 0x28 16
        qemu-img bitmap --add a two --disable; words 0x28 16
        qemu-img create -q -f qcow2 a 1M; qemu-io -c 'write -q 0 128k' a
        for size in 64k 1M; do qemu-img resize --shrink a $size; words 0x28 16; words 0x40000 32; done
        qemu-img check a"#,
    );
}

#[test]
fn encrypted_images_have_the_same_words_and_sizes() {
    alike(
        "luks",
        r#"
        secrets='--object secret,id=s,data=letmein --object secret,id=n,data=other'
        fast=iter-time=10
        for options in '' -o\ key-secret=no -o\ key-secret=s -o\ key-secret=s,preallocation=falloc \
            -o\ key-secret=s,cipher-mode=cbc,ivgen-alg=plain64 -o\ cipher-alg=foo -o\ cipher-mode=ecb \
            -o\ key-secret=no,cipher-alg=serpent-128; do
            qemu-img measure -O luks $secrets $options --size 1000
            qemu-img create -f luks $secrets $options a 1000 > /dev/null; ls a
        done
        printf abc > odd
        qemu-img measure -O luks $secrets -o key-secret=s -f raw --output=json odd
        # What cannot become an image is no longer there, but for words that mean nothing.
        printf '\377' > bytes
        for options in key-secret=b key-secret=s,cipher-alg=foo; do
            touch a; qemu-img create -f luks --object secret,id=b,file=bytes -o $options a 1M; ls a
        done
        # An erased slot is erased, if one insists.
        qemu-img create -q -f luks $secrets -o key-secret=s,$fast a 1M
        for insist in '' --force; do
            qemu-img amend $secrets --image-opts driver=luks,file.filename=a,key-secret=s \
                -o state=inactive,keyslot=1 $insist; echo "exit code $?"
        done
        # Both images of a commit have keys.
        luks=encrypt.format=luks,encrypt.$fast
        qemu-img create -q -f qcow2 $secrets -o $luks,encrypt.key-secret=s base 1M
        qemu-img create -q -f qcow2 $secrets -o $luks,encrypt.key-secret=n -b base -F qcow2 over
        both=driver=qcow2,file.filename=over,encrypt.key-secret=n,backing.encrypt.key-secret=s
        below=driver=qcow2,file.filename=base,encrypt.key-secret=s
        qemu-io $secrets --image-opts -c 'write -P 9 0 1M' $both
        qemu-img commit $secrets --image-opts $both
        qemu-io $secrets --image-opts -c 'read -P 9 0 1M' $below
        qemu-img check $secrets --image-opts $both | grep -v offset"#,
    );
}

#[test]
fn the_prompt_is_what_scripts_wait_for() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("steps-prompt", "qemu-img create -q -f qcow2 a 1M");
    let said = |program: &str| {
        let script = format!("printf 'length\\nquit\\n' | {program} a");
        shell(&folder.0, &script).output().unwrap().stdout
    };
    let ours = said(&format!("{} io", env!("CARGO_BIN_EXE_oxcow")));
    assert_eq!(ours, said("qemu-io"));
    assert_eq!(ours, b"qemu-io> 1 MiB\nqemu-io> ");
}

#[test]
fn what_a_killed_writer_leaves_with_lazy_refcounts() {
    alike(
        "lazy",
        "
        lazily() { killed -c 'reopen -o lazy-refcounts=on' \"$@\"; }
        killed() { (qemu-io \"$@\" -c 'write -P 90 0 128k' -c flush -c 'sigraise 9' a; :) 2> /dev/null; }
        look() { dd if=a bs=1 skip=79 count=1 2> /dev/null | od -An -tx1; qemu-img check a; }
        new() { qemu-img create -q -f qcow2 -o lazy_refcounts=$1 a 128M; }
        new on; qemu-io -c 'write -P 90 0 128k' a; look
        new on; lazily; look; qemu-io -r -c 'read -P 90 0 128k' a; look
        cp a b; qemu-img check -r all a; look; qemu-io -c 'read -P 90 0 128k' a
        cp b a; qemu-io -c 'write 64k 64k' -c 'write 1M 64k' a; qemu-img check a | grep errors
        new on; qemu-io -c 'write 0 1M' a; lazily -c 'write 50M 2M'; look
        new off; killed; look
        new off; lazily; look
        new on; killed -c 'reopen -o lazy-refcounts=off'; look
        qemu-img create -q -f qcow2 -o compat=0.10 a 128M; killed; look",
    );
}

#[test]
fn snapshots_whose_tables_are_nowhere() {
    alike(
        "nowhere",
        r#"
        poke() { printf "$2" | dd of=a bs=1 seek=$(($1)) conv=notrunc 2> /dev/null; }
        for broken in '0x70000 \0\0\0\0\0\100\2\0' '0x70008 \20\0\0\0'; do
            qemu-img create -q -f qcow2 a 64M
            qemu-io -c 'write 0 512' a
            qemu-img snapshot -c test a
            poke $broken
            qemu-img convert -l test a b
            qemu-img amend -o compat=0.10 a
            qemu-io -c 'open -o overlap-check.inactive-l2=on a' -c 'write 0 4k'
            qemu-img snapshot -a test a
            qemu-img snapshot -d test a
            qemu-img check a
        done
        qemu-img create -q -f qcow2 a 64M
        qemu-io -c 'write 0 512' a
        poke 0x40000 '\277\377\377\377\377\377\0\0'; qemu-img snapshot -c test a
        poke 0x40000 '\200\0\0\377\377\377\0\0'; qemu-img snapshot -c test a
        qemu-img create -q -f qcow2 a 64M
        poke 64 '\0\0\0\0\1\0\0\0'; poke 60 '\0\1\0\0'
        qemu-img snapshot -c test a; qemu-io -c 'read 0 512' a
        poke 100 '\377\377\377\377'; qemu-io -c 'read 0 512' a"#,
    );
}

#[test]
fn what_is_written_at_once_lies_in_one_piece() {
    alike(
        "runs",
        "
        qemu-img create -q -f qcow2 a 64M
        qemu-io -c 'write -q 0 2M' -c 'write -q 8M 64k' a
        for hole in '64k 64k' '256k 128k' '1M 64k' '1216k 192k'; do qemu-io -c \"discard -q $hole\" a; done
        qemu-io -c 'write -q 16M 100k' -c 'write -q 20M 64k' -c 'write -q 24M 1M' a
        qemu-io -c 'write -q 30m 64k' -c 'write -q 31M 191k' a
        qemu-img map --output=json a
        qemu-img check a
        qemu-img snapshot -c s a
        qemu-io -c 'write -q 100k 3M' a
        qemu-img map --output=json a",
    );
}

#[test]
fn refcount_blocks_stand_behind_what_they_were_made_for() {
    alike(
        "blocks",
        "
        for bits in 16 64 1; do
            for piece in 512 16384 23552 71680 716800; do
                qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=$bits a 4M
                seq -f \"write -q %.0f $piece\" 0 $piece 600000 | qemu-io a >/dev/null
                echo == $bits $piece
                qemu-img check a
                od -Ax -tx8 -j512 -N512 a
                qemu-img map --output=json a | tail -n 3
            done
        done",
    );
}

#[test]
fn a_refcount_table_that_is_full_grows_by_half() {
    alike(
        "table",
        "
        for size in 9M 17M; do
            qemu-img create -q -f qcow2 -o cluster_size=512 a 64M
            qemu-io -c \"write -q 0 $size\" a
            qemu-img check a
            od -An -tx1 -j48 -N12 a
            for at in 20 21 22 30; do qemu-io -c \"write -q ${at}M 1000k\" a; done
            qemu-img check a
            qemu-img map --output=json a
        done",
    );
}

#[test]
fn subclusters_between_data_and_zeros_over_compressed_ones() {
    alike(
        "subclusters",
        "
        new() { qemu-img create -q -f qcow2 -o extended_l2=on a ${1:-1M}; }
        entries() { od -Ad -tx8 -j262144 -N512 a; }
        new 2083k
        for at in 12 26 36; do qemu-io -c \"write -q ${at}k 2k\" a; done
        qemu-img snapshot -c s a
        qemu-io -c 'write -q 30k 1k' -c 'write -q -z 2048k 35k' a
        od -Ad -tx8 -j1114112 -N512 a
        for mode in '-z' '-z -u'; do
            for part in '32k 192k' '100k 128k' '64k 191k' '95k 129k' '31k 161k' '0 35k'; do
                new 300k
                for at in 0 64 128 192; do qemu-io -c \"write -q -c ${at}k 64k\" a; done
                qemu-io -c \"write -q $mode $part\" a
                echo == $mode $part
                entries
            done
        done
        new
        qemu-io -c 'write -q 256k 1k' a
        for poke in '262159 \\4' '262155 \\2'; do
            for data in '0 64k' '256k 1k'; do
                new
                qemu-io -c \"write -q $data\" a
                set -- $poke
                printf \"$2\" | dd of=a bs=1 seek=$1 conv=notrunc status=none
                for part in 0 4k 8k; do qemu-io -r -c \"read $part 1k\" a; done
                qemu-io -c 'write 0 1k' a
            done
        done",
    );
}

#[test]
fn what_is_read_with_copy_on_read_is_the_images_own() {
    alike(
        "copies",
        "
        qemu-img create -q -f qcow2 base 200k
        qemu-io -c 'write -q -P 7 60k 70k' base
        for options in cluster_size=64k extended_l2=on,cluster_size=64k cluster_size=4k; do
            for back in '-b base -F qcow2' ''; do
                qemu-img create -q -f qcow2 $back -o $options a 1M
                qemu-io -c 'write -q -P 8 28k 2k' -c 'write -q -P 9 34k 2k' -c 'write -q -z 320k 64k' a
                qemu-io -C -c 'read 30k 4k' -c 'read 100k 1k' -c 'read 250k 50k' -c 'read 500k 200k' a
                qemu-io -c map a
                qemu-img map --output=json a
                qemu-img check a
            done
        done",
    );
}

#[test]
fn discarded_clusters_are_given_back_or_kept() {
    alike(
        "discards",
        "
        for mode in unmap ignore on off; do
            qemu-img create -q -f qcow2 a 1M
            qemu-img create -q -f raw b 1M
            for image in '-f qcow2 a' '-f raw b'; do
                qemu-io -d $mode -c 'write -q -P 1 0 512k' -c 'discard 64k 64k' -c 'discard -q 200000 1000' \\
                    -c 'write -q -z -u 256k 64k' $image
                qemu-io $image -c 'read -P 0 64k 64k' -c 'read -P 1 64k 64k' -c 'read -P 0 200000 1000' \\
                    -c 'read -P 1 200000 1000'
            done
            qemu-img map --output=json a
        done",
    );
}

#[test]
fn images_lie_inside_of_others() {
    alike(
        "inside",
        r#"
        qemu-img create -q -f qcow2 b 1M; qemu-io -c 'write -q -P 90 0 64k' b
        qemu-img create -q -f qcow2 nest 64M; qemu-img convert -n -f raw -O qcow2 b nest
        N=driver=qcow2,file.driver=qcow2,file.file.filename=nest
        R=driver=raw,file.driver=qcow2,file.file.filename=b
        errors() { qemu-img check "$@" | grep -v 'allocated\|end offset'; }
        qemu-io -c 'read -P 90 0 64k' -c 'write -P 7 128k 64k' -c 'write -P 8 100 10' -c 'write -z 300k 10k' \
            -c 'discard 64k 64k' -c 'write -c 512k 64k' -c map --image-opts $N
        errors --image-opts $N; errors nest
        qemu-img compare --image-opts $N $R
        for format in raw qcow2; do
            qemu-img convert --image-opts -O $format $N out
            qemu-img compare -F $format --image-opts $N out; qemu-img compare --image-opts $N driver=$format,file.filename=out
        done
        qemu-img convert -n b --target-image-opts $N; qemu-img compare --image-opts $N $R
        qemu-img snapshot -c one --image-opts $N; errors --image-opts $N; errors nest
        qemu-img resize --image-opts $N 2M; errors --image-opts $N; errors nest
        qemu-img resize --shrink --image-opts $N 128k; errors --image-opts $N; errors nest
        qemu-img amend -o compat=0.10 --image-opts $N; errors -r all --image-opts $N; errors nest
        # As a backing file, and with one.
        rm nest; qemu-img create -q -f qcow2 nest 64M; qemu-img convert -n -f raw -O qcow2 b nest
        qemu-img create -q -f qcow2 -F raw over1 \
            -b "json:{'driver':'raw','file':{'driver':'qcow2','file':{'filename':'b'}}}"
        qemu-img create -q -f qcow2 -F qcow2 over2 \
            -b "json:{'driver':'qcow2','file':{'driver':'qcow2','file':{'filename':'nest'}}}"
        qemu-img map over2; qemu-img compare over1 over2; qemu-img compare over2 b
        qemu-img info --backing-chain over2 | grep -v 'disk size\|file length'
        qemu-io -c 'write -P 9 1000k 1k' -c 'read -P 90 0 64k' over2
        mkdir sub; cp b sub; cd sub; qemu-img create -q -f qcow2 -b b -F qcow2 over; cd ..
        qemu-io -c 'read -P 90 0 64k' -c 'write -P 4 10k 1k' -c map \
            --image-opts driver=raw,file.driver=qcow2,file.file.filename=sub/over
        qemu-img map --output=json sub/over; errors sub/over
        qemu-io -c 'write 0 1k' --image-opts driver=qcow2,file.driver=qcow2,file.read-only=on,file.file.filename=nest
        qemu-io -s -c 'write -P 1 0 1k' -c 'read -P 1 0 1k' --image-opts $N; qemu-io -r -c 'read -P 90 0 1k' --image-opts $N
        # Keys.
        qemu-img create -q --object secret,id=s,data=abc -f luks -o key-secret=s,iter-time=10 luks 1M
        L=driver=raw,file.driver=luks,file.key-secret=s,file.file.filename=luks
        qemu-io --object secret,id=s,data=abc -c 'write -P 3 0 64k' --image-opts $L
        qemu-io --object secret,id=s,data=abc -c 'read -P 3 0 64k' --image-opts driver=luks,key-secret=s,file.filename=luks
        qemu-io -c 'read 0 64k' --image-opts driver=raw,file.driver=luks,file.file.filename=luks
        qemu-io --object secret,id=s,data=abx -c 'read 0 64k' --image-opts $L
        qemu-img map --output=json --object secret,id=s,data=abc --image-opts $L"#,
    );
}

#[test]
fn parts_of_files_and_drivers_that_pass_on() {
    alike(
        "parts",
        r#"
        qemu-img create -q -f qcow2 b 1M; qemu-io -c 'write -q -P 90 0 64k' -c 'write -q -P 6 300k 200k' b
        yes data | head -c 1048576 > r
        dd if=b of=behind bs=512 seek=1 2> /dev/null
        O=file.driver=raw,file.offset=512,file.file.filename=behind
        qemu-io -c 'write -P 7 512k 128k' -c 'read -P 6 300k 200k' -c map --image-opts $O
        qemu-img check --image-opts $O; qemu-img map --image-opts $O
        truncate -s 1100k behind
        qemu-io -c 'write 640k 300k' --image-opts driver=qcow2,$O,file.size=640k
        qemu-img create -q -f qcow2 -F raw over -b "json:{'driver':'raw','offset':512,'file':{'filename':'r'}}"
        qemu-io -c 'read -v 0 16' -c 'write -P 7 100 10' -c 'read -v 96 32' over; qemu-img map over
        qemu-img convert -O raw --image-opts driver=raw,offset=512,size=2048,file.filename=r out; stat -c %s out
        qemu-img convert -n -f raw -O raw out --target-image-opts driver=raw,offset=4k,size=2048,file.filename=r
        qemu-img compare --image-opts driver=raw,offset=512,size=2048,file.filename=r driver=raw,offset=4k,size=2k,file.filename=r
        # Compressed whatever is written.
        C=driver=compress,file.driver=qcow2,file.file.filename=c
        qemu-img create -q -f qcow2 c 1M
        qemu-img convert -n b --target-image-opts $C; qemu-img compare b c; qemu-img map --output=json c; qemu-img check c
        qemu-img create -q -f qcow2 -b b -F qcow2 c 1088k
        qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 100k 100' -c 'write -P 3 128k 100k' -c 'write -P 4 1M 64k' \
            -c 'write -z 320k 64k' -c 'write -P 5 500k 1k' -c map --image-opts $C
        qemu-io -c 'write 120k 20k' --image-opts $C; qemu-io -c 'write -c 256k 64k' --image-opts $C
        qemu-io -c 'read -P 2 100k 100' -c 'read -P 0 102500 1k' -c 'read -P 3 128k 100k' -c 'read -P 5 500k 1k' c
        qemu-img map --output=json c; qemu-img check c
        qemu-img create -q -f qcow2 c 1000k
        qemu-io -c 'write 0 64k' --image-opts $C
        # Kept when it is read.
        qemu-img create -q -f qcow2 -b b -F qcow2 k
        K=driver=copy-on-read,file.driver=qcow2,file.file.filename=k
        qemu-io -c map -c info -c 'read -P 90 0 1k' -c 'read 700k 100k' -c map -c 'write -P 1 200k 10' --image-opts $K
        qemu-img map --output=json k; qemu-img check k; qemu-img info --image-opts $K
        # Data that goes elsewhere.
        qemu-img create -q -f qcow2 -o data_file=d d1 1M
        I=driver=qcow2,file.filename=d1,data-file
        qemu-io -c 'write 0 1M' -c 'read -P 0 0 1M' -c map --image-opts $I.driver=null-co,$I.size=1M,$I.read-zeroes=on
        qemu-io -c 'write 0 1M' -c 'read -P 0 0 1M' -c map \
            "json:{'driver':'qcow2','file':{'filename':'d1'},'data-file':{'driver':'null-co','size':1048576,'read-zeroes':true}}"
        qemu-io -c 'write -P 8 500k 1k' --image-opts $I.driver=qcow2,data-file.file.filename=b; qemu-io -c 'read -P 8 500k 1k' b
        qemu-img check b; qemu-img map --image-opts $I.driver=qcow2,data-file.file.filename=b
        for file in gone r; do
            qemu-io -c length --image-opts $I.driver=qcow2,data-file.file.filename=$file
        done
        qemu-io -c length --image-opts $I.driver=raw,data-file.offset=2M,data-file.file.filename=r"#,
    );
}
