//! The `-o` options of a format: which there are, what values they take, and their help.

use crate::failure::Failure;
use crate::{console, name, outln, size};

/// What kind of value an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Size,
    Bool,
}

/// An option: its name, the kind of its value, and what the help says.
type Known = (&'static str, Kind, &'static str);

const SIZE: Known = ("size", Kind::Size, "Virtual disk size");

/// Options of every image that is a file. All tables stand in the order in which options are told of.
const FILE_OPTIONS: &[Known] = &[
    (
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    (
        "nocow",
        Kind::Bool,
        "Turn off copy-on-write (valid only on btrfs)",
    ),
    (
        "extent_size_hint",
        Kind::Size,
        "Extent size hint for the image file, 0 to disable",
    ),
];

const RAW_OPTIONS: &[Known] = &[SIZE];

const LUKS_OPTIONS: &[Known] = &[
    SIZE,
    (
        "key-secret",
        Kind::Text,
        "ID of the secret that provides the keyslot passphrase",
    ),
    (
        "cipher-alg",
        Kind::Text,
        "Name of encryption cipher algorithm",
    ),
    ("cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    ("ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    (
        "ivgen-hash-alg",
        Kind::Text,
        "Name of IV generator hash algorithm",
    ),
    ("hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    (
        "iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    (
        "detached-header",
        Kind::Bool,
        "Create a detached LUKS header",
    ),
];

const QCOW2_OPTIONS: &[Known] = &[
    (
        "encryption",
        Kind::Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    (
        "encrypt.format",
        Kind::Text,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    (
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    (
        "encrypt.cipher-alg",
        Kind::Text,
        "Name of encryption cipher algorithm",
    ),
    (
        "encrypt.cipher-mode",
        Kind::Text,
        "Name of encryption cipher mode",
    ),
    (
        "encrypt.ivgen-alg",
        Kind::Text,
        "Name of IV generator algorithm",
    ),
    (
        "encrypt.ivgen-hash-alg",
        Kind::Text,
        "Name of IV generator hash algorithm",
    ),
    (
        "encrypt.hash-alg",
        Kind::Text,
        "Name of encryption hash algorithm",
    ),
    (
        "encrypt.iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    ("cluster_size", Kind::Size, "qcow2 cluster size"),
    ("extended_l2", Kind::Bool, "Extended L2 tables"),
    (
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    (
        "compression_type",
        Kind::Text,
        "Compression method used for image cluster compression",
    ),
    SIZE,
    (
        "compat",
        Kind::Text,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    ("backing_file", Kind::Text, "File name of a base image"),
    ("backing_fmt", Kind::Text, "Image format of the base image"),
    (
        "data_file",
        Kind::Text,
        "File name of an external data file",
    ),
    (
        "data_file_raw",
        Kind::Bool,
        "The external data file must stay valid as a raw image",
    ),
    ("lazy_refcounts", Kind::Bool, "Postpone refcount updates"),
    (
        "refcount_bits",
        Kind::Number,
        "Width of a reference count entry in bits",
    ),
];

/// What the options are that nobody gave.
const QCOW2_DEFAULTS: &[(&str, &str)] = &[
    ("cluster_size", "65536"),
    ("extended_l2", "off"),
    ("compression_type", "zlib"),
    ("lazy_refcounts", "off"),
    ("refcount_bits", "16"),
];

/// The format's own options.
fn own(format: &str) -> &'static [Known] {
    match format {
        "qcow2" => QCOW2_OPTIONS,
        "luks" => LUKS_OPTIONS,
        _ => RAW_OPTIONS,
    }
}

/// The format's own options, then those of the file beneath that the format does not have.
fn known(format: &str) -> impl Iterator<Item = Known> {
    let own = own(format);
    let is_own = |option: &Known| own.iter().any(|(name, ..)| *name == option.0);
    let others = FILE_OPTIONS.iter().filter(move |option| !is_own(option));
    own.iter().chain(others).copied()
}

/// Options of one format, each value of the kind that it has to be.
#[derive(Debug, Default)]
pub struct CreateOptions(Vec<(String, String)>);

/// One `-o` after the other makes one list.
pub fn append(list: &mut Option<String>, more: &str) -> Result<(), Failure> {
    // A comma at either end would run into its neighbour.
    let even = |commas: usize| commas.is_multiple_of(2);
    let leading = more.len() - more.trim_start_matches(',').len();
    let trailing = more.len() - more.trim_end_matches(',').len();
    if more.is_empty() || !even(leading) || !even(trailing) || leading > 0 {
        return Err(Failure::new(format!("Invalid option list: {more}")));
    }
    match list {
        Some(list) => {
            list.push(',');
            list.push_str(more);
        }
        None => *list = Some(more.to_owned()),
    }
    Ok(())
}

/// Whether the list asks for help.
pub fn asks_for_help(list: &str) -> bool {
    name::split_options(list)
        .iter()
        .any(|part| part == "help" || part == "?")
}

/// Prints what options there are for a file of the format, or, where no file is named, of the format alone.
pub fn print_help(format: &str, with_file: bool) {
    // The protocol beneath has all of them.
    let mut options: Vec<_> = match with_file || format == "file" {
        true => known(format).collect(),
        false => own(format).to_vec(),
    };
    options.sort_by_key(|(name, ..)| *name);
    match with_file {
        true => outln!("Supported options:"),
        false => outln!("Supported {format} options:"),
    }
    for (name, kind, about) in options {
        let kind = match kind {
            Kind::Text => "str",
            Kind::Number => "num",
            Kind::Size => "size",
            Kind::Bool => "bool (on/off)",
        };
        let option = format!("{name}=<{kind}>");
        outln!("  {option:<22} - {about}");
    }
    if !with_file {
        outln!(
            "\nThe protocol level may support further options.\n\
             Specify the target filename to include those options."
        );
    }
}

impl CreateOptions {
    /// Reads a list for `format`. `whole`: an error is followed by a sentence about the whole list.
    pub fn parse(format: &str, list: &str, program: &str, whole: bool) -> Result<Self, Failure> {
        Self::parse_list(format, list).map_err(|text| {
            if !whole {
                return Failure::new(text);
            }
            console::error_line(&format!("{program}: {text}"));
            Failure::new(format!("Invalid options for file format '{format}'"))
        })
    }

    /// Reads a list for `format`; the error is its words.
    pub fn parse_list(format: &str, list: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let parts = name::split_options(list);
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, value),
                // A switch, on or off.
                None => match part.strip_prefix("no") {
                    Some(name) => (name, "off"),
                    None => (part.as_str(), "on"),
                },
            };
            let Some((name, kind, _)) = known(format).find(|(known, ..)| *known == name) else {
                return Err(format!("Invalid parameter '{name}'"));
            };
            check_value(name, kind, value)?;
            options.set(name, value);
        }
        Ok(options)
    }

    /// Sets the option, in place of whatever it was.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// All options that are given or have a default, as the line about a new image lists them.
    pub fn summary(&self, format: &str) -> String {
        let defaults = if format == "qcow2" {
            QCOW2_DEFAULTS
        } else {
            &[]
        };
        let default = |name| {
            let found = defaults.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| *value)
        };
        let told = known(format).filter_map(|(name, kind, _)| {
            let value = self.get(name).or_else(|| default(name))?;
            Some(match kind {
                // A comma would end the value.
                Kind::Text => format!(" {name}={}", value.replace(',', ",,")),
                Kind::Bool => format!(" {name}={value}"),
                // Both are told as signed numbers.
                Kind::Number => format!(" {name}={}", number(value).ok()?.cast_signed()),
                Kind::Size => format!(" {name}={}", size::parse(value, 1).ok()?.cast_signed()),
            })
        });
        told.collect()
    }

    /// The option's value; the last one counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a size option, which was checked.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(|value| size::parse(value, 1).ok())
    }

    /// The value of a numeric option, which was checked.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(|value| number(value).ok())
    }

    /// The value of a switch, which was checked.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| switch(value) == Some(true))
    }
}

fn check_value(name: &str, kind: Kind, value: &str) -> Result<(), String> {
    match kind {
        Kind::Text => Ok(()),
        Kind::Bool => match switch(value) {
            Some(_) => Ok(()),
            None => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
        },
        Kind::Number => number(value).map(|_| ()).map_err(|wrong| match wrong {
            size::Wrong::Syntax => format!("Parameter '{name}' expects a number"),
            size::Wrong::Range => {
                format!("Value '{value}' is too large for parameter '{name}'")
            }
        }),
        Kind::Size => size::parameter(name, value).map(|_| ()),
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A number as C reads it: decimal, `0x` hexadecimal or `0` octal, and a minus sign wraps around.
fn number(text: &str) -> Result<u64, size::Wrong> {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match hexadecimal {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(size::Wrong::Syntax);
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| size::Wrong::Range)?;
    Ok(if negative {
        number.wrapping_neg()
    } else {
        number
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_c_reads_them() {
        for (text, value) in [
            ("8", 8),
            (" 8", 8),
            ("+8", 8),
            ("0x10", 16),
            ("010", 8),
            ("0", 0),
            ("-1", u64::MAX),
        ] {
            assert_eq!(number(text), Ok(value), "{text}");
        }
        for text in ["", "8 ", "0x", "08", "8k", "0b1", "foo", "-", "++1"] {
            assert_eq!(number(text), Err(size::Wrong::Syntax), "{text}");
        }
        assert_eq!(number("99999999999999999999"), Err(size::Wrong::Range));
    }

    #[test]
    fn a_name_without_a_value_is_a_switch() {
        let options =
            CreateOptions::parse_list("qcow2", "extended_l2,nolazy_refcounts,nonocow").unwrap();
        assert!(options.is_on("extended_l2"));
        assert_eq!(options.get("lazy_refcounts"), Some("off"));
        assert_eq!(options.get("nocow"), Some("off"));
        // As qemu-img 10.0.2 has it.
        let error = CreateOptions::parse_list("qcow2", "nocow").unwrap_err();
        assert_eq!(error, "Invalid parameter 'cow'");
    }
}
