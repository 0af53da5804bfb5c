//! `check -r` on damaged images: what is said while they are repaired, and what is left of the damage.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::answers::{Answer, Folder, answer, oracle_is_missing, words};

/// 64 KiB clusters, 16 bits of refcount, one snapshot; five clusters of data, one of them written anew since.
const PREPARE: &str = "
set -e
qemu-img create -q -f qcow2 whole.qcow2 4M
qemu-io -c 'write -q -P 1 0 256k' whole.qcow2
qemu-img snapshot -c s1 whole.qcow2
qemu-io -c 'write -q -P 2 64k 64k' whole.qcow2
truncate -s 2M whole.qcow2
";

const CLUSTER: u64 = 65_536;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;

/// An image to be damaged.
struct Victim(File);

impl Victim {
    fn get(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn set(&self, offset: u64, value: u64) {
        self.0.write_all_at(&value.to_be_bytes(), offset).unwrap();
    }

    fn flip(&self, offset: u64, bits: u64) {
        self.set(offset, self.get(offset) ^ bits);
    }

    /// Where the entry of the active L1 table stands.
    fn l1_entry(&self) -> u64 {
        self.get(40)
    }

    /// Where the L2 entry of a guest cluster stands.
    fn l2_entry(&self, guest: u64) -> u64 {
        (self.get(self.l1_entry()) & OFFSET) + guest * 8
    }

    /// The host cluster that a guest cluster is in.
    fn host(&self, guest: u64) -> u64 {
        (self.get(self.l2_entry(guest)) & OFFSET) / CLUSTER
    }

    fn set_refcount(&self, cluster: u64, count: u16) {
        let block = self.get(self.get(48));
        self.0
            .write_all_at(&count.to_be_bytes(), block + cluster * 2)
            .unwrap();
    }
}

/// A damage: what it is called, and how it is done.
type Damage = (&'static str, fn(&Victim));

const DAMAGES: &[Damage] = &[
    ("none", |_| {}),
    ("leaks", |image| {
        image.set_refcount(20, 1);
        image.set_refcount(21, 3);
        image.set_refcount(image.host(0), 5);
    }),
    ("too-low", |image| image.set_refcount(image.host(0), 1)),
    ("too-low-and-leak", |image| {
        image.set_refcount(20, 1);
        image.set_refcount(image.host(0), 1);
    }),
    ("too-high", |image| image.set_refcount(image.host(1), 2)),
    ("block-too-high", |image| image.set_refcount(2, 2)),
    ("free-but-used", |image| {
        image.set_refcount(image.host(1), 0)
    }),
    ("free-and-leak", |image| {
        image.set_refcount(20, 1);
        image.set_refcount(image.host(1), 0);
    }),
    ("free-table", |image| {
        image.set_refcount(image.get(image.l1_entry()) % COPIED / CLUSTER, 0)
    }),
    ("free-header", |image| image.set_refcount(0, 0)),
    ("free-block", |image| image.set_refcount(2, 0)),
    ("copied", |image| {
        image.flip(image.l2_entry(0), COPIED);
        image.flip(image.l2_entry(1), COPIED);
    }),
    ("copied-table", |image| image.flip(image.l1_entry(), COPIED)),
    ("used-twice", |image| {
        image.set(image.l2_entry(8), image.get(image.l2_entry(1)))
    }),
    ("reserved-l2", |image| {
        image.flip(image.l2_entry(3), 1 << 58)
    }),
    ("reserved-l1", |image| image.flip(image.l1_entry(), 4)),
    ("unaligned", |image| image.flip(image.l2_entry(3), 512)),
    ("unaligned-zero", |image| {
        image.flip(image.l2_entry(1), 512 | 1)
    }),
    ("past-the-end", |image| {
        image.set(image.l2_entry(8), COPIED | 0x1000_0000)
    }),
    ("past-the-end-and-leak", |image| {
        image.set(image.l2_entry(8), COPIED | 0x1000_0000);
        image.set_refcount(20, 1);
        image.set_refcount(image.host(1), 3);
    }),
    ("compressed-past-the-end-and-leak", |image| {
        image.set(image.l2_entry(8), 1 << 62 | 0x1000_0000);
        image.set_refcount(20, 1);
    }),
    ("snapshot-incomplete", |image| {
        image.set(image.get(64) + 32, 0)
    }),
    ("snapshot-with-too-much", |image| {
        image.set(image.get(64) + 32, 1025)
    }),
    ("snapshot-with-too-much-and-leak", |image| {
        image.set(image.get(64) + 32, 20_000);
        image.set_refcount(21, 1);
    }),
    ("reserved-table-entry", |image| {
        image.set(image.get(48) + 8, 0x5_0005)
    }),
    ("no-block", |image| image.set(image.get(48), 0)),
    ("dirty", |image| image.flip(72, 1)),
    ("dirty-and-free", |image| {
        image.flip(72, 1);
        image.set_refcount(image.host(1), 0);
    }),
    ("corrupt", |image| image.flip(72, 2)),
    ("corrupt-and-leak", |image| {
        image.flip(72, 2);
        image.set_refcount(20, 1);
    }),
];

const OPTIONS: &[&str] = &[
    "",
    "-r leaks",
    "-r all",
    "-r leaks --output=json",
    "-r all --output=json",
    "-q -r all",
];

/// Without what depends on where clusters are put: ours builds new tables rather than change the old ones,
/// and gives those back without a word.
fn comparable(answer: Answer) -> Answer {
    let keep = |text: &str, unwanted: &dyn Fn(&str) -> bool| -> String {
        let lines = text.lines().filter(|line| !unwanted(line));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let is_end =
        |line: &str| line.starts_with("Image end offset") || line.contains("\"image-end-offset\"");
    let rebuilt = answer.stderr.contains("Rebuilding");
    let is_old = |line: &str| {
        let old = ["Repairing cluster 1 ", "Repairing cluster 2 "];
        rebuilt && old.iter().any(|old| line.starts_with(old))
    };
    Answer {
        code: answer.code,
        stdout: keep(&answer.stdout, &is_end),
        stderr: keep(&answer.stderr, &is_old),
    }
}

/// What the program says about the damage, then the oracle about what is left of it.
fn outcome(folder: &Path, program: &Path, damage: Damage, options: &str) -> (Answer, Answer) {
    let (name, damage) = damage;
    let path = folder.join("image.qcow2");
    std::fs::copy(folder.join("whole.qcow2"), &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    damage(&Victim(file));
    let run =
        |program: &Path, line: &str| comparable(answer(folder, program, "qemu-img", &words(line)));
    let said = run(program, &format!("check {options} image.qcow2"));
    let left = run(Path::new("qemu-img"), "check image.qcow2");
    // Nothing is ever lost by a repair.
    let does_not_open = name.starts_with("snapshot-with") && !options.contains("-r all");
    if !does_not_open
        && !name.starts_with("unaligned")
        && !name.starts_with("reserved")
        && !name.contains("past-the-end")
    {
        let read = words("-r -c 'read -q -P 2 64k 64k' -c 'read -q -P 1 128k 128k' image.qcow2");
        let read = answer(folder, Path::new("qemu-io"), "qemu-io", &read);
        assert_eq!(
            (read.code, read.stdout.as_str()),
            (Some(0), ""),
            "{name} {options}"
        );
    }
    (said, left)
}

#[test]
fn repairs_are_told_and_made_as_qemu_img_does_it() {
    if oracle_is_missing() {
        return;
    }
    let folder = Folder::prepared("repairs", PREPARE);
    let mut different = Vec::new();
    for damage in DAMAGES {
        for options in OPTIONS {
            let expected = outcome(&folder.0, Path::new("qemu-img"), *damage, options);
            let ours = Path::new(env!("CARGO_BIN_EXE_oxcow"));
            let got = outcome(&folder.0, ours, *damage, options);
            if got != expected {
                different.push(format!(
                    "{} {options}\nexpected {expected:#?}\ngot {got:#?}",
                    damage.0
                ));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{}:\n{}",
        different.len(),
        different.join("\n")
    );
}
