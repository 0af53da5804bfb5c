//! `kill -9` at random moments, over and over on the same images: what was flushed is there, every sector holds
//! a value that it was given, every snapshot keeps what it had, and nothing but leaked clusters is left over.
//!
//! A program of its own: beside other tests, most processes would be killed before they have done anything.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use oxcow_tests::cut::command::{Command, script};
use oxcow_tests::cut::judge::{self, Verdict};
use oxcow_tests::cut::legal::Legal;
use oxcow_tests::cut::state::State;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::{parallel, run};

/// How many processes are killed, on how many images.
const NATIVE: (usize, usize) = (1_000, 20);
/// The same under wasmtime.
const WASM: (usize, usize) = (100, 4);
/// The longest time that a process has before it is killed, in microseconds.
const LONGEST: u64 = 20_000;
/// How many commands a process is given: more than it can do in that time, and no more than fit into a pipe.
const COMMANDS: usize = 1_500;
const IMAGE: &str = "disk.qcow2";
const PROMPT: &str = "qemu-io> ";

/// What was counted.
#[derive(Default)]
struct Tally {
    kills: usize,
    in_transactions: usize,
    completed: usize,
    acknowledged: usize,
    refused: usize,
    flushes: usize,
    leaking: usize,
    converted: usize,
}

/// One image, for as long as it lasts.
struct Life {
    build: Build,
    rng: Rng,
    scratch: Scratch,
    cluster: u64,
    /// What the last look at it showed.
    state: State,
    tally: Tally,
    /// What the last process was told, for a person who looks for what went wrong.
    told: String,
}

impl Life {
    fn new(build: Build, seed: u64) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let cluster = *rng.pick(&[512, 1024, 4096, 65536]);
        let scratch = Scratch::new("killed");
        let size = 64 * cluster.max(2048);
        let mut options = format!("cluster_size={cluster}");
        if !rng.one_in(3) {
            options += &format!(",refcount_bits={}", rng.pick(&[2, 4, 8, 16, 32, 64]));
        }
        if rng.one_in(4) {
            options += ",lazy_refcounts=on";
        }
        if cluster >= 16384 && rng.one_in(2) {
            options += ",extended_l2=on";
        }
        let mut args = vec!["create".to_owned(), "-f".into(), "qcow2".into()];
        if rng.one_in(2) {
            let mut base = vec![0; size as usize / 2];
            for sector in base.chunks_mut(512) {
                sector.fill(rng.below(256) as u8);
            }
            fs::write(scratch.path().join("base.raw"), base).map_err(|error| error.to_string())?;
            args.extend(["-b", "base.raw", "-F", "raw"].map(str::to_owned));
        }
        args.extend(["-o".into(), options, IMAGE.into(), size.to_string()]);
        let made = build.run("oxcow", scratch.path(), None, &args);
        if made.code != 0 {
            return Err(format!("{args:?}: {}", made.stderr));
        }
        let state = State::read(&scratch.path().join(IMAGE))?;
        Ok(Self {
            build,
            rng,
            scratch,
            cluster,
            state,
            tally: Tally::default(),
            told: args.join(" "),
        })
    }

    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn spawn(&self, args: &[&str]) -> Result<Child, String> {
        let words = self.build.words("oxcow", None);
        Process::new(&words[0])
            .args(&words[1..])
            .args(args)
            .current_dir(self.dir())
            .env("TZ", "UTC0")
            .env("PWD", self.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())
    }

    /// Goes on until so many processes were killed.
    fn live(&mut self, kills: usize) -> Result<(), String> {
        while self.tally.kills < kills {
            match self.rng.below(5) {
                0 => self.transaction()?,
                _ => self.guest()?,
            }
        }
        // What was lost is found again, and then nothing is wrong any more.
        self.told = format!("check -r leaks {IMAGE}");
        let args = ["check", "-q", "-r", "leaks", IMAGE].map(str::to_owned);
        let repaired = self.build.run("oxcow", self.dir(), None, &args);
        if repaired.code != 0 {
            return Err(format!("exit code {}: {}", repaired.code, repaired.stderr));
        }
        match judge::check(self.dir(), IMAGE)? {
            Verdict::CLEAN => self.expect(std::slice::from_ref(&self.state)),
            found => Err(format!("after the repair: {found:?}")),
        }
    }

    /// A guest that reads and writes, killed.
    fn guest(&mut self) -> Result<(), String> {
        let size = self.state.disk.len() as u64;
        let commands: Vec<Command> = (0..COMMANDS)
            .map(|_| Command::random(&mut self.rng, size, self.cluster))
            .collect();
        let script = script(&commands);
        let mut child = self.spawn(&["io", "-t", "writeback", IMAGE])?;
        let mut stdin = child.stdin.take().ok_or("stdin is piped")?;
        let mut stdout = child.stdout.take().ok_or("stdout is piped")?;
        // The pipe takes all of it at once; it stays open, so that the process does not come to its end.
        stdin
            .write_all(script.as_bytes())
            .map_err(|error| error.to_string())?;
        let mut said = Vec::new();
        if !self.rng.one_in(10) {
            // Most are killed when they have begun: starting takes wasmtime longer than all the rest.
            let mut first = [0; PROMPT.len()];
            stdout
                .read_exact(&mut first)
                .map_err(|error| format!("it ended before it began: {error}"))?;
            said.extend_from_slice(&first);
        }
        std::thread::sleep(Duration::from_micros(self.rng.below(LONGEST + 1)));
        child.kill().map_err(|error| error.to_string())?;
        stdout
            .read_to_end(&mut said)
            .map_err(|error| error.to_string())?;
        let status = child.wait().map_err(|error| error.to_string())?;
        drop(stdin);
        if status.code().is_some() {
            return Err(format!("it ended by itself: {status}"));
        }
        // It asks for a command when the one before is done.
        let said = String::from_utf8_lossy(&said);
        let answers: Vec<&str> = said.split(PROMPT).skip(1).collect();
        let prompts = answers.len();
        self.told = self::script(&commands[..prompts.min(commands.len())]);
        self.tally.kills += 1;
        self.tally.acknowledged += prompts.saturating_sub(1);
        let done = &commands[..prompts.saturating_sub(1)];
        let flushes = done.iter().filter(|one| **one == Command::Flush);
        self.tally.flushes += flushes.count();

        let mut legal = Legal::new(&self.state.disk, self.cluster)?;
        if prompts > 0 {
            // As with qemu-io, nothing is compressed over what is there.
            let mut effective = commands.clone();
            for (command, answer) in effective.iter_mut().zip(&answers[..prompts - 1]) {
                let refused =
                    !answer.contains("wrote") && matches!(command, Command::Compressed(..));
                if refused {
                    *command = Command::Zeroes(0..0, false);
                }
                self.tally.refused += usize::from(refused);
            }
            legal = legal.after(&effective, prompts - 1);
        }
        self.sound()?;
        let found = State::read(&self.dir().join(IMAGE))?;
        legal.judge(&found.disk)?;
        let expected = State {
            disk: found.disk.clone(),
            snapshots: self.state.snapshots.clone(),
        };
        self.state = found;
        self.expect(&[expected])?;
        self.convert()
    }

    /// A snapshot made, applied or deleted, a disk resized, a repair: killed too.
    fn transaction(&mut self) -> Result<(), String> {
        let old = self.state.clone();
        let mut new = old.clone();
        let number = self.rng.next_u64() % 10_000;
        let some = (!old.snapshots.is_empty()).then(|| self.rng.pick(&old.snapshots).clone());
        let mut args: Vec<String> = match (self.rng.below(6), some) {
            (0 | 1, _) | (2 | 3, None) if old.snapshots.len() < 2 => {
                let name = format!("s{number}");
                let id = old
                    .snapshots
                    .iter()
                    .filter_map(|(id, ..)| id.parse::<u64>().ok());
                let id = id.max().unwrap_or(0) + 1;
                new.snapshots
                    .push((id.to_string(), name.clone(), old.disk.clone()));
                vec!["snapshot".into(), "-c".into(), name]
            }
            (0..=2, Some((_, name, disk))) => {
                new.disk = disk;
                vec!["snapshot".into(), "-a".into(), name]
            }
            (3, Some((id, name, _))) => {
                new.snapshots.retain(|(other, ..)| *other != id);
                vec!["snapshot".into(), "-d".into(), name]
            }
            (4, _) => {
                let clusters = 32 + self.rng.below(128);
                let size = clusters * self.cluster;
                new.disk.resize(size as usize, 0);
                let (image, size) = (IMAGE.to_owned(), size.to_string());
                vec!["resize".into(), "-q".into(), "--shrink".into(), image, size]
            }
            _ => vec!["check".into(), "-q".into(), "-r".into(), "all".into()],
        };
        if args[0] != "resize" {
            args.push(IMAGE.into());
        }
        self.told = args.join(" ");
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = self.spawn(&words)?;
        let longest = match self.build {
            Build::Native => 6_000,
            // Most of it is the start.
            Build::Wasm => 120_000,
        };
        std::thread::sleep(Duration::from_micros(self.rng.below(longest)));
        child.kill().map_err(|error| error.to_string())?;
        let status = child.wait().map_err(|error| error.to_string())?;
        self.sound()?;
        let found = State::read(&self.dir().join(IMAGE))?;
        self.state = found;
        match status.code() {
            None => {
                self.tally.kills += 1;
                self.tally.in_transactions += 1;
                self.expect(&[old, new])
            }
            Some(0) => {
                self.tally.completed += 1;
                self.expect(&[new])
            }
            Some(code) => {
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    let _ = stderr.read_to_string(&mut said);
                }
                // Narrow refcounts count only so many snapshots.
                match code == 1 && said.contains("bits cannot count") {
                    true => self.expect(&[old]),
                    false => Err(format!("exit code {code}: {said}")),
                }
            }
        }
    }

    /// Nothing is wrong but leaks.
    fn sound(&mut self) -> Result<(), String> {
        let found = judge::check(self.dir(), IMAGE)?;
        if found.corruptions != 0 {
            return Err(format!("{found:?}"));
        }
        self.tally.leaking += usize::from(found.leaks != 0);
        Ok(())
    }

    /// The image holds what one of `states` says.
    fn expect(&self, states: &[State]) -> Result<(), String> {
        let differences = states.iter().map(|state| self.state.difference(state));
        let differences: Option<Vec<String>> = differences.collect();
        match differences {
            None => Ok(()),
            Some(differences) => Err(differences.join("; ")),
        }
    }

    /// Now and then the native tools read it too.
    fn convert(&mut self) -> Result<(), String> {
        if !self.rng.one_in(16) {
            return Ok(());
        }
        let args = ["convert", "-f", "qcow2", "-O", "raw", IMAGE, "all.raw"].map(str::to_owned);
        let outcome = oracle::run(Tool::Img, self.dir(), &args);
        let raw = fs::read(self.dir().join("all.raw"));
        self.tally.converted += 1;
        match raw {
            Ok(raw) if outcome.code == 0 && raw == self.state.disk => Ok(()),
            _ => Err(format!(
                "qemu-img convert reads something else: {}",
                outcome.stderr
            )),
        }
    }
}

#[test]
fn nothing_is_lost_when_the_process_is_killed() {
    if !oracle::available() {
        return;
    }
    // Both are there before the clock starts.
    for build in [Build::Native, Build::Wasm] {
        let _ = build.words("oxcow", None);
    }
    let start = Instant::now();
    let lives = [(Build::Wasm, WASM), (Build::Native, NATIVE)];
    let lives: Vec<(Build, usize, u64)> = lives
        .into_iter()
        .flat_map(|(build, (kills, images))| {
            (0..images).map(move |image| (build, kills.div_ceil(images), image as u64))
        })
        .collect();
    let results = parallel::map(&lives, |&(build, kills, seed)| {
        let mut life = Life::new(build, seed).map_err(|what| Failure {
            case: format!("{build:?} image {seed}"),
            doing: "create".to_owned(),
            what,
        })?;
        let done = life.live(kills);
        let Err(what) = done else {
            return Ok(life.tally);
        };
        Err({
            // The image and what led to it stay, for a person who looks.
            let kept = oxcow_tests::scratch::cache().join(format!("killed-{build:?}-{seed}"));
            let _ = run::run(run::command("rm", life.dir()).arg("-rf").arg(&kept));
            let _ = run::run(
                run::command("cp", life.dir())
                    .arg("-r")
                    .arg(life.dir())
                    .arg(&kept),
            );
            Failure {
                case: format!("{build:?} image {seed}, kill {}", life.tally.kills),
                doing: format!("{}\n(kept: {})", life.told, kept.display()),
                what,
            }
        })
    });
    let mut failures = Vec::new();
    let mut all = Tally::default();
    for result in results {
        match result {
            Ok(tally) => {
                all.kills += tally.kills;
                all.in_transactions += tally.in_transactions;
                all.completed += tally.completed;
                all.acknowledged += tally.acknowledged;
                all.refused += tally.refused;
                all.flushes += tally.flushes;
                all.leaking += tally.leaking;
                all.converted += tally.converted;
            }
            Err(failure) => failures.push(failure),
        }
    }
    println!(
        "{} processes killed in {:.0} s, {} of them in a transaction (another {} were faster): {} commands \
         done, {} of them refused, {} flushes; {} times clusters were leaked; {} disks read by qemu-img too",
        all.kills,
        start.elapsed().as_secs_f64(),
        all.in_transactions,
        all.completed,
        all.acknowledged,
        all.refused,
        all.flushes,
        all.leaking,
        all.converted,
    );
    if failures.is_empty() {
        assert!(all.kills >= NATIVE.0 + WASM.0, "too few were killed");
        assert!(
            all.flushes >= all.kills / 4,
            "too little was done before the kills"
        );
    }
    finish("killed", all.kills + failures.len(), &failures);
}
