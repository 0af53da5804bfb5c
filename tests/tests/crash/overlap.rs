//! Guest operations that overlap.

use std::collections::BTreeMap;

use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::overlap::{GuestOp, overlap};
use oxcow_tests::crash::sim_exec::Choices;
use oxcow_tests::crash::starts::StartKind::{self, *};

const STARTS: [StartKind; 9] = [
    Mixed,
    Compressed,
    CompressedAlone,
    Snapshot,
    Backing,
    LargerClusters,
    DataFile,
    BlockFull,
    ExtendedL2,
];

#[test]
fn pairs_and_triples() {
    let began = std::time::Instant::now();
    let mut kinds: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut runs = 0;
    for kind in STARTS {
        let mut bench = Bench::new(kind);
        let mut sets = Vec::new();
        for (i, a) in GuestOp::ALL.iter().enumerate() {
            for (j, b) in GuestOp::ALL.iter().enumerate().skip(i) {
                sets.push(vec![*a, *b]);
                for c in GuestOp::ALL.iter().skip(j) {
                    sets.push(vec![*a, *b, *c]);
                }
            }
        }
        if kind == DataFile {
            sets.retain(|set| !set.contains(&GuestOp::Compress));
        }
        for set in sets {
            for seed in 0..20 {
                let cancel = seed % 4 == 3;
                let b2 = bench.clone();
                runs += 1;
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    overlap::<Oxcow>(&b2, &set, cancel, &mut Choices::seeded(seed))
                }));
                let (key, text) = match result {
                    Ok(Ok(())) => continue,
                    Ok(Err(found)) => (
                        format!(
                            "{} {} {}",
                            cancel,
                            found.violation.rule,
                            found
                                .violation
                                .what
                                .chars()
                                .filter(|c| !c.is_ascii_digit())
                                .take(50)
                                .collect::<String>()
                        ),
                        found.to_string(),
                    ),
                    Err(_) => {
                        bench = Bench::new(kind);
                        ("panic".into(), format!("{kind:?} {set:?} {seed}"))
                    }
                };
                kinds.entry(key).or_insert((0, text)).0 += 1;
            }
        }
        println!("{kind:?} {:?}", bench.take_figures());
    }
    for (count, text) in kinds.values() {
        println!("{count} x {text}");
    }
    println!("{runs} runs in {:?}", began.elapsed());
    assert!(kinds.is_empty());
}
