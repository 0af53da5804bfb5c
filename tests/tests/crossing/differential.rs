//! Every image of the gallery, read by qemu-img and by ours: the same exit code, the same output, the same
//! bytes.

use std::fs;

use oxcow_tests::compare::{Question, expected_file, reverted};
use oxcow_tests::gallery::{Picture, gallery};
use oxcow_tests::ours::Build;
use oxcow_tests::recipe::dig_holes;
use oxcow_tests::report::Failure;
use oxcow_tests::{oracle, parallel, report};

/// Larger disks are not converted as a whole: their content is looked at with `io` and `map`.
const CONVERTED: u64 = 64 << 20;

type Check = Box<dyn Fn(&Picture, Build) -> Option<Failure>>;

fn ask(question: Question) -> Check {
    Box::new(move |picture, build| question.ask(&picture.recipe.name, &picture.dir, build))
}

fn ask_for_file(args: impl Fn(&str) -> Vec<String> + 'static) -> Check {
    Box::new(move |picture, build| {
        Question::ask_for_file(&picture.recipe.name, &picture.dir, build, &args, &args)
    })
}

/// Whether snapshots of the image have other sizes than its active disk.
fn resized(picture: &Picture) -> bool {
    picture
        .recipe
        .steps
        .iter()
        .any(|step| step.to_string().contains("qemu-img resize"))
}

fn img(args: &[&str]) -> Check {
    ask(Question::img(args))
}

/// Asks `questions(picture)` about every picture, all of them of the WASI build and every third of the
/// native build.
fn over_gallery(name: &str, questions: impl Fn(&Picture) -> Vec<Check> + Sync) {
    if !oracle::available() {
        return;
    }
    let pictures: Vec<(usize, &Picture)> = gallery().iter().enumerate().collect();
    let results = parallel::map(&pictures, |&(index, picture)| {
        let builds: &[Build] = if index % 3 == 0 {
            &[Build::Wasm, Build::Native]
        } else {
            &[Build::Wasm]
        };
        let checks = questions(picture);
        let pairs = builds
            .iter()
            .flat_map(|&build| checks.iter().map(move |check| (check, build)));
        let failures: Vec<Failure> = pairs
            .filter_map(|(check, build)| check(picture, build))
            .collect();
        (builds.len() * checks.len(), failures)
    });
    let looked_at = results.iter().map(|(count, _)| count).sum();
    let failures: Vec<Failure> = results
        .into_iter()
        .flat_map(|(_, failures)| failures)
        .collect();
    report::finish(name, looked_at, &failures);
}

#[test]
fn the_gallery_is_large_enough() {
    if !oracle::available() {
        return;
    }
    assert!(gallery().len() >= 300, "{}", gallery().len());
    let names: std::collections::HashSet<&str> = gallery()
        .iter()
        .map(|picture| picture.recipe.name.as_str())
        .collect();
    assert_eq!(names.len(), gallery().len(), "names are unique");
}

#[test]
fn info() {
    over_gallery("info", |picture| {
        vec![
            img(&["info", "--output=json", picture.top()]),
            img(&["info", picture.top()]),
            img(&["info", "--backing-chain", picture.top()]),
            img(&["info", "--backing-chain", "--output=json", picture.top()]),
        ]
    });
}

#[test]
fn map() {
    over_gallery("map", |picture| {
        let size = picture.virtual_size();
        let start = format!("--start-offset={}", size / 3);
        let length = format!("--max-length={}", size / 4 + 1);
        vec![
            img(&["map", "--output=json", picture.top()]),
            img(&["map", picture.top()]),
            img(&["map", "--output=json", &start, &length, picture.top()]),
        ]
    });
}

#[test]
fn check() {
    over_gallery("check", |picture| {
        vec![
            img(&["check", "--output=json", picture.top()]),
            img(&["check", picture.top()]),
        ]
    });
}

#[test]
fn measure() {
    over_gallery("measure", |picture| {
        let lines = [
            "measure -O raw --output=json",
            "measure -O raw",
            "measure -O qcow2 --output=json",
            "measure -O qcow2",
            "measure -O qcow2 -o cluster_size=4k,refcount_bits=1",
        ];
        let mut checks: Vec<Check> = lines.map(|line| measured(line, picture)).into();
        if let Some(&name) = picture.snapshots().last() {
            let question = Question::img([
                "measure",
                "-O",
                "qcow2",
                "--output=json",
                "-l",
                name,
                picture.top(),
            ]);
            let name = name.to_owned();
            checks.push(Box::new(move |picture, build| {
                let case = &picture.recipe.name;
                if !resized(picture) {
                    return question.ask(case, &picture.dir, build);
                }
                let copy = reverted(&picture.dir, picture.top(), &name);
                let judge = words(&["measure", "-O", "qcow2", "--output=json", &copy]);
                question.ask_as(&judge, case, &picture.dir, build)
            }));
        }
        checks
    });
}

/// Asks ours about the picture, and the judge about the picture or, where it is raw, about a copy with holes: ours
/// counts what is in a raw file, the judge what was written to it.
fn measured(line: &'static str, picture: &Picture) -> Check {
    const DUG: &str = "dug.raw";
    let args = |name: &str| -> Vec<String> {
        let words = line.split(' ').chain([name]);
        words.map(str::to_owned).collect()
    };
    let question = Question::img(args(picture.top()));
    if !picture.top().ends_with(".raw") {
        return Box::new(move |picture, build| {
            question.ask(&picture.recipe.name, &picture.dir, build)
        });
    }
    let judge = args(DUG);
    Box::new(move |picture, build| {
        let dir = &picture.dir;
        dig_holes(&dir.join(picture.top()), &dir.join(DUG)).expect("the folder can be written");
        question.ask_as(&judge, &picture.recipe.name, dir, build)
    })
}

#[test]
fn snapshots() {
    over_gallery("snapshots", |picture| {
        vec![img(&["snapshot", "-l", picture.top()])]
    });
}

fn words(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|&part| part.to_owned()).collect()
}

#[test]
fn convert() {
    over_gallery("convert", |picture| {
        if picture.virtual_size() > CONVERTED {
            return Vec::new();
        }
        let top = picture.top().to_owned();
        let mut checks = vec![ask_for_file(move |output| {
            words(&["convert", "-O", "raw", &top, output])
        })];
        for (index, name) in picture.snapshots().into_iter().enumerate() {
            let which = if index % 2 == 0 {
                name.to_owned()
            } else {
                format!("snapshot.name={name}")
            };
            let name = name.to_owned();
            checks.push(Box::new(move |picture, build| {
                let (case, dir, top) = (&picture.recipe.name, &picture.dir, picture.top());
                let ours =
                    |output: &str| words(&["convert", "-O", "raw", "-l", &which, top, output]);
                if !resized(picture) {
                    return Question::ask_for_file(case, dir, build, ours, ours);
                }
                let copy = reverted(dir, top, &name);
                Question::ask_for_file(
                    case,
                    dir,
                    build,
                    |output| words(&["convert", "-O", "raw", &copy, output]),
                    ours,
                )
            }));
        }
        checks
    });
}

#[test]
fn dd() {
    over_gallery("dd", |picture| {
        if picture.virtual_size() > CONVERTED {
            return Vec::new();
        }
        let some = |options: &'static [&'static str]| {
            let input = format!("if={}", picture.top());
            ask_for_file(move |output| {
                let mut args = words(&["dd", "-O", "raw", &input, &format!("of={output}")]);
                args.extend(words(options));
                args
            })
        };
        vec![some(&["bs=64k"]), some(&["bs=1000", "skip=3", "count=20"])]
    });
}

#[test]
fn compare() {
    over_gallery("compare", |picture| {
        let mut checks = vec![img(&["compare", picture.top(), "noise"])];
        if picture.virtual_size() > CONVERTED || picture.encrypted() {
            return checks;
        }
        let content = expected_file(&picture.dir, &|output: &str| {
            words(&["convert", "-O", "raw", picture.top(), output])
        });
        let Ok(mut bytes) = fs::read(&content) else {
            return checks;
        };
        // Without holes, which a sandbox cannot see.
        let content = ".answers/content.raw";
        fs::write(picture.dir.join(content), &bytes).expect("the target folder can be written");
        checks.push(img(&["compare", picture.top(), content]));
        checks.push(img(&["compare", "-s", content, picture.top()]));
        checks.push(img(&["compare", "-q", "-s", picture.top(), picture.top()]));
        if let Some(middle) = bytes.len().checked_sub(1).map(|last| last * 2 / 3) {
            bytes[middle] ^= 1;
            fs::write(picture.dir.join(".answers/changed.raw"), &bytes)
                .expect("the target folder can be written");
            checks.push(img(&["compare", picture.top(), ".answers/changed.raw"]));
        }
        checks
    });
}

#[test]
fn io() {
    over_gallery("io", |picture| {
        let size = picture.virtual_size();
        let middle = size / 2 / 512 * 512;
        let io = |commands: &[&str]| ask(Question::io(picture.top(), commands));
        vec![
            io(&[
                "length",
                "map",
                "alloc 0",
                &format!("alloc {middle} 10k"),
                "info",
            ]),
            io(&[
                "read -P 1 0 1k",
                "read -q -v 0 512",
                "read -P 0 1000 3000",
                &format!("read -v {middle} 1k"),
            ]),
            io(&[
                &format!("read {} 1k", size.saturating_sub(512)),
                &format!("read -P 9 -s 100 -l 200 {middle} 512"),
            ]),
        ]
    });
}
