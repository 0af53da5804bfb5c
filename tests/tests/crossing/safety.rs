//! The safety report: everything that is dangerous is told, and nothing that is plain.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use oxcow_tests::gallery::{Picture, gallery, make_all};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::scratch::Scratch;
use oxcow_tests::{damage, oslo, parallel};
use serde_json::Value;

/// A report, or why there is none.
fn inspect(dir: &Path, file: &str) -> Result<Value, String> {
    let args = ["inspect", "--output=json", file].map(str::to_owned);
    let outcome = Build::Wasm.run("oxcow", dir, None, &args);
    let report: Value = serde_json::from_str(&outcome.stdout).map_err(|error| {
        format!(
            "exit code {}, {error}: {}{}",
            outcome.code, outcome.stdout, outcome.stderr
        )
    })?;
    // The exit code says the same as the verdict.
    let code = match report["verdict"].as_str() {
        Some("safe") => 0,
        Some("caution") => 2,
        Some("unsafe") => 3,
        verdict => return Err(format!("verdict {verdict:?}")),
    };
    if outcome.code == code {
        Ok(report)
    } else {
        Err(format!("exit code {} with {report}", outcome.code))
    }
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().map_or(&[][..], Vec::as_slice);
    findings
        .iter()
        .filter_map(|finding| finding["code"].as_str())
        .collect()
}

fn failure(case: &str, what: String) -> Failure {
    Failure {
        case: case.to_owned(),
        doing: "inspect --output=json".to_owned(),
        what,
    }
}

/// Whether an image is one that nobody has to think about: all in one file, closed properly, of a usual size.
fn harmless(picture: &Picture) -> bool {
    let info = &picture.info;
    let details = &info["format-specific"]["data"];
    let marked = info["dirty-flag"] == true || details["corrupt"] == true;
    let depends = info["backing-filename"].is_string() || details["data-file"].is_string();
    // Refcounts and tables of these were changed by hand.
    let tampered = ["check-", "bitmap-", "snapshot-state-"]
        .iter()
        .any(|start| picture.recipe.name.starts_with(start));
    // Encryption of this kind hides little, and there is nothing at all in an empty file.
    let odd = details["encrypt"]["format"] == "aes" || picture.recipe.name == "raw-0";
    info.is_object() && !marked && !depends && !tampered && !odd && picture.virtual_size() < 1 << 44
}

#[test]
fn what_an_image_depends_on_is_told() {
    if !oracle::available() {
        return;
    }
    let depending: Vec<&Picture> = gallery()
        .iter()
        .filter(|picture| !harmless(picture) && picture.info.is_object())
        .collect();
    let failures = parallel::map(&depending, |picture| {
        let name = &picture.recipe.name;
        let report = match inspect(&picture.dir, picture.top()) {
            Ok(report) => report,
            Err(error) => return Some(failure(name, error)),
        };
        let wants = |role: &str, named: &Value| {
            let list = report["wants"].as_array().map_or(&[][..], Vec::as_slice);
            named.is_null()
                || list
                    .iter()
                    .any(|want| want["role"] == role && want["name"] == *named)
        };
        let details = &picture.info["format-specific"]["data"];
        let told = wants("backing", &picture.info["backing-filename"])
            && wants("data-file", &details["data-file"]);
        let marked = details["corrupt"] != true || report["verdict"] != "safe";
        (!told || !marked).then(|| failure(name, report.to_string()))
    });
    finish(
        "safety-depends",
        depending.len(),
        &failures.into_iter().flatten().collect::<Vec<_>>(),
    );
}

/// oslo.utils takes the bit of extended L2 entries for an unknown feature, and the backing file's name in the
/// shorter header of version 2 for feature bits.
fn false_alarm(picture: &Picture, check: &str) -> bool {
    let details = &picture.info["format-specific"]["data"];
    match check {
        "unknown_features" => details["extended-l2"] == true || details["compat"] == "0.10",
        "data_file" => details["compat"] == "0.10",
        _ => false,
    }
}

#[test]
fn what_oslo_utils_finds_in_the_gallery_is_found() {
    let Some(python) = oslo::python().filter(|_| oracle::available()) else {
        return;
    };
    let files: Vec<PathBuf> = gallery()
        .iter()
        .map(|picture| picture.dir.join(picture.top()))
        .collect();
    let opinions = oslo::opinions(&python, &files);
    let pairs: Vec<_> = gallery().iter().zip(&opinions).collect();
    let failures = parallel::map(&pairs, |(picture, opinion)| {
        let failed: Vec<&String> = opinion
            .failed
            .iter()
            .filter(|check| !false_alarm(picture, check))
            .collect();
        let report = match inspect(&picture.dir, picture.top()) {
            Ok(report) => report,
            Err(error) => return Some(failure(&picture.recipe.name, error)),
        };
        let found = |check: &&&String| match check.as_str() {
            "backing_file" => codes(&report)
                .iter()
                .any(|code| code.starts_with("backing-file")),
            "data_file" => codes(&report)
                .iter()
                .any(|code| code.starts_with("data-file")),
            _ => report["verdict"] != "safe",
        };
        let missed: Vec<&&String> = failed.iter().filter(|check| !found(check)).collect();
        (!missed.is_empty()).then(|| {
            failure(
                &picture.recipe.name,
                format!("{missed:?} not found: {:?}", codes(&report)),
            )
        })
    });
    finish(
        "safety-oslo",
        pairs.len(),
        &failures.into_iter().flatten().collect::<Vec<_>>(),
    );
}

/// Damage that can be seen without reading every table: what `info` refuses and what oslo.utils flags.
#[test]
fn damaged_images_are_not_called_safe() {
    if !oracle::available() {
        return;
    }
    let bases = make_all("damage-bases", damage::bases());
    let by_name: BTreeMap<&str, &Picture> = bases
        .iter()
        .map(|base| (base.recipe.name.as_str(), base))
        .collect();
    let scratch = Scratch::new("safety");
    let cases: Vec<_> = damage::all()
        .into_iter()
        .filter(|case| {
            [
                "header",
                "feature",
                "extension",
                "backing",
                "file-",
                "flips",
            ]
            .iter()
            .any(|start| case.name.starts_with(start))
        })
        // The bases that need no other file: nothing but the damage is to be found.
        .filter(|case| matches!(case.base, "zstd" | "data-file" | "luks" | "v3"))
        // The report says that content is encrypted and does not look at how.
        .filter(|case| case.name != "extension-luks-crypto-length-zero")
        .collect();
    let files = parallel::map(&cases, |case| {
        let mut bytes =
            fs::read(by_name[case.base].dir.join("disk.qcow2")).expect("the base is there");
        (case.change)(&mut bytes);
        let file = scratch.path().join(format!("{}.qcow2", case.name));
        fs::write(&file, bytes).expect("the target folder can be written");
        file
    });
    let opinions = oslo::python().map(|python| oslo::opinions(&python, &files));
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    let failures = parallel::map(&numbered, |&(index, case)| {
        let file = format!("{}.qcow2", case.name);
        let args = ["info", "--output=json", &file].map(str::to_owned);
        let refused = oracle::run(Tool::Img, scratch.path(), &args).code != 0;
        let opinion = opinions.as_ref().map(|opinions| &opinions[index]);
        let flagged =
            opinion.is_some_and(|opinion| opinion.format != "raw" && !opinion.failed.is_empty());
        if !refused && !flagged {
            return None;
        }
        match inspect(scratch.path(), &file) {
            Ok(report) if report["verdict"] == "safe" => Some(failure(
                &case.name,
                format!(
                    "called safe; refused: {refused}, oslo.utils: {opinion:?}; {:?}",
                    codes(&report)
                ),
            )),
            Ok(_) => None,
            Err(error) => Some(failure(&case.name, error)),
        }
    });
    finish(
        "safety-damaged",
        cases.len(),
        &failures.into_iter().flatten().collect::<Vec<_>>(),
    );
}

#[test]
fn images_inside_images_and_of_other_formats_are_named() {
    if !oracle::available() {
        return;
    }
    let scratch = Scratch::new("polyglots");
    let dir = scratch.path();
    let img = |line: &str| {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let outcome = oracle::run(Tool::Img, dir, &args);
        assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
    };
    for format in ["qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx"] {
        img(&format!("create -q -f {format} {format}.img 1M"));
        let report = inspect(dir, &format!("{format}.img")).expect("a report");
        let formats: Vec<&str> = report["formats"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(formats, [format], "{report}");
        assert_eq!(report["verdict"] == "safe", format == "qcow2", "{report}");
    }
    // A guest that writes an image's header on its raw disk.
    img("convert -f raw -O qcow2 vmdk.img outer.qcow2");
    let report = inspect(dir, "outer.qcow2").expect("a report");
    assert!(
        codes(&report).contains(&"content-probes-as-image"),
        "{report}"
    );
    assert_ne!(report["verdict"], "safe");
    // Two formats at once: the volume descriptor of a CD inside a qcow2 file.
    let mut both = fs::read(dir.join("qcow2.img")).expect("it was made");
    both.resize(64 << 10, 0);
    both[0x8000..0x8006].copy_from_slice(b"\x01CD001");
    fs::write(dir.join("both.img"), both).expect("the target folder can be written");
    let report = inspect(dir, "both.img").expect("a report");
    assert!(codes(&report).contains(&"several-formats"), "{report}");
    assert_ne!(report["verdict"], "safe");
}
