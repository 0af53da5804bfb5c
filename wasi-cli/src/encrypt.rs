//! Options of `create` and `convert` that ask for an encrypted image, and those of `amend` about its key slots.

use std::time::{Duration, Instant};

use oxcow::create::NewEncryption;
use oxcow::crypto::{Hash, LuksInfo, LuksOptions, MIN_ROUNDS, NewLuksHeader, Passphrase};
use oxcow::image::KeyChange;
use oxcow::info::{self, EncryptInfo, FormatSpecific};
use oxcow::{Image, OpenOptions};

use crate::cmd::create_options::CreateOptions;
use crate::file::{FileStorage, block_on};
use crate::secret;

/// How long deriving a key from a passphrase is to take, in milliseconds, where nobody says it.
const ITER_TIME: u64 = 2000;

/// Random bytes of the system's.
pub fn random(buf: &mut [u8]) -> std::io::Result<()> {
    getrandom::fill(buf).map_err(std::io::Error::other)
}

/// How a qcow2 image with these options is encrypted, in the order in which qemu-img complains.
pub fn of_qcow2(options: &CreateOptions) -> Result<Option<NewEncryption>, String> {
    let format = match options.get("encrypt.format") {
        Some(format) => format,
        None if options.is_on("encryption") => "aes",
        None => return Ok(None),
    };
    match format {
        "aes" => {
            let others = [
                "cipher-alg",
                "cipher-mode",
                "ivgen-alg",
                "ivgen-hash-alg",
                "hash-alg",
                "iter-time",
            ];
            let others = others.map(|name| format!("encrypt.{name}"));
            match others.iter().find(|name| options.get(name).is_some()) {
                Some(name) => Err(format!("Parameter '{name}' is unexpected")),
                None => key(options, "encrypt.").map(|_| Some(NewEncryption::Aes)),
            }
        }
        _ => luks(options, "encrypt.").map(NewEncryption::Luks).map(Some),
    }
}

/// How long the encryption header of a qcow2 image with these options would be, in bytes; 0 for one that has none.
pub fn header_bytes_of_qcow2(options: &CreateOptions) -> Result<u64, String> {
    if options.get("encrypt.format") != Some("luks") {
        return Ok(0); // The old encryption has no header.
    }
    header_bytes(options, "encrypt.")
}

/// How long the header of a plain LUKS image with these options would be, in bytes.
pub fn header_bytes_of_luks(options: &CreateOptions) -> Result<u64, String> {
    header_bytes(options, "")
}

fn header_bytes(options: &CreateOptions, prefix: &str) -> Result<u64, String> {
    let (luks, _) = luks_and_key(options, prefix)?;
    luks.header_bytes().map_err(|error| error.to_string())
}

/// Refuses options of a plain LUKS image that mean nothing.
pub fn check_luks_words(options: &CreateOptions) -> Result<(), String> {
    match options.get("detached-header") {
        Some(_) => Err("Parameter 'detached-header' is unexpected".to_owned()),
        None => luks_options(options, "").map(drop),
    }
}

/// The header of a plain LUKS image with these options.
pub fn of_luks(options: &CreateOptions) -> Result<NewLuksHeader, String> {
    luks(options, "")
}

fn luks(options: &CreateOptions, prefix: &str) -> Result<NewLuksHeader, String> {
    let (luks, passphrase) = luks_and_key(options, prefix)?;
    let time = options.number(&format!("{prefix}iter-time"));
    let time = time.filter(|&time| time > 0).unwrap_or(ITER_TIME);
    let timed = with_rounds(luks, time)?;
    let header = timed.new_header(&passphrase, &mut random);
    header.map_err(|error| error.to_string())
}

fn key(options: &CreateOptions, prefix: &str) -> Result<Passphrase, String> {
    let name = format!("{prefix}key-secret");
    let key = options.get(&name);
    secret::get(key.ok_or_else(|| format!("Parameter '{name}' is required for cipher"))?)
}

fn luks_and_key(
    options: &CreateOptions,
    prefix: &str,
) -> Result<(LuksOptions, Passphrase), String> {
    let wanted = luks_options(options, prefix)?;
    // Words that mean nothing are told of before a missing key, and what is not supported after it.
    let passphrase = key(options, prefix)?;
    Ok((wanted?, passphrase))
}

/// What the options say about ciphers, by QEMU's names, where they are all words that mean something; within, whether
/// that can be done.
fn luks_options(
    options: &CreateOptions,
    prefix: &str,
) -> Result<Result<LuksOptions, String>, String> {
    let get = |name: &str| options.get(&format!("{prefix}{name}"));
    let unknown =
        |name: &str, value: &str| format!("Parameter '{name}' does not accept value '{value}'");
    let mut unsupported = Vec::new();
    let key_bits = match get("cipher-alg") {
        None | Some("aes-256") => 256,
        Some("aes-192") => 192,
        Some("aes-128") => 128,
        Some(
            other @ ("des" | "3des" | "cast5-128" | "serpent-128" | "serpent-192" | "serpent-256"
            | "twofish-128" | "twofish-192" | "twofish-256" | "sm4"),
        ) => {
            unsupported.push(format!("Algorithm '{other}' is not supported"));
            256
        }
        Some(other) => return Err(unknown("cipher-alg", other)),
    };
    let mode = match get("cipher-mode") {
        None => "xts",
        Some(mode @ ("xts" | "cbc" | "ecb" | "ctr")) => mode,
        Some(other) => return Err(unknown("cipher-mode", other)),
    };
    let mut hash = |name: &str| -> Result<Option<Hash>, String> {
        match get(name) {
            None => Ok(None),
            Some(other @ ("md5" | "ripemd160" | "sm3")) => {
                unsupported.push(format!("Hash '{other}' is not supported"));
                Ok(None)
            }
            Some(other) => Hash::from_name(other)
                .map(Some)
                .ok_or_else(|| unknown(name, other)),
        }
    };
    let ivgen_hash = hash("ivgen-hash-alg")?;
    let ivgen = match get("ivgen-alg") {
        None => "plain64".to_owned(),
        Some(alg @ ("plain" | "plain64")) => alg.to_owned(),
        Some("essiv") => format!("essiv:{}", ivgen_hash.unwrap_or(Hash::Sha256).name()),
        Some(other) => return Err(unknown("ivgen-alg", other)),
    };
    let luks = LuksOptions {
        key_bits,
        cipher_mode: mode.to_owned(),
        ivgen,
        hash: hash("hash-alg")?.unwrap_or(Hash::Sha256),
        ..LuksOptions::default()
    };
    Ok(match unsupported.into_iter().next() {
        Some(what) => Err(what),
        None => luks
            .check()
            .map(|()| luks)
            .map_err(|error| error.to_string()),
    })
}

/// The same with as many rounds as this machine does in `milliseconds`; an eighth of that for what the master
/// key is known by.
pub fn with_rounds(luks: LuksOptions, milliseconds: u64) -> Result<LuksOptions, String> {
    let key_bytes = luks.key_bytes().map_err(|error| error.to_string())?;
    let slot = rounds_in(luks.hash, key_bytes, milliseconds);
    let digest = rounds_in(luks.hash, 20, milliseconds) / 8;
    Ok(LuksOptions {
        slot_rounds: counted(slot)?,
        digest_rounds: counted(digest)?,
        ..luks
    })
}

fn counted(rounds: u64) -> Result<u32, String> {
    match u32::try_from(rounds) {
        Ok(rounds) => Ok(rounds.max(MIN_ROUNDS)),
        Err(_) => Err(format!(
            "PBKDF iterations {rounds} larger than {}",
            u32::MAX
        )),
    }
}

/// How many rounds for a key of `bytes` this machine does in `milliseconds`.
fn rounds_in(hash: Hash, bytes: usize, milliseconds: u64) -> u64 {
    /// As long as it takes to know: shorter than the shortest time that is worth asking for.
    const ENOUGH: Duration = Duration::from_millis(20);
    let mut rounds = 1 << 10;
    loop {
        let begin = Instant::now();
        hash.try_rounds(rounds, bytes);
        let taken = begin.elapsed();
        if taken >= ENOUGH || rounds >= 1 << 26 {
            let nanoseconds = taken.as_nanos().max(1);
            let count = u128::from(rounds) * u128::from(milliseconds) * 1_000_000 / nanoseconds;
            return u64::try_from(count).unwrap_or(u64::MAX);
        }
        rounds *= 2;
    }
}

/// What `amend` is asked about key slots, without the prefix that the options have for qcow2.
#[derive(Debug, Default)]
pub struct KeyOptions {
    state: Option<String>,
    new_secret: Option<String>,
    old_secret: Option<String>,
    keyslot: Option<u64>,
    iter_time: Option<u64>,
}

impl KeyOptions {
    /// Takes an option by its name; the value of the last one counts. Whether there is such an option.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let text = Some(value.to_owned());
        let number = || {
            let wrong = |_| format!("Parameter '{name}' expects a number");
            value.parse().map(Some).map_err(wrong)
        };
        match name {
            "state" => self.state = text,
            "new-secret" => self.new_secret = text,
            "old-secret" => self.old_secret = text,
            "keyslot" => self.keyslot = number()?,
            "iter-time" => self.iter_time = number()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The change of the key slots of an image that says `luks` of itself, in the order in which qemu-img
    /// complains.
    fn change(&self, luks: &LuksInfo) -> Result<KeyChange, String> {
        let slot = self.keyslot.map(|slot| slot as usize);
        match self.state.as_deref() {
            None => Err("Parameter 'state' is missing".to_owned()),
            Some("active") => {
                let Some(new) = &self.new_secret else {
                    return Err("'new-secret' is required to activate a keyslot".to_owned());
                };
                if self.old_secret.is_some() {
                    return Err(
                        "'old-secret' must not be given when activating keyslots".to_owned()
                    );
                }
                let passphrase = secret::get(new)?;
                let hash = Hash::from_name(&luks.hash_alg)
                    .ok_or_else(|| format!("Hash '{}' is not supported", luks.hash_alg))?;
                let time = self.iter_time.filter(|&time| time > 0).unwrap_or(ITER_TIME);
                let bits = luks.cipher_alg.rsplit('-').next();
                let bytes = bits
                    .and_then(|bits| bits.parse::<usize>().ok())
                    .unwrap_or(0)
                    / 8;
                let keys = if luks.cipher_mode == "xts" { 2 } else { 1 };
                Ok(KeyChange::Add {
                    passphrase,
                    rounds: counted(rounds_in(hash, bytes * keys, time))?,
                    slot,
                })
            }
            Some("inactive") => {
                if self.new_secret.is_some() {
                    return Err("'new-secret' must not be given when erasing keyslots".to_owned());
                }
                if self.iter_time.is_some() {
                    return Err("'iter-time' must not be given when erasing keyslots".to_owned());
                }
                match (&self.old_secret, slot) {
                    (Some(old), slot) => Ok(KeyChange::Erase {
                        passphrase: secret::get(old)?,
                        slot,
                    }),
                    (None, Some(slot)) => Ok(KeyChange::EraseSlot(slot)),
                    (None, None) => Err(
                        "To erase keyslot(s), either explicit keyslot index or the password currently contained \
                         in them must be given"
                            .to_owned(),
                    ),
                }
            }
            Some(other) => Err(format!("Parameter 'state' does not accept value '{other}'")),
        }
    }

    /// Changes the key slots of `image`.
    pub fn apply(&self, image: &Image<FileStorage>, force: bool) -> Result<(), String> {
        let info = block_on(info::info(image.top())).map_err(|error| error.to_string())?;
        let luks = match info.format_specific {
            Some(FormatSpecific::Luks(luks)) => *luks,
            Some(FormatSpecific::Qcow2(qcow2)) => match qcow2.encrypt {
                Some(EncryptInfo::Luks(luks)) => luks,
                Some(EncryptInfo::Aes {}) => {
                    return Err("Only LUKS encryption options can be amended".to_owned());
                }
                None => {
                    return Err(
                        "Can't amend encryption options - encryption not present".to_owned()
                    );
                }
            },
            _ => return Err("Can't amend encryption options - encryption not present".to_owned()),
        };
        let change = self.change(&luks)?;
        let rounds = OpenOptions::default().max_key_rounds;
        block_on(image.change_keys(&change, force, rounds, &mut random))
            .map_err(|error| error.to_string())
    }
}
