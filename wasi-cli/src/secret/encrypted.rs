//! Secrets that are encrypted themselves, so that command lines and files may be seen: AES-256-CBC by a master key,
//! which is another secret (QEMU's documentation, "Providing secret data to QEMU").

use aes::Aes256;
use cbc::Decryptor;
use cbc::cipher::{Array, BlockModeDecrypt, KeyIvInit};

const KEY_BYTES: usize = 32;
const BLOCK: usize = 16;

pub type Key = [u8; KEY_BYTES];
pub type Iv = [u8; BLOCK];

/// What `data` is without its encryption and its padding.
pub fn decrypt(key: &Key, iv: &Iv, mut data: Vec<u8>) -> Result<Vec<u8>, String> {
    if !data.len().is_multiple_of(BLOCK) {
        let length = data.len();
        return Err(format!(
            "Length {length} must be a multiple of block size {BLOCK}"
        ));
    }
    let mut decryptor = Decryptor::<Aes256>::new(key.into(), iv.into());
    decryptor.decrypt_blocks(Array::slice_as_chunks_mut(&mut data).0);
    // PKCS#7, of which QEMU looks at the last byte alone.
    let padding = usize::from(data.last().copied().unwrap_or(0));
    if padding > BLOCK || padding > data.len() {
        return Err(format!(
            "Incorrect number of padding bytes ({padding}) found on decrypted data"
        ));
    }
    data.truncate(data.len() - padding);
    Ok(data)
}

/// The master key, if it is one.
pub fn key(key: &[u8]) -> Result<&Key, String> {
    key.try_into()
        .map_err(|_| format!("Key should be {KEY_BYTES} bytes in length"))
}

/// The initialization vector, if it is one.
pub fn iv(iv: &[u8]) -> Result<&Iv, String> {
    let length = iv.len();
    iv.try_into()
        .map_err(|_| format!("IV should be {BLOCK} bytes in length not {length}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &Key = b"0123456789abcdef0123456789abcdef";
    const IV: &Iv = b"ABCDEFGHIJKLMNOP";

    /// What `openssl enc -aes-256-cbc -K 3031…6566 -iv 4142…4f50` makes of "letmein".
    const LETMEIN: [u8; 16] = [
        0x7f, 0xbd, 0x94, 0xea, 0x60, 0xba, 0x82, 0xaf, 0xf1, 0x2b, 0x3d, 0x91, 0x68, 0x74, 0x04,
        0xb0,
    ];

    #[test]
    fn what_openssl_encrypted_is_decrypted() {
        assert_eq!(decrypt(KEY, IV, LETMEIN.into()).unwrap(), b"letmein");
        assert_eq!(decrypt(KEY, IV, Vec::new()).unwrap(), b"");
    }

    #[test]
    fn what_cannot_be_decrypted_is_refused() {
        assert!(key(&KEY[1..]).unwrap_err().contains("Key should be 32"));
        assert!(iv(b"short").unwrap_err().contains("not 5"));
        let refused = |iv: &Iv, data: &[u8]| decrypt(KEY, iv, data.to_vec()).unwrap_err();
        assert!(refused(IV, &LETMEIN[1..]).contains("Length 15"));
        // The vector's last byte changes the text's: the length of the padding, which is 9.
        let mut other = *IV;
        other[15] ^= 0x81;
        assert!(refused(&other, &LETMEIN).contains("bytes (136)"));
    }
}
