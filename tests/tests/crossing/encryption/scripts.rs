//! Random scripts over encrypted images, in which ours and the native tools take turns; the disk is what a model
//! of it says, whoever reads it.

use std::fs;
use std::path::Path;

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish, line_difference};
use oxcow_tests::rng::Rng;
use oxcow_tests::run::Outcome;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::place;

/// How many images; every fourth is worked on by the sandboxed build.
const IMAGES: u64 = 24;
/// How many changes each of them sees.
const STEPS: usize = 10;

/// Options of `create` for the cipher, without the prefix that qcow2 has for them.
const CIPHERS: &[&str] = &[
    "",
    "cipher-alg=aes-128",
    "cipher-alg=aes-192",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
    "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=aes-128,cipher-mode=cbc,hash-alg=sha1",
    "cipher-mode=cbc,ivgen-alg=plain",
    "hash-alg=sha512,ivgen-alg=plain",
    "hash-alg=sha224,ivgen-alg=essiv",
    "hash-alg=sha384",
];
/// Other options of qcow2.
const LAYOUTS: &[&str] = &[
    "",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=8",
    "cluster_size=2M",
    "extended_l2=on",
    "cluster_size=16k,extended_l2=on",
    "compat=0.10",
    "data_file=disk.data",
    "preallocation=metadata",
    "compression_type=zstd,lazy_refcounts=on",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// LUKS inside qcow2.
    Qcow2,
    /// The old method inside qcow2.
    Aes,
    /// LUKS alone.
    Luks,
}

/// Who does something.
#[derive(Clone, Copy, Debug)]
enum Side {
    Ours(Build),
    Theirs,
}

struct Case {
    folder: Scratch,
    rng: Rng,
    method: Method,
    build: Build,
    disk: Vec<u8>,
    snapshot: Option<Vec<u8>>,
    can_grow: bool,
    story: Vec<String>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            folder: place::scratch("encryption"),
            method: *rng.pick(&[Method::Qcow2, Method::Qcow2, Method::Aes, Method::Luks]),
            build: if seed.is_multiple_of(4) {
                Build::Wasm
            } else {
                Build::Native
            },
            disk: Vec::new(),
            snapshot: None,
            can_grow: true,
            story: Vec::new(),
            rng,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn side(&mut self) -> Side {
        match self.rng.one_in(2) {
            true => Side::Ours(self.build),
            false => Side::Theirs,
        }
    }

    /// Runs a tool with the secret.
    fn run(&mut self, tool: Tool, side: Side, args: &[&str]) -> Result<Outcome, String> {
        let secret = ["--object", "secret,id=key,file=secret"];
        let args: Vec<&str> = match tool {
            Tool::Img => [&args[..1], &secret, &args[1..]].concat(),
            Tool::Io => [&secret, args].concat(),
        };
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        self.story
            .push(format!("{side:?} {} {}", tool.name(), args.join(" ")));
        let outcome = match side {
            Side::Ours(build) => build.stand_in(tool, self.path(), None, &args),
            Side::Theirs => oracle::run(tool, self.path(), &args),
        };
        match outcome.code {
            0 => Ok(outcome),
            code => Err(format!(
                "gives {code}: {}{}",
                outcome.stdout, outcome.stderr
            )),
        }
    }

    /// Runs qemu-img, or what ours is in its place, with the secret; `line` is split at spaces, and `@` in it is the
    /// image.
    fn img(&mut self, side: Side, line: &str) -> Result<Outcome, String> {
        let name = self.name();
        let words = line.split(' ');
        let args: Vec<&str> = words
            .map(|word| if word == "@" { name } else { word })
            .collect();
        self.run(Tool::Img, side, &args)
    }

    fn name(&self) -> &'static str {
        match self.method {
            Method::Luks => "driver=luks,key-secret=key,file.filename=disk",
            _ => "driver=qcow2,encrypt.key-secret=key,file.filename=disk",
        }
    }

    fn create(&mut self) -> Result<(), String> {
        let size = 512 * (1 + self.rng.below(6000)) as usize;
        let secret = format!("{:x} é", self.rng.next_u64());
        fs::write(self.path().join("secret"), secret).map_err(|e| e.to_string())?;
        self.disk = vec![0; size];
        let cipher = *self.rng.pick(CIPHERS);
        let layout = *self.rng.pick(LAYOUTS);
        let prefixed = |prefix: &str| -> String {
            let parts = cipher.split(',').filter(|part| !part.is_empty());
            parts.map(|part| format!(",{prefix}{part}")).collect()
        };
        let mut args = vec!["create", "-q", "-f"];
        let mut options = match self.method {
            Method::Luks => format!("key-secret=key,iter-time=10{}", prefixed("")),
            Method::Qcow2 => format!(
                "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10{}",
                prefixed("encrypt.")
            ),
            Method::Aes => "encrypt.format=aes,encrypt.key-secret=key".to_owned(),
        };
        if self.method != Method::Luks && !layout.is_empty() {
            options.push_str(&format!(",{layout}"));
        }
        let backed = self.method != Method::Luks
            && !layout.contains("prealloc")
            && !layout.contains("data_file")
            && self.rng.one_in(3);
        if backed {
            let length = 512 * (1 + self.rng.below(4000)) as usize;
            let base = self.rng.bytes(length);
            fs::write(self.path().join("base"), &base).map_err(|e| e.to_string())?;
            let common = base.len().min(size);
            self.disk[..common].copy_from_slice(&base[..common]);
            options.push_str(",backing_file=base,backing_fmt=raw");
            // What is added to a disk may not show what the base has there, which is another test's business.
            self.can_grow = base.len() <= size;
        }
        let size = size.to_string();
        args.push(if self.method == Method::Luks {
            "luks"
        } else {
            "qcow2"
        });
        args.extend(["-o", &options, "disk", &size]);
        let side = self.side();
        self.run(Tool::Img, side, &args)?;
        // What nobody has encrypted yet decrypts to nothing in particular.
        if self.method == Method::Luks || layout.contains("prealloc") {
            self.can_grow = false;
            let all = format!("write -q -P 0 0 {size}");
            let side = self.side();
            self.io(side, &all)?;
        }
        Ok(())
    }

    fn io(&mut self, side: Side, command: &str) -> Result<Outcome, String> {
        let name = self.name();
        self.run(Tool::Io, side, &["--image-opts", "-c", command, name])
    }

    fn step(&mut self) -> Result<(), String> {
        let side = self.side();
        let size = self.disk.len() as u64;
        let start = self.rng.below(size);
        let most = (size - start).min(*self.rng.pick(&[700, 5000, 70_000, 400_000]));
        let length = 1 + self.rng.below(most);
        let qcow2 = self.method != Method::Luks;
        match self.rng.below(10) {
            0..=4 => {
                let fill = self.rng.below(256) as u8;
                self.io(side, &format!("write -q -P {fill} {start} {length}"))?;
                self.disk[start as usize..][..length as usize].fill(fill);
            }
            5 | 6 => {
                let start = start / 512 * 512;
                let length = length.next_multiple_of(512).min(size - start);
                let unmap = if self.rng.one_in(2) { "-u " } else { "" };
                self.io(side, &format!("write -q -z {unmap}{start} {length}"))?;
                self.disk[start as usize..][..length as usize].fill(0);
            }
            7 if qcow2 && self.snapshot.is_none() && !self.path().join("disk.data").exists() => {
                self.img(side, "snapshot -c one --image-opts @")?;
                self.snapshot = Some(self.disk.clone());
            }
            8 if qcow2 && self.snapshot.is_some() => {
                self.img(side, "snapshot -a one --image-opts @")?;
                self.disk
                    .clone_from(self.snapshot.as_ref().expect("there is one"));
            }
            9 if self.can_grow && self.snapshot.is_none() => {
                let new = size + 512 * (1 + self.rng.below(300));
                self.img(side, &format!("resize -q --image-opts @ {new}"))?;
                self.disk.resize(new as usize, 0);
            }
            _ => {}
        }
        Ok(())
    }

    /// Both read what the model says.
    fn read(&mut self) -> Result<(), String> {
        for side in [Side::Ours(self.build), Side::Theirs] {
            self.img(side, "convert -O raw --image-opts @ read")?;
            let read = fs::read(self.path().join("read")).map_err(|error| error.to_string())?;
            if let Some(at) =
                (0..read.len().max(self.disk.len())).find(|&at| read.get(at) != self.disk.get(at))
            {
                return Err(format!(
                    "{side:?}: byte {at} is {:?} instead of {:?}",
                    read.get(at),
                    self.disk.get(at)
                ));
            }
        }
        Ok(())
    }

    fn go(&mut self) -> Result<(), String> {
        self.create()?;
        for step in 0..STEPS {
            self.step()?;
            if step % 4 == 3 {
                self.read()?;
            }
        }
        let side = self.side();
        // Into another encrypted image and back.
        let (from, to) = match side {
            Side::Theirs => (Side::Theirs, Side::Ours(self.build)),
            ours => (ours, Side::Theirs),
        };
        let luks = "key-secret=key,iter-time=10";
        let encrypted = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
        let copy = "driver=qcow2,encrypt.key-secret=key,file.filename=copy";
        let plain = "driver=luks,key-secret=key,file.filename=plain";
        self.img(
            from,
            &format!("convert -O qcow2 -o {encrypted} --image-opts @ copy"),
        )?;
        self.img(to, &format!("compare -q --image-opts @ {copy}"))?;
        self.img(
            to,
            &format!("convert -O luks -o {luks} --image-opts {copy} plain"),
        )?;
        self.img(from, &format!("compare -q --image-opts {plain} @"))?;
        if self.method != Method::Luks {
            for side in [Side::Theirs, Side::Ours(self.build)] {
                self.img(side, "check -q --image-opts @")?;
            }
        }
        self.same_report()
    }

    /// Without any secret, both tell the same of the image.
    fn same_report(&self) -> Result<(), String> {
        for output in ["human", "json"] {
            let args = ["info", "--output", output, "disk"].map(str::to_owned);
            let ours = Build::Native.stand_in(Tool::Img, self.path(), None, &args);
            let theirs = oracle::run(Tool::Img, self.path(), &args);
            if (ours.code, &ours.stdout) != (theirs.code, &theirs.stdout) {
                let difference = line_difference(&theirs.stdout, &ours.stdout);
                return Err(format!("info tells something else:\n{difference}"));
            }
        }
        Ok(())
    }
}

#[test]
fn ours_and_the_native_tools_take_turns() {
    if !oracle::available() {
        return;
    }
    let seeds: Vec<u64> = (0..IMAGES).collect();
    let results = parallel::map(&seeds, |&seed| {
        let mut case = Case::new(seed);
        case.go().err().map(|what| Failure {
            case: format!("seed {seed}"),
            doing: case.story.join("\n"),
            what,
        })
    });
    let failures: Vec<Failure> = results.into_iter().flatten().collect();
    finish("encryption", seeds.len(), &failures);
}
