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

/// Options of every format that is a file.
const FILE_OPTIONS: &[(&str, Kind, &str)] = &[
    (
        "extent_size_hint",
        Kind::Size,
        "Extent size hint for the image file, 0 to disable",
    ),
    (
        "nocow",
        Kind::Bool,
        "Turn off copy-on-write (valid only on btrfs)",
    ),
    ("size", Kind::Size, "Virtual disk size"),
];

const RAW_OPTIONS: &[(&str, Kind, &str)] = &[(
    "preallocation",
    Kind::Text,
    "Preallocation mode (allowed values: off, falloc, full)",
)];

const QCOW2_OPTIONS: &[(&str, Kind, &str)] = &[
    ("backing_file", Kind::Text, "File name of a base image"),
    ("backing_fmt", Kind::Text, "Image format of the base image"),
    ("cluster_size", Kind::Size, "qcow2 cluster size"),
    (
        "compat",
        Kind::Text,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    (
        "compression_type",
        Kind::Text,
        "Compression method used for image cluster compression",
    ),
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
        "encrypt.format",
        Kind::Text,
        "Encrypt the image, format choices: 'aes', 'luks'",
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
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    (
        "encryption",
        Kind::Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    ("extended_l2", Kind::Bool, "Extended L2 tables"),
    ("lazy_refcounts", Kind::Bool, "Postpone refcount updates"),
    (
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    (
        "refcount_bits",
        Kind::Number,
        "Width of a reference count entry in bits",
    ),
];

fn known(format: &str) -> Vec<(&'static str, Kind, &'static str)> {
    let own = if format == "qcow2" {
        QCOW2_OPTIONS
    } else {
        RAW_OPTIONS
    };
    let mut all: Vec<_> = own.iter().chain(FILE_OPTIONS).copied().collect();
    all.sort_by_key(|(name, ..)| *name);
    all
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

/// Prints what options there are.
pub fn print_help(format: &str) {
    outln!("Supported options:");
    for (name, kind, about) in known(format) {
        let kind = match kind {
            Kind::Text => "str",
            Kind::Number => "num",
            Kind::Size => "size",
            Kind::Bool => "bool (on/off)",
        };
        let option = format!("{name}=<{kind}>");
        outln!("  {option:<22} - {about}");
    }
}

impl CreateOptions {
    /// Reads a list for `format`. `whole`: an error is followed by a sentence about the whole list.
    pub fn parse(format: &str, list: &str, program: &str, whole: bool) -> Result<Self, Failure> {
        let known = known(format);
        let mut options = Vec::new();
        let mut read = |part: &str| {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (part, None),
            };
            let find = |name: &str| known.iter().find(|(known, ..)| *known == name);
            let (found, value) = match (find(name), value, name.strip_prefix("no").and_then(find)) {
                (Some(found), value, _) => (found, value.unwrap_or("on")),
                (None, None, Some(found)) => (found, "off"),
                _ => return Err(format!("Invalid parameter '{name}'")),
            };
            check_value(found.0, found.1, value)?;
            options.push((found.0.to_owned(), value.to_owned()));
            Ok(())
        };
        for part in name::split_options(list)
            .into_iter()
            .filter(|part| !part.is_empty())
        {
            if let Err(text) = read(&part) {
                if !whole {
                    return Err(Failure::new(text));
                }
                console::error_line(&format!("{program}: {text}"));
                return Err(Failure::new(format!(
                    "Invalid options for file format '{format}'"
                )));
            }
        }
        Ok(Self(options))
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

    /// The value of a switch, which was checked.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name) == Some("on")
    }
}

fn check_value(name: &str, kind: Kind, value: &str) -> Result<(), String> {
    match kind {
        Kind::Text => Ok(()),
        Kind::Bool => match value {
            "on" | "off" => Ok(()),
            _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
        },
        Kind::Number => match value.parse::<u64>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("Parameter '{name}' expects a number")),
        },
        Kind::Size => match size::parse(value, 1) {
            Ok(_) => Ok(()),
            Err(size::Wrong::Range) => Err(format!(
                "Value '{value}' is out of range for parameter '{name}'"
            )),
            Err(size::Wrong::Syntax) => Err(format!(
                "Parameter '{name}' expects a non-negative number below 2^64\n\
                 Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                 and exabytes, respectively."
            )),
        },
    }
}
