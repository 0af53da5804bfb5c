use futures_util::FutureExt;

use super::*;
use crate::storage::MemoryStorage;

fn report(bytes: &[u8]) -> SafetyReport {
    report_as(bytes, None)
}

fn report_as(bytes: &[u8], format: Option<Format>) -> SafetyReport {
    let storage = MemoryStorage::new(bytes.to_vec());
    let options = InspectOptions { format };
    inspect_with(&storage, options)
        .now_or_never()
        .expect("memory is always ready")
        .expect("memory never fails")
}

fn codes(report: &SafetyReport) -> Vec<(&str, Severity)> {
    report
        .findings
        .iter()
        .map(|finding| (finding.code, finding.severity))
        .collect()
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put32(image: &mut [u8], at: usize, number: u32) {
    put(image, at, &number.to_be_bytes());
}

fn put64(image: &mut [u8], at: usize, number: u64) {
    put(image, at, &number.to_be_bytes());
}

/// A sound version 3 image by the specification: clusters of 4 KiB, a disk of 64 KiB. Header, refcount
/// table, refcount block, L1 table, L2 table and one cluster of data, in this order.
fn sound() -> Vec<u8> {
    let mut image = vec![0; 6 * 4096];
    put(&mut image, 0, b"QFI\xfb");
    put32(&mut image, 4, 3);
    put32(&mut image, 20, 12);
    put64(&mut image, 24, 64 << 10);
    put32(&mut image, 36, 1);
    put64(&mut image, 40, 3 * 4096);
    put64(&mut image, 48, 4096);
    put32(&mut image, 56, 1);
    put32(&mut image, 96, 4);
    put32(&mut image, 100, 112);
    put64(&mut image, 4096, 2 * 4096);
    for cluster in 0..6 {
        put(&mut image, 2 * 4096 + 2 * cluster, &[0, 1]);
    }
    put64(&mut image, 3 * 4096, (1 << 63) | (4 * 4096));
    put64(&mut image, 4 * 4096, (1 << 63) | (5 * 4096));
    image
}

/// `sound` with a header extension.
fn with_extension(image: &mut [u8], at: usize, kind: u32, data: &[u8]) -> usize {
    put32(image, at, kind);
    put32(image, at + 4, data.len() as u32);
    put(image, at + 8, data);
    at + 8 + data.len().next_multiple_of(8)
}

fn with_backing(name: &str, format: Option<&str>) -> Vec<u8> {
    let mut image = sound();
    if let Some(format) = format {
        with_extension(&mut image, 112, 0xe279_2aca, format.as_bytes());
    }
    put64(&mut image, 8, 1024);
    put32(&mut image, 16, name.len() as u32);
    put(&mut image, 1024, name.as_bytes());
    image
}

/// `sound` with a snapshot table of one entry in a new cluster, and the snapshot's L1 table in another.
fn with_snapshot() -> Vec<u8> {
    let mut image = sound();
    image.resize(8 * 4096, 0);
    put32(&mut image, 60, 1);
    put64(&mut image, 64, 6 * 4096);
    let entry = 6 * 4096;
    put64(&mut image, entry, 7 * 4096);
    put32(&mut image, entry + 8, 1);
    put(&mut image, entry + 12, &[0, 1, 0, 4]);
    put32(&mut image, entry + 36, 16);
    put64(&mut image, entry + 48, 64 << 10);
    put(&mut image, entry + 56, b"1name");
    image
}

#[test]
fn a_sound_image_is_safe() {
    let report = report(&sound());
    assert_eq!(report.verdict, Verdict::Safe);
    assert_eq!(codes(&report), [("grows", Severity::Note)]);
    assert!(report.opens);
    assert_eq!(
        (report.format.as_str(), report.virtual_size),
        ("qcow2", Some(65536))
    );
    assert_eq!(report.fact("cluster-size").unwrap().number, Some(4096));
    assert_eq!(report.fact("cluster-size").unwrap().value, "4 KiB");

    let report = self::report(&with_snapshot());
    assert_eq!(codes(&report), [("grows", Severity::Note)]);
    assert_eq!(
        report.fact("expansion-with-snapshots").unwrap().number,
        Some(2 * 65536)
    );
}

/// Every impossible number of the header is found at its byte, and none hides another.
#[test]
fn impossible_header_numbers() {
    type Change = fn(&mut [u8]);
    let cases: &[(&str, Severity, u64, Change)] = &[
        ("version-unknown", Severity::Warning, 4, |i| put32(i, 4, 4)),
        ("cluster-size-impossible", Severity::Danger, 20, |i| {
            put32(i, 20, 64)
        }),
        ("cluster-size-impossible", Severity::Danger, 20, |i| {
            put32(i, 20, 8)
        }),
        ("header-length-impossible", Severity::Danger, 100, |i| {
            put32(i, 100, 103)
        }),
        ("header-length-impossible", Severity::Danger, 100, |i| {
            put32(i, 100, 4104)
        }),
        ("refcount-width-impossible", Severity::Danger, 96, |i| {
            put32(i, 96, 7)
        }),
        ("refcount-table-missing", Severity::Danger, 56, |i| {
            put32(i, 56, 0)
        }),
        ("encryption-unknown", Severity::Warning, 32, |i| {
            put32(i, 32, 3)
        }),
        ("encrypted-weakly", Severity::Warning, 32, |i| {
            put32(i, 32, 1)
        }),
        ("compression-contradiction", Severity::Danger, 104, |i| {
            i[104] = 1
        }),
        ("compression-contradiction", Severity::Danger, 104, |i| {
            i[79] = 8
        }),
        ("compression-unknown", Severity::Warning, 104, |i| {
            (i[79], i[104]) = (8, 2)
        }),
        ("subclusters-impossible", Severity::Danger, 20, |i| {
            i[79] = 16
        }),
        ("data-file-raw-alone", Severity::Warning, 88, |i| i[95] = 2),
        ("data-file-unnamed", Severity::Warning, 72, |i| i[79] = 4),
        ("size-impossible", Severity::Danger, 24, |i| {
            put64(i, 24, u64::MAX)
        }),
        ("size-extreme", Severity::Danger, 24, |i| {
            put64(i, 24, u64::MAX)
        }),
        ("l1-table-too-small", Severity::Danger, 36, |i| {
            put64(i, 24, 4 << 20)
        }),
        ("l1-table-too-small", Severity::Danger, 36, |i| {
            put64(i, 24, u64::MAX)
        }),
        ("table-too-large", Severity::Danger, 40, |i| {
            put32(i, 36, u32::MAX)
        }),
        ("table-unaligned", Severity::Danger, 40, |i| {
            put64(i, 40, 3 * 4096 + 512)
        }),
        ("table-in-header", Severity::Danger, 40, |i| put64(i, 40, 0)),
        ("table-out-of-bounds", Severity::Danger, 40, |i| {
            put64(i, 40, 6 * 4096)
        }),
        ("table-out-of-bounds", Severity::Danger, 40, |i| {
            put64(i, 40, !0xfff)
        }),
        ("table-too-large", Severity::Danger, 48, |i| {
            put32(i, 56, u32::MAX)
        }),
        ("table-unaligned", Severity::Danger, 48, |i| {
            put64(i, 48, 4097)
        }),
        ("table-out-of-bounds", Severity::Danger, 48, |i| {
            put64(i, 48, 1 << 40)
        }),
        ("table-too-large", Severity::Danger, 64, |i| {
            put32(i, 60, 65537)
        }),
        ("table-unaligned", Severity::Danger, 64, |i| put64(i, 64, 1)),
        ("backing-name-out-of-bounds", Severity::Danger, 8, |i| {
            put64(i, 8, 4097)
        }),
        ("backing-name-out-of-bounds", Severity::Danger, 8, |i| {
            (put64(i, 8, 1024), put32(i, 16, 1024)).0
        }),
        ("backing-name-empty", Severity::Warning, 16, |i| {
            put64(i, 8, 1024)
        }),
        ("unknown-incompatible-feature", Severity::Warning, 72, |i| {
            put64(i, 72, 1 << 63)
        }),
        ("unknown-compatible-feature", Severity::Note, 80, |i| {
            put64(i, 80, 1 << 5)
        }),
        ("unknown-autoclear-feature", Severity::Note, 88, |i| {
            put64(i, 88, 1 << 7)
        }),
        ("dirty", Severity::Warning, 72, |i| i[79] = 1),
        ("corrupt", Severity::Warning, 72, |i| i[79] = 2),
    ];
    for (code, severity, byte, change) in cases {
        let mut image = sound();
        change(&mut image);
        let report = report(&image);
        let finding = report
            .findings
            .iter()
            .find(|finding| {
                finding.code == *code && finding.place.and_then(|place| place.offset) == Some(*byte)
            })
            .unwrap_or_else(|| panic!("{code} at {byte} is not among {:?}", report.findings));
        assert_eq!(finding.severity, *severity, "{code}");
        let least = if *severity == Severity::Danger {
            Verdict::Unsafe
        } else {
            Verdict::Caution
        };
        assert!(
            report.verdict >= least || *severity == Severity::Note,
            "{code}"
        );
    }
    // All at once: the first one does not hide the others.
    let mut image = sound();
    put32(&mut image, 20, 64);
    put32(&mut image, 100, 103);
    put32(&mut image, 96, 7);
    put64(&mut image, 24, u64::MAX);
    let report = report(&image);
    for code in [
        "cluster-size-impossible",
        "header-length-impossible",
        "refcount-width-impossible",
        "size-impossible",
    ] {
        assert!(report.finding(code).is_some(), "{code}");
    }
    assert!(!report.opens);
}

#[test]
fn what_the_image_asks_for_is_told_and_never_opened() {
    let cases = [
        (
            "base.raw",
            "backing-file",
            Severity::Warning,
            Reach::SameFolder,
        ),
        (
            "../base.raw",
            "backing-file-outside-folder",
            Severity::Danger,
            Reach::OutsideFolder,
        ),
        (
            "/etc/passwd",
            "backing-file-absolute",
            Severity::Danger,
            Reach::Absolute,
        ),
        (
            "json:{\"driver\":\"nbd\"}",
            "backing-file-protocol",
            Severity::Danger,
            Reach::Protocol,
        ),
    ];
    for (name, code, severity, reach) in cases {
        let report = report(&with_backing(name, Some("raw")));
        let finding = report.finding(code).unwrap();
        assert_eq!(finding.severity, severity);
        assert_eq!(finding.place, Some(Place::at(Structure::BackingName, 1024)));
        assert_eq!(
            (report.wants[0].name.as_str(), report.wants[0].reach),
            (name, reach)
        );
        assert_eq!(report.wants[0].format.as_deref(), Some("raw"));
        assert!(report.finding("backing-format-missing").is_none());
    }
    let report = report(&with_backing("base.raw", None));
    assert!(report.finding("backing-format-missing").is_some());
    assert_eq!(report.verdict, Verdict::Caution);

    let deceiving = self::report(&with_backing("disk\u{202e}war.qcow2\u{7}", Some("raw")));
    assert!(deceiving.finding("name-deceives").is_some());
    assert!(
        deceiving
            .findings
            .iter()
            .all(|finding| !finding.message.contains(['\u{202e}', '\u{7}']))
    );

    let mut data = sound();
    data[79] = 4;
    with_extension(&mut data, 112, 0x4441_5441, b"/dev/sda");
    let report = self::report(&data);
    assert_eq!(
        report.finding("data-file-absolute").unwrap().severity,
        Severity::Danger
    );
    assert_eq!(report.wants[0].role, crate::Role::DataFile);
}

#[test]
fn unknown_features_are_called_by_the_images_own_names() {
    let mut image = sound();
    put64(&mut image, 72, 1 << 62);
    let mut entry = [0; 48];
    entry[1] = 62;
    entry[2..13].copy_from_slice(b"time travel");
    with_extension(&mut image, 112, 0x6803_f857, &entry);
    let report = report(&image);
    let finding = report.finding("unknown-incompatible-feature").unwrap();
    assert!(
        finding.message.contains("'time travel'"),
        "{}",
        finding.message
    );
    assert_eq!(finding.number, Some(62));
    assert!(!report.opens);
}

/// Found by fuzzing: the error that opening gives quotes the names too.
#[test]
fn no_message_moves_a_terminals_cursor() {
    let mut image = sound();
    put64(&mut image, 72, u64::MAX << 5);
    let mut entry = [0; 48];
    entry[1] = 62;
    entry[2..9].copy_from_slice(b"a\n\x1b[2Jb");
    with_extension(&mut image, 112, 0x6803_f857, &entry);
    let report = report(&image);
    let does_not_open = report.finding("does-not-open").unwrap();
    assert!(
        does_not_open.message.contains("a\\u{a}\\u{1b}[2J"),
        "{}",
        does_not_open.message
    );
    for finding in &report.findings {
        assert!(
            !finding.message.contains(char::is_control),
            "{}",
            finding.message
        );
    }
    // 59 unknown bits: eight by name, the others counted.
    let unknown = report
        .findings
        .iter()
        .filter(|finding| finding.code == "unknown-incompatible-feature");
    assert_eq!(
        unknown.map(|finding| finding.count).collect::<Vec<_>>(),
        [1, 1, 1, 1, 1, 1, 1, 1, 51]
    );
}

#[test]
fn extensions_that_cannot_be() {
    let mut image = sound();
    let next = with_extension(&mut image, 112, 0xe279_2aca, &[b'x'; 16]);
    let next = with_extension(&mut image, next, 0x2385_2875, &[0; 8]);
    let next = with_extension(&mut image, next, 0x0537_be77, &[0; 16]);
    put32(&mut image, next, 0x1234_5678);
    put32(&mut image, next + 4, u32::MAX);
    let report = report(&image);
    let finding = report.finding("extension-impossible").unwrap();
    assert_eq!(
        finding.count, 4,
        "the format's name, the bitmaps, the encryption, the length"
    );
    assert_eq!(finding.place.unwrap().offset, Some(112));

    let mut image = sound();
    let next = with_extension(&mut image, 112, 0xe279_2aca, b"raw");
    let next = with_extension(&mut image, next, 0xe279_2aca, b"qcow2");
    with_extension(&mut image, next, 0x1234_5678, b"new");
    let report = self::report(&image);
    assert_eq!(
        codes(&report),
        [
            ("extension-repeated", Severity::Warning),
            ("extension-unknown", Severity::Note),
            ("grows", Severity::Note)
        ]
    );
}

#[test]
fn entries_that_cannot_be() {
    type Change = fn(&mut [u8]);
    const L1: usize = 3 * 4096;
    const L2: usize = 4 * 4096;
    let cases: &[(&str, Structure, u64, Change)] = &[
        ("entry-out-of-bounds", Structure::L1Table, 0, |i| {
            put64(i, L1, 1 << 40)
        }),
        ("entry-unaligned", Structure::L1Table, 0, |i| {
            put64(i, L1, 4 * 4096 + 512)
        }),
        ("entry-reserved-bits", Structure::L1Table, 0, |i| {
            put64(i, L1, 4 * 4096 + 1)
        }),
        ("entry-into-metadata", Structure::L1Table, 0, |i| {
            put64(i, L1, 3 * 4096)
        }),
        ("entry-out-of-bounds", Structure::RefcountTable, 3, |i| {
            put64(i, 4096 + 24, 1 << 50)
        }),
        ("entry-unaligned", Structure::RefcountTable, 1, |i| {
            put64(i, 4096 + 8, 512)
        }),
        ("entry-reserved-bits", Structure::RefcountTable, 0, |i| {
            i[4096] = 0x80
        }),
        ("entry-out-of-bounds", Structure::L2Table, 7, |i| {
            put64(i, L2 + 56, 1 << 40)
        }),
        ("entry-unaligned", Structure::L2Table, 0, |i| {
            put64(i, L2, 5 * 4096 + 512)
        }),
        ("entry-reserved-bits", Structure::L2Table, 0, |i| {
            put64(i, L2, 5 * 4096 + 2)
        }),
        ("entry-into-metadata", Structure::L2Table, 511, |i| {
            put64(i, L2 + 4088, 4096)
        }),
        ("entry-out-of-bounds", Structure::L2Table, 1, |i| {
            put64(i, L2 + 8, (1 << 62) | (1 << 40))
        }),
    ];
    for (code, structure, index, change) in cases {
        let mut image = sound();
        change(&mut image);
        let report = report(&image);
        let found = report.findings.iter().any(|finding| {
            finding.code == *code
                && finding.severity == Severity::Danger
                && finding.place.is_some_and(|place| {
                    place.structure == *structure && place.index == Some(*index)
                })
        });
        assert!(
            found,
            "{code} in {structure} {index}: {:?}",
            report.findings
        );
    }
}

#[test]
fn many_of_a_kind_are_told_once_and_counted() {
    let mut image = sound();
    for index in 1..100 {
        put64(&mut image, 4 * 4096 + index * 8, 1 << 40);
    }
    let report = report(&image);
    let finding = report.finding("entry-out-of-bounds").unwrap();
    assert_eq!(
        (finding.count, finding.place.unwrap().index, finding.number),
        (99, Some(1), Some(1 << 40))
    );
}

#[test]
fn a_small_file_that_pretends_to_be_large() {
    // All 512 clusters of the L2 table are the one data cluster.
    let mut image = sound();
    put64(&mut image, 24, 2 << 20);
    for index in 0..512 {
        put64(&mut image, 4 * 4096 + index * 8, 5 * 4096);
    }
    assert_eq!(
        report(&image).finding("clusters-shared").unwrap().number,
        Some(512)
    );

    // All 512 entries of the L1 table are the one L2 table.
    let mut image = sound();
    put64(&mut image, 24, 1 << 30);
    put32(&mut image, 36, 512);
    for index in 0..512 {
        put64(&mut image, 3 * 4096 + index * 8, 4 * 4096);
    }
    assert_eq!(
        report(&image).finding("l2-table-shared").unwrap().number,
        Some(4 * 4096)
    );

    // Compressed clusters may share host clusters, but not this many.
    let mut image = sound();
    put32(&mut image, 20, 12);
    put64(&mut image, 24, 1 << 30);
    put32(&mut image, 36, 512);
    image.resize((6 + 512) * 4096, 0);
    for index in 0..512 {
        put64(&mut image, 3 * 4096 + index * 8, (6 + index as u64) * 4096);
        for entry in 0..512 {
            put64(
                &mut image,
                (6 + index) * 4096 + entry * 8,
                (1 << 62) | (5 * 4096),
            );
        }
    }
    let report = report(&image);
    assert!(
        report.finding("compression-bomb").is_none(),
        "1 GiB is no bomb"
    );
}

#[test]
fn a_compression_bomb() {
    // Clusters of 2 MiB: one L2 table of 2^18 compressed clusters unpacks to half a terabyte.
    const CLUSTER: usize = 2 << 20;
    let mut image = vec![0; 6 * CLUSTER];
    put(&mut image, 0, &sound()[..112]);
    put32(&mut image, 20, 21);
    put64(&mut image, 24, 512 << 30);
    put64(&mut image, 40, 3 * CLUSTER as u64);
    put64(&mut image, 48, CLUSTER as u64);
    put64(&mut image, 3 * CLUSTER, 4 * CLUSTER as u64);
    for entry in 0..CLUSTER / 8 {
        put64(
            &mut image,
            4 * CLUSTER + entry * 8,
            (1 << 62) | (5 * CLUSTER as u64),
        );
    }
    let report = report(&image);
    assert_eq!(
        report.finding("compression-bomb").unwrap().number,
        Some(512 << 30)
    );
    assert_eq!(
        report.finding("compression-bomb").unwrap().severity,
        Severity::Warning
    );
}

#[test]
fn tables_in_one_another() {
    let mut image = with_snapshot();
    put64(&mut image, 6 * 4096, 3 * 4096);
    let report = report(&image);
    let finding = report.finding("tables-overlap").unwrap();
    assert_eq!(
        finding.place,
        Some(Place::at(Structure::L1Table, 3 * 4096).entry(0))
    );

    let mut image = sound();
    put64(&mut image, 40, 4096);
    assert!(self::report(&image).finding("tables-overlap").is_some());
}

#[test]
fn snapshot_tables_that_cannot_be() {
    const ENTRY: usize = 6 * 4096;
    type Change = fn(&mut Vec<u8>);
    let cases: &[(&str, Severity, Change)] = &[
        ("snapshot-table-impossible", Severity::Danger, |i| {
            put32(i, ENTRY + 36, 1025)
        }),
        ("snapshot-table-impossible", Severity::Danger, |i| {
            put(i, ENTRY + 12, &[0xff; 4]);
        }),
        ("snapshot-table-impossible", Severity::Danger, |i| {
            i.truncate(ENTRY + 50);
        }),
        ("snapshot-size-impossible", Severity::Danger, |i| {
            put64(i, ENTRY + 48, 3 << 20)
        }),
        ("snapshot-state-impossible", Severity::Warning, |i| {
            put64(i, ENTRY + 40, u64::MAX)
        }),
        ("size-extreme", Severity::Danger, |i| {
            put64(i, ENTRY + 48, u64::MAX)
        }),
        ("table-out-of-bounds", Severity::Danger, |i| {
            put64(i, ENTRY, 1 << 40)
        }),
        ("table-unaligned", Severity::Danger, |i| {
            put64(i, ENTRY, 7 * 4096 + 8)
        }),
        ("table-too-large", Severity::Danger, |i| {
            put32(i, ENTRY + 8, u32::MAX)
        }),
        ("snapshot-incomplete", Severity::Warning, |i| {
            put32(i, ENTRY + 36, 8)
        }),
    ];
    for (code, severity, change) in cases {
        let mut image = with_snapshot();
        change(&mut image);
        let report = report(&image);
        let finding = report
            .finding(code)
            .unwrap_or_else(|| panic!("{code}: {:?}", report.findings));
        assert_eq!(finding.severity, *severity);
    }
    // Two with one number.
    let mut image = with_snapshot();
    put32(&mut image, 60, 2);
    let entry = image[ENTRY..ENTRY + 64].to_vec();
    put(&mut image, ENTRY + 64, &entry);
    put64(&mut image, ENTRY + 64, 0);
    put32(&mut image, ENTRY + 64 + 8, 0);
    put64(&mut image, ENTRY + 64 + 48, 0);
    assert_eq!(
        codes(&report(&image))[0],
        ("snapshot-id-twice", Severity::Warning)
    );
}

#[test]
fn how_far_it_can_grow() {
    // An L1 table of 32 MiB and clusters of 2 MiB describe up to 2 EiB; the file is the table.
    let mut image = vec![0; 40 << 20];
    put(&mut image, 0, &sound()[..112]);
    put32(&mut image, 20, 21);
    put64(&mut image, 48, 2 << 20);
    put64(&mut image, 40, 4 << 20);
    put32(&mut image, 36, 4 << 20);
    let cases = [
        (10u64 << 40, "grows", Severity::Note),
        (16 << 40, "size-huge", Severity::Warning),
        (1 << 60, "size-extreme", Severity::Danger),
    ];
    for (size, code, severity) in cases {
        put64(&mut image, 24, size);
        let report = report(&image);
        assert_eq!(codes(&report), [(code, severity)]);
        assert_eq!(report.fact("expansion").unwrap().number, Some(size));
        assert!(report.opens);
    }
}

#[test]
fn several_formats_at_once() {
    type Change = fn(&mut Vec<u8>);
    let in_header: &[(&str, usize, &[u8])] = &[
        ("boot-sector", 510, &[0x55, 0xaa]),
        ("gpt", 512, b"EFI PART"),
        ("tar", 257, b"ustar"),
        ("vdi", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ];
    for (name, at, signature) in in_header {
        let mut image = sound();
        put(&mut image, *at, signature);
        let report = report(&image);
        assert_eq!(
            report.finding("several-formats").unwrap().severity,
            Severity::Danger,
            "{name}"
        );
        assert_eq!(report.formats, ["qcow2", name]);
    }
    // 64 KiB clusters: the header's cluster is where a disc has its first descriptor.
    let mut image = sound();
    image.resize(6 << 16, 0);
    put32(&mut image, 20, 16);
    put(&mut image, 32769, b"CD001");
    assert_eq!(
        report(&image).finding("several-formats").unwrap().severity,
        Severity::Danger
    );
    // With 4 KiB clusters that is not the header, but where a disc begins all the same.
    let mut image = sound();
    image.resize(16 * 4096, 0);
    put(&mut image, 32769, b"CD001");
    assert_eq!(
        report(&image).finding("several-formats").unwrap().severity,
        Severity::Warning
    );
    // A disc in an image, and a GPT in one with small clusters, are content.
    let mut image = sound();
    image.resize(32 * 4096, 0);
    put(&mut image, 53249, b"CD001");
    put(&mut image, 4096 + 512, b"EFI PART");
    put(&mut image, 0x1_0040, b"_BHRfS_M");
    assert!(report(&image).finding("several-formats").is_none());
    assert_eq!(report(&image).formats, ["qcow2"]);

    let trailing: &[(&str, Change)] = &[
        ("zip", |i| {
            i.extend([b"PK\x05\x06".as_slice(), &[0; 16], &[3, 0], b"abc"].concat())
        }),
        ("vpc", |i| {
            i.extend([b"conectix".as_slice(), &[0; 504]].concat())
        }),
    ];
    for (name, change) in trailing {
        let mut image = sound();
        change(&mut image);
        let report = report(&image);
        assert_eq!(report.formats, ["qcow2", name]);
        assert_eq!(
            report.finding("several-formats").unwrap().severity,
            Severity::Warning
        );
    }
}

#[test]
fn raw_content() {
    let plain = report(&[7; 4096]);
    assert_eq!((plain.verdict, plain.findings.len()), (Verdict::Safe, 0));
    assert_eq!(
        (plain.format.as_str(), plain.virtual_size),
        ("raw", Some(4096))
    );
    assert_eq!(codes(&report(&[])), [("empty-file", Severity::Warning)]);

    // What a guest wrote, and somebody says is raw.
    let forged = with_backing("/etc/passwd", None);
    let report = report_as(&forged, Some(Format::Raw));
    assert_eq!(
        report.finding("raw-probes-as-image").unwrap().severity,
        Severity::Danger
    );
    assert_eq!(
        (report.format.as_str(), report.formats.as_slice()),
        ("raw", &["raw".to_owned(), "qcow2".into()][..])
    );
    assert!(report.wants.is_empty(), "a raw disk names no files");
    let report = report_as(&[7; 4096], Some(Format::Qcow2));
    assert_eq!(
        report.finding("not-this-format").unwrap().severity,
        Severity::Warning
    );
    assert!(!report.opens);

    let mut nested = sound();
    put(
        &mut nested,
        5 * 4096,
        &with_backing("/etc/passwd", None)[..112],
    );
    assert_eq!(
        self::report(&nested)
            .finding("content-probes-as-image")
            .unwrap()
            .severity,
        Severity::Danger
    );
    let mut luks = sound();
    put(&mut luks, 5 * 4096, b"LUKS\xba\xbe\0\x01");
    assert_eq!(self::report(&luks).verdict, Verdict::Safe);
}

/// A disk with a boot signature and one partition of type `kind`.
fn disk(kind: u8) -> Vec<u8> {
    let mut disk = vec![0; 64 << 10];
    put(
        &mut disk,
        446,
        &[
            0, 0, 2, 0, kind, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0x7f, 0, 0, 0,
        ],
    );
    put(&mut disk, 510, &[0x55, 0xaa]);
    disk
}

#[test]
fn partition_tables() {
    assert_eq!(codes(&report(&disk(0x83))), []);
    assert_eq!(codes(&report(&disk(0))), [("mbr-empty", Severity::Note)]);
    assert_eq!(
        codes(&report(&disk(0xee))),
        [("gpt-missing", Severity::Warning)]
    );
    let mut gpt = disk(0xee);
    put(&mut gpt, 512, b"EFI PART");
    assert_eq!(codes(&report(&gpt)), []);
    assert_eq!(report(&gpt).formats, ["raw", "gpt", "mbr"]);

    let mut other = gpt.clone();
    other[446 + 8] = 2;
    assert_eq!(
        codes(&report(&other)),
        [("gpt-mbr-impossible", Severity::Warning)]
    );
    let mut other = gpt.clone();
    other[446 + 16 + 4] = 0x83;
    assert_eq!(
        codes(&report(&other)),
        [("gpt-mbr-extra-partitions", Severity::Warning)]
    );
    let mut other = gpt.clone();
    other[446 + 32] = 1;
    assert_eq!(
        codes(&report(&other)),
        [("mbr-impossible", Severity::Warning)]
    );
    // A file system's boot sector has code there.
    put(&mut other, 3, b"NTFS    ");
    assert_eq!(codes(&report(&other)), []);

    // What installation media look like.
    let mut hybrid = gpt;
    put(&mut hybrid, 32769, b"CD001");
    assert_eq!(codes(&report(&hybrid)), [("hybrid-disc", Severity::Note)]);
}

#[test]
fn archives_are_not_disks() {
    let report = report(b"PK\x03\x04 and so on");
    assert_eq!(
        (codes(&report), report.verdict),
        (vec![("not-a-disk", Severity::Note)], Verdict::Safe)
    );
    let mut both = disk(0x83);
    put(&mut both, 0, b"\x1f\x8b\x08");
    assert_eq!(
        codes(&self::report(&both)),
        [("several-formats", Severity::Warning)]
    );
}

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"KIND\"\n\nRW 2048 FLAT \"FILE\" 0\nddb.adapterType = \"ide\"\n";

fn descriptor(kind: &str, file: &str) -> String {
    DESCRIPTOR.replace("KIND", kind).replace("FILE", file)
}

#[test]
fn vmdk_texts_name_other_files() {
    let report = report(descriptor("monolithicFlat", "../../etc/shadow").as_bytes());
    assert_eq!(report.format, "vmdk");
    assert_eq!(
        report.finding("data-file-outside-folder").unwrap().severity,
        Severity::Danger
    );
    assert!(report.finding("vmdk-kind").is_some());
    assert_eq!(report.wants[0].name, "../../etc/shadow");

    let beside = self::report(descriptor("monolithicFlat", "disk-flat.vmdk").as_bytes());
    assert_eq!(beside.verdict, Verdict::Caution);
    assert_eq!(beside.wants[0].reach, Reach::SameFolder);

    let parent = descriptor("monolithicSparse", "x.vmdk")
        + "parentFileNameHint=\"/etc/passwd\"\nwhat is this\n";
    let parent = self::report(parent.as_bytes());
    assert_eq!(
        parent.finding("backing-file-absolute").unwrap().severity,
        Severity::Danger
    );
    assert!(parent.finding("vmdk-descriptor-impossible").is_some());
    assert!(parent.finding("vmdk-kind").is_none());
}

/// A sparse VMDK's header, descriptor, and footer.
fn sparse_vmdk(text: &str) -> Vec<u8> {
    let mut image = vec![0; 4096];
    put(&mut image, 0, b"KDMV\x01\0\0\0");
    image[12] = 8;
    image[28] = 1;
    image[36] = 1;
    put(&mut image, 56, &[0xff; 8]);
    put(&mut image, 512, text.as_bytes());
    let header = image[..512].to_vec();
    put(&mut image, 4096 - 1536 + 12, &[3]);
    put(&mut image, 4096 - 1024, &header);
    put(&mut image, 4096 - 1024 + 56, &[0, 16, 0, 0, 0, 0, 0, 0]);
    image
}

#[test]
fn a_text_with_many_names_makes_no_long_report() {
    let many = descriptor("custom", "x") + &"RW 1 FLAT \"/etc/passwd\" 0\n".repeat(10_000);
    let report = report(many.as_bytes());
    assert_eq!(report.wants.len(), 32);
    assert_eq!(report.finding("more-files").unwrap().count, 10_001 - 32);
}

#[test]
fn vmdk_headers_and_footers_agree() {
    let text = descriptor("streamOptimized", "x.vmdk");
    let good = report(&sparse_vmdk(&text));
    assert_eq!(codes(&good), [("foreign-format", Severity::Warning)]);
    assert_eq!(good.virtual_size, Some(4096));

    let mut image = sparse_vmdk(&text);
    image[4096 - 1024 + 28] = 3;
    assert_eq!(
        codes(&report(&image))[0],
        ("vmdk-footer-contradiction", Severity::Danger)
    );
    let mut image = sparse_vmdk(&text);
    image[28] = 2;
    assert!(
        report(&image)
            .finding("vmdk-descriptor-misplaced")
            .is_some()
    );
    let path = report(&sparse_vmdk(&descriptor("monolithicSparse", "/etc/passwd")));
    assert!(path.finding("data-file-absolute").is_some());
}

#[test]
fn other_formats_by_name_with_the_files_they_want() {
    let mut qcow = vec![0; 4096];
    put(&mut qcow, 0, b"QFI\xfb\0\0\0\x01");
    put64(&mut qcow, 8, 100);
    put32(&mut qcow, 16, 11);
    put64(&mut qcow, 24, 1 << 20);
    put(&mut qcow, 100, b"/etc/passwd");
    let report = report(&qcow);
    assert_eq!(
        (report.format.as_str(), report.virtual_size),
        ("qcow", Some(1 << 20))
    );
    assert_eq!(
        codes(&report)[0],
        ("backing-file-absolute", Severity::Danger)
    );
    put64(&mut qcow, 8, u64::MAX);
    assert_eq!(
        codes(&self::report(&qcow))[0],
        ("backing-name-out-of-bounds", Severity::Danger)
    );

    let mut qed = vec![0; 4096];
    put(&mut qed, 0, b"QED\0");
    qed[16] = 1;
    put(&mut qed, 56, &[100, 0, 0, 0, 8, 0, 0, 0]);
    put(&mut qed, 100, b"nbd:host");
    assert_eq!(
        codes(&self::report(&qed))[0],
        ("backing-file-protocol", Severity::Danger)
    );

    let mut vdi = vec![0; 4096];
    put(&mut vdi, 64, &[0x7f, 0x10, 0xda, 0xbe]);
    vdi[0x4c] = 4;
    assert!(self::report(&vdi).finding("backing-file-unnamed").is_some());

    let mut vpc = vec![0; 4096];
    put(&mut vpc, 0, b"conectix");
    vpc[63] = 4;
    put64(&mut vpc, 16, 512);
    put(&mut vpc, 576, b"\0C\0:\0\\\0x");
    let report = self::report(&vpc);
    assert_eq!(
        (report.wants[0].name.as_str(), report.wants[0].reach),
        ("C:\\x", Reach::Absolute)
    );

    let luks = self::report(b"LUKS\xba\xbe\0\x01");
    assert_eq!(
        (luks.verdict, codes(&luks)),
        (Verdict::Safe, vec![("encrypted", Severity::Note)])
    );
}

#[test]
fn cut_anywhere_it_still_reports() {
    let image = with_snapshot();
    for length in (0..image.len()).step_by(37) {
        let report = report(&image[..length]);
        if length > 7 && length < 7 * 4096 {
            assert!(
                report.verdict > Verdict::Safe,
                "cut to {length} bytes: {:?}",
                report.findings
            );
        }
    }
}

#[test]
fn every_severity_sorts_before_the_lesser_ones() {
    let mut image = with_backing("base.raw", Some("raw"));
    put64(&mut image, 80, 2);
    put64(&mut image, 3 * 4096, 1 << 40);
    let report = report(&image);
    let severities: Vec<Severity> = report
        .findings
        .iter()
        .map(|finding| finding.severity)
        .collect();
    assert!(severities.is_sorted_by(|a, b| a >= b), "{severities:?}");
    assert_eq!(report.verdict, Verdict::Unsafe);
}
