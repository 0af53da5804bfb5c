//! What options say of an image beyond where its file is: of the image below it, of its data file, and how
//! QEMU's engine would be tuned, which is checked and has no effect here.

use oxcow::{Image, Instead};

use crate::file::FileStorage;
use crate::name::{Name, Options, is_without_meaning, read_switch, take, under};
use crate::size;

/// What options say of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Options that tune QEMU's engine.
    pub settings: Options,
    /// The name of the data file, in place of the one that the image names.
    data_file: Option<String>,
    /// The image below.
    below: Option<Box<Below>>,
}

/// What options say of the image that another one stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Below {
    name: Option<String>,
    format: Option<String>,
    node: Node,
}

/// Settings that are on or off.
const SWITCHES: &[&str] = &[
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
    "overlap-check.main-header",
    "overlap-check.active-l1",
    "overlap-check.active-l2",
    "overlap-check.refcount-table",
    "overlap-check.refcount-block",
    "overlap-check.snapshot-table",
    "overlap-check.inactive-l1",
    "overlap-check.inactive-l2",
    "overlap-check.bitmap-directory",
];

/// Settings in bytes.
const SIZES: &[&str] = &[
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
];

/// Settings of other kinds.
const OTHERS: &[&str] = &[
    "overlap-check",
    "overlap-check.template",
    "cache-clean-interval",
];

/// Whether a qcow2 image can be told this.
pub fn is_setting(key: &str) -> bool {
    [SWITCHES, SIZES, OTHERS]
        .iter()
        .any(|keys| keys.contains(&key))
}

impl Node {
    /// Takes out of `options` what is said here.
    pub fn take(options: &mut Options) -> Result<Self, String> {
        let data_file = under(options, "data-file.");
        let below = under(options, "backing.");
        let settings = options.extract_if(.., |(key, _)| is_setting(key)).collect();
        Ok(Self {
            settings,
            data_file: match data_file.is_empty() {
                true => None,
                false => Some(data_file_name(data_file)?),
            },
            below: match below.is_empty() {
                true => None,
                false => {
                    Some(Box::new(Below::read(below).map_err(|error| {
                        format!("Could not open backing file: {error}")
                    })?))
                }
            },
        })
    }

    /// What is opened in place of the files that the images name: for the image itself first.
    pub fn instead(&self) -> Vec<Instead> {
        let mut all = Vec::new();
        let mut next = Some(self);
        while let Some(node) = next {
            let below = node.below.as_deref();
            all.push(Instead {
                data_file: node.data_file.clone(),
                backing: below.and_then(|below| below.name.clone()),
                backing_format: below.and_then(|below| below.format.clone()),
            });
            next = below.map(|below| &below.node);
        }
        all
    }
}

impl Below {
    fn read(mut options: Options) -> Result<Self, String> {
        let node = Node::take(&mut options)?;
        let names_a_file = |key: &str| key == "filename" || key.starts_with("file.");
        if !options.iter().any(|(key, _)| names_a_file(key)) {
            // It is the one that the image names.
            let format = take(&mut options, "driver");
            let unknown = options.iter().find(|(key, _)| !is_without_meaning(key));
            return match unknown {
                Some((key, _)) => Err(format!(
                    "Block format '{}' does not support the option '{key}'",
                    format.as_deref().unwrap_or("qcow2")
                )),
                None => Ok(Self {
                    name: None,
                    format,
                    node,
                }),
            };
        }
        let name = match options.iter().any(|(key, _)| key == "driver") {
            true => Name::from_child(options)?,
            false => Name::from_options("", options)?,
        };
        Ok(Self {
            name: Some(name.in_short()),
            format: name.format,
            node,
        })
    }
}

/// What the data file is called that is opened in place of the image's.
fn data_file_name(options: Options) -> Result<String, String> {
    let name = Name::from_child(options)?;
    Ok(match name.format.as_deref() {
        Some("raw") => name.in_short(),
        _ => name.in_full(),
    })
}

/// Whether QEMU would look at the L2 tables of snapshots before it writes.
pub fn looks_at_inactive_l2(settings: &Options) -> bool {
    let last = settings
        .iter()
        .rev()
        .find_map(|(key, value)| match &key[..] {
            "overlap-check.inactive-l2" => Some(read_switch(key, value) == Ok(true)),
            "overlap-check" | "overlap-check.template" => Some(value == "all"),
            _ => None,
        });
    last.unwrap_or(false)
}

/// Whether the image could be tuned so.
pub fn check_settings(settings: &Options, image: &Image<FileStorage>) -> Result<(), String> {
    let (cluster, most_tables) = image.top().as_qcow2().map_or((1, 0), |qcow2| {
        let header = qcow2.header();
        let entry_bytes = header.l2_entry_bytes();
        let entries = header.cluster_size.count_for(header.size);
        (header.cluster_size.bytes(), entries * entry_bytes)
    });
    let get = |key: &str| {
        let found = settings.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    };
    for (key, value) in settings {
        if SWITCHES.contains(&key.as_str()) {
            read_switch(key, value)?;
        }
    }
    let bytes = |key: &str| {
        get(key)
            .map(|value| size::parameter(key, value))
            .transpose()
    };
    let (whole, l2) = (bytes("cache-size")?, bytes("l2-cache-size")?);
    let (refcounts, entry) = (bytes("refcount-cache-size")?, bytes("l2-cache-entry-size")?);
    match (whole, l2, refcounts) {
        (Some(_), Some(_), Some(_)) => {
            return Err(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
                    .to_owned(),
            );
        }
        (Some(whole), Some(l2), _) if l2 > whole => {
            return Err("l2-cache-size may not exceed cache-size".to_owned());
        }
        (Some(whole), _, Some(refcounts)) if refcounts > whole => {
            return Err("refcount-cache-size may not exceed cache-size".to_owned());
        }
        _ => {}
    }
    if let Some(entry) = entry
        && !(entry.is_power_of_two() && (512..=cluster).contains(&entry))
    {
        return Err(format!(
            "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
        ));
    }
    // Of a cache that could hold more than all tables the rest does not count.
    let l2 = l2.unwrap_or(0).min(most_tables);
    if l2 / entry.unwrap_or(cluster) > i32::MAX as u64 {
        return Err("L2 cache size too big".to_owned());
    }
    if refcounts.unwrap_or(0) / cluster > i32::MAX as u64 {
        return Err("Refcount cache size too big".to_owned());
    }
    let interval = get("cache-clean-interval").map(str::parse::<u32>);
    if let Some(Err(_)) = interval {
        return Err("Cache clean interval too big".to_owned());
    }
    check_overlap(get("overlap-check"), get("overlap-check.template"))
}

fn check_overlap(short: Option<&str>, template: Option<&str>) -> Result<(), String> {
    match (short, template) {
        (Some(short), Some(template)) if short != template => {
            return Err(format!(
                "Conflicting values for qcow2 options 'overlap-check' ('{short}') and \
                 'overlap-check.template' ('{template}')"
            ));
        }
        _ => {}
    }
    match short.or(template) {
        None | Some("none" | "constant" | "cached" | "all") => Ok(()),
        Some(other) => Err(format!(
            "Unsupported value '{other}' for qcow2 option 'overlap-check'. Allowed are any of the \
             following: none, constant, cached, all"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        let parts = text.split(',').filter_map(|part| part.split_once('='));
        parts
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn files_are_taken_from_every_depth() {
        let mut given = options(
            "driver=qcow2,backing.driver=qcow2,backing.file.filename=b,backing.backing.driver=raw,\
             backing.backing.file.filename=c,data-file.filename=d,cache-size=1M",
        );
        let node = Node::take(&mut given).unwrap();
        assert_eq!(given, options("driver=qcow2"));
        assert_eq!(node.settings, options("cache-size=1M"));
        let instead = node.instead();
        let seen: Vec<_> = instead
            .iter()
            .map(|one| {
                (
                    one.backing.as_deref(),
                    one.backing_format.as_deref(),
                    one.data_file.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (Some("file:b"), Some("qcow2"), Some("file:d")),
                (Some("file:c"), Some("raw"), None),
                (None, None, None)
            ]
        );
        let wrong = |text: &str| Node::take(&mut options(text)).unwrap_err();
        assert_eq!(
            wrong("backing.driver=qcow2,backing.foo=1"),
            "Could not open backing file: Block format 'qcow2' does not support the option 'foo'"
        );
        assert_eq!(
            wrong("data-file.driver=blkdebug"),
            "Unknown driver 'blkdebug'"
        );
    }
}
