//! LUKS's anti-forensic splitter: key material is spread so far that losing any part of it loses the key.

use crate::crypto::hash::Hash;

/// Joins `material`, `stripes` pieces of `key_bytes` each, to the key that was split.
pub fn merge(hash: Hash, material: &[u8], key_bytes: usize) -> Vec<u8> {
    let mut key = vec![0; key_bytes];
    let mut pieces = material.chunks_exact(key_bytes).peekable();
    while let Some(piece) = pieces.next() {
        xor(&mut key, piece);
        if pieces.peek().is_some() {
            diffuse(hash, &mut key);
        }
    }
    key
}

/// Spreads `key` over `material`, whose pieces but the last are random already.
pub fn split(hash: Hash, key: &[u8], material: &mut [u8]) {
    let last = material.len() - key.len();
    let (random, rest) = material.split_at_mut(last);
    let mut mixed = vec![0; key.len()];
    for piece in random.chunks_exact(key.len()) {
        xor(&mut mixed, piece);
        diffuse(hash, &mut mixed);
    }
    rest.copy_from_slice(key);
    xor(rest, &mixed);
}

fn xor(into: &mut [u8], with: &[u8]) {
    for (byte, other) in into.iter_mut().zip(with) {
        *byte ^= other;
    }
}

/// Replaces each piece of the hash's length by the hash of its number and itself, cut to its length.
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (index, piece) in block.chunks_mut(hash.bytes()).enumerate() {
        let number = (index as u32).to_be_bytes();
        let digest = hash.of(&[&number, piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_split_is_joined_again() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            for length in [16, 32, 48, 64] {
                let key: Vec<u8> = (0..length).map(|at| at as u8 * 3).collect();
                let mut material: Vec<u8> = (0..length * 50).map(|at| (at * at) as u8).collect();
                split(hash, &key, &mut material);
                assert_eq!(merge(hash, &material, length), key);
                // Every byte counts.
                material[length * 20 + 3] ^= 1;
                assert_ne!(merge(hash, &material, length), key);
            }
        }
    }
}
