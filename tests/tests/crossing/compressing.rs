//! Compressed clusters that the program writes, with either method and clusters of many sizes: the native
//! tools read every byte of them, find nothing wrong, and compress as many themselves.

use std::fs;
use std::path::Path;

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::rng::Rng;
use oxcow_tests::run::Outcome;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::place;

/// log2 of the cluster sizes: the smallest, the default, the largest, and those whose streams mostly end in
/// another sector or another cluster than they begin in.
const CLUSTER_BITS: [u32; 7] = [9, 10, 12, 14, 16, 18, 21];
/// What fills one of the clusters.
const FILL: u8 = 0xe5;

/// One cluster of each kind: a byte, words, a table, half noise, a long piece again and again, and noise, which
/// nobody can compress.
fn clusters(length: usize) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(length as u64);
    let mut words = Vec::new();
    while words.len() < length {
        words.extend_from_slice(
            rng.pick(&["a ", "guest ", "writes ", "over ", "its ", "disk\n"])
                .as_bytes(),
        );
    }
    words.truncate(length);
    let numbers = (0..length as u64 / 8).flat_map(|index| (index << 16).to_be_bytes());
    let mut half = rng.bytes(length / 2);
    half.resize(length, 0);
    let piece: Vec<u8> = rng.bytes(6000).into_iter().map(|byte| byte & 15).collect();
    vec![
        vec![FILL; length],
        words,
        numbers.collect(),
        half,
        piece.into_iter().cycle().take(length).collect(),
        rng.bytes(length),
    ]
}

struct Case {
    build: Build,
    method: &'static str,
    bits: u32,
    /// The folder of the image that ours writes to, and that of the native tools.
    ours: Scratch,
    theirs: Scratch,
}

impl Case {
    fn new(build: Build, method: &'static str, bits: u32) -> Self {
        let new = || place::scratch("compressing");
        Self {
            build,
            method,
            bits,
            ours: new(),
            theirs: new(),
        }
    }

    fn run(&self) -> Result<(), String> {
        let cluster = 1_usize << self.bits;
        let mut disk = clusters(cluster).concat();
        // The disk ends in a cluster.
        disk.extend_from_slice(&vec![FILL; cluster - 512 * usize::from(self.bits > 9)]);
        for folder in [&self.ours, &self.theirs] {
            fs::write(folder.path().join("source"), &disk).map_err(|error| error.to_string())?;
            let options = format!("cluster_size={cluster},compression_type={}", self.method);
            let size = disk.len().to_string();
            img(
                folder.path(),
                &["create", "-q", "-f", "qcow2", "-o", &options, "disk", &size],
            )?;
        }
        let all = format!("write -q -c -s source 0 {}", disk.len());
        self.both(&[&all])?;
        // A byte, words and numbers shrink whoever compresses them, and noise never does. Of the others, encoders
        // have different opinions where a cluster is small.
        for folder in [&self.ours, &self.theirs] {
            let count = self.compressed(folder)?;
            if !(4..=6).contains(&count) {
                return Err(format!("{count} of 7 clusters are compressed"));
            }
        }
        self.read(&disk)?;
        // Parts of what is compressed now: a COW must take it apart first.
        for index in [1, 2] {
            let start = index * cluster + cluster / 4;
            let write = format!("write -q -P {index} {start} 100");
            disk[start..start + 100].fill(index as u8);
            self.both(&[&write])?;
        }
        self.read(&disk)
    }

    /// The same commands by ours and by qemu-io, on an image each.
    fn both(&self, commands: &[&str]) -> Result<(), String> {
        let args: Vec<String> = commands
            .iter()
            .flat_map(|command| ["-c", command])
            .chain(["disk"])
            .map(str::to_owned)
            .collect();
        let found = self.build.stand_in(Tool::Io, self.ours.path(), None, &args);
        silent("ours", &found)?;
        silent("qemu-io", &oracle::run(Tool::Io, self.theirs.path(), &args))
    }

    /// How many clusters are compressed, as the judge counts them.
    fn compressed(&self, folder: &Scratch) -> Result<u64, String> {
        let report = img(folder.path(), &["check", "--output=json", "disk"])?;
        let report: serde_json::Value =
            serde_json::from_str(&report).map_err(|error| error.to_string())?;
        Ok(report["compressed-clusters"].as_u64().unwrap_or(0))
    }

    /// The native tools read our image, and find it in order.
    fn read(&self, disk: &[u8]) -> Result<(), String> {
        let folder = self.ours.path();
        img(folder, &["check", "-q", "disk"])?;
        let fill = format!("read -q -P {FILL} 0 {}", 1_u64 << self.bits);
        let args = ["-c", &fill, "disk"].map(str::to_owned);
        silent("qemu-io", &oracle::run(Tool::Io, folder, &args))?;
        img(folder, &["convert", "-O", "raw", "disk", "read"])?;
        let read = fs::read(folder.join("read")).map_err(|error| error.to_string())?;
        match read.iter().zip(disk).position(|(a, b)| a != b) {
            None if read.len() == disk.len() => Ok(()),
            None => Err(format!("{} bytes instead of {}", read.len(), disk.len())),
            Some(at) => Err(format!("byte {at} is {} instead of {}", read[at], disk[at])),
        }
    }
}

/// What qemu-img says.
fn img(folder: &Path, args: &[&str]) -> Result<String, String> {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let outcome = oracle::run(Tool::Img, folder, &args);
    match outcome.code {
        0 => Ok(outcome.stdout),
        code => Err(format!(
            "qemu-img {args:?} gives {code}: {}",
            outcome.stderr
        )),
    }
}

fn silent(who: &str, outcome: &Outcome) -> Result<(), String> {
    if outcome.code == 0 && outcome.stdout.is_empty() && outcome.stderr.is_empty() {
        return Ok(());
    }
    let (code, out, err) = (outcome.code, &outcome.stdout, &outcome.stderr);
    Err(format!("{who} gives {code}: {out}{err}"))
}

#[test]
fn what_ours_compresses_the_native_tools_read() {
    if !oracle::available() {
        return;
    }
    let mut cases = Vec::new();
    for build in [Build::Wasm, Build::Native] {
        for method in ["zlib", "zstd"] {
            cases.extend(CLUSTER_BITS.map(|bits| (build, method, bits)));
        }
    }
    let results = parallel::map(&cases, |&(build, method, bits)| {
        Case::new(build, method, bits)
            .run()
            .err()
            .map(|what| Failure {
                case: format!("{method}, clusters of 2^{bits}"),
                doing: format!("{build:?}"),
                what,
            })
    });
    let failures: Vec<Failure> = results.into_iter().flatten().collect();
    finish("compressing", cases.len(), &failures);
}
