//! The recipes of the gallery, one function per family of features, and random mixtures of everything.
//!
//! Sizes are kept small (a few clusters touched, at most some ten thousand L2 tables) because every image is
//! read by some twenty commands.

use crate::recipe::{Patch, Recipe, Step};
use crate::rng::Rng;

/// All recipes, in a fixed order.
#[must_use]
pub fn all() -> Vec<Recipe> {
    let families = [
        cluster_sizes(),
        refcount_widths(),
        extended_l2(),
        zstd(),
        data_files(),
        backing_chains(),
        backing_names(),
        snapshots(),
        bitmaps(),
        interrupted(),
        preallocated(),
        encrypted(),
        virtual_sizes(),
        raw_files(),
        inconsistent(),
        mixtures(80),
    ];
    families.into_iter().flatten().collect()
}

/// What `qemu-img create -o` decides.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    old: bool,
    cluster_bits: u32,
    refcount_bits: u32,
    extended: bool,
    zstd: bool,
}

const PLAIN: Geometry = Geometry {
    old: false,
    cluster_bits: 16,
    refcount_bits: 16,
    extended: false,
    zstd: false,
};

impl Geometry {
    fn clusters(cluster_bits: u32) -> Self {
        Self {
            cluster_bits,
            ..PLAIN
        }
    }

    fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    fn options(self) -> String {
        let mut options = format!("cluster_size={}", self.cluster_size());
        options += if self.old {
            ",compat=0.10"
        } else {
            ",compat=1.1"
        };
        if !self.old {
            options += &format!(",refcount_bits={}", self.refcount_bits);
            options += if self.extended { ",extended_l2=on" } else { "" };
            options += if self.zstd {
                ",compression_type=zstd"
            } else {
                ""
            };
        }
        options
    }

    /// Twenty clusters and a part of one more.
    fn size(self) -> u64 {
        (20 * self.cluster_size()).max(128 << 10) + (self.cluster_size() / 2).max(512)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A recipe being written.
struct Draft(Recipe);

impl Draft {
    fn new(name: impl Into<String>) -> Self {
        Self(Recipe {
            name: name.into(),
            steps: vec![Step::Raw("noise".into(), 65536, 77)],
            top: "disk.qcow2".into(),
        })
    }

    fn step(mut self, step: Step) -> Self {
        self.0.steps.push(step);
        self
    }

    fn img(self, line: impl AsRef<str>) -> Self {
        self.step(Step::Img(words(line.as_ref())))
    }

    fn create(self, geometry: Geometry) -> Self {
        let line = format!(
            "create -q -f qcow2 -o {} disk.qcow2 {}",
            geometry.options(),
            geometry.size()
        );
        self.img(line)
    }

    fn io(self, commands: Vec<String>) -> Self {
        self.step(Step::Io("disk.qcow2".into(), commands))
    }

    fn io_in(self, file: &str, commands: &[&str]) -> Self {
        self.step(Step::Io(
            file.into(),
            commands.iter().map(|&command| command.to_owned()).collect(),
        ))
    }

    fn raw(self, file: &str, len: u64, seed: u64) -> Self {
        self.step(Step::Raw(file.into(), len, seed))
    }

    fn patch(self, patch: Patch) -> Self {
        self.step(Step::Patch("disk.qcow2".into(), patch))
    }

    fn top(mut self, top: &str) -> Self {
        self.0.top = top.to_owned();
        self
    }

    fn done(self) -> Recipe {
        self.0
    }
}

/// One of every kind of write: whole, partial, fragmented, compressed, incompressible, zero, preallocated
/// zero, discarded, and the part of a cluster at the end.
fn every_write(geometry: Geometry) -> Vec<String> {
    let c = geometry.cluster_size();
    let tail = geometry.size() - geometry.size() % c;
    let noise = c.min(65536);
    let mut commands = vec![
        format!("write -q -P 1 0 {}", 2 * c),
        format!("write -q -P 2 {} {}", 3 * c + c / 4, c / 2),
        format!("write -q -c -P 3 {} {c}", 5 * c),
        format!("write -q -c -P 4 {} {c}", 6 * c),
        format!("write -q -s noise {} {noise}", 7 * c),
        format!("write -q -z {} {}", 8 * c, 2 * c),
        format!("write -q -P 5 {} {}", 10 * c, 2 * c),
        format!("write -q -z {} {c}", 10 * c),
        format!("write -q -z -u {} {c}", 11 * c),
        format!("write -q -P 6 {} {}", 12 * c, 2 * c),
        format!("discard -q {} {c}", 12 * c),
        format!("write -q -P 7 {} {c}", 15 * c),
        format!("write -q -P 8 {} {c}", 14 * c),
        format!("write -q -P 9 {tail} {}", geometry.size() - tail),
    ];
    if noise == c {
        // Compressed where it has no gain: stored as it is.
        commands.push(format!("write -q -c -s noise {} {c}", 17 * c));
    }
    if geometry.extended {
        let sub = c / 32;
        commands.push(format!("write -q -P 10 {} {sub}", 18 * c));
        commands.push(format!("write -q -P 11 {} {}", 18 * c + 5 * sub, 3 * sub));
        commands.push(format!("write -q -z {} {}", 18 * c + 6 * sub, 2 * sub));
        commands.push(format!("write -q -z {} {}", 19 * c + 9 * sub, 4 * sub));
    }
    commands
}

fn cluster_sizes() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for cluster_bits in 9..=21 {
        for old in [true, false] {
            let geometry = Geometry {
                old,
                ..Geometry::clusters(cluster_bits)
            };
            let name = format!(
                "{}-{}",
                if old { "v2" } else { "v3" },
                geometry.cluster_size()
            );
            recipes.push(
                Draft::new(&name)
                    .create(geometry)
                    .io(every_write(geometry))
                    .done(),
            );
            if cluster_bits < 20 {
                recipes.push(over_raw(
                    &format!("{name}-over-raw"),
                    geometry,
                    geometry.size(),
                ));
            }
        }
    }
    recipes
}

fn over_raw(name: &str, geometry: Geometry, backing_size: u64) -> Recipe {
    let create = format!(
        "create -q -f qcow2 -o {} -b base.raw -F raw disk.qcow2 {}",
        geometry.options(),
        geometry.size()
    );
    Draft::new(name)
        .raw("base.raw", backing_size, 5)
        .img(create)
        .io(every_write(geometry))
        .done()
}

fn refcount_widths() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for width in 0..=6 {
        for cluster_bits in [9, 12, 16, 18] {
            let geometry = Geometry {
                refcount_bits: 1 << width,
                ..Geometry::clusters(cluster_bits)
            };
            let name = format!(
                "refcount-{}-{}",
                geometry.refcount_bits,
                geometry.cluster_size()
            );
            // Compressed clusters that share a host cluster already use up two bits.
            let fits = |command: &String| width > 1 || !command.contains(" -c ");
            let mut draft = Draft::new(name)
                .create(geometry)
                .io(every_write(geometry).into_iter().filter(fits).collect());
            if width > 0 {
                draft = draft.img("snapshot -c one disk.qcow2").io(vec![
                    format!("write -q -P 40 0 {}", geometry.cluster_size()),
                    format!(
                        "discard -q {} {}",
                        5 * geometry.cluster_size(),
                        geometry.cluster_size()
                    ),
                ]);
            }
            recipes.push(draft.done());
        }
    }
    recipes
}

fn extended_l2() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for cluster_bits in 14..=21 {
        let geometry = Geometry {
            extended: true,
            ..Geometry::clusters(cluster_bits)
        };
        let name = format!("subclusters-{}", geometry.cluster_size());
        let plain = Draft::new(&name).create(geometry).io(every_write(geometry));
        recipes.push(plain.done());
        if cluster_bits > 18 {
            continue;
        }
        recipes.push(over_raw(
            &format!("{name}-over-raw"),
            geometry,
            geometry.size(),
        ));
        let short = geometry.size() - 2 * geometry.cluster_size() - 512;
        recipes.push(over_raw(&format!("{name}-over-short"), geometry, short));
        let base = Geometry::clusters(12);
        let size = geometry.size();
        let over_qcow2 = Draft::new(format!("{name}-over-qcow2"))
            .img(format!(
                "create -q -f qcow2 -o {} base.qcow2 {size}",
                base.options()
            ))
            .io_in(
                "base.qcow2",
                &[
                    "write -q -P 90 0 200k",
                    "write -q -z 50k 20k",
                    "write -q -c -P 91 208k 4k",
                ],
            )
            .img(format!(
                "create -q -f qcow2 -o {} -b base.qcow2 -F qcow2 disk.qcow2 {size}",
                geometry.options()
            ))
            .io(every_write(geometry))
            .img("snapshot -c one disk.qcow2")
            .io(vec![
                format!("write -q -P 92 {} 512", geometry.cluster_size()),
                format!("discard -q 0 {}", geometry.cluster_size()),
            ]);
        recipes.push(over_qcow2.done());
    }
    recipes
}

fn zstd() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for cluster_bits in 9..=21 {
        let geometry = Geometry {
            zstd: true,
            extended: cluster_bits % 2 == 1 && cluster_bits > 14,
            ..Geometry::clusters(cluster_bits)
        };
        let c = geometry.cluster_size();
        // Through a raw file, so that QEMU's own converter writes many compressed clusters behind each other.
        let size = (12 * c).max(96 << 10);
        recipes.push(
            Draft::new(format!("zstd-{c}-converted"))
                .raw("source.raw", size - 512, 11)
                .img(format!(
                    "convert -c -O qcow2 -o {} source.raw disk.qcow2",
                    geometry.options()
                ))
                .done(),
        );
        recipes.push(
            Draft::new(format!("zstd-{c}"))
                .create(geometry)
                .io(every_write(geometry))
                .done(),
        );
    }
    for cluster_bits in [9, 12, 14, 16, 17, 19] {
        let geometry = Geometry {
            old: cluster_bits % 2 == 0,
            ..Geometry::clusters(cluster_bits)
        };
        let size = (12 * geometry.cluster_size()).max(96 << 10);
        recipes.push(
            Draft::new(format!("zlib-{}-converted", geometry.cluster_size()))
                .raw("source.raw", size - 1536, 12)
                .img(format!(
                    "convert -c -O qcow2 -o {} source.raw disk.qcow2",
                    geometry.options()
                ))
                .done(),
        );
    }
    recipes
}

fn data_files() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for raw in [false, true] {
        for extended in [false, true] {
            for cluster_bits in [14, 16, 18] {
                let geometry = Geometry {
                    extended,
                    ..Geometry::clusters(cluster_bits)
                };
                let name = format!(
                    "data-file{}{}-{}",
                    if raw { "-raw" } else { "" },
                    if extended { "-subclusters" } else { "" },
                    geometry.cluster_size()
                );
                let options = format!(
                    "{},data_file=disk.data{}",
                    geometry.options(),
                    if raw { ",data_file_raw=on" } else { "" }
                );
                // No compressed clusters with a data file.
                let writes: Vec<String> = every_write(geometry)
                    .into_iter()
                    .filter(|command| !command.contains(" -c "))
                    .collect();
                let size = geometry.size();
                recipes.push(
                    Draft::new(&name)
                        .img(format!("create -q -f qcow2 -o {options} disk.qcow2 {size}"))
                        .io(writes.clone())
                        .done(),
                );
                if !raw {
                    recipes.push(
                        Draft::new(format!("{name}-over-raw"))
                            .raw("base.raw", size / 2 + 512, 6)
                            .img(format!("create -q -f qcow2 -o {options} -b base.raw -F raw disk.qcow2 {size}"))
                            .io(writes.clone())
                            .done(),
                    );
                }
            }
        }
    }
    // The data file seen from another folder, and one that is a base itself.
    recipes.push(
        Draft::new("data-file-elsewhere")
            .step(Step::Folder("sub".into()))
            .img("create -q -f qcow2 -o data_file=sub/disk.data disk.qcow2 1M")
            .io(vec!["write -q -P 1 64k 100k".into()])
            .done(),
    );
    recipes.push(
        Draft::new("over-data-file")
            .img("create -q -f qcow2 -o data_file=base.data,data_file_raw=on base.qcow2 1M")
            .io_in("base.qcow2", &["write -q -P 1 64k 100k"])
            .img("create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2")
            .io(vec!["write -q -P 2 100k 100k".into()])
            .done(),
    );
    recipes
}

fn backing_chains() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    let middle = [
        "write -q -P 50 64k 100k",
        "write -q -z 256k 70k",
        "write -q -c -P 51 384k 64k",
        "write -q -P 52 700k 30k",
    ];
    let top = [
        "write -q -P 60 100k 10k",
        "write -q -z 300k 100k",
        "write -q -P 61 800k 1k",
        "discard -q 128k 64k",
    ];
    // Virtual sizes in bytes of base, middle and top: shorter, longer, not aligned to anything.
    let sizes: [(u64, u64, u64); 8] = [
        (1 << 20, 1 << 20, 1 << 20),
        (300 << 10, 1 << 20, 1 << 20),
        (1 << 20, 750 << 10, 1 << 20),
        (2 << 20, 1 << 20, 900 << 10),
        ((90 << 10) + 512, (800 << 10) - 512, (1 << 20) + 1536),
        (1000, 750 << 10, 1 << 20),
        ((333 << 10) + 7, 801 << 10, (830 << 10) + 512),
        (0, 1 << 20, 1 << 20),
    ];
    for (index, (base, mid, end)) in sizes.into_iter().enumerate() {
        for (name, mid_options, top_options) in [
            ("same", "cluster_size=64k", "cluster_size=64k"),
            ("finer", "cluster_size=64k", "cluster_size=4k"),
            (
                "coarser",
                "cluster_size=4k",
                "cluster_size=64k,extended_l2=on",
            ),
            (
                "old",
                "cluster_size=32k,compat=0.10",
                "cluster_size=16k,compat=0.10",
            ),
        ] {
            let draft = Draft::new(format!("chain-{index}-{name}"))
                .raw("base.raw", base, 20 + index as u64)
                .img(format!(
                    "create -q -f qcow2 -o {mid_options} -b base.raw -F raw mid.qcow2 {mid}"
                ))
                .io_in("mid.qcow2", &middle)
                .img(format!(
                    "create -q -f qcow2 -o {top_options} -b mid.qcow2 -F qcow2 disk.qcow2 {end}"
                ))
                .io_in("disk.qcow2", &top);
            recipes.push(draft.done());
        }
    }
    let mut deep = Draft::new("chain-of-twelve").raw("0.raw", 200 << 10, 3);
    let mut below = ("0.raw".to_owned(), "raw");
    for level in 1..=12 {
        let name = if level == 12 {
            "disk.qcow2".to_owned()
        } else {
            format!("{level}.qcow2")
        };
        deep = deep
            .img(format!(
                "create -q -f qcow2 -o cluster_size={} -b {} -F {} {name}",
                512 << (level % 5),
                below.0,
                below.1
            ))
            .io_in(
                &name,
                &[&format!("write -q -P {level} {} 5k", level * 12 * 1024)],
            );
        below = (name, "qcow2");
    }
    recipes.push(deep.done());
    recipes
}

/// Names in the image are relative to the image, not to the working folder; prefixes and colons.
fn backing_names() -> Vec<Recipe> {
    let base = |name: &str| {
        Draft::new(name)
            .step(Step::Folder("sub".into()))
            .raw("base.raw", 100 << 10, 4)
    };
    let write = &["write -q -P 3 10k 20k"];
    vec![
        base("backing-in-parent")
            .img("create -q -f qcow2 -b ../base.raw -F raw sub/disk.qcow2")
            .io_in("sub/disk.qcow2", write)
            .top("sub/disk.qcow2")
            .done(),
        base("backing-in-sub")
            .raw("sub/other.raw", 70 << 10, 8)
            .img("create -q -f qcow2 -b sub/other.raw -F raw disk.qcow2")
            .io_in("disk.qcow2", write)
            .done(),
        base("backing-through-sub")
            .img("create -q -f qcow2 -b ../base.raw -F raw sub/mid.qcow2")
            .io_in("sub/mid.qcow2", write)
            .img("create -q -f qcow2 -b sub/mid.qcow2 -F qcow2 disk.qcow2 200k")
            .done(),
        base("backing-with-prefix").img("create -q -f qcow2 -b file:base.raw -F raw disk.qcow2").io_in("disk.qcow2", write).done(),
        base("backing-with-colon")
            .raw("a:b.raw", 64 << 10, 9)
            .img("create -q -f qcow2 -b ./a:b.raw -F raw disk.qcow2")
            .io_in("disk.qcow2", write)
            .done(),
        base("backing-as-json")
            .img(r#"create -q -f qcow2 -b json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}} -F raw disk.qcow2"#)
            .done(),
        base("backing-as-short-json")
            .img(r#"create -q -f qcow2 -b json:{"file.filename":"base.raw","file.driver":"file"} -F raw disk.qcow2"#)
            .done(),
        // The backing format's extension made unknown: QEMU probes then.
        base("backing-format-unknown-raw")
            .img("create -q -f qcow2 -b base.raw -F raw disk.qcow2")
            .patch(Patch::Bytes(112, vec![0x12, 0x34, 0x56, 0x78]))
            .done(),
        base("backing-format-unknown-qcow2")
            .img("create -q -f qcow2 base.qcow2 1M")
            .img("create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2")
            .patch(Patch::Bytes(112, vec![0x12, 0x34, 0x56, 0x78]))
            .done(),
        base("backing-qcow2-as-raw")
            .img("create -q -f qcow2 base.qcow2 1M")
            .img("create -q -f qcow2 -b base.qcow2 -F raw disk.qcow2")
            .io_in("disk.qcow2", write)
            .done(),
        base("backing-missing").img("create -q -u -f qcow2 -b gone.raw -F raw disk.qcow2 1M").done(),
        base("backing-format-not-known").img("create -q -u -f qcow2 -b base.raw -F raw disk.qcow2 1M").patch(Patch::Bytes(120, b"rwx".to_vec())).done(),
    ]
}

fn snapshots() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for cluster_bits in [9, 12, 16, 20] {
        for (name, geometry) in [
            (
                "v2",
                Geometry {
                    old: true,
                    ..Geometry::clusters(cluster_bits)
                },
            ),
            ("v3", Geometry::clusters(cluster_bits)),
            (
                "subclusters",
                Geometry {
                    extended: true,
                    ..Geometry::clusters(cluster_bits.max(14))
                },
            ),
        ] {
            let c = geometry.cluster_size();
            let mut draft = Draft::new(format!(
                "snapshots-{name}-{}-{cluster_bits}",
                geometry.cluster_size()
            ))
            .create(geometry)
            .img("snapshot -c empty disk.qcow2")
            .io(every_write(geometry))
            .img("snapshot -c every disk.qcow2")
            .io(vec![
                format!("write -q -P 20 0 {c}"),
                format!("write -q -P 21 {} {}", 4 * c, 2 * c),
                format!("discard -q {} {c}", 7 * c),
                format!("write -q -P 22 {} 512", 8 * c),
            ])
            .img("snapshot -c third disk.qcow2");
            if !geometry.old {
                draft = draft
                    .img(format!(
                        "resize -q disk.qcow2 {}",
                        geometry.size() + 3 * c + 512
                    ))
                    .io(vec![format!("write -q -P 23 {} {c}", geometry.size() + c)])
                    .img("snapshot -c grown disk.qcow2")
                    .img(format!("resize -q --shrink disk.qcow2 {}", 6 * c))
                    .io(vec![format!("write -q -P 24 {c} {}", 2 * c)]);
            }
            recipes.push(draft.done());
        }
    }
    let geometry = Geometry::clusters(12);
    let two = |name: &str| {
        Draft::new(name)
            .create(geometry)
            .io(every_write(geometry))
            .img("snapshot -c first disk.qcow2")
            .io(vec!["write -q -P 30 0 8k".into()])
            .img("snapshot -c second disk.qcow2")
    };
    recipes.push(
        two("snapshots-reverted")
            .img("snapshot -a first disk.qcow2")
            .done(),
    );
    recipes.push(
        two("snapshots-deleted")
            .img("snapshot -d first disk.qcow2")
            .done(),
    );
    recipes.push(
        two("snapshots-of-one-name")
            .img("snapshot -c second disk.qcow2")
            .io(vec!["write -q -P 31 0 4k".into()])
            .done(),
    );
    recipes.push(
        two("snapshots-named-like-ids")
            .img("snapshot -c 1 disk.qcow2")
            .io(vec!["write -q -P 32 0 4k".into()])
            .img("snapshot -c 7 disk.qcow2")
            .done(),
    );
    let backed = Draft::new("snapshots-over-raw")
        .raw("base.raw", 200 << 10, 1)
        .img("create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw disk.qcow2 300k")
        .io(vec!["write -q -P 30 10k 50k".into()])
        .img("snapshot -c first disk.qcow2")
        .io(vec![
            "write -q -P 31 20k 50k".into(),
            "discard -q 0 16k".into(),
        ]);
    recipes.push(backed.done());
    // State of a virtual machine lies behind the disk; its size, clock and instruction count are in the table.
    for (name, clock, state, icount) in [
        ("small", 1_500_000_u64, 4096_u64, 0_u64),
        (
            "hours",
            3_600_000_000_000 * 30 + 61_234_567_890,
            5 << 20,
            12_345_678,
        ),
        ("days", 3_600_000_000_000 * 2000, 123_456_789_012, u64::MAX),
    ] {
        let big_endian = |value: u64| value.to_be_bytes().to_vec();
        recipes.push(
            Draft::new(format!("snapshot-state-{name}"))
                .create(geometry)
                .io(vec![
                    "write -q -P 33 0 20k".into(),
                    "write -q -b -P 34 0 4k".into(),
                ])
                .img("snapshot -c first disk.qcow2")
                .patch(Patch::FirstSnapshot(24, big_endian(clock)))
                .patch(Patch::FirstSnapshot(
                    32,
                    (state as u32).to_be_bytes().to_vec(),
                ))
                .patch(Patch::FirstSnapshot(40, big_endian(state)))
                .patch(Patch::FirstSnapshot(56, big_endian(icount)))
                .done(),
        );
    }
    recipes
}

fn bitmaps() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for (cluster_bits, granularity) in [
        (9, "512"),
        (12, "4k"),
        (16, "64k"),
        (16, "512"),
        (18, "1M"),
        (21, "2G"),
    ] {
        let geometry = Geometry::clusters(cluster_bits);
        let draft = Draft::new(format!("bitmaps-{}-{granularity}", geometry.cluster_size()))
            .create(geometry)
            .img(format!("bitmap --add -g {granularity} disk.qcow2 counting"))
            .img(format!(
                "bitmap --add --disable -g {granularity} disk.qcow2 resting"
            ))
            .io(vec![
                "write -q -P 1 0 70k".into(),
                "write -q -z 100k 20k".into(),
            ]);
        recipes.push(draft.done());
    }
    let one = |name: &str| {
        Draft::new(name)
            .create(PLAIN)
            .img("bitmap --add disk.qcow2 first")
    };
    recipes.push(
        one("bitmap-in-use")
            .step(Step::Crash(
                "disk.qcow2".into(),
                vec!["write -q -P 1 0 70k".into()],
            ))
            .done(),
    );
    let written = one("bitmap-merged")
        .io(vec!["write -q -P 1 0 70k".into()])
        .img("bitmap --add --merge first -g 32k disk.qcow2 second")
        .img("bitmap --disable disk.qcow2 second");
    recipes.push(written.done());
    recipes.push(
        one("bitmap-removed")
            .img("bitmap --remove disk.qcow2 first")
            .done(),
    );
    recipes.push(
        one("bitmaps-and-snapshots")
            .io(every_write(PLAIN))
            .img("snapshot -c one disk.qcow2")
            .io(vec!["write -q 0 64k".into()])
            .done(),
    );
    // The autoclear bit says whether the bitmaps are still true.
    recipes.push(
        one("bitmap-without-autoclear")
            .patch(Patch::Bytes(88, vec![0; 8]))
            .done(),
    );
    let mut many = one("bitmaps-many");
    for index in 0..20 {
        many = many.img(format!(
            "bitmap --add -g {} disk.qcow2 number-{index}",
            512 << index
        ));
    }
    recipes.push(many.done());
    recipes.push(
        Draft::new("bitmap-data-file")
            .img("create -q -f qcow2 -o data_file=disk.data disk.qcow2 1M")
            .img("bitmap --add disk.qcow2 first")
            .io(vec!["write -q -P 1 0 70k".into()])
            .done(),
    );
    recipes.push(
        Draft::new("bitmap-over-raw")
            .raw("base.raw", 1 << 20, 1)
            .img("create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b base.raw -F raw disk.qcow2")
            .img("bitmap --add disk.qcow2 first")
            .io(vec!["write -q -P 1 0 70k".into()])
            .done(),
    );
    recipes
}

/// Closed without a word: leaks, or refcounts that were never written.
fn interrupted() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for (lazy, cluster_bits, refcount_bits) in [
        ("on", 16, 16),
        ("on", 9, 1),
        ("on", 12, 64),
        ("off", 16, 16),
        ("off", 9, 8),
    ] {
        let geometry = Geometry {
            refcount_bits,
            ..Geometry::clusters(cluster_bits)
        };
        let create = format!(
            "create -q -f qcow2 -o {},lazy_refcounts={lazy} disk.qcow2 1M",
            geometry.options()
        );
        let name = format!("lazy-{lazy}-{}", geometry.cluster_size());
        let writes: Vec<String> = vec![
            "write -q -P 1 0 70k".into(),
            "flush".into(),
            "write -q -P 2 300k 100k".into(),
        ];
        recipes.push(Draft::new(&name).img(&create).io(writes.clone()).done());
        let killed = Draft::new(format!("{name}-killed"))
            .img(&create)
            .step(Step::Crash("disk.qcow2".into(), writes.clone()));
        recipes.push(killed.done());
        let flushed = [
            "write -q -P 1 0 70k",
            "flush",
            "write -q -P 2 300k 100k",
            "discard -q 0 64k",
            "flush",
        ]
        .map(str::to_owned);
        recipes.push(
            Draft::new(format!("{name}-killed-flushed"))
                .img(&create)
                .step(Step::Crash("disk.qcow2".into(), flushed.to_vec()))
                .done(),
        );
    }
    // The corrupt bit alone, and together with the dirty bit.
    for (name, bits) in [("corrupt", 2), ("dirty", 1), ("corrupt-dirty", 3)] {
        recipes.push(
            Draft::new(format!("marked-{name}"))
                .create(PLAIN)
                .io(every_write(PLAIN))
                .patch(Patch::Bytes(79, vec![bits]))
                .done(),
        );
    }
    recipes
}

fn preallocated() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for mode in ["metadata", "falloc", "full"] {
        for (name, options) in [
            ("plain", "cluster_size=64k"),
            ("small", "cluster_size=512"),
            ("old", "cluster_size=4k,compat=0.10"),
            ("subclusters", "cluster_size=128k,extended_l2=on"),
            ("lazy", "cluster_size=32k,lazy_refcounts=on"),
        ] {
            recipes.push(
                Draft::new(format!("preallocated-{mode}-{name}"))
                    .img(format!(
                        "create -q -f qcow2 -o {options},preallocation={mode} disk.qcow2 {}",
                        (700 << 10) + 512
                    ))
                    .io(vec![
                        "write -q -P 1 100k 70k".into(),
                        "write -q -z 256k 128k".into(),
                    ])
                    .done(),
            );
        }
    }
    recipes.push(
        Draft::new("preallocated-data-file")
            .img("create -q -f qcow2 -o data_file=disk.data,data_file_raw=on,preallocation=metadata disk.qcow2 1M")
            .io(vec!["write -q -P 1 100k 70k".into()])
            .done(),
    );
    recipes
}

fn encrypted() -> Vec<Recipe> {
    let secret = "--object secret,id=key,data=oxcow";
    let luks = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    vec![
        Draft::new("luks").img(format!("create -q -f qcow2 {secret} -o {luks} disk.qcow2 1M")).done(),
        Draft::new("luks-aes-128-small")
            .img(format!("create -q -f qcow2 {secret} -o {luks},encrypt.cipher-alg=aes-128,cluster_size=4k disk.qcow2 100k"))
            .done(),
        Draft::new("luks-over-raw")
            .raw("base.raw", 100 << 10, 2)
            .img(format!("create -q -f qcow2 {secret} -o {luks},encrypt.hash-alg=sha1,extended_l2=on -b base.raw -F raw disk.qcow2"))
            .done(),
        Draft::new("aes").img(format!("create -q -f qcow2 {secret} -o encrypt.format=aes,encrypt.key-secret=key disk.qcow2 1M")).done(),
        Draft::new("aes-old")
            .img(format!("create -q -f qcow2 {secret} -o encrypt.format=aes,encrypt.key-secret=key,compat=0.10 disk.qcow2 1M"))
            .done(),
    ]
}

fn virtual_sizes() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for size in [
        "0",
        "1",
        "512",
        "1000",
        "65535",
        "65536",
        "66048",
        "1048064",
        "3221225984",
        "1T",
        "8T",
    ] {
        let mut draft =
            Draft::new(format!("size-{size}")).img(format!("create -q -f qcow2 disk.qcow2 {size}"));
        if !matches!(size, "0" | "1" | "512" | "1000") {
            draft = draft.io(vec!["write -q -P 1 1k 20k".into()]);
        }
        if size == "1T" {
            draft = draft.io(vec![
                "write -q -P 1 500G 70k".into(),
                "write -q -z 1000G 3M".into(),
                "write -q -c -P 5 1T-64k 64k".replace("1T-64k", "1099511562240"),
            ]);
        }
        recipes.push(draft.done());
    }
    for (size, options) in [
        ("1T", "cluster_size=512k,extended_l2=on"),
        ("64T", "cluster_size=2M"),
        ("1G", "cluster_size=512"),
        ("64G", "cluster_size=4k,compat=0.10"),
    ] {
        recipes.push(
            Draft::new(format!("size-{size}-{options}").replace([',', '='], "-"))
                .img(format!("create -q -f qcow2 -o {options} disk.qcow2 {size}"))
                .io(vec!["write -q -P 1 1000M 3k".into()])
                .done(),
        );
    }
    // Sizes that are no multiple of 512 come from other programs.
    for (size, kept) in [
        (1_u64, 512_u64),
        (511, 512),
        (513, 1024),
        (100_001, 100_352),
        (65_537, 66_048),
    ] {
        recipes.push(
            Draft::new(format!("size-odd-{size}"))
                .img(format!(
                    "create -q -f qcow2 -o cluster_size=4k disk.qcow2 {kept}"
                ))
                .io(vec![format!("write -q -P 1 0 {kept}")])
                .patch(Patch::Bytes(24, size.to_be_bytes().to_vec()))
                .done(),
        );
    }
    recipes
}

fn raw_files() -> Vec<Recipe> {
    let sizes = [0_u64, 1, 511, 512, 513, 100_000, 1 << 20];
    let raw = |size| {
        Draft::new(format!("raw-{size}"))
            .raw("disk.raw", size, size)
            .top("disk.raw")
            .done()
    };
    sizes.into_iter().map(raw).collect()
}

/// Images that `check` has something to say about, all still readable.
fn inconsistent() -> Vec<Recipe> {
    const COPIED: u64 = 1 << 63;
    let image = |name: &str| {
        Draft::new(format!("check-{name}"))
            .create(Geometry::clusters(12))
            .io(every_write(Geometry::clusters(12)))
    };
    let snapshot = |name: &str| {
        image(name)
            .img("snapshot -c one disk.qcow2")
            .io(vec!["write -q -P 70 0 4k".into()])
    };
    vec![
        image("leak").patch(Patch::Leak { count: 1 }).done(),
        image("leaks").patch(Patch::Leak { count: 7 }).done(),
        snapshot("leak-snapshot")
            .patch(Patch::Leak { count: 2 })
            .done(),
        image("refcount-high")
            .patch(Patch::Refcount { cluster: 5, by: 1 })
            .done(),
        image("refcount-low")
            .patch(Patch::Refcount { cluster: 5, by: -1 })
            .done(),
        image("refcount-header-low")
            .patch(Patch::Refcount { cluster: 0, by: -1 })
            .done(),
        image("refcount-wild")
            .patch(Patch::Refcount {
                cluster: 6,
                by: 999,
            })
            .done(),
        snapshot("refcount-shared-low")
            .patch(Patch::Refcount { cluster: 8, by: -1 })
            .done(),
        image("refcount-leak-and-low")
            .patch(Patch::Leak { count: 3 })
            .patch(Patch::Refcount { cluster: 6, by: -1 })
            .done(),
        image("copied-missing")
            .patch(Patch::L2Entry {
                index: 0,
                flip: COPIED,
            })
            .done(),
        image("copied-missing-l1")
            .patch(Patch::L1Entry {
                index: 0,
                flip: COPIED,
            })
            .done(),
        snapshot("copied-wrong")
            .patch(Patch::L2Entry {
                index: 1,
                flip: COPIED,
            })
            .done(),
        image("copied-both")
            .patch(Patch::L2Entry {
                index: 0,
                flip: COPIED,
            })
            .patch(Patch::L1Entry {
                index: 0,
                flip: COPIED,
            })
            .done(),
        image("entry-shared")
            .patch(Patch::L2Entry {
                index: 1,
                flip: 0x3000,
            })
            .done(),
        image("longer").patch(Patch::Length(1 << 20)).done(),
        image("longer-unaligned")
            .patch(Patch::Length((1 << 20) + 777))
            .done(),
        snapshot("copied-wrong-and-leak")
            .patch(Patch::L2Entry {
                index: 2,
                flip: COPIED,
            })
            .patch(Patch::Leak { count: 1 })
            .done(),
    ]
}

/// Any geometry with any writes, chosen by a seed.
fn mixtures(count: u64) -> Vec<Recipe> {
    (0..count).map(mixture).collect()
}

fn mixture(seed: u64) -> Recipe {
    let mut rng = Rng::new(0x0c0_0000 + seed);
    let mut geometry = Geometry {
        old: rng.one_in(4),
        cluster_bits: 9 + rng.below(10) as u32,
        refcount_bits: 1 << rng.below(7),
        extended: false,
        zstd: false,
    };
    if !geometry.old {
        geometry.extended = geometry.cluster_bits >= 14 && rng.one_in(2);
        geometry.zstd = rng.one_in(3);
    }
    let size = (128 << 10) + 512 * rng.below(2000);
    let mut draft = Draft::new(format!("mixture-{seed}"));
    let mut backing = String::new();
    if rng.one_in(2) {
        draft = draft.raw("base.raw", rng.below(size * 5 / 4), seed);
        backing = "-b base.raw -F raw".to_owned();
        if rng.one_in(2) {
            let below = Geometry {
                cluster_bits: 9 + rng.below(9) as u32,
                ..PLAIN
            };
            let writes = random_writes(&mut rng, below, size, 8);
            draft = draft
                .img(format!(
                    "create -q -f qcow2 -o {} {backing} mid.qcow2 {size}",
                    below.options()
                ))
                .step(Step::Try("mid.qcow2".into(), writes));
            backing = "-b mid.qcow2 -F qcow2".to_owned();
        }
    }
    let lazy = if !geometry.old && rng.one_in(4) {
        ",lazy_refcounts=on"
    } else {
        ""
    };
    draft = draft.img(format!(
        "create -q -f qcow2 -o {}{lazy} {backing} disk.qcow2 {size}",
        geometry.options()
    ));
    let snapshots = if geometry.old || geometry.refcount_bits >= 4 {
        rng.below(4)
    } else {
        0
    };
    if !geometry.old && rng.one_in(5) {
        draft = draft.img("bitmap --add disk.qcow2 counting");
    }
    for snapshot in 0..=snapshots {
        let writes = random_writes(&mut rng, geometry, size, 10);
        draft = draft.step(Step::Try("disk.qcow2".into(), writes));
        if snapshot < snapshots {
            draft = draft.img(format!("snapshot -c s{snapshot} disk.qcow2"));
        }
    }
    draft.done()
}

fn random_writes(rng: &mut Rng, geometry: Geometry, size: u64, count: u64) -> Vec<String> {
    let c = geometry.cluster_size();
    let mut write = |index: u64| {
        // Mostly whole sectors, sometimes whole clusters, sometimes any byte.
        let align = *rng.pick(&[512, 512, 512, c, c, 1, (c / 32).max(512)]);
        let offset = rng.below(size) / align * align;
        let longest = (size - offset).min(4 * c).min(256 << 10);
        let len = (1 + rng.below(longest))
            .next_multiple_of(align)
            .min(size - offset);
        let pattern = 100 + index;
        let cluster = offset / c * c;
        match rng.below(10) {
            0..5 => format!("write -q -P {pattern} {offset} {len}"),
            5 => format!("write -q -z {offset} {len}"),
            6 => format!("write -q -z -u {offset} {len}"),
            7 => format!("discard -q {offset} {len}"),
            8 => format!("write -q -s noise {offset} {}", len.min(65536)),
            _ => format!(
                "write -q -c -P {pattern} {cluster} {}",
                c.min(size - cluster)
            ),
        }
    };
    (0..count).map(&mut write).collect()
}
