//! The start states, the independent checker and the native tools agree with one another before anything is
//! proven with them.

use std::fmt::Write as _;

use oxcow_tests::crash::contents::{Contents, SECTOR};
use oxcow_tests::crash::judge::{Expectation, Judge};
use oxcow_tests::crash::machine::to_bytes;
use oxcow_tests::crash::model::World;
use oxcow_tests::crash::starts::{Start, StartKind};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::scratch::Scratch;

fn expectation<'a>(start: &'a Start, world: &'a World) -> Expectation<'a> {
    Expectation {
        worlds: vec![world],
        pristine: world,
        kept: usize::MAX,
        backing: &start.backing,
        most_leaked: Some(start.leaked),
    }
}

#[test]
fn the_checker_finds_every_start_state_sound() {
    let mut failures = String::new();
    for kind in StartKind::ALL {
        let contents = Contents::default();
        let start = Start::new(kind, &contents);
        let expectation = expectation(&start, &start.world);
        let judged = Judge::default().judge(&contents, &start.files, &expectation);
        match judged {
            Ok(tally) => assert_eq!((tally.images, tally.choices), (1, 1)),
            Err(violation) => writeln!(failures, "{kind:?}: {violation}").unwrap(),
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn the_native_tools_find_the_same_in_every_start_state() {
    if !oracle::available() {
        return;
    }
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for kind in StartKind::ALL {
        let scratch = Scratch::new("crash-start");
        let start = Start::new(kind, &Contents::default());
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(scratch.path().join(name), bytes).expect("a file can be written");
        };
        write("a.qcow2", &start.image);
        write("guest.data", &start.data);
        write("below.raw", &start.backing_bytes);
        let img = |line: &str| oracle::run(Tool::Img, scratch.path(), &words(line));

        let check = img("check --output=json a.qcow2");
        let number = |name: &str| -> u64 {
            let json: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
            json[name].as_u64().unwrap_or(0)
        };
        if start.clean {
            assert_eq!(number("corruptions"), 0, "{kind:?}: {check:?}");
            assert_eq!(number("leaks"), start.leaked, "{kind:?}");
        } else {
            assert!(number("corruptions") > 0, "{kind:?} has wrong refcounts");
        }

        let compare = |contents: &[oxcow_tests::crash::contents::Content], size: u64| {
            let own = Contents::default();
            // The same start, built again, has the same numbers.
            let _ = Start::new(kind, &own);
            let expected = to_bytes(&own, contents, size);
            let read = std::fs::read(scratch.path().join("a.raw")).expect("it was converted");
            assert_eq!(read.len() as u64, size, "{kind:?}");
            let differs = (0..read.len()).find(|at| read[*at] != expected[*at]);
            assert_eq!(differs.map(|at| at / SECTOR), None, "{kind:?}: sector");
        };
        let converted = img("convert -O raw a.qcow2 a.raw");
        assert_eq!(converted.code, 0, "{kind:?}: {converted:?}");
        compare(start.world.values.only(), start.world.size);
        for frozen in &start.world.snapshots {
            let converted = img(&format!("convert -l {} -O raw a.qcow2 a.raw", frozen.name));
            assert_eq!(converted.code, 0, "{kind:?}: {converted:?}");
            compare(&frozen.sectors, frozen.size);
        }
    }
}
