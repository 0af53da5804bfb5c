//! Header extensions (specification, "Header extensions").

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be32, be64, put32, put64, text};
use crate::qcow2::{Autoclear, Compatible, Encryption, Incompatible, MAX_BITMAPS};
use crate::units::{ClusterSize, HostOffset};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Type, bit and name: the size of an entry of the feature name table.
const FEATURE_NAME_ENTRY: usize = 48;
/// How many repeated types are told of.
const MAX_REPEATED: usize = 8;
/// The longest backing format name, in bytes.
const MAX_FORMAT_NAME: usize = 15;
/// The bytes of a LUKS header with its key slots, which the area must at least hold.
const LUKS_HEADER: u64 = 592;
/// The largest bitmap directory: a limit of QEMU's.
const MAX_BITMAP_DIRECTORY: u64 = 1024 * MAX_BITMAPS as u64;

/// Everything that the header extensions say, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// What the image calls its feature bits.
    pub feature_names: Vec<FeatureName>,
    /// Where the bitmap directory is. Consistent only under the autoclear bit.
    pub bitmaps: Option<BitmapsExtension>,
    /// Whether there are bitmaps that nobody may trust: some program that knows none wrote to the image.
    pub stale_bitmaps: bool,
    /// Where the encryption header is.
    pub crypto: Option<CryptoHeader>,
    /// The external data file's name.
    pub data_file: Option<String>,
    /// Extensions nobody here knows, with their data: kept whenever the header is rewritten.
    pub unknown: Vec<(u32, Vec<u8>)>,
    /// The names as they stand in the file: those of other programs need not be UTF-8, and are kept byte
    /// for byte as long as nobody changes them.
    pub(crate) stored: Vec<(u32, Vec<u8>)>,
}

/// Which bitmap a [`FeatureName`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureType {
    /// Incompatible features.
    Incompatible,
    /// Compatible features.
    Compatible,
    /// Autoclear features.
    Autoclear,
}

/// An entry of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// The feature bitmap.
    pub kind: FeatureType,
    /// The bit, 0 to 63.
    pub bit: u8,
    /// Its name.
    pub name: String,
}

/// The bitmaps extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// How many bitmaps there are.
    pub count: u32,
    /// Where the directory starts.
    pub directory: HostOffset,
    /// How long it is, in bytes.
    pub directory_bytes: u64,
}

/// The full disk encryption header pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CryptoHeader {
    /// Where the encryption header starts.
    pub offset: HostOffset,
    /// How long it is, in bytes.
    pub length: u64,
}

/// What the extensions are read from: the area between the header's end and the backing file's name
/// (or the end of the first cluster).
#[derive(Clone, Copy)]
pub(crate) struct Area<'a> {
    pub bytes: &'a [u8],
    /// Where the area starts in the file: for error messages.
    pub at: u64,
}

/// One extension as it stands.
struct Item<'a> {
    kind: u32,
    data: &'a [u8],
    at: u64,
}

impl<'a> Area<'a> {
    /// Whether the marker that ends the extensions stands in the area.
    pub fn has_end_marker(self) -> bool {
        let mut end = 0;
        for item in self.items() {
            match item {
                Ok(item) => {
                    end = (item.at - self.at) as usize + 8 + item.data.len().next_multiple_of(8)
                }
                Err(_) => return false,
            }
        }
        self.bytes.get(end..).is_some_and(|rest| rest.len() >= 8)
    }

    /// How many bytes the extensions take, with the marker that ends them.
    pub fn used(self) -> usize {
        let mut end = 0;
        for item in self.items().map_while(Result::ok) {
            end = (item.at - self.at) as usize + 8 + item.data.len().next_multiple_of(8);
        }
        (end + 8).min(self.bytes.len())
    }

    /// The byte of the file at which the data of the bitmaps extension stand: of the last one, as in
    /// [`Extensions::parse`].
    pub fn bitmaps_at(self) -> Option<usize> {
        let items = self.items().map_while(Result::ok);
        let bitmaps = items.filter(|item| item.kind == BITMAPS);
        bitmaps.last().map(|item| item.at as usize + 8)
    }

    /// The extensions up to the end marker or the area's end; an error where a length runs off.
    fn items(self) -> impl Iterator<Item = Result<Item<'a>>> {
        let mut rest = self.bytes;
        let mut at = self.at;
        std::iter::from_fn(move || {
            if rest.len() < 8 {
                // Too short for an extension: an end marker that the area cuts, or something that runs off.
                let cut = std::mem::take(&mut rest);
                return cut
                    .iter()
                    .any(|byte| *byte != 0)
                    .then(|| Err(wrong("Header extension too large", at)));
            }
            let (kind, length) = (be32(rest, 0), be32(rest, 4) as usize);
            let Some(data) = rest[8..].get(..length) else {
                rest = &[];
                return Some(Err(wrong("Header extension too large", at)));
            };
            if kind == END {
                return None;
            }
            let item = Item { kind, data, at };
            let step = 8 + length.next_multiple_of(8);
            rest = rest.get(step..).unwrap_or(&[]);
            at += step as u64;
            Some(Ok(item))
        })
    }
}

fn wrong(what: impl Into<crate::error::Text>, at: u64) -> Error {
    Error::corrupt(what, Place::at(Structure::HeaderExtension, at))
}

/// The feature name table alone, as far as it can be read: to name what an image wants.
pub(crate) fn feature_names(area: Area<'_>) -> Vec<FeatureName> {
    area.items()
        .map_while(Result::ok)
        .filter(|item| item.kind == FEATURE_NAMES)
        .flat_map(|item| parse_feature_names(item.data))
        .collect()
}

fn parse_feature_names(data: &[u8]) -> Vec<FeatureName> {
    // The last entry may be cut short; what is missing of it reads as zeros, as in QEMU.
    data.chunks(FEATURE_NAME_ENTRY)
        .filter_map(|entry| {
            let (&kind, rest) = entry.split_first()?;
            let (&bit, name) = rest.split_first()?;
            let kind = match kind {
                0 => FeatureType::Incompatible,
                1 => FeatureType::Compatible,
                2 => FeatureType::Autoclear,
                _ => return None,
            };
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            Some(FeatureName {
                kind,
                bit,
                name: text(name),
            })
        })
        .collect()
}

/// Unknown incompatible `bits` in words: by the image's own feature name table where it has them.
pub(crate) fn describe_unknown(bits: u64, names: &[FeatureName]) -> String {
    let mut words = Vec::new();
    let mut unnamed = bits;
    for feature in names {
        let bit = 1u64.checked_shl(u32::from(feature.bit)).unwrap_or(0);
        if feature.kind == FeatureType::Incompatible && unnamed & bit != 0 {
            unnamed &= !bit;
            words.push(feature.name.clone());
        }
    }
    if unnamed != 0 {
        words.push(format!("Unknown incompatible feature: {unnamed:x}"));
    }
    words.join(", ")
}

/// What the rest of the header says that extensions are checked against.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings {
    pub cluster_size: ClusterSize,
    pub encryption: Encryption,
    pub autoclear: Autoclear,
}

impl Extensions {
    /// Parses and checks the extensions in `area`.
    pub(crate) fn parse(area: Area<'_>, header: Surroundings) -> Result<Self> {
        let (found, mut errors) = Self::parse_all(area, header);
        if errors.is_empty() {
            Ok(found)
        } else {
            Err(errors.swap_remove(0))
        }
    }

    /// What can be used of the extensions in `area`, and everything that is wrong with the others.
    pub(crate) fn parse_all(area: Area<'_>, header: Surroundings) -> (Self, Vec<Error>) {
        let mut found = Self::default();
        let mut errors = Vec::new();
        for item in area.items() {
            if let Err(error) = item.and_then(|item| found.take(&item, header)) {
                errors.push(error);
            }
        }
        if header.encryption == Encryption::Luks && found.crypto.is_none() {
            errors.push(wrong("Missing CRYPTO header for crypt method 2", area.at));
        }
        // The bitmaps bit without the extension is an error by the specification; QEMU opens such images,
        // and nothing can be lost by it.
        (found, errors)
    }

    /// The extensions in `room` bytes, with the marker that ends them; `None` where they do not fit.
    ///
    /// The order is QEMU's, but for the bitmaps, which stand in front of the feature name table: what a later
    /// change of the header has to change must stand in the first sector (invariant M6). The table is left out
    /// where there is no room for it: it is advice.
    pub(crate) fn encode(&self, room: usize) -> Option<Vec<u8>> {
        let bytes = self.encoded(true);
        let bytes = match bytes.len() > room && !self.feature_names.is_empty() {
            true => self.encoded(false),
            false => bytes,
        };
        (bytes.len() <= room).then_some(bytes)
    }

    fn encoded(&self, with_names: bool) -> Vec<u8> {
        const END_BYTES: usize = 8;
        let mut bytes = Vec::new();
        if let Some(format) = &self.backing_format {
            let data = self.stored(BACKING_FORMAT, |data| text(data) == *format);
            append(
                &mut bytes,
                BACKING_FORMAT,
                data.unwrap_or(format.as_bytes()),
            );
        }
        if let Some(name) = &self.data_file {
            let data = self.stored(DATA_FILE, |data| text(data) == *name);
            append(&mut bytes, DATA_FILE, data.unwrap_or(name.as_bytes()));
        }
        if let Some(crypto) = &self.crypto {
            append(&mut bytes, CRYPTO, &crypto.encode());
        }
        if let Some(bitmaps) = &self.bitmaps {
            append(&mut bytes, BITMAPS, &bitmaps.encode());
        }
        if with_names && !self.feature_names.is_empty() {
            let same = |data: &[u8]| parse_feature_names(data) == self.feature_names;
            match self.stored(FEATURE_NAMES, same) {
                Some(data) => append(&mut bytes, FEATURE_NAMES, data),
                None => {
                    let data = encode_feature_names(&self.feature_names);
                    append(&mut bytes, FEATURE_NAMES, &data);
                }
            }
        }
        for (kind, data) in &self.unknown {
            append(&mut bytes, *kind, data);
        }
        bytes.resize(bytes.len() + END_BYTES, 0);
        bytes
    }

    /// The data of the last extension of a kind in the file, if it still says what it should.
    fn stored(&self, kind: u32, says_the_same: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
        self.stored
            .iter()
            .rev()
            .find(|(stored, _)| *stored == kind)
            .map(|(_, data)| data.as_slice())
            .filter(|data| says_the_same(data))
    }

    fn take(&mut self, item: &Item<'_>, header: Surroundings) -> Result<()> {
        let &Item { kind, data, at } = item;
        match kind {
            BACKING_FORMAT => {
                if data.len() > MAX_FORMAT_NAME {
                    let length = data.len();
                    return Err(wrong(
                        format!(
                            "ERROR: ext_backing_format: len={length} too large (>={})",
                            MAX_FORMAT_NAME + 1
                        ),
                        at,
                    ));
                }
                self.backing_format = Some(text(data)).filter(|name| !name.is_empty());
                self.stored.push((kind, data.to_vec()));
            }
            FEATURE_NAMES => {
                self.feature_names = parse_feature_names(data);
                self.stored.push((kind, data.to_vec()));
            }
            BITMAPS => {
                self.bitmaps = parse_bitmaps(data, at, header)?;
                self.stale_bitmaps = self.bitmaps.is_none();
            }
            CRYPTO => self.crypto = Some(parse_crypto(data, at, header)?),
            DATA_FILE => {
                self.data_file = Some(text(data));
                self.stored.push((kind, data.to_vec()));
            }
            _ => self.unknown.push((kind, data.to_vec())),
        }
        Ok(())
    }
}

fn append(bytes: &mut Vec<u8>, kind: u32, data: &[u8]) {
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

fn encode_feature_names(names: &[FeatureName]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(names.len() * FEATURE_NAME_ENTRY);
    for feature in names {
        let start = bytes.len();
        bytes.push(match feature.kind {
            FeatureType::Incompatible => 0,
            FeatureType::Compatible => 1,
            FeatureType::Autoclear => 2,
        });
        bytes.push(feature.bit);
        let name = feature.name.as_bytes();
        bytes.extend_from_slice(&name[..name.len().min(FEATURE_NAME_ENTRY - 2)]);
        bytes.resize(start + FEATURE_NAME_ENTRY, 0);
    }
    bytes
}

impl BitmapsExtension {
    /// The length of its data.
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn encode(self) -> [u8; Self::BYTES] {
        let mut data = [0; Self::BYTES];
        put32(&mut data, 0, self.count);
        put64(&mut data, 8, self.directory_bytes);
        put64(&mut data, 16, self.directory.0);
        data
    }
}

impl CryptoHeader {
    fn encode(self) -> [u8; 16] {
        let mut data = [0; 16];
        put64(&mut data, 0, self.offset.0);
        put64(&mut data, 8, self.length);
        data
    }
}

/// The types of the extensions in `area` that stand there more than once.
pub(crate) fn repeated(area: Area<'_>) -> Vec<(u32, u64)> {
    let mut seen = std::collections::HashSet::new();
    let mut again: Vec<(u32, u64)> = Vec::new();
    for item in area.items().map_while(Result::ok) {
        if !seen.insert(item.kind) && again.iter().all(|(kind, _)| *kind != item.kind) {
            again.push((item.kind, item.at));
        }
        if again.len() >= MAX_REPEATED {
            break;
        }
    }
    again
}

fn parse_bitmaps(data: &[u8], at: u64, header: Surroundings) -> Result<Option<BitmapsExtension>> {
    if data.len() != 24 {
        return Err(wrong("bitmaps_ext: Invalid extension length", at));
    }
    if !header.autoclear.has(Autoclear::BITMAPS) {
        // Some program that knows no bitmaps wrote to the image: they are stale (QEMU-COMPAT rule 5).
        return Ok(None);
    }
    if be32(data, 4) != 0 {
        return Err(wrong("bitmaps_ext: Reserved field is not zero", at));
    }
    let extension = BitmapsExtension {
        count: be32(data, 0),
        directory_bytes: be64(data, 8),
        directory: HostOffset(be64(data, 16)),
    };
    if extension.count > MAX_BITMAPS {
        return Err(wrong(
            format!(
                "bitmaps_ext: Image has {} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}",
                extension.count
            ),
            at,
        ));
    }
    if extension.count == 0 {
        return Err(wrong("found bitmaps extension with zero bitmaps", at));
    }
    if extension.directory_bytes == 0 {
        return Err(wrong("Requested bitmap directory size is zero", at));
    }
    if !extension.directory.is_aligned(header.cluster_size.bytes()) {
        return Err(wrong("bitmaps_ext: invalid bitmap directory offset", at));
    }
    if extension.directory_bytes > MAX_BITMAP_DIRECTORY {
        return Err(wrong(
            format!(
                "bitmaps_ext: bitmap directory size ({}) exceeds the maximum supported size ({MAX_BITMAP_DIRECTORY})",
                extension.directory_bytes
            ),
            at,
        ));
    }
    Ok(Some(extension))
}

fn parse_crypto(data: &[u8], at: u64, header: Surroundings) -> Result<CryptoHeader> {
    if header.encryption != Encryption::Luks {
        return Err(wrong(
            "CRYPTO header extension only expected with LUKS encryption method",
            at,
        ));
    }
    if data.len() != 16 {
        return Err(wrong(
            format!(
                "CRYPTO header extension size {}, but expected size 16",
                data.len()
            ),
            at,
        ));
    }
    let crypto = CryptoHeader {
        offset: HostOffset(be64(data, 0)),
        length: be64(data, 8),
    };
    if !crypto.offset.is_aligned(header.cluster_size.bytes()) {
        return Err(wrong(
            format!(
                "Encryption header offset '{}' is not a multiple of cluster size '{}'",
                crypto.offset.0,
                header.cluster_size.bytes()
            ),
            at,
        ));
    }
    if crypto.length < LUKS_HEADER {
        return Err(wrong("Request for data outside of extension header", at));
    }
    Ok(crypto)
}

/// The name of feature `bit`, by the specification.
#[must_use]
pub fn specified_name(kind: FeatureType, bit: u8) -> Option<&'static str> {
    let names = match kind {
        FeatureType::Incompatible => Incompatible::NAMES,
        FeatureType::Compatible => Compatible::NAMES,
        FeatureType::Autoclear => Autoclear::NAMES,
    };
    names
        .iter()
        .find(|(at, _)| *at == bit)
        .map(|(_, name)| *name)
}

/// The names of all features that the specification defines, for new images.
pub(crate) fn specified_names() -> Vec<FeatureName> {
    [
        (FeatureType::Incompatible, Incompatible::NAMES),
        (FeatureType::Compatible, Compatible::NAMES),
        (FeatureType::Autoclear, Autoclear::NAMES),
    ]
    .into_iter()
    .flat_map(|(kind, names)| {
        names.iter().map(move |&(bit, name)| FeatureName {
            kind,
            bit,
            name: name.to_owned(),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Surroundings {
        let cluster_size = ClusterSize::from_bits(16).unwrap();
        Surroundings {
            cluster_size,
            encryption: Encryption::None,
            autoclear: Autoclear(0),
        }
    }

    fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_be_bytes(), (data.len() as u32).to_be_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0xee);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Extensions> {
        Extensions::parse(Area { bytes, at: 112 }, plain())
    }

    #[test]
    fn known_and_unknown_extensions_up_to_the_end_marker() {
        let bytes = [
            extension(BACKING_FORMAT, b"qcow2"),
            extension(0x1234_5678, b"kept"),
            extension(END, b""),
            extension(DATA_FILE, b"not reached"),
        ]
        .concat();
        let found = parse(&bytes).unwrap();
        assert_eq!(found.backing_format.as_deref(), Some("qcow2"));
        assert_eq!(found.unknown, [(0x1234_5678, b"kept".to_vec())]);
        assert_eq!(found.data_file, None);
    }

    #[test]
    fn lengths_that_run_off_are_refused() {
        let mut bytes = extension(0x1234_5678, b"12345678");
        bytes[7] = 9;
        assert_eq!(
            parse(&bytes).unwrap_err().to_string(),
            "Header extension too large"
        );
        bytes[4] = 0xff;
        assert_eq!(
            parse(&bytes).unwrap_err().to_string(),
            "Header extension too large"
        );
        // The end marker's too, as QEMU does.
        bytes[..4].copy_from_slice(&END.to_be_bytes());
        assert_eq!(
            parse(&bytes).unwrap_err().to_string(),
            "Header extension too large"
        );
        assert!(parse(&extension(BACKING_FORMAT, &[b'x'; 16])).is_err());
    }

    #[test]
    fn what_is_encoded_is_parsed_as_the_same() {
        let header = Surroundings {
            encryption: Encryption::Luks,
            autoclear: Autoclear::BITMAPS,
            ..plain()
        };
        let mut extensions = Extensions {
            backing_format: Some("qcow2".into()),
            feature_names: specified_names(),
            bitmaps: Some(BitmapsExtension {
                count: 2,
                directory: HostOffset(0x7_0000),
                directory_bytes: 64,
            }),
            crypto: Some(CryptoHeader {
                offset: HostOffset(0x5_0000),
                length: 4096,
            }),
            data_file: Some("data.raw".into()),
            unknown: vec![(0x1234_5678, b"kept".to_vec())],
            ..Extensions::default()
        };
        let parse = |bytes: &[u8]| {
            let mut found = Extensions::parse(Area { bytes, at: 112 }, header).unwrap();
            found.stored.clear();
            found
        };
        let bytes = extensions.encode(4096).unwrap();
        assert_eq!(parse(&bytes), extensions);
        assert_eq!(extensions.encode(bytes.len()).unwrap(), bytes);

        // Without room for it the feature name table goes, and nothing else does.
        let short = extensions.encode(bytes.len() - 1).unwrap();
        extensions.feature_names.clear();
        assert_eq!(parse(&short), extensions);
        assert_eq!(extensions.encode(short.len() - 1), None);
    }

    #[test]
    fn the_order_is_the_one_that_qemu_writes() {
        let extensions = Extensions {
            backing_format: Some("raw".into()),
            feature_names: specified_names(),
            bitmaps: None,
            crypto: Some(CryptoHeader {
                offset: HostOffset(0x5_0000),
                length: 4096,
            }),
            data_file: Some("d".into()),
            unknown: vec![(0x1234_5678, b"kept".to_vec())],
            ..Extensions::default()
        };
        let kinds = |room| -> Vec<u32> {
            let bytes = extensions.encode(room).unwrap();
            let area = Area {
                bytes: &bytes,
                at: 112,
            };
            area.items().map(|item| item.unwrap().kind).collect()
        };
        // As native qemu-img 10.0.2 does it with `rebase -u`.
        let all = [
            BACKING_FORMAT,
            DATA_FILE,
            CRYPTO,
            FEATURE_NAMES,
            0x1234_5678,
        ];
        assert_eq!(kinds(4096), all);
        assert_eq!(kinds(400), [all[0], all[1], all[2], all[4]]);
    }

    #[test]
    fn names_that_nobody_changed_are_kept_byte_for_byte() {
        let mut table = encode_feature_names(&specified_names());
        table[2..6].copy_from_slice(&[0xff, 0xfe, 0, b'x']);
        let bytes = [
            extension(BACKING_FORMAT, b"raw\0raw"),
            extension(DATA_FILE, b"\xffdata"),
            extension(FEATURE_NAMES, &table),
        ]
        .concat();
        let kept = |bytes: &[u8], data: &[u8]| bytes.windows(data.len()).any(|at| at == data);
        let mut found = parse(&bytes).unwrap();
        let again = found.encode(4096).unwrap();
        assert!(kept(&again, b"raw\0raw") && kept(&again, b"\xffdata") && kept(&again, &table));

        found.backing_format = Some("qcow2".into());
        found.data_file = Some("other".into());
        let changed = found.encode(4096).unwrap();
        assert!(kept(&changed, b"qcow2\0") && kept(&changed, b"other") && kept(&changed, &table));
        assert!(!kept(&changed, b"raw\0raw") && !kept(&changed, b"\xffdata"));
    }

    #[test]
    fn unknown_bits_are_named_by_the_image_first() {
        let mut entry = [0u8; 48];
        entry[1] = 62;
        entry[2..6].copy_from_slice(b"warp");
        let names = parse_feature_names(&entry);
        assert_eq!(describe_unknown(1 << 62, &names), "warp");
        assert_eq!(
            describe_unknown(1 << 62 | 1 << 61, &names),
            "warp, Unknown incompatible feature: 2000000000000000"
        );
    }
}
