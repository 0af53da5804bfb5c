//! The three feature bitmaps (specification, header bytes 72 to 95).

macro_rules! feature_bits {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $at:expr => $words:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: Self = Self(1 << $at);)*
            /// Every bit that the specification defines.
            pub const KNOWN: Self = Self(0 $(| 1 << $at)*);
            /// The specified bits with their names in the feature name table.
            pub const NAMES: &'static [(u8, &'static str)] = &[$(($at, $words)),*];

            /// Whether all bits of `other` are set.
            #[must_use]
            pub fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits that the specification does not define.
            #[must_use]
            pub fn unknown(self) -> u64 {
                self.0 & !Self::KNOWN.0
            }
        }
    };
}

feature_bits! {
    /// A reader that does not know one of these must not open the image.
    Incompatible {
        /// Refcounts may be too low until they are rebuilt (invariant M8).
        DIRTY = 0 => "dirty bit",
        /// Some structure is known to be wrong; the image must not be written.
        CORRUPT = 1 => "corrupt bit",
        /// Guest data lies in another file.
        DATA_FILE = 2 => "external data file",
        /// Compressed clusters are not deflate.
        COMPRESSION_TYPE = 3 => "compression type",
        /// L2 entries are 128 bits and describe 32 subclusters each.
        EXTENDED_L2 = 4 => "extended L2 entries",
    }
}

feature_bits! {
    /// May be ignored, and must be kept.
    Compatible {
        /// Refcounts may be written late, under the dirty bit.
        LAZY_REFCOUNTS = 0 => "lazy refcounts",
    }
}

feature_bits! {
    /// A writer that does not know one of these clears it.
    Autoclear {
        /// The bitmaps extension is consistent.
        BITMAPS = 0 => "bitmaps",
        /// The data file alone is a raw image with the same content.
        DATA_FILE_RAW = 1 => "raw external data",
    }
}
