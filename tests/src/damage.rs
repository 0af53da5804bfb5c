//! Images broken on purpose, field by field and table by table.
//!
//! A case is a healthy base (see [`bases`]) and one change to its bytes, so that whatever happens is due to
//! that change.

use crate::recipe::{Recipe, Step};
use crate::rng::Rng;

/// One broken image.
pub struct Damage {
    /// Unique: what was changed, and into what.
    pub name: String,
    /// The name of the base.
    pub base: &'static str,
    /// Makes the change.
    pub change: Change,
}

/// A change of an image's bytes.
pub type Change = Box<dyn Fn(&mut Vec<u8>) + Sync>;

impl Damage {
    fn new(
        name: impl Into<String>,
        base: &'static str,
        change: impl Fn(&mut Vec<u8>) + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            base,
            change: Box::new(change),
        }
    }
}

/// A header field: name, offset, width in bytes.
type Field = (&'static str, usize, usize);

const FIELDS: &[Field] = &[
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing-file-offset", 8, 8),
    ("backing-file-size", 16, 4),
    ("cluster-bits", 20, 4),
    ("size", 24, 8),
    ("crypt-method", 32, 4),
    ("l1-size", 36, 4),
    ("l1-offset", 40, 8),
    ("refcount-table-offset", 48, 8),
    ("refcount-table-clusters", 56, 4),
    ("snapshot-count", 60, 4),
    ("snapshots-offset", 64, 8),
    ("incompatible", 72, 8),
    ("compatible", 80, 8),
    ("autoclear", 88, 8),
    ("refcount-order", 96, 4),
    ("header-length", 100, 4),
    ("compression-type", 104, 1),
];

/// The healthy images that are broken: together they have every structure there is.
#[must_use]
pub fn bases() -> Vec<Recipe> {
    let img = |line: &str| Step::Img(line.split_whitespace().map(str::to_owned).collect());
    let io = |commands: &[&str]| {
        Step::Io(
            "disk.qcow2".into(),
            commands.iter().map(|&c| c.to_owned()).collect(),
        )
    };
    let writes = [
        "write -q -P 1 0 20k",
        "write -q -c -P 3 32k 16k",
        "write -q -c -P 4 48k 16k",
        "write -q -z 64k 16k",
        "write -q -P 5 800k 16k",
        "discard -q 0 4k",
    ];
    let recipe = |name: &str, steps: Vec<Step>| {
        let steps = [vec![Step::Raw("base.raw".into(), 100 << 10, 1)], steps].concat();
        Recipe {
            name: name.into(),
            steps,
            top: "disk.qcow2".into(),
        }
    };
    vec![
        recipe(
            "v3",
            vec![
                img("create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw disk.qcow2 1M"),
                io(&writes),
                img("snapshot -c first disk.qcow2"),
                io(&["write -q -P 6 4k 8k"]),
                img("snapshot -c second disk.qcow2"),
                img("bitmap --add -g 4k disk.qcow2 counting"),
                io(&["write -q -P 7 8k 8k"]),
            ],
        ),
        recipe(
            "v2",
            vec![
                img(
                    "create -q -f qcow2 -o cluster_size=4k,compat=0.10 -b base.raw -F raw disk.qcow2 1M",
                ),
                io(&writes),
                img("snapshot -c first disk.qcow2"),
            ],
        ),
        recipe(
            "subclusters",
            vec![
                img(
                    "create -q -f qcow2 -o cluster_size=16k,extended_l2=on -b base.raw -F raw disk.qcow2 1M",
                ),
                io(&writes),
            ],
        ),
        recipe(
            "zstd",
            vec![
                img("create -q -f qcow2 -o cluster_size=4k,compression_type=zstd disk.qcow2 1M"),
                io(&writes),
            ],
        ),
        recipe(
            "data-file",
            vec![
                img("create -q -f qcow2 -o cluster_size=4k,data_file=disk.data disk.qcow2 1M"),
                io(&["write -q -P 1 0 20k", "write -q -z 64k 16k"]),
            ],
        ),
        recipe(
            "luks",
            vec![img(
                "create -q -f qcow2 --object secret,id=k,data=x -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 disk.qcow2 1M",
            )],
        ),
    ]
}

/// Every case.
#[must_use]
pub fn all() -> Vec<Damage> {
    let families = [
        header_fields(),
        feature_bits(),
        extensions(),
        truncations(),
        tables(),
        snapshots(),
        bitmaps(),
        compressed(),
        whole_files(),
    ];
    families.into_iter().flatten().collect()
}

fn number(image: &[u8], offset: usize, width: usize) -> u64 {
    let bytes = image.get(offset..offset + width).unwrap_or_default();
    bytes
        .iter()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn set(image: &mut [u8], offset: usize, width: usize, value: u64) {
    if let Some(bytes) = image.get_mut(offset..offset + width) {
        bytes.copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}

fn set_in(
    base: &'static str,
    name: String,
    offset: usize,
    width: usize,
    value: impl Fn(&[u8], u64) -> u64 + Sync + 'static,
) -> Damage {
    Damage::new(name, base, move |image| {
        let old = number(image, offset, width);
        let new = value(image, old);
        set(image, offset, width, new);
    })
}

/// A value that is likely to be mishandled, from the image and the old value.
type Interesting = (&'static str, fn(&[u8], u64) -> u64);

const INTERESTING: &[Interesting] = &[
    ("zero", |_, _| 0),
    ("one", |_, _| 1),
    ("max", |_, _| u64::MAX),
    ("plus-one", |_, old| old.wrapping_add(1)),
    ("minus-one", |_, old| old.wrapping_sub(1)),
    ("plus-512", |_, old| old.wrapping_add(512)),
    ("past-the-end", |image, _| {
        (image.len() as u64).next_multiple_of(4096) + 4096
    }),
    ("near-2-63", |_, _| (1 << 63) - 4096),
    ("top-bit", |_, old| old | 1 << 63 | 1 << 31),
];

fn header_fields() -> Vec<Damage> {
    let mut cases = Vec::new();
    for &(field, offset, width) in FIELDS {
        for &(what, value) in INTERESTING {
            cases.push(set_in(
                "v3",
                format!("header-{field}-{what}"),
                offset,
                width,
                value,
            ));
            if offset < 72 && offset > 4 && matches!(what, "max" | "past-the-end" | "near-2-63") {
                cases.push(set_in(
                    "v2",
                    format!("header-v2-{field}-{what}"),
                    offset,
                    width,
                    value,
                ));
            }
        }
    }
    let exact: &[(&str, usize, usize, u64)] = &[
        ("cluster-bits-8", 20, 4, 8),
        ("cluster-bits-9", 20, 4, 9),
        ("cluster-bits-21", 20, 4, 21),
        ("cluster-bits-22", 20, 4, 22),
        ("cluster-bits-63", 20, 4, 63),
        ("cluster-bits-64", 20, 4, 64),
        ("refcount-order-6", 96, 4, 6),
        ("refcount-order-7", 96, 4, 7),
        ("header-length-72", 100, 4, 72),
        ("header-length-103", 100, 4, 103),
        ("header-length-104", 100, 4, 104),
        ("header-length-105", 100, 4, 105),
        ("header-length-4096", 100, 4, 4096),
        ("header-length-4104", 100, 4, 4104),
        ("l1-size-too-large", 36, 4, (32 << 20) / 8 + 1),
        ("l1-size-largest", 36, 4, (32 << 20) / 8),
        ("l1-in-header", 40, 8, 0),
        ("l1-overlaps-refcounts", 40, 8, 4096),
        ("refcount-table-in-header", 48, 8, 0),
        ("refcount-table-too-large", 56, 4, (8 << 20) / 4096 + 1),
        ("refcount-table-largest", 56, 4, (8 << 20) / 4096),
        ("snapshot-count-65536", 60, 4, 65536),
        ("snapshot-count-65537", 60, 4, 65537),
        ("snapshots-in-header", 64, 8, 0),
        ("backing-size-1023", 16, 4, 1023),
        ("backing-size-1024", 16, 4, 1024),
        ("backing-at-end-of-cluster", 8, 8, 4092),
        ("backing-in-header", 8, 8, 8),
        ("size-2-62", 24, 8, 1 << 62),
        ("size-more-than-l1", 24, 8, (1 << 20) + (2 << 20) + 512),
        ("size-not-512", 24, 8, (1 << 20) - 1),
        ("crypt-aes", 32, 4, 1),
        ("crypt-luks", 32, 4, 2),
        ("crypt-3", 32, 4, 3),
        ("version-1", 4, 4, 1),
        ("version-2", 4, 4, 2),
        ("version-4", 4, 4, 4),
        ("compression-zstd-unmarked", 104, 1, 1),
        ("compression-2", 104, 1, 2),
    ];
    cases.extend(exact.iter().map(|&(name, offset, width, value)| {
        set_in(
            "v3",
            format!("header-{name}"),
            offset,
            width,
            move |_, _| value,
        )
    }));
    for base in ["subclusters", "zstd", "data-file", "luks"] {
        for (what, offset, width, value) in [
            ("cluster-bits-9", 20, 4, 9),
            ("cluster-bits-12", 20, 4, 12),
            ("incompatible-none", 72, 8, 0),
            ("incompatible-all-known", 72, 8, 0x1f),
            ("compression-type-0", 104, 1, 0),
            ("compression-type-1", 104, 1, 1),
            ("crypt-none", 32, 4, 0),
            ("crypt-luks", 32, 4, 2),
            ("autoclear-all", 88, 8, 7),
        ] {
            cases.push(set_in(
                base,
                format!("header-{base}-{what}"),
                offset,
                width,
                move |_, _| value,
            ));
        }
    }
    cases
}

fn feature_bits() -> Vec<Damage> {
    let mut cases = Vec::new();
    for bit in [0, 1, 2, 3, 4, 5, 6, 31, 32, 63] {
        cases.push(set_in(
            "v3",
            format!("feature-incompatible-{bit}"),
            72,
            8,
            move |_, old| old | 1 << bit,
        ));
        cases.push(Damage::new(
            format!("feature-incompatible-{bit}-unnamed"),
            "v3",
            move |image| {
                set(image, 72, 8, 1 << bit);
                if let Some(table) = extension(image, FEATURE_NAMES) {
                    set(image, table, 4, 0x1234_5678);
                }
            },
        ));
    }
    for bit in [1, 63] {
        cases.push(set_in(
            "v3",
            format!("feature-compatible-{bit}"),
            80,
            8,
            move |_, old| old | 1 << bit,
        ));
        cases.push(set_in(
            "v3",
            format!("feature-autoclear-{bit}"),
            88,
            8,
            move |_, old| old | 1 << bit,
        ));
    }
    cases.push(Damage::new("feature-named-by-table", "v3", |image| {
        set(image, 72, 8, 1 << 40 | 1 << 5);
        if let Some(table) = extension(image, FEATURE_NAMES) {
            image[table + 9] = 40;
            image[table + 10..table + 20].copy_from_slice(b"time trave");
        }
    }));
    cases.push(Damage::new("feature-names-not-text", "v3", |image| {
        set(image, 72, 8, 1 << 40);
        if let Some(table) = extension(image, FEATURE_NAMES) {
            image[table + 9] = 40;
            image[table + 10..table + 56].fill(0xff);
        }
    }));
    cases
}

const BACKING_FORMAT: u64 = 0xe279_2aca;
const FEATURE_NAMES: u64 = 0x6803_f857;
const BITMAPS: u64 = 0x2385_2875;
const CRYPTO: u64 = 0x0537_be77;
const DATA_FILE: u64 = 0x4441_5441;

/// Where the extension with this type begins.
fn extension(image: &[u8], wanted: u64) -> Option<usize> {
    let mut offset = if number(image, 4, 4) == 2 {
        72
    } else {
        number(image, 100, 4) as usize
    };
    while offset + 8 < image.len() {
        match number(image, offset, 4) {
            0 => return None,
            found if found == wanted => return Some(offset),
            _ => offset += 8 + (number(image, offset + 4, 4) as usize).next_multiple_of(8),
        }
    }
    None
}

fn in_extension(
    name: &str,
    base: &'static str,
    kind: u64,
    at: usize,
    width: usize,
    value: u64,
) -> Damage {
    Damage::new(format!("extension-{base}-{name}"), base, move |image| {
        if let Some(start) = extension(image, kind) {
            set(image, start + at, width, value);
        }
    })
}

fn extensions() -> Vec<Damage> {
    let mut cases = Vec::new();
    for (name, base, kind) in [
        ("backing-format", "v3", BACKING_FORMAT),
        ("feature-names", "v3", FEATURE_NAMES),
        ("bitmaps", "v3", BITMAPS),
        ("backing-format", "v2", BACKING_FORMAT),
        ("data-file", "data-file", DATA_FILE),
        ("crypto", "luks", CRYPTO),
    ] {
        for (what, length) in [
            ("empty", 0),
            ("one", 1),
            ("seven", 7),
            ("large", 4096),
            ("huge", 0x7fff_ffff),
            ("max", 0xffff_ffff),
            ("wraps", 0xffff_fff9),
        ] {
            cases.push(in_extension(
                &format!("{name}-length-{what}"),
                base,
                kind,
                4,
                4,
                length,
            ));
        }
        cases.push(in_extension(
            &format!("{name}-unknown-type"),
            base,
            kind,
            0,
            4,
            0xdead_beef,
        ));
        cases.push(Damage::new(
            format!("extension-{base}-{name}-twice"),
            base,
            move |image| {
                if let (Some(first), Some(other)) =
                    (extension(image, kind), extension(image, FEATURE_NAMES))
                {
                    // The next one over it, with the same type.
                    set(image, other, 4, kind);
                    let length = number(image, first + 4, 4) as usize;
                    let content = image[first + 8..first + 8 + length].to_vec();
                    image[other + 8..other + 8 + length].copy_from_slice(&content);
                    set(image, other + 4, 4, length as u64);
                }
            },
        ));
    }
    for (name, at, width, value) in [
        ("count-zero", 8, 4, 0_u64),
        ("count-max", 8, 4, u64::MAX),
        ("count-65536", 8, 4, 65536),
        ("count-more", 8, 4, 2),
        ("reserved", 12, 4, 1),
        ("size-zero", 16, 8, 0),
        ("size-max", 16, 8, u64::MAX),
        ("size-large", 16, 8, 1024 * 65535 + 1),
        ("offset-zero", 24, 8, 0),
        ("offset-unaligned", 24, 8, 4097),
        ("offset-past-the-end", 24, 8, 1 << 40),
        ("offset-max", 24, 8, u64::MAX),
    ] {
        cases.push(in_extension(
            &format!("bitmaps-{name}"),
            "v3",
            BITMAPS,
            at,
            width,
            value,
        ));
    }
    for (name, at, width, value) in [
        ("offset-zero", 8, 8, 0_u64),
        ("offset-unaligned", 8, 8, 65537),
        ("offset-past-the-end", 8, 8, 1 << 40),
        ("offset-max", 8, 8, u64::MAX),
        ("length-zero", 16, 8, 0),
        ("length-max", 16, 8, u64::MAX),
    ] {
        cases.push(in_extension(
            &format!("crypto-{name}"),
            "luks",
            CRYPTO,
            at,
            width,
            value,
        ));
    }
    for (name, bytes) in [
        ("not-text", &[0xff_u8, 0xfe, 0x00][..]),
        ("unknown", b"vdi"),
        ("other", b"qed"),
        ("long-zero", &[0; 3]),
    ] {
        cases.push(Damage::new(
            format!("extension-v3-backing-format-{name}"),
            "v3",
            move |image| {
                if let Some(start) = extension(image, BACKING_FORMAT) {
                    image[start + 8..start + 8 + bytes.len()].copy_from_slice(bytes);
                }
            },
        ));
    }
    for (name, bytes) in [
        ("not-text", &[0xff_u8, 0xfe, 0x00][..]),
        ("absolute", b"/dev/null1"),
        ("self", b"disk.qcow2"),
        ("url", b"http://a/b"),
        ("json", b"json:{\"a\":"),
    ] {
        let len = bytes.len();
        cases.push(Damage::new(
            format!("extension-data-file-name-{name}"),
            "data-file",
            move |image| {
                if let Some(start) = extension(image, DATA_FILE) {
                    set(image, start + 4, 4, len.min(9) as u64);
                    image[start + 8..start + 8 + len].copy_from_slice(bytes);
                    set(image, start + 4, 4, len as u64);
                }
            },
        ));
        cases.push(Damage::new(
            format!("backing-name-{name}"),
            "v3",
            move |image| {
                let start = number(image, 8, 8) as usize;
                image[start..start + len].copy_from_slice(bytes);
                set(image, 16, 4, len as u64);
            },
        ));
    }
    cases.push(Damage::new("extension-unending", "v3", |image| {
        let mut offset = 112;
        while offset + 8 <= 4096 {
            set(image, offset, 4, 0x1111_0000 + offset as u64);
            set(image, offset + 4, 4, 0);
            offset += 8;
        }
    }));
    cases
}

fn truncations() -> Vec<Damage> {
    let lengths = [
        0, 1, 3, 4, 7, 8, 24, 71, 72, 73, 103, 104, 111, 112, 113, 200, 511, 512, 513, 1024, 4095,
        4096, 4097, 8191, 8192, 8200, 12287, 12288, 12292, 16384, 20480, 24576, 28672, 32768,
        40960, 45056, 49152, 65536, 65537,
    ];
    let cut = |base: &'static str| {
        move |length: usize| {
            Damage::new(format!("truncated-{base}-{length}"), base, move |image| {
                image.truncate(length)
            })
        }
    };
    let mut cases: Vec<Damage> = lengths.into_iter().map(cut("v3")).collect();
    cases.extend([71, 72, 73, 104, 4096, 12288, 30000].map(cut("v2")));
    cases.extend([104, 112, 4096, 16384, 50000].map(cut("subclusters")));
    cases.push(Damage::new("truncated-last-byte", "v3", |image| {
        image.pop();
    }));
    cases.push(Damage::new("truncated-half-a-cluster", "v3", |image| {
        image.truncate(image.len() - 2048)
    }));
    cases
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn l1(image: &[u8]) -> usize {
    number(image, 40, 8) as usize
}

fn first_l2(image: &[u8]) -> usize {
    (number(image, l1(image), 8) & OFFSET) as usize
}

fn refcount_table(image: &[u8]) -> usize {
    number(image, 48, 8) as usize
}

fn refcount_block(image: &[u8]) -> usize {
    (number(image, refcount_table(image), 8) & OFFSET) as usize
}

fn snapshot_table(image: &[u8]) -> usize {
    number(image, 64, 8) as usize
}

fn bitmap_directory(image: &[u8]) -> usize {
    extension(image, BITMAPS).map_or(0, |start| number(image, start + 24, 8) as usize)
}

fn bitmap_table(image: &[u8]) -> usize {
    number(image, bitmap_directory(image), 8) as usize
}

type Finder = fn(&[u8]) -> usize;

/// What a reference to a cluster can be made to point to; the flags in the topmost bits are kept.
const TARGETS: &[Interesting] = &[
    ("header", |_, old| old & !OFFSET),
    ("l1", |image, old| old & !OFFSET | l1(image) as u64),
    ("l2", |image, old| old & !OFFSET | first_l2(image) as u64),
    ("refcount-table", |image, old| {
        old & !OFFSET | refcount_table(image) as u64
    }),
    ("refcount-block", |image, old| {
        old & !OFFSET | refcount_block(image) as u64
    }),
    ("snapshot-table", |image, old| {
        old & !OFFSET | snapshot_table(image) as u64
    }),
    ("bitmap-directory", |image, old| {
        old & !OFFSET | bitmap_directory(image) as u64
    }),
    ("last-cluster", |image, old| {
        old & !OFFSET | ((image.len() as u64 - 1) / 4096 * 4096)
    }),
    ("past-the-end", |image, old| {
        old & !OFFSET | ((image.len() as u64).next_multiple_of(4096) + 65536)
    }),
    ("far-away", |_, old| old & !OFFSET | 1 << 50),
    ("unaligned", |_, old| old ^ 0x200),
    ("largest", |_, old| old | 0x00ff_ffff_ffff_f000),
    ("reserved-low", |_, old| old | 0x1fe),
    ("reserved-high", |_, old| old | 0x3f << 56),
    ("zero-flag", |_, old| old | 1),
    ("not-copied", |_, old| old ^ 1 << 63),
    ("compressed", |_, old| old ^ 1 << 62),
    ("all-ones", |_, _| u64::MAX),
];

fn tables() -> Vec<Damage> {
    let entries: &[(&str, &'static str, Finder)] = &[
        ("l1", "v3", l1),
        ("l2-data", "v3", |image| first_l2(image) + 8 * 4),
        ("l2-compressed", "v3", |image| first_l2(image) + 8 * 8),
        ("l2-zero", "v3", |image| first_l2(image) + 8 * 16),
        ("l2-empty", "v3", |image| first_l2(image) + 8 * 30),
        ("refcount-table", "v3", refcount_table),
        ("refcount-table-second", "v3", |image| {
            refcount_table(image) + 8
        }),
        ("l2-data", "v2", |image| first_l2(image) + 8 * 4),
        ("subclusters-l2", "subclusters", |image| {
            first_l2(image) + 16
        }),
        ("subclusters-bitmap", "subclusters", |image| {
            first_l2(image) + 16 + 8
        }),
        ("subclusters-compressed-bitmap", "subclusters", |image| {
            first_l2(image) + 2 * 16 + 8
        }),
        ("data-file-l2", "data-file", first_l2),
    ];
    let mut cases = Vec::new();
    for &(entry, base, finder) in entries {
        for &(target, value) in TARGETS {
            cases.push(Damage::new(
                format!("table-{base}-{entry}-{target}"),
                base,
                move |image| {
                    let at = finder(image);
                    let new = value(image, number(image, at, 8));
                    set(image, at, 8, new);
                },
            ));
        }
    }
    cases.push(Damage::new("table-l2-all-of-itself", "v3", |image| {
        let table = first_l2(image);
        (0..512).for_each(|index| set(image, table + 8 * index, 8, 1 << 63 | table as u64));
    }));
    cases.push(Damage::new("table-l2-all-one-cluster", "v3", |image| {
        let table = first_l2(image);
        let target = number(image, table + 32, 8);
        (0..512).for_each(|index| set(image, table + 8 * index, 8, target));
    }));
    cases.push(Damage::new("table-refcounts-none", "v3", |image| {
        let block = refcount_block(image);
        image[block..block + 4096].fill(0);
    }));
    cases.push(Damage::new("table-refcounts-max", "v3", |image| {
        let block = refcount_block(image);
        image[block..block + 4096].fill(0xff);
    }));
    cases.push(Damage::new(
        "table-refcount-table-all-one-block",
        "v3",
        |image| {
            let (table, block) = (refcount_table(image), refcount_block(image));
            (0..512).for_each(|index| set(image, table + 8 * index, 8, block as u64));
        },
    ));
    cases.push(Damage::new("table-noise-in-l2", "v3", |image| {
        let table = first_l2(image);
        image[table..table + 4096].copy_from_slice(&Rng::new(5).bytes(4096));
    }));
    cases.push(Damage::new("table-noise-in-l1", "v3", |image| {
        let table = l1(image);
        image[table..table + 64].copy_from_slice(&Rng::new(6).bytes(64));
    }));
    cases.push(Damage::new(
        "table-noise-in-refcount-table",
        "v3",
        |image| {
            let table = refcount_table(image);
            image[table..table + 4096].copy_from_slice(&Rng::new(7).bytes(4096));
        },
    ));
    cases
}

fn snapshots() -> Vec<Damage> {
    let fields: &[Field] = &[
        ("l1-offset", 0, 8),
        ("l1-size", 8, 4),
        ("id-size", 12, 2),
        ("name-size", 14, 2),
        ("date", 16, 4),
        ("date-nanoseconds", 20, 4),
        ("clock", 24, 8),
        ("state-size", 32, 4),
        ("extra-size", 36, 4),
        ("extra-state-size", 40, 8),
        ("extra-disk-size", 48, 8),
        ("extra-icount", 56, 8),
    ];
    let mut cases = Vec::new();
    for &(field, at, width) in fields {
        for &(what, value) in INTERESTING {
            cases.push(Damage::new(
                format!("snapshot-{field}-{what}"),
                "v3",
                move |image| {
                    let place = snapshot_table(image) + at;
                    let new = value(image, number(image, place, width));
                    set(image, place, width, new);
                },
            ));
        }
    }
    for (name, size) in [
        ("extra-1024", 1024),
        ("extra-1025", 1025),
        ("extra-8", 8),
        ("extra-15", 15),
        ("extra-17", 17),
    ] {
        cases.push(Damage::new(
            format!("snapshot-{name}"),
            "v3",
            move |image| {
                let place = snapshot_table(image) + 36;
                set(image, place, 4, size);
            },
        ));
    }
    cases.push(Damage::new("snapshot-name-not-text", "v3", |image| {
        let name = snapshot_table(image) + 40 + 24 + 1;
        image[name..name + 5].copy_from_slice(&[0xff, 0x1b, b'[', 0, b'"']);
    }));
    cases.push(Damage::new("snapshot-count-three", "v3", |image| {
        set(image, 60, 4, 3)
    }));
    cases.push(Damage::new("snapshot-l1-is-active", "v3", |image| {
        let (place, active) = (snapshot_table(image), l1(image));
        set(image, place, 8, active as u64);
    }));
    cases.push(Damage::new("snapshot-v2-extra-none", "v2", |image| {
        let place = snapshot_table(image) + 36;
        set(image, place, 4, 0);
    }));
    cases
}

fn bitmaps() -> Vec<Damage> {
    let fields: &[Field] = &[
        ("table-offset", 0, 8),
        ("table-size", 8, 4),
        ("flags", 12, 4),
        ("type", 16, 1),
        ("granularity", 17, 1),
        ("name-size", 18, 2),
        ("extra-size", 20, 4),
    ];
    let mut cases = Vec::new();
    for &(field, at, width) in fields {
        for &(what, value) in INTERESTING {
            cases.push(Damage::new(
                format!("bitmap-{field}-{what}"),
                "v3",
                move |image| {
                    let place = bitmap_directory(image) + at;
                    let new = value(image, number(image, place, width));
                    set(image, place, width, new);
                },
            ));
        }
    }
    for &(target, value) in TARGETS {
        cases.push(Damage::new(
            format!("bitmap-table-entry-{target}"),
            "v3",
            move |image| {
                let place = bitmap_table(image);
                let new = value(image, number(image, place, 8));
                set(image, place, 8, new);
            },
        ));
    }
    cases
}

/// Where the first compressed cluster's data begin, for 4 KiB clusters.
fn compressed_data(image: &[u8]) -> (usize, usize) {
    let entry = first_l2(image) + 8 * 8;
    ((number(image, entry, 8) & ((1 << 58) - 1)) as usize, entry)
}

fn compressed() -> Vec<Damage> {
    let mut cases = Vec::new();
    for base in ["v3", "zstd"] {
        let change = |name: &str, change: fn(&mut Vec<u8>, usize, usize)| {
            Damage::new(format!("compressed-{base}-{name}"), base, move |image| {
                let (data, entry) = compressed_data(image);
                change(image, data, entry);
            })
        };
        cases.extend([
            change("ones", |image, data, _| image[data..data + 16].fill(0xff)),
            change("zeros", |image, data, _| image[data..data + 16].fill(0)),
            change("noise", |image, data, _| {
                image[data..data + 64].copy_from_slice(&Rng::new(1).bytes(64))
            }),
            change("first-byte", |image, data, _| image[data] ^= 0x55),
            change("fifth-byte", |image, data, _| image[data + 5] ^= 0x10),
            change("tenth-byte", |image, data, _| image[data + 10] ^= 0x10),
            change("one-byte-later", |image, _, entry| {
                let old = number(image, entry, 8);
                set(image, entry, 8, old + 1);
            }),
            change("most-sectors", |image, _, entry| {
                let old = number(image, entry, 8);
                set(image, entry, 8, old | 0xf << 58);
            }),
            change("in-header", |image, _, entry| set(image, entry, 8, 1 << 62)),
            change("past-the-end", |image, _, entry| {
                let end = image.len() as u64 + 4096;
                set(image, entry, 8, 1 << 62 | end);
            }),
            change("over-the-end", |image, _, entry| {
                let end = image.len() as u64 - 3;
                set(image, entry, 8, 1 << 62 | 3 << 58 | end);
            }),
            change("file-cut", |image, data, _| image.truncate(data + 7)),
            // A final stored block: ten bytes only, and more bytes than a cluster has.
            change("inflates-to-less", |image, data, _| {
                image[data..data + 5].copy_from_slice(&[1, 10, 0, 0xf5, 0xff])
            }),
            change("inflates-to-more", |image, data, entry| {
                let old = number(image, entry, 8);
                set(image, entry, 8, old | 0xf << 58);
                image[data..data + 5].copy_from_slice(&[1, 0xff, 0xff, 0, 0]);
                image.resize(image.len().max(data + 9000), 7);
            }),
            // A zstd frame of one block that repeats a byte: two megabytes, and one byte.
            change("frame-of-2-megabytes", |image, data, _| {
                image[data..data + 13]
                    .copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0x20, 0, 3, 0, 0x10, 7]);
            }),
            change("frame-with-huge-window", |image, data, _| {
                image[data..data + 10]
                    .copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x0b, 0x80, 0, 7]);
            }),
            change("frame-of-one-byte", |image, data, _| {
                image[data..data + 10]
                    .copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 0x0b, 0, 0, 7]);
            }),
        ]);
    }
    cases
}

/// Files that are hardly images at all.
fn whole_files() -> Vec<Damage> {
    let mut cases = vec![
        Damage::new("file-magic-only", "v3", |image| {
            image.truncate(4);
        }),
        Damage::new("file-all-zero-after-magic", "v3", |image| {
            image[4..].fill(0)
        }),
        Damage::new("file-all-ones-after-version", "v3", |image| {
            image[8..].fill(0xff)
        }),
        Damage::new("file-all-zero-after-header", "v3", |image| {
            image[104..].fill(0)
        }),
        Damage::new("file-all-ones-after-header", "v3", |image| {
            image[112..].fill(0xff)
        }),
        Damage::new("file-tables-zero", "v3", |image| image[4096..].fill(0)),
        Damage::new("file-tables-ones", "v3", |image| image[4096..].fill(0xff)),
    ];
    for seed in 0..12_u64 {
        cases.push(Damage::new(
            format!("file-noise-{seed}"),
            "v3",
            move |image| {
                let version = 2 + seed % 2;
                let len = image.len() - 8;
                image[8..].copy_from_slice(&Rng::new(seed).bytes(len));
                set(image, 4, 4, version);
            },
        ));
        cases.push(Damage::new(
            format!("file-noise-{seed}-in-tables"),
            "v3",
            move |image| {
                let len = image.len() - 4096;
                image[4096..].copy_from_slice(&Rng::new(100 + seed).bytes(len));
            },
        ));
    }
    for seed in 0..40_u64 {
        cases.push(Damage::new(
            format!("flips-{seed}"),
            ["v3", "v2", "subclusters", "zstd"][(seed % 4) as usize],
            move |image| {
                let mut rng = Rng::new(1000 + seed);
                for _ in 0..1 + rng.below(30) {
                    // Mostly metadata.
                    let end = if rng.one_in(3) { image.len() } else { 200 };
                    let at = 8 + rng.below(end as u64 - 8) as usize;
                    image[at] ^= 1 << rng.below(8);
                }
            },
        ));
    }
    cases
}

/// Folders in which the files are fine and what they say about each other is not.
#[must_use]
pub fn chains() -> Vec<Recipe> {
    let img = |line: &str| Step::Img(line.split(' ').map(str::to_owned).collect());
    let create = |file: &str, backing: &str, format: &str| {
        img(&format!(
            "create -q -u -f qcow2 -b {backing} -F {format} {file} 1M"
        ))
    };
    let disk = || img("create -q -f qcow2 disk.qcow2 1M");
    let rebase = |backing: &str| img(&format!("rebase -u -b {backing} -F qcow2 disk.qcow2"));
    let recipe = |name: &str, steps: Vec<Step>| Recipe {
        name: format!("chain-{name}"),
        steps,
        top: "disk.qcow2".into(),
    };
    let long = |length: usize| {
        let name = |level: usize| {
            if level == 0 {
                "disk.qcow2".to_owned()
            } else {
                format!("{level}.qcow2")
            }
        };
        let mut steps = vec![Step::Raw("base.raw".into(), 4096, 1)];
        steps.extend((0..length).map(|level| create(&name(level), &name(level + 1), "qcow2")));
        steps.push(create(&name(length), "base.raw", "raw"));
        steps
    };
    vec![
        recipe("of-itself", vec![disk(), rebase("disk.qcow2")]),
        recipe("of-itself-dotted", vec![disk(), rebase("./././disk.qcow2")]),
        recipe(
            "of-itself-through-folder",
            vec![
                Step::Folder("sub".into()),
                disk(),
                rebase("sub/../disk.qcow2"),
            ],
        ),
        recipe(
            "of-two",
            vec![
                create("disk.qcow2", "b.qcow2", "qcow2"),
                create("b.qcow2", "disk.qcow2", "qcow2"),
            ],
        ),
        recipe(
            "of-three",
            vec![
                create("disk.qcow2", "b.qcow2", "qcow2"),
                create("b.qcow2", "c.qcow2", "qcow2"),
                create("c.qcow2", "b.qcow2", "qcow2"),
            ],
        ),
        recipe("long", long(400)),
        recipe("missing", vec![create("disk.qcow2", "gone.qcow2", "qcow2")]),
        recipe(
            "folder",
            vec![
                Step::Folder("sub".into()),
                create("disk.qcow2", "sub", "raw"),
            ],
        ),
        recipe(
            "above",
            vec![create("disk.qcow2", "../../../../../etc/passwd", "raw")],
        ),
        recipe("absolute", vec![create("disk.qcow2", "/etc/passwd", "raw")]),
        recipe(
            "not-qcow2",
            vec![
                Step::Raw("base.raw".into(), 4096, 1),
                create("disk.qcow2", "base.raw", "qcow2"),
            ],
        ),
        recipe(
            "unknown-protocol",
            vec![create("disk.qcow2", "nbd://localhost:1/x", "raw")],
        ),
        recipe(
            "unknown-format",
            vec![
                Step::Raw("base.raw".into(), 4096, 1),
                create("disk.qcow2", "base.raw", "vmdk"),
            ],
        ),
        recipe(
            "data-file-missing",
            vec![
                img("create -q -f qcow2 -o data_file=disk.data disk.qcow2 1M"),
                Step::Remove("disk.data".into()),
            ],
        ),
    ]
}
