//! Sectors of 512 bytes, encrypted each by itself.

use std::fmt;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
    InnerIvInit, KeyInit,
};
use aes::{Aes128, Aes192, Aes256};

use crate::crypto::hash::Hash;
use crate::units::SECTOR;

const BLOCK: usize = 16;
/// The key that [`IvGenerator::Essiv`] encrypts by is the hash.
const ESSIV_KEY_BYTES: usize = 32;
const BLOCKS: usize = SECTOR as usize / BLOCK;

/// A block of a cipher.
type Block = Array<u8, U16>;

/// A block cipher with its key.
trait Cipher: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> {}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>> Cipher for C {}

/// How the blocks of a sector depend on one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each upon the one before it.
    Cbc,
    /// Each upon its place, by a second key.
    Xts,
}

/// What a sector's number becomes before it is mixed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvGenerator {
    /// Its low 32 bits.
    Plain,
    /// Itself.
    Plain64,
    /// Itself, encrypted by a hash of the key.
    Essiv(Hash),
}

/// A cipher as a header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    /// The mode.
    pub mode: Mode,
    /// The initialization vectors.
    pub iv: IvGenerator,
    /// The length of the key: of both, where the mode has two.
    pub key_bytes: usize,
}

impl CipherSpec {
    /// The cipher by its names in a LUKS header, as in "aes" and "xts-plain64", or what is wrong with them.
    pub fn from_names(cipher: &str, mode: &str, key_bytes: usize) -> Result<Self, String> {
        if cipher != "aes" {
            return Err(format!("Algorithm '{cipher}' is not supported"));
        }
        let Some((mode, generator)) = mode.split_once('-') else {
            return Err(format!("Unexpected cipher mode string format '{mode}'"));
        };
        let mode = match mode {
            "cbc" => Mode::Cbc,
            "xts" => Mode::Xts,
            other => return Err(format!("Cipher mode '{other}' is not supported")),
        };
        let iv = match generator.split_once(':').unwrap_or((generator, "")) {
            ("plain", "") => IvGenerator::Plain,
            ("plain64", "") => IvGenerator::Plain64,
            ("essiv", hash) => {
                let hash = Hash::from_name(hash).ok_or_else(|| {
                    format!("Hash '{hash}' is not supported for initialization vectors")
                })?;
                if hash.bytes() != ESSIV_KEY_BYTES {
                    return Err(format!(
                        "No AES cipher with key size {} available",
                        hash.bytes()
                    ));
                }
                IvGenerator::Essiv(hash)
            }
            _ => return Err(format!("IV generator '{generator}' is not supported")),
        };
        let spec = Self {
            mode,
            iv,
            key_bytes,
        };
        match spec.one_key_bytes() {
            16 | 24 | 32 if key_bytes == spec.one_key_bytes() * spec.keys() => Ok(spec),
            _ => Err(format!(
                "Cipher '{cipher}' with a key of {} bits is not supported",
                key_bytes * 8
            )),
        }
    }

    fn keys(self) -> usize {
        match self.mode {
            Mode::Cbc => 1,
            Mode::Xts => 2,
        }
    }

    /// The length of a single key.
    fn one_key_bytes(self) -> usize {
        self.key_bytes / self.keys()
    }
}

/// Encrypts and decrypts sectors.
pub struct SectorCipher(Box<dyn Sectors>);

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SectorCipher(…)")
    }
}

impl SectorCipher {
    /// The cipher with `key`, which is as long as `spec` says.
    pub fn new(spec: CipherSpec, key: &[u8]) -> Option<Self> {
        fn with<C: Cipher + KeyInit + 'static>(
            spec: CipherSpec,
            key: &[u8],
        ) -> Option<SectorCipher> {
            let (first, second) = key.split_at_checked(spec.one_key_bytes())?;
            let vector = match spec.iv {
                IvGenerator::Plain => Vector::Plain,
                IvGenerator::Plain64 => Vector::Plain64,
                IvGenerator::Essiv(hash) => {
                    let cipher = Aes256::new_from_slice(&hash.of(&[key])).ok()?;
                    Vector::Essiv(Box::new(cipher))
                }
            };
            let cipher = C::new_from_slice(first).ok()?;
            Some(SectorCipher(match spec.mode {
                Mode::Cbc => Box::new(Cbc { cipher, vector }),
                Mode::Xts => Box::new(Xts {
                    cipher,
                    tweak: C::new_from_slice(second).ok()?,
                    vector,
                }),
            }))
        }
        match spec.one_key_bytes() {
            16 => with::<Aes128>(spec, key),
            24 => with::<Aes192>(spec, key),
            32 => with::<Aes256>(spec, key),
            _ => None,
        }
    }

    /// Encrypts whole sectors, of which the first has the number `first`.
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        for (sector, data) in (first..).zip(data.chunks_exact_mut(SECTOR as usize)) {
            self.0.encrypt(sector, data);
        }
    }

    /// Decrypts whole sectors, of which the first has the number `first`.
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        for (sector, data) in (first..).zip(data.chunks_exact_mut(SECTOR as usize)) {
            self.0.decrypt(sector, data);
        }
    }
}

/// One sector at a time.
trait Sectors {
    fn encrypt(&self, sector: u64, data: &mut [u8]);
    fn decrypt(&self, sector: u64, data: &mut [u8]);
}

/// Makes initialization vectors.
enum Vector {
    Plain,
    Plain64,
    Essiv(Box<Aes256>),
}

impl Vector {
    fn of(&self, sector: u64) -> Block {
        let number = match self {
            Self::Plain => sector & u64::from(u32::MAX),
            Self::Plain64 | Self::Essiv(_) => sector,
        };
        let mut vector = Block::default();
        vector[..8].copy_from_slice(&number.to_le_bytes());
        if let Self::Essiv(cipher) = self {
            cipher.encrypt_block(&mut vector);
        }
        vector
    }
}

fn blocks(data: &mut [u8]) -> &mut [Block] {
    Block::slice_as_chunks_mut(data).0
}

struct Cbc<C> {
    cipher: C,
    vector: Vector,
}

impl<C: Cipher> Sectors for Cbc<C> {
    fn encrypt(&self, sector: u64, data: &mut [u8]) {
        let vector = self.vector.of(sector);
        cbc::Encryptor::inner_iv_init(&self.cipher, &vector).encrypt_blocks(blocks(data));
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) {
        let vector = self.vector.of(sector);
        cbc::Decryptor::inner_iv_init(&self.cipher, &vector).decrypt_blocks(blocks(data));
    }
}

/// XTS over whole blocks. The crate `xts-mode` encrypts block by block, which leaves most of what the cipher
/// can do in parallel unused: a third of this speed in WebAssembly, a sixth natively.
struct Xts<C> {
    cipher: C,
    tweak: C,
    vector: Vector,
}

impl<C: Cipher> Xts<C> {
    fn tweaks(&self, sector: u64) -> [u128; BLOCKS] {
        let mut first = self.vector.of(sector);
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        std::array::from_fn(|_| {
            let this = tweak;
            // Times x, modulo x^128 + x^7 + x^2 + x + 1.
            tweak = (tweak << 1) ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
            this
        })
    }
}

fn mix(blocks: &mut [Block], tweaks: &[u128; BLOCKS]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        let mixed = u128::from_le_bytes((*block).into()) ^ tweak;
        *block = mixed.to_le_bytes().into();
    }
}

impl<C: Cipher> Sectors for Xts<C> {
    fn encrypt(&self, sector: u64, data: &mut [u8]) {
        let tweaks = self.tweaks(sector);
        let blocks = blocks(data);
        mix(blocks, &tweaks);
        self.cipher.encrypt_blocks(blocks);
        mix(blocks, &tweaks);
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) {
        let tweaks = self.tweaks(sector);
        let blocks = blocks(data);
        mix(blocks, &tweaks);
        self.cipher.decrypt_blocks(blocks);
        mix(blocks, &tweaks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619-2007, vector 4: AES-128, sector 0, the first block of 512 bytes 0, 1, 2 …
    #[test]
    fn the_vector_of_the_standard() {
        let key: Vec<u8> = [
            0x2718_2818_2845_9045_2353_6028_7471_3526_u128.to_be_bytes(),
            0x3141_5926_5358_9793_2384_6264_3383_2795_u128.to_be_bytes(),
        ]
        .concat();
        let spec = CipherSpec::from_names("aes", "xts-plain64", 32).unwrap();
        let cipher = SectorCipher::new(spec, &key).unwrap();
        let plain: Vec<u8> = (0..512).map(|at| at as u8).collect();
        let mut data = plain.clone();
        cipher.encrypt(0, &mut data);
        let first = 0x27a7_479b_efa1_d476_489f_308c_d4cf_a6e2_u128.to_be_bytes();
        assert_eq!(data[..16], first);
        cipher.decrypt(0, &mut data);
        assert_eq!(data, plain);
    }

    #[test]
    fn every_cipher_reads_what_it_wrote_and_tells_sectors_apart() {
        let plain: Vec<u8> = (0..2048).map(|at| (at / 3) as u8).collect();
        for (mode, lengths) in [
            ("cbc-plain64", [16, 24, 32]),
            ("cbc-plain", [16, 24, 32]),
            ("cbc-essiv:sha256", [16, 24, 32]),
            ("xts-plain64", [32, 48, 64]),
            ("xts-essiv:sha256", [32, 48, 64]),
        ] {
            for length in lengths {
                let key: Vec<u8> = (0..length).map(|at| at as u8).collect();
                let spec = CipherSpec::from_names("aes", mode, length).unwrap();
                let cipher = SectorCipher::new(spec, &key).unwrap();
                let mut data = plain.clone();
                cipher.encrypt(7, &mut data);
                let mut last = data[1536..].to_vec();
                cipher.decrypt(10, &mut last);
                assert_eq!(last, plain[1536..], "{mode} {length}");
                cipher.decrypt(7, &mut data);
                assert_eq!(data, plain, "{mode} {length}");
                cipher.decrypt(8, &mut data);
                assert_ne!(data, plain, "{mode} {length}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let refused =
            |cipher, mode, bytes| CipherSpec::from_names(cipher, mode, bytes).unwrap_err();
        assert!(refused("serpent", "xts-plain64", 64).contains("serpent"));
        assert!(refused("aes", "xts", 64).contains("string format"));
        assert!(refused("aes", "ctr-plain64", 32).contains("ctr"));
        assert!(refused("aes", "cbc-essiv:md5", 32).contains("md5"));
        assert!(refused("aes", "xts-plain64", 33).contains("264 bits"));
        assert!(refused("aes", "cbc-plain64", 64).contains("512 bits"));
    }
}
