//! Key slots that change while the power fails: after any cut the image opens with what opened it before or with
//! what is to open it, and every slot that says it holds a key does.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use oxcow::create::{self, CreateOptions, NewEncryption};
use oxcow::crypto::{Hash, LuksOptions, NewLuksHeader, Passphrase};
use oxcow::image::KeyChange;
use oxcow::image::ordering::{OrderingPoint, knockout};
use oxcow::storage::AnyStorage;
use oxcow::{DenyAll, Error, File, GuestOffset, Image, MemoryStorage, OpenOptions, Storage};
use oxcow_tests::mutants::{Suite, suite};
use oxcow_tests::rng::Rng;
use oxcow_tests::scripts::storage::block_on;

const SECTOR: usize = 512;
/// Cuts that are tried between two flushes, besides those after each whole write.
const CUTS: u64 = 40;
/// Rounds that one key costs.
const ROUNDS: u32 = 20;
const PASSPHRASES: [&str; 3] = ["one", "two", "three"];

/// Writes between two flushes: where, and what.
type Epoch = Vec<(u64, Vec<u8>)>;

/// A storage that remembers what was written between flushes.
#[derive(Clone)]
struct Recorder {
    memory: Rc<MemoryStorage>,
    /// Writes since the first flush.
    epochs: Rc<RefCell<Vec<Epoch>>>,
}

impl Recorder {
    fn new(memory: MemoryStorage) -> Self {
        Self {
            memory: Rc::new(memory),
            epochs: Rc::default(),
        }
    }

    /// What is stored, when the image is closed.
    fn into_bytes(self) -> Vec<u8> {
        let memory = Rc::into_inner(self.memory).expect("the image is closed");
        memory.into_bytes()
    }
}

impl Storage for Recorder {
    async fn len(&self) -> io::Result<u64> {
        self.memory.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.memory.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(epoch) = self.epochs.borrow_mut().last_mut() {
            epoch.push((offset, data.to_vec()));
        }
        self.memory.write_at(offset, data).await
    }

    async fn set_len(&self, length: u64) -> io::Result<()> {
        self.memory.set_len(length).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.epochs.borrow_mut().push(Vec::new());
        Ok(())
    }
}

fn apply(bytes: &mut [u8], (offset, data): &(u64, Vec<u8>)) {
    bytes[*offset as usize..][..data.len()].copy_from_slice(data);
}

/// What the file may hold after a cut somewhere in `epochs`, which began with `bytes`.
fn cuts(bytes: &[u8], epochs: &[Epoch], mut see: impl FnMut(&[u8])) {
    let mut rng = Rng::new(7);
    let mut durable = bytes.to_vec();
    for epoch in epochs {
        let mut state = durable.clone();
        for write in epoch {
            see(&state);
            apply(&mut state, write);
        }
        see(&state);
        // Each write alone, and all but each.
        for index in 0..epoch.len() {
            let mut alone = durable.clone();
            apply(&mut alone, &epoch[index]);
            see(&alone);
            let mut others = durable.clone();
            for (at, write) in epoch.iter().enumerate() {
                if at != index {
                    apply(&mut others, write);
                }
            }
            see(&others);
        }
        if !epoch.is_empty() {
            for _ in 0..CUTS {
                let mut torn = durable.clone();
                for (offset, data) in epoch {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        if rng.one_in(2) {
                            let at = offset + (index * SECTOR) as u64;
                            apply(&mut torn, &(at, sector.to_vec()));
                        }
                    }
                }
                see(&torn);
            }
        }
        durable = state;
    }
    see(&durable);
}

fn random(seed: u64) -> impl FnMut(&mut [u8]) -> io::Result<()> {
    let mut rng = Rng::new(seed);
    move |buf| {
        buf.copy_from_slice(&rng.bytes(buf.len()));
        Ok(())
    }
}

fn header() -> NewLuksHeader {
    let options = LuksOptions {
        key_bits: 128,
        cipher_mode: "cbc".to_owned(),
        hash: Hash::Sha256,
        slot_rounds: ROUNDS,
        digest_rounds: ROUNDS,
        ..LuksOptions::default()
    };
    let header = options.new_header(&Passphrase::new(PASSPHRASES[0]), &mut random(1));
    header.expect("there is such a header")
}

async fn open(
    storage: impl Storage + 'static,
    passphrase: &str,
    writable: bool,
) -> oxcow::Result<Image<AnyStorage>> {
    let file = File {
        storage: AnyStorage::new(storage),
        name: "disk".into(),
    };
    let options = OpenOptions {
        passphrases: vec![Some(Passphrase::new(passphrase))],
        writable,
        ..OpenOptions::default()
    };
    Image::open(file, &options, &DenyAll::default()).await
}

/// Which passphrases open it; each sees what was written to the disk.
fn opened_by(bytes: &[u8]) -> Vec<&'static str> {
    let opens = |passphrase: &&str| {
        block_on(async {
            let image = open(MemoryStorage::new(bytes.to_vec()), passphrase, false).await;
            let mut sector = [0; SECTOR];
            match image {
                Ok(image) => {
                    let read = image.read_at(GuestOffset(1024), &mut sector).await;
                    read.expect("what is opened is read");
                    assert_eq!(sector, [0x5a; SECTOR]);
                    true
                }
                Err(Error::Refused(_)) => false,
                Err(error) => panic!("{error}"),
            }
        })
    };
    PASSPHRASES.into_iter().filter(opens).collect()
}

/// Which slots are active but hold no key that a passphrase opens.
fn broken_slots(bytes: &[u8], at: usize) -> Vec<usize> {
    const EMPTY: [u8; 4] = [0, 0, 0xde, 0xad];
    let state = |slot: usize| at + 208 + slot * 48;
    let active = |slot: &usize| bytes[state(*slot)..][..4] != EMPTY;
    let broken = |slot: &usize| {
        let mut alone = bytes.to_vec();
        for other in (0..8).filter(|other| other != slot) {
            alone[state(other)..][..4].copy_from_slice(&EMPTY);
        }
        opened_by(&alone).is_empty()
    };
    (0..8).filter(active).filter(broken).collect()
}

/// An image, and where its LUKS header is.
fn image(qcow2: bool) -> (Vec<u8>, usize) {
    let storage = MemoryStorage::default();
    block_on(async {
        if qcow2 {
            let options = CreateOptions {
                size: 64 << 10,
                cluster_size: 4096,
                encryption: Some(NewEncryption::Luks(header())),
                ..CreateOptions::default()
            };
            create::create(&storage, None, &options).await
        } else {
            create::create_luks(&storage, &header(), 64 << 10).await
        }
    })
    .expect("it is created");
    let recorder = Recorder::new(storage);
    block_on(async {
        let image = open(recorder.clone(), PASSPHRASES[0], true).await?;
        image.write_at(GuestOffset(1024), &[0x5a; SECTOR]).await?;
        image.close().await
    })
    .expect("it is written to");
    let bytes = recorder.into_bytes();
    let mut places = bytes.windows(6);
    let at = places.position(|bytes| bytes == b"LUKS\xba\xbe");
    (bytes, at.expect("there is a header"))
}

/// A change, whether it is forced, the passphrase that the image is opened with, and those that open it then.
type Step = (KeyChange, bool, &'static str, &'static [&'static str]);

fn story() -> Vec<Step> {
    let add = |passphrase: &str, slot| KeyChange::Add {
        passphrase: Passphrase::new(passphrase),
        rounds: ROUNDS,
        slot,
    };
    let erase = |passphrase: &str| KeyChange::Erase {
        passphrase: Passphrase::new(passphrase),
        slot: None,
    };
    vec![
        // Slot 6 lies across two sectors, slot 7 in the second.
        (add("two", Some(6)), false, "one", &["one", "two"]),
        (KeyChange::EraseSlot(0), false, "one", &["two"]),
        (add("three", Some(7)), false, "two", &["two", "three"]),
        (erase("two"), false, "three", &["three"]),
        (add("one", Some(7)), true, "three", &["one"]),
        (add("two", None), false, "one", &["one", "two"]),
        (add("two", None), false, "two", &["one", "two"]),
        (erase("two"), false, "two", &["one"]),
    ]
}

/// Plays the story and counts cuts and what is wrong after them.
fn play(qcow2: bool) -> (usize, Vec<String>) {
    let (mut bytes, at) = image(qcow2);
    let (mut seen, mut wrong) = (0, Vec::new());
    for (index, (change, force, with, after)) in story().into_iter().enumerate() {
        let before = opened_by(&bytes);
        let recorder = Recorder::new(MemoryStorage::new(bytes.clone()));
        block_on(async {
            let image = open(recorder.clone(), with, true).await?;
            let mut random = random(index as u64);
            image
                .change_keys(&change, force, 1 << 20, &mut random)
                .await?;
            image.close().await
        })
        .unwrap_or_else(|error| panic!("{change:?}: {error}"));
        let kept: Vec<_> = before.iter().filter(|it| after.contains(it)).collect();
        cuts(&bytes, &recorder.epochs.borrow(), |state| {
            seen += 1;
            let opened = opened_by(state);
            if opened.is_empty() || !kept.iter().all(|passphrase| opened.contains(passphrase)) {
                wrong.push(format!("{change:?}: only {opened:?} open it"));
            }
            let broken = broken_slots(state, at);
            if !broken.is_empty() {
                wrong.push(format!("{change:?}: slots {broken:?} hold no key"));
            }
        });
        bytes = recorder.into_bytes();
        assert_eq!(opened_by(&bytes), after, "{change:?}");
    }
    (seen, wrong)
}

#[test]
fn no_cut_loses_a_key() {
    for qcow2 in [false, true] {
        let (seen, wrong) = play(qcow2);
        assert!(wrong.is_empty(), "{} of {seen}: {}", wrong.len(), wrong[0]);
        assert!(seen > 800, "{seen}");
        println!("qcow2 {qcow2}: {seen} cuts");
    }
}

#[test]
fn every_ordering_point_of_key_slots_is_missed() {
    let mine = |point: &&OrderingPoint| suite(**point) == Suite::Keys;
    let points: Vec<_> = OrderingPoint::ALL.iter().filter(mine).collect();
    assert_eq!(points.len(), 2);
    for point in points {
        let (_, wrong) = knockout::without(*point, || play(false));
        assert!(!wrong.is_empty(), "{point:?} can be left out");
    }
}

#[test]
fn the_last_key_is_not_erased() {
    let (bytes, _) = image(true);
    let only = [
        KeyChange::EraseSlot(0),
        KeyChange::Erase {
            passphrase: Passphrase::new("one"),
            slot: None,
        },
        KeyChange::Erase {
            passphrase: Passphrase::new("two"),
            slot: None,
        },
        KeyChange::EraseSlot(3),
        KeyChange::EraseSlot(8),
        KeyChange::Add {
            passphrase: Passphrase::new("two"),
            rounds: ROUNDS,
            slot: Some(0),
        },
    ];
    for change in only {
        let recorder = Recorder::new(MemoryStorage::new(bytes.clone()));
        let result = block_on(async {
            let image = open(recorder.clone(), "one", true).await?;
            image
                .change_keys(&change, false, 1 << 20, &mut random(1))
                .await
        });
        assert!(
            matches!(result, Err(Error::Refused(_) | Error::OutOfRange(_))),
            "{change:?}: {result:?}"
        );
        assert_eq!(opened_by(&recorder.into_bytes()), ["one"], "{change:?}");
    }
}
