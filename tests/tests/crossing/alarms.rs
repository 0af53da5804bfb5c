//! The alarms of the safety report on real images: none about what qemu-img makes, and an alarm about everything that
//! another inspector finds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use oxcow_tests::gallery::{Picture, gallery};
use oxcow_tests::oracle::{self, Tool, on_path};
use oxcow_tests::ours::Build;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::scratch::Scratch;
use oxcow_tests::{parallel, run};
use serde_json::Value;

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// Our report on a file of `dir`.
fn inspect(dir: &Path, file: &str) -> Value {
    let outcome = Build::Wasm.run(
        "oxcow",
        dir,
        None,
        &strings(&["inspect", "--output=json", file]),
    );
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{file}: {error}: {outcome:?}"))
}

/// The codes of warnings and dangers.
fn alarms(report: &Value) -> Vec<&str> {
    let findings = report["findings"]
        .as_array()
        .expect("a report has findings");
    let loud = findings
        .iter()
        .filter(|finding| finding["severity"] != "note");
    loud.map(|finding| finding["code"].as_str().expect("a finding has a code"))
        .collect()
}

/// What the judge says about a picture that is worth an alarm.
fn expected_alarms(picture: &Picture) -> Vec<&'static str> {
    let data = &picture.info["format-specific"]["data"];
    let has = |value: &Value| !value.is_null() && value != false;
    let size = picture.virtual_size();
    let mut expected = Vec::new();
    if has(&picture.info["backing-filename"]) {
        expected.push("backing-file");
        if picture.info["backing-filename-format"].is_null() {
            expected.push("backing-format-missing");
        }
    }
    let cases = [
        (has(&data["data-file"]), "data-file"),
        (picture.info["dirty-flag"] == true, "dirty"),
        (data["corrupt"] == true, "corrupt"),
        (data["encrypt"]["format"] == "aes", "encrypted-weakly"),
        ((16 << 40..1 << 60).contains(&size), "size-huge"),
        (size >= 1 << 60, "size-extreme"),
        (picture.info["format"] == "raw" && size == 0, "empty-file"),
    ];
    expected.extend(
        cases
            .into_iter()
            .filter_map(|(is, code)| is.then_some(code)),
    );
    expected
}

#[test]
fn ordinary_images_raise_no_alarm() {
    if !oracle::available() {
        return;
    }
    // What the judge cannot open, and what a recipe planted in an image after it was made.
    let planted = |picture: &Picture| {
        picture.info.is_null() || picture.recipe.name.starts_with("snapshot-state")
    };
    let pictures: Vec<&Picture> = gallery()
        .iter()
        .filter(|picture| !planted(picture))
        .collect();
    let failures = parallel::map(&pictures, |picture| {
        let report = inspect(&picture.dir, picture.top());
        let expected = expected_alarms(picture);
        let fits = |alarm: &str, code: &str| {
            alarm == code
                || alarm
                    .strip_prefix(code)
                    .is_some_and(|rest| rest.starts_with('-'))
        };
        let false_alarm = alarms(&report).into_iter().find(|alarm| {
            *alarm != "content-probes-as-image" && !expected.iter().any(|code| fits(alarm, code))
        });
        let missed = expected
            .iter()
            .find(|code| !alarms(&report).iter().any(|alarm| fits(alarm, code)));
        let what = match (false_alarm, missed) {
            (Some(alarm), _) => format!("a false alarm: {alarm}"),
            (_, Some(code)) => format!("no word of {code}"),
            (None, None) => return None,
        };
        Some(Failure {
            case: picture.recipe.name.clone(),
            doing: "inspect".into(),
            what,
        })
    });
    let failures: Vec<Failure> = failures.into_iter().flatten().collect();
    finish("inspect", pictures.len(), &failures);
}

#[test]
fn what_qemu_takes_a_file_for_is_what_the_report_says() {
    if !oracle::available() {
        return;
    }
    let scratch = Scratch::new("inspect-formats");
    std::fs::write(scratch.path().join("content.raw"), [7; 70_000]).expect("a file can be written");
    for format in [
        "raw",
        "qcow2",
        "qcow",
        "qed",
        "vmdk",
        "vdi",
        "vpc",
        "vhdx",
        "parallels",
    ] {
        let args = strings(&["convert", "-f", "raw", "-O", format, "content.raw", format]);
        let made = oracle::run(Tool::Img, scratch.path(), &args);
        assert_eq!(made.code, 0, "{made:?}");
        let info = oracle::run(
            Tool::Img,
            scratch.path(),
            &strings(&["info", "--output=json", format]),
        );
        let info: Value = serde_json::from_str(&info.stdout).expect("the judge prints JSON");
        let report = inspect(scratch.path(), format);
        assert_eq!(report["format"], info["format"]);
        if !["raw", "parallels"].contains(&format) {
            assert_eq!(report["virtual-size"], info["virtual-size"], "{format}");
        }
    }
}

/// A Python that has the inspector of oslo.utils, where there is one.
fn oslo() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let ours = std::env::var_os("HOME")
            .map(|home| PathBuf::from(home).join(".cache/oxcow/venv/bin/python"));
        let has_it = |python: &PathBuf| {
            let mut command = Command::new(python);
            command.args(["-c", "import oslo_utils.imageutils"]);
            command.output().is_ok_and(|output| output.status.success())
        };
        [ours, on_path("python3")]
            .into_iter()
            .flatten()
            .find(has_it)
    });
    if found.is_none() {
        println!("SKIPPED: oslo.utils is not installed (pip install oslo.utils cryptography)");
    }
    found.as_deref()
}

#[test]
fn everything_that_oslo_utils_finds_is_found() {
    let (true, Some(python)) = (oracle::available(), oslo()) else {
        return;
    };
    let scratch = Scratch::new("inspect-oslo");
    let dir = scratch.path();
    let make = |args: &[&str]| {
        let made = oracle::run(Tool::Img, dir, &strings(args));
        assert_eq!(made.code, 0, "{args:?}: {made:?}");
    };
    std::fs::write(dir.join("content.raw"), [7; 70_000]).expect("a file can be written");
    make(&["create", "-q", "-f", "qcow2", "plain", "1M"]);
    make(&[
        "create", "-q", "-f", "qcow2", "-b", "plain", "-F", "qcow2", "overlay",
    ]);
    make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "nbd://host/x",
        "-F",
        "raw",
        "overlay-nbd",
        "1M",
    ]);
    make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data.raw",
        "data-file",
        "1M",
    ]);
    for (format, kind) in [
        ("vmdk", "monolithicSparse"),
        ("vmdk", "streamOptimized"),
        ("vmdk", "monolithicFlat"),
        ("vmdk", "twoGbMaxExtentSparse"),
    ] {
        make(&[
            "convert",
            "-O",
            format,
            "-o",
            &format!("subformat={kind}"),
            "content.raw",
            kind,
        ]);
    }
    for format in ["qed", "qcow", "vdi", "vpc", "vhdx"] {
        make(&["convert", "-O", format, "content.raw", format]);
    }
    let planted: &[(&str, usize, &[u8])] = &[
        ("unknown-feature", 72, &[0x80]),
        ("unknown-version", 7, &[9]),
        ("boot-sector", 510, &[0x55, 0xaa]),
        ("disc", 32769, b"CD001"),
    ];
    for (name, at, bytes) in planted {
        let mut image = std::fs::read(dir.join("plain")).expect("it was made");
        image[*at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(dir.join(name), image).expect("a file can be written");
    }
    for (name, first_entry) in [
        ("bad-boot-flag", [1, 0, 2, 0, 0x83]),
        ("bad-start", [0, 0, 3, 0, 0xee]),
    ] {
        let mut disk = vec![0; 70_000];
        disk[446..451].copy_from_slice(&first_entry);
        disk[454] = 1;
        disk[458] = 9;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(dir.join(name), disk).expect("a file can be written");
    }

    let mut flagged = 0;
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("it is there")
        .flatten()
        .collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let name = file.file_name().into_string().expect("made above");
        let judge =
            run::run(run::command(python, dir).args(["-m", "oslo_utils.imageutils", "-i", &name]));
        let report = inspect(dir, &name);
        assert!(
            judge.code == 0 || report["verdict"] != "safe",
            "oslo.utils flags {name}, and nothing is said of it"
        );
        flagged += usize::from(judge.code != 0);
    }
    // Otherwise the judge did not judge.
    assert!(flagged >= 8, "only {flagged} flagged");
}
