//! Damaged refcounts and flags, repaired by ours and by `qemu-img check -r`: afterwards the native check finds
//! nothing, the disk and every snapshot are what they were before the damage, as much was repaired as the
//! native tool repairs, and a second repair has nothing to do.
//!
//! `OXCOW_REPAIRS=17..18 cargo test -p oxcow-tests --test crossing repair::damaged -- --nocapture` runs case 17
//! alone.

mod anything;
mod bases;
mod cut;
mod damage;
mod memory;

use std::fs;
use std::ops::Range;
use std::path::Path;

use damage::{Harm, Victim};
use memory::{Repaired, check, repair_bytes};
use oxcow::{CheckReport, GuestOffset, Image, RepairMode};
use oxcow_tests::gallery::{Picture, make_all};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish, line_difference};
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::storage::block_on;
use oxcow_tests::scripts::view;
use serde_json::Value;

/// How many images are damaged, unless OXCOW_REPAIRS says which.
const CASES: Range<u64> = 0..400;
/// How many repairs are cut in the middle.
const CUT_CASES: Range<u64> = 1000..1060;

/// A disk and all its snapshots.
#[derive(Clone, PartialEq, Eq)]
struct Content(Vec<(String, Vec<u8>)>);

fn content(path: &Path) -> Result<Content, String> {
    let mut image = view::open(path)?;
    let read = |image: &Image<_>| {
        let mut bytes = vec![0; image.virtual_size() as usize];
        block_on(image.read_at(GuestOffset(0), &mut bytes))
            .map(|()| bytes)
            .map_err(|error| format!("{error:#}"))
    };
    let mut all = vec![(String::new(), read(&image)?)];
    let snapshots = image.top().as_qcow2().map(|qcow2| qcow2.snapshots());
    for snapshot in snapshots.iter().flat_map(|all| all.iter()) {
        block_on(image.use_snapshot(&snapshot.id)).map_err(|error| format!("{error:#}"))?;
        all.push((snapshot.name.clone(), read(&image)?));
    }
    Ok(Content(all))
}

/// An image of a base, damaged.
struct Case {
    scratch: Scratch,
    name: String,
    damage: Vec<String>,
    harms: Vec<Harm>,
    /// The judge writes bitmaps when it opens an image: with the damaged refcounts.
    has_bitmaps: bool,
    content: Content,
    bytes: Vec<u8>,
}

const NAME: &str = "disk.qcow2";

/// A healthy image.
struct Base {
    picture: Picture,
    bytes: Vec<u8>,
    content: Content,
}

fn all_bases() -> Vec<Base> {
    let bases = make_all("repair-bases", bases::bases());
    let read = |picture: &Picture| {
        let path = picture.dir.join(NAME);
        let content = content(&path).expect("the base can be read");
        let bytes = fs::read(&path).expect("the base is there");
        Base {
            picture: picture.clone(),
            bytes,
            content,
        }
    };
    bases.iter().map(read).collect()
}

impl Case {
    fn new(seed: u64, bases: &[Base]) -> Self {
        let mut rng = Rng::new(seed);
        let base = &bases[seed as usize % bases.len()];
        let scratch = Scratch::new("repair");
        for entry in fs::read_dir(&base.picture.dir)
            .expect("the base is there")
            .flatten()
        {
            if entry.path().is_file() && entry.file_name() != NAME {
                let to = scratch.path().join(entry.file_name());
                fs::copy(entry.path(), to).expect("the target folder can be written");
            }
        }
        let mut victim = Victim::new(base.bytes.clone());
        let (mut damage, mut harms) = (Vec::new(), Vec::new());
        let kinds = match rng.below(3) {
            0 => Harm::SMALL.to_vec(),
            1 => Harm::LARGE.to_vec(),
            _ => [Harm::SMALL, Harm::LARGE].concat(),
        };
        let count = 1 + rng.below(4);
        while (harms.len() as u64) < count {
            let harm = *rng.pick(&kinds);
            if let Some(done) = harm.apply(&mut victim, &mut rng) {
                damage.push(done);
                harms.push(harm);
            }
        }
        Self {
            scratch,
            name: format!("{seed} ({})", base.picture.recipe.name),
            damage,
            harms,
            has_bitmaps: base
                .picture
                .recipe
                .steps
                .iter()
                .any(|step| step.to_string().contains("bitmap")),
            content: base.content.clone(),
            bytes: victim.bytes,
        }
    }

    /// How many clusters the damaged image has.
    fn clusters(&self) -> u64 {
        Victim::new(self.bytes.clone()).clusters()
    }

    fn file(&self) -> std::path::PathBuf {
        self.scratch.path().join(NAME)
    }

    fn native(&self, args: &[&str]) -> oxcow_tests::run::Outcome {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        oracle::run(Tool::Img, self.scratch.path(), &args)
    }

    /// Nothing is wrong with the image, and its disks are what they were.
    fn expect_good(&self, what: &str) -> Result<(), String> {
        let outcome = self.native(&["check", "-T", "unsafe", NAME]);
        if outcome.code != 0 {
            return Err(format!(
                "{what}: qemu-img check gives {}\n{}{}",
                outcome.code, outcome.stdout, outcome.stderr
            ));
        }
        view::check(&self.file(), false).map_err(|error| format!("{what}: {error}"))?;
        let found = content(&self.file()).map_err(|error| format!("{what}: {error}"))?;
        for ((name, expected), (_, found)) in self.content.0.iter().zip(&found.0) {
            let differs = expected.iter().zip(found).position(|(a, b)| a != b);
            if let Some(at) = differs {
                return Err(format!("{what}: disk '{name}' differs at byte {at:#x}"));
            }
        }
        (found == self.content)
            .then_some(())
            .ok_or_else(|| format!("{what}: other snapshots"))
    }
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or(0)
}

/// What the native repair of the same image came to.
struct Native {
    code: i32,
    /// Leaks and corruptions that were repaired.
    fixed: (u64, u64),
    said: Vec<String>,
}

fn native_repair(case: &Case, mode: RepairMode) -> Option<Native> {
    fs::write(case.file(), &case.bytes).expect("the target folder can be written");
    let mode = match mode {
        RepairMode::Leaks => "leaks",
        RepairMode::All => "all",
    };
    let args = ["check", "-T", "unsafe", "-r", mode, "--output=json", NAME];
    let outcome = case.native(&args);
    let report: Value = serde_json::from_str(&outcome.stdout).ok()?;
    Some(Native {
        code: outcome.code,
        fixed: (
            number(&report, "leaks-fixed"),
            number(&report, "corruptions-fixed"),
        ),
        said: outcome.stderr.lines().map(str::to_owned).collect(),
    })
}

/// The exit code for what a repair left.
fn code(left: &CheckReport) -> i32 {
    match left {
        CheckReport {
            check_errors: 1.., ..
        } => 1,
        CheckReport {
            corruptions: 1.., ..
        } => 2,
        CheckReport { leaks: 1.., .. } => 3,
        _ => 0,
    }
}

/// Compares one repair with the native one. Returns whether both repaired.
fn compare(case: &Case, mode: RepairMode, ours: oxcow::Result<Repaired>) -> Result<bool, String> {
    let native = native_repair(case, mode);
    let mut ours = match (ours, &native) {
        (Ok(ours), _) => ours,
        (Err(_), None) => return Ok(false),
        (Err(error), Some(_)) => return Err(format!("only ours fails: {error:#}")),
    };
    // The judge fails on some of these blocks, makes the file as long as others would need, and counts what
    // that changes.
    let outside = |line: &String| line.ends_with("is outside image");
    // It writes bitmaps with the damaged refcounts when it opens an image.
    let comparable = !case.has_bitmaps && !ours.said.iter().any(outside);
    let native = match native.filter(|_| comparable) {
        Some(native) => native,
        None if comparable && mode == RepairMode::Leaks => {
            return Err("only the judge refuses to mend leaks alone".into());
        }
        None => return Ok(false),
    };
    if mode == RepairMode::All && native.code != 0 {
        return Ok(false); // Ours left nothing, which has been looked at.
    }
    let fixed = (ours.report.leaks_fixed, ours.report.corruptions_fixed);
    if fixed != native.fixed {
        return Err(format!(
            "{mode:?} repairs {fixed:?} leaks and corruptions instead of {:?}\n{}",
            native.fixed,
            line_difference(&native.said.join("\n"), &ours.said.join("\n"))
        ));
    }
    let code = code(&ours.report.found);
    if code != native.code {
        return Err(format!(
            "{mode:?} ends with {code} instead of {}",
            native.code
        ));
    }
    if ours.report.has_repaired() {
        // Both programs look once more, then.
        ours.said.extend(check(&ours.bytes)?.said);
    }
    // After these it tells of what it does with its old table and blocks.
    let rebuilt = ours
        .said
        .iter()
        .any(|line| line == "Rebuilding refcount structure");
    let (ours, theirs) = (ours.said.join("\n"), native.said.join("\n"));
    if !rebuilt && ours != theirs {
        let difference = line_difference(&theirs, &ours);
        return Err(format!("{mode:?} says something else: {difference}"));
    }
    Ok(true)
}

/// Everything about one case; the counts where both repaired.
fn run(case: &Case) -> Result<bool, String> {
    let failed = |error: oxcow::Error| format!("repair fails: {error:#}");
    let all = repair_bytes(case.bytes.clone(), RepairMode::All, 64 << 20).map_err(failed)?;
    // Its end says the most.
    let last = |said: &[String]| said[said.len().saturating_sub(12)..].join("\n  ");
    let told = || format!("\nsaid\n  {}", last(&all.said));
    if !all.report.found.is_clean() {
        return Err(format!(
            "not everything is repaired: {:?}{}",
            all.report,
            told()
        ));
    }
    fs::write(case.file(), &all.bytes).expect("the target folder can be written");
    case.expect_good("after the repair")
        .map_err(|error| error + &told())?;

    let again = repair_bytes(all.bytes.clone(), RepairMode::All, 64 << 20).map_err(failed)?;
    if again.report.has_repaired() || again.counts.writes != 0 || !again.said.is_empty() {
        return Err(format!(
            "the second repair does something: {:?} {:?} {:?}",
            again.report, again.counts, again.said
        ));
    }
    let windows = repair_bytes(case.bytes.clone(), RepairMode::All, 0).map_err(failed)?;
    if windows.bytes != all.bytes || windows.said != all.said || windows.report != all.report {
        return Err("the repair in small windows is another one".into());
    }

    // The image goes on being used.
    fs::write(case.file(), &all.bytes).expect("the target folder can be written");
    let write = ["-t", "unsafe", "-c", "write -q -P 77 128k 40k", NAME].map(str::to_owned);
    let outcome = oracle::run(Tool::Io, case.scratch.path(), &write);
    let check = case.native(&["check", "-T", "unsafe", NAME]);
    if outcome.code != 0 || check.code != 0 {
        return Err(format!(
            "used on: {}{}{}{}{}",
            outcome.stdout,
            outcome.stderr,
            check.stdout,
            check.stderr,
            told()
        ));
    }

    let leaks = repair_bytes(case.bytes.clone(), RepairMode::Leaks, 64 << 20);
    compare(case, RepairMode::Leaks, leaks)?;
    compare(case, RepairMode::All, Ok(all))
}

fn seeds(default: Range<u64>) -> Vec<u64> {
    let Ok(given) = std::env::var("OXCOW_REPAIRS") else {
        return default.collect();
    };
    let range = given.split_once("..").and_then(|(start, end)| {
        let range: Range<u64> = start.parse().ok()?..end.parse().ok()?;
        Some(range)
    });
    range.expect("OXCOW_REPAIRS is like 17..18").collect()
}

#[test]
fn damaged_images_are_repaired_as_qemu_img_does_it() {
    if !oracle::available() {
        return;
    }
    let bases = all_bases();
    let seeds = seeds(CASES);
    let results = parallel::map(&seeds, |&seed| {
        let case = Case::new(seed, &bases);
        run(&case).map_err(|what| Failure {
            case: case.name.clone(),
            doing: format!(
                "OXCOW_REPAIRS={seed}..{} cargo test -p oxcow-tests --test crossing repair::damaged\n{}",
                seed + 1,
                case.damage.join("\n")
            ),
            what,
        })
    });
    let compared = results
        .iter()
        .flatten()
        .filter(|&&compared| compared)
        .count();
    println!("{} images repaired, {compared} by both", results.len());
    let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    finish("repair", seeds.len(), &failures);
}

#[test]
fn a_cut_repair_is_finished_by_another() {
    if !oracle::available() {
        return;
    }
    // Those whose states are quickly read.
    let bases: Vec<Base> = all_bases()
        .into_iter()
        .filter(|base| base.picture.virtual_size() <= 1 << 20)
        .collect();
    let seeds = seeds(CUT_CASES);
    let results = parallel::map(&seeds, |&seed| {
        let case = Case::new(seed, &bases);
        let mode = match case.harms.iter().all(|harm| Harm::SMALL.contains(harm)) {
            true if seed % 2 == 0 => RepairMode::Leaks,
            _ => RepairMode::All,
        };
        cut::run(&case, mode, &mut Rng::new(seed)).map_err(|what| Failure {
            case: case.name.clone(),
            doing: format!(
                "OXCOW_REPAIRS={seed}..{} cargo test -p oxcow-tests --test crossing repair::a_cut\n{mode:?} of {}",
                seed + 1,
                case.damage.join("\n")
            ),
            what,
        })
    });
    let states: usize = results.iter().flatten().sum();
    println!("{states} states of {} repairs", results.len());
    let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    finish("repair-cut", states, &failures);
}
