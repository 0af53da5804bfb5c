//! LUKS headers with wrong bytes in them: an error or the disk, soon, and in little memory.

use std::time::{Duration, Instant};

use oxcow::create::{self, CreateOptions, NewEncryption};
use oxcow::crypto::{Hash, LuksOptions, Passphrase};
use oxcow::storage::AnyStorage;
use oxcow::{DenyAll, File, GuestOffset, Image, MemoryStorage, OpenOptions};
use oxcow_tests::rng::Rng;
use oxcow_tests::scripts::storage::block_on;

/// How many damaged copies of each image are tried.
const COPIES: u64 = 1500;
/// What a header may cost: a few times what an undamaged one does.
const MAX_ROUNDS: u64 = 20_000;
/// The header's fields that are numbers: their places in it.
const NUMBERS: &[usize] = &[
    104, 108, 164, // payload, key, rounds
    208, 212, 248, 252, // the first key slot
    256, 260, 296, 300, // the second
    544, 548, 584, 588, // the last
];

fn header(options: &LuksOptions) -> oxcow::crypto::NewLuksHeader {
    let mut rng = Rng::new(1);
    let mut random = |buf: &mut [u8]| {
        buf.copy_from_slice(&rng.bytes(buf.len()));
        Ok(())
    };
    options
        .new_header(&Passphrase::new("secret"), &mut random)
        .expect("there is such a header")
}

/// A plain LUKS image and a qcow2 one, and where their headers are.
fn images() -> Vec<(Vec<u8>, usize)> {
    let luks = MemoryStorage::default();
    let options = LuksOptions {
        hash: Hash::Sha1,
        key_bits: 128,
        ..LuksOptions::default()
    };
    block_on(create::create_luks(&luks, &header(&options), 4096)).expect("it is created");
    let qcow2 = MemoryStorage::default();
    let options = CreateOptions {
        size: 1 << 20,
        cluster_size: 512,
        encryption: Some(NewEncryption::Luks(header(&LuksOptions::default()))),
        ..CreateOptions::default()
    };
    block_on(create::create(&qcow2, None, &options)).expect("it is created");
    let luks = luks.into_bytes();
    let qcow2 = qcow2.into_bytes();
    let at = qcow2
        .windows(6)
        .position(|bytes| bytes == b"LUKS\xba\xbe")
        .expect("there is a header");
    vec![(luks, 0), (qcow2, at)]
}

fn open(bytes: Vec<u8>) -> oxcow::Result<Vec<u8>> {
    let file = File {
        storage: AnyStorage::new(MemoryStorage::new(bytes)),
        name: "disk".into(),
    };
    let options = OpenOptions {
        passphrases: vec![Some(Passphrase::new("secret"))],
        max_key_rounds: MAX_ROUNDS,
        ..OpenOptions::default()
    };
    block_on(async {
        let image = Image::open(file, &options, &DenyAll::default()).await?;
        let mut sector = vec![0; 512];
        image.read_at(GuestOffset(0), &mut sector).await?;
        Ok(sector)
    })
}

#[test]
fn damaged_headers_end_soon() {
    let begin = Instant::now();
    let (mut opened, mut refused) = (0, 0);
    for (seed, (sound, at)) in images().into_iter().enumerate() {
        let whole = open(sound.clone()).expect("what is not damaged opens");
        let mut rng = Rng::new(seed as u64);
        for copy in 0..COPIES {
            let mut bytes = sound.clone();
            if copy % 3 == 0 {
                let field = at + rng.pick(NUMBERS);
                let value = match rng.below(4) {
                    0 => rng.next_u64() as u32,
                    1 => u32::MAX - rng.below(3) as u32,
                    2 => 1 << rng.below(32),
                    _ => rng.below(5000) as u32,
                };
                bytes[field..field + 4].copy_from_slice(&value.to_be_bytes());
            }
            for _ in 0..rng.below(4) {
                let byte = at + rng.below(592) as usize;
                bytes[byte] = rng.next_u64() as u8;
            }
            let changed = bytes[at..at + 592] != sound[at..at + 592];
            match open(bytes) {
                Ok(sector) if !changed => assert_eq!(sector, whole),
                Ok(_) => opened += 1,
                Err(error) => {
                    assert!(changed, "{error}");
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(
        refused > 500 && opened > 100,
        "{refused} refused, {opened} opened"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(240),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_header_that_asks_for_too_much_is_refused() {
    for (mut bytes, at) in images() {
        // The rounds of the first key slot.
        bytes[at + 212..at + 216].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = open(bytes).expect_err("nobody waits for that");
        assert!(matches!(error, oxcow::Error::Refused(_)), "{error}");
        assert!(error.to_string().contains("rounds"), "{error}");
    }
}

#[test]
fn key_slots_that_overlap_are_refused() {
    for (sound, at) in images() {
        let sector = |slot: usize| at + 208 + slot * 48 + 40;
        // Over each other, over the header, and over what is encrypted.
        let second: [u8; 4] = sound[sector(1)..sector(1) + 4]
            .try_into()
            .expect("four bytes");
        for value in [second, [0, 0, 0, 1], [0, 1, 0, 0]] {
            let mut bytes = sound.clone();
            bytes[sector(0)..sector(0) + 4].copy_from_slice(&value);
            let error = open(bytes).expect_err("that cannot be");
            assert!(matches!(error, oxcow::Error::Corrupt { .. }), "{error}");
        }
    }
}
