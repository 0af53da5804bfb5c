//! Opening with every option, the safety report, the extents, reads, snapshots, bitmaps.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oxcow::inspect::{self, Verdict};
use oxcow::map::Mapper;
use oxcow::{Backing, DenyAll, Format, GuestOffset, Image, MemoryStorage, OpenOptions, info};
use oxcow_fuzz::{LARGEST_INPUT, file, now, open};

/// Extents walked for one root: virtual sizes are claims, time is not.
const MOST_EXTENTS: usize = 500;
const MOST_READS: usize = 12;
const MOST_SNAPSHOTS: usize = 3;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    oxcow_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > LARGEST_INPUT {
        return;
    }
    inspected(bytes);
    for format in [None, Some(Format::Qcow2), Some(Format::Raw)] {
        // Nothing is followed by default.
        let _ = now(Image::open(
            file(bytes),
            &OpenOptions {
                format,
                ..OpenOptions::default()
            },
            &DenyAll::default(),
        ));
        let Ok(mut image) = open(bytes, format) else {
            continue;
        };
        for layer in image.layers() {
            let _ = now(info::info(layer));
        }
        walk(&image);
        let ids: Vec<String> = image.top().as_qcow2().map_or(Vec::new(), |qcow2| {
            let _ = now(qcow2.bitmaps());
            qcow2
                .snapshots()
                .iter()
                .take(MOST_SNAPSHOTS)
                .map(|snapshot| snapshot.id.clone())
                .collect()
        });
        for id in ids {
            if now(image.use_snapshot(&id)).is_ok() {
                walk(&image);
            }
        }
        // The same bytes were already read as what the first bytes say.
        if format.is_none() && image.top().format() == Format::Qcow2 {
            break;
        }
    }
});

/// The report is made whatever the bytes are, agrees with opening, and can be shown.
fn inspected(bytes: &[u8]) {
    let report =
        now(inspect::inspect(&MemoryStorage::new(bytes.to_vec()))).expect("memory does not fail");
    assert!(
        report
            .findings
            .iter()
            .all(|finding| !finding.message.chars().any(char::is_control))
    );
    assert!(
        report.findings.len() < 1000,
        "bounded, whatever the image has"
    );
    serde_json::to_string(&report).expect("a report is plain data");

    let options = OpenOptions {
        backing: Backing::Ignore,
        data_file: false,
        ..OpenOptions::default()
    };
    let opens = now(Image::open(file(bytes), &options, &DenyAll::default())).is_ok();
    assert_eq!(report.opens, opens);
    if !opens && report.format == "qcow2" {
        assert!(
            report.verdict > Verdict::Safe,
            "it does not open and nothing is said of it"
        );
    }
}

/// Walks over the disk from its start, and from near its end; reads some of it in two ways.
fn walk(image: &Image<MemoryStorage>) {
    let size = image.virtual_size();
    let mut reads = 0;
    for start in [0, size.saturating_sub(1 << 20) & !511] {
        let mut at = start;
        for _ in 0..MOST_EXTENTS {
            if at >= size {
                break;
            }
            let Ok(extent) = now(image.extent_at(GuestOffset(at), size - at)) else {
                break;
            };
            assert!(extent.length > 0 && extent.length <= size - at);
            if reads < MOST_READS {
                reads += 1;
                read(image, at, size);
            }
            at += extent.length;
        }
        let mut mapper = Mapper::new(image, start, 1 << 20);
        for _ in 0..MOST_EXTENTS {
            match now(mapper.next()) {
                Ok(Some(entry)) => assert!(entry.length > 0),
                _ => break,
            }
        }
    }
    assert!(now(image.read_at(GuestOffset(size), &mut [0])).is_err());
    assert!(now(image.read_at(GuestOffset(u64::MAX), &mut [0; 2])).is_err());
}

fn read(image: &Image<MemoryStorage>, at: u64, size: u64) {
    let mut whole = vec![0xaa; (size - at).min(9 << 10) as usize];
    if now(image.read_at(GuestOffset(at), &mut whole)).is_err() {
        return;
    }
    // Cut in odd pieces it is the same.
    let mut pieces = vec![0x55; whole.len()];
    let mut done = 0;
    for piece in pieces.chunks_mut(1111) {
        now(image.read_at(GuestOffset(at + done), piece)).expect("it was read before");
        done += piece.len() as u64;
    }
    assert!(whole == pieces, "reads at {at:#x} differ");
}
