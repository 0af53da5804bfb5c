//! The image that a script starts with.

use std::fmt;
use std::sync::Arc;

use crate::rng::Rng;
use crate::scripts::BITMAP;
use crate::scripts::stock::Base;

/// Where guest data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// In the image.
    Inside,
    /// In a file of its own.
    File,
    /// In a file of its own that is a raw image of the disk.
    Raw,
}

/// What is reserved at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// Metadata.
    Metadata,
    /// Metadata, and room in the file.
    Falloc,
    /// Metadata, and room that is written.
    Full,
}

impl Preallocation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Off, Self::Metadata, Self::Falloc, Self::Full];

    /// The option's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// The largest disk with a data file, which is as long as the disk, in bytes.
pub const MOST_DATA: u64 = 16 << 20;

/// The options of the start image.
#[derive(Clone)]
pub struct Setup {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// Extended L2 entries.
    pub extended: bool,
    /// Lazy refcounts.
    pub lazy: bool,
    /// Compress by zstd instead of zlib.
    pub zstd: bool,
    /// Where guest data lies.
    pub data: Data,
    /// What is reserved at the start.
    pub preallocation: Preallocation,
    /// Whether the image has a bitmap of what changes.
    pub bitmap: bool,
    /// The disk's size in bytes.
    pub size: u64,
    /// The backing file.
    pub base: Option<Arc<Base>>,
}

impl Setup {
    /// Any one.
    #[must_use]
    pub fn random(rng: &mut Rng, bases: &[Arc<Base>]) -> Self {
        let version = if rng.one_in(5) { 2 } else { 3 };
        let mut setup = Self {
            version,
            cluster_bits: 9 + rng.below(13) as u32,
            refcount_bits: 16,
            extended: false,
            lazy: false,
            zstd: false,
            data: Data::Inside,
            preallocation: Preallocation::Off,
            bitmap: false,
            size: 0,
            base: None,
        };
        if version == 3 {
            if rng.one_in(2) {
                setup.refcount_bits = 1 << rng.below(7);
            }
            setup.extended = setup.cluster_bits >= 14 && rng.one_in(3);
            setup.lazy = rng.one_in(5);
            setup.bitmap = rng.one_in(10);
            setup.zstd = rng.one_in(3);
            setup.data = match rng.below(12) {
                0 => Data::File,
                1 => Data::Raw,
                _ => Data::Inside,
            };
        }
        setup.size = random_size(rng, setup.cluster_bits);
        if setup.data != Data::Inside {
            setup.size = setup.size.min(MOST_DATA);
        }
        // A raw data file holds the whole disk, so there is nothing that could lie behind it.
        if setup.data != Data::Raw && rng.one_in(2) {
            setup.base = Some(rng.pick(bases).clone());
        } else if rng.one_in(6) && setup.size <= 4 << 20 {
            setup.preallocation = *rng.pick(&Preallocation::ALL);
        }
        setup
    }

    /// The cluster size in bytes.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// What a COW copies at least: a cluster, or a subcluster.
    #[must_use]
    pub fn subcluster(&self) -> u64 {
        if self.extended {
            self.cluster() / 32
        } else {
            self.cluster()
        }
    }

    /// How many references to one cluster a refcount can count, at most 100.
    #[must_use]
    pub fn most_references(&self) -> u64 {
        1_u64
            .checked_shl(self.refcount_bits)
            .map_or(100, |limit| (limit - 1).min(100))
    }

    /// The value of `-o` with which either program creates the image. The data file's name is relative to the
    /// image, so both must stand in the working folder.
    #[must_use]
    pub fn options(&self) -> String {
        let compat = if self.version == 2 { "0.10" } else { "1.1" };
        let mut options = format!("compat={compat},cluster_size={}", self.cluster());
        if self.version == 3 {
            options += &format!(",refcount_bits={}", self.refcount_bits);
        }
        for (given, option) in [
            (self.extended, "extended_l2=on"),
            (self.lazy, "lazy_refcounts=on"),
            (self.zstd, "compression_type=zstd"),
            (self.data != Data::Inside, "data_file=disk.data"),
            (self.data == Data::Raw, "data_file_raw=on"),
        ] {
            if given {
                options.push(',');
                options += option;
            }
        }
        if self.preallocation != Preallocation::Off {
            options += &format!(",preallocation={}", self.preallocation.name());
        }
        options
    }

    /// The arguments of `create`.
    #[must_use]
    pub fn create(&self, image: &str) -> Vec<String> {
        let mut args: Vec<String> = ["create", "-q", "-f", "qcow2", "-o", &self.options()]
            .map(str::to_owned)
            .into();
        if let Some(base) = &self.base {
            args.extend(["-b", &base.name, "-F", base.format].map(str::to_owned));
        }
        args.extend([image.to_owned(), self.size.to_string()]);
        args
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.create("disk.qcow2").join(" "))?;
        if self.bitmap {
            write!(f, "; bitmap --add disk.qcow2 {BITMAP}")?;
        }
        match &self.base {
            Some(base) => write!(f, "   # {base}"),
            None => Ok(()),
        }
    }
}

/// Mostly a few clusters to a few hundred, sometimes many that are hardly touched: what L1 tables and refcount
/// structures have to grow for.
fn random_size(rng: &mut Rng, cluster_bits: u32) -> u64 {
    let cluster = 1_u64 << cluster_bits;
    let size = match rng.below(10) {
        0 => 512 * (1 + rng.below(40)),
        // 64 GiB at most, and L1 tables of 32 KiB at most.
        1 => (cluster * (1 << rng.below(14))).min(cluster * cluster / 8 * 4096),
        2..5 => cluster * (1 + rng.below(12)),
        _ => (32 << 10) + 512 * rng.below(4000),
    };
    let odd = if rng.one_in(2) {
        512 * rng.below(40)
    } else {
        0
    };
    let rounded = if rng.one_in(3) {
        size.next_multiple_of(cluster)
    } else {
        size + odd
    };
    rounded.max(512)
}
