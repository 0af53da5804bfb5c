//! One compressed cluster: the decoders, on streams that nothing stands in front of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oxcow::{DenyAll, Format, GuestOffset, Image, OpenOptions};
use oxcow_fuzz::{file, now};

const CLUSTER: usize = 16 << 10;
/// As much as an entry of an image with such clusters can describe.
const LONGEST: usize = 64 * 512;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, stream)) = bytes.split_first() else {
        return;
    };
    let stream = &stream[..stream.len().min(LONGEST)];
    let image = image(kind % 2 == 1, stream);
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        ..OpenOptions::default()
    };
    let image = now(Image::open(file(&image), &options, &DenyAll::default()))
        .expect("the image itself is sound");
    let mut whole = vec![0xaa; CLUSTER];
    let result = now(image.read_at(GuestOffset(0), &mut whole));
    let mut part = [0x55; 100];
    let again = now(image.read_at(GuestOffset(5000), &mut part));
    assert_eq!(result.is_ok(), again.is_ok());
    if result.is_ok() {
        assert!(whole[5000..5100] == part, "decoded twice, the same");
    }
});

/// An image of one cluster, which is compressed: header, refcount table and block, L1 table, L2 table, stream.
fn image(zstd: bool, stream: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 5 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let cluster = CLUSTER as u64;
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &14u32.to_be_bytes());
    put(24, &cluster.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &(3 * cluster).to_be_bytes());
    put(48, &cluster.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(79, &[if zstd { 8 } else { 0 }]);
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    put(104, &[zstd.into()]);
    put(CLUSTER, &(2 * cluster).to_be_bytes());
    put(3 * CLUSTER, &(4 * cluster).to_be_bytes());
    let more_sectors = (stream.len().max(1) as u64).div_ceil(512) - 1;
    put(
        4 * CLUSTER,
        &((1 << 62) | (more_sectors << 56) | (5 * cluster)).to_be_bytes(),
    );
    image.extend_from_slice(stream);
    // Never an offset past the end.
    image.push(0);
    image
}
