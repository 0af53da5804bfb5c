//! JSON as qemu-img prints it: four spaces, empty lists on two lines, ASCII only, and a fixed order of keys.
//!
//! The order is not alphabetical and not that of the schema, but always the same for the same keys, and
//! scripts that compare text rely on it. It was read off qemu-img's output.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

/// Every key of qemu-img's reports, first to last: two keys of one object always appear in this order.
const ORDER: &[&str] = &[
    "ivgen-alg",
    "compat",
    "icount",
    "flags",
    "vm-clock-nsec",
    "detached-header",
    "image-end-offset",
    "name",
    "active",
    "compressed-clusters",
    "hash-alg",
    "iters",
    "compression-type",
    "compressed",
    "lazy-refcounts",
    "date-sec",
    "bitmaps",
    "cipher-alg",
    "refcount-bits",
    "uuid",
    "total-clusters",
    "offset",
    "corruptions",
    "data-file",
    "corruptions-fixed",
    "check-errors",
    "children",
    "backing-filename-format",
    "date-nsec",
    "driver",
    "granularity",
    "required",
    "leaks",
    "snapshots",
    "key-offset",
    "leaks-fixed",
    "allocated-clusters",
    "virtual-size",
    "filename",
    "cluster-size",
    "size",
    "fully-allocated",
    "ivgen-hash-alg",
    "format",
    "encrypt",
    "actual-size",
    "format-specific",
    "data-file-raw",
    "full-backing-filename",
    "cipher-mode",
    "stripes",
    "slots",
    "vm-clock-sec",
    "payload-offset",
    "encrypted",
    "type",
    "master-key-iters",
    "file",
    "backing-filename",
    "corrupt",
    "fragmented-clusters",
    "id",
    "vm-state-size",
    "info",
    "dirty-flag",
    "extended-l2",
    "data",
];

/// Keys that qemu-img does not have come last, in the order in which they were given.
fn rank(key: &str) -> usize {
    ORDER
        .iter()
        .position(|known| *known == key)
        .unwrap_or(ORDER.len())
}

/// A report of qemu-img's as its `--output=json` prints it, without a line end.
pub fn report(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(pretty(&in_qemu_order(serde_json::to_value(value)?)))
}

/// A report of our own: the same layout, its keys as they are declared.
pub fn own_report(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(pretty(&serde_json::to_value(value)?))
}

/// The same value with the keys of every object in qemu-img's order.
pub fn in_qemu_order(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(in_qemu_order).collect()),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by_key(|(key, _)| rank(key));
            Value::Object(
                fields
                    .into_iter()
                    .map(|(key, value)| (key, in_qemu_order(value)))
                    .collect(),
            )
        }
        scalar => scalar,
    }
}

fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) => {
            let items = fields
                .iter()
                .map(|(key, value)| (Some(key.as_str()), value));
            write_items(text, ('{', '}'), items, depth);
        }
        Value::Array(items) => write_items(
            text,
            ('[', ']'),
            items.iter().map(|value| (None, value)),
            depth,
        ),
        Value::String(string) => write_string(text, string),
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn write_items<'a>(
    text: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    depth: usize,
) {
    text.push(open);
    for (index, (key, value)) in items.enumerate() {
        if index > 0 {
            text.push(',');
        }
        new_line(text, depth + 1);
        if let Some(key) = key {
            write_string(text, key);
            text.push_str(": ");
        }
        write_value(text, value, depth + 1);
    }
    new_line(text, depth);
    text.push(close);
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    for _ in 0..depth {
        text.push_str("    ");
    }
}

/// A string with everything outside printable ASCII as `\u` escapes, in upper case.
pub fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for unit in string.encode_utf16() {
        match char::from_u32(u32::from(unit)) {
            Some('"') => text.push_str("\\\""),
            Some('\\') => text.push_str("\\\\"),
            Some('\n') => text.push_str("\\n"),
            Some('\r') => text.push_str("\\r"),
            Some('\t') => text.push_str("\\t"),
            Some('\u{8}') => text.push_str("\\b"),
            Some('\u{c}') => text.push_str("\\f"),
            Some(plain @ ' '..='~') => text.push(plain),
            // Writing to a string cannot fail.
            _ => _ = write!(text, "\\u{unit:04X}"),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // Taken from `qemu-img info --output=json` on a plain qcow2 image.
    const INFO: &str = r#"{
    "children": [
        {
            "name": "file",
            "info": {
                "children": [
                ],
                "virtual-size": 197120,
                "filename": "a.qcow2",
                "format": "file",
                "actual-size": 200704,
                "format-specific": {
                    "type": "file",
                    "data": {
                    }
                },
                "dirty-flag": false
            }
        }
    ],
    "virtual-size": 67108864,
    "filename": "a.qcow2",
    "cluster-size": 65536,
    "format": "qcow2",
    "actual-size": 200704,
    "format-specific": {
        "type": "qcow2",
        "data": {
            "compat": "1.1",
            "compression-type": "zlib",
            "lazy-refcounts": false,
            "refcount-bits": 16,
            "corrupt": false,
            "extended-l2": false
        }
    },
    "dirty-flag": false
}"#;

    fn reversed(value: Value) -> Value {
        match value {
            Value::Array(items) => Value::Array(items.into_iter().map(reversed).collect()),
            Value::Object(fields) => Value::Object(
                fields
                    .into_iter()
                    .rev()
                    .map(|(key, value)| (key, reversed(value)))
                    .collect(),
            ),
            scalar => scalar,
        }
    }

    #[test]
    fn layout_and_order_are_qemu_imgs_whatever_order_the_report_has() {
        let value: Value = serde_json::from_str(INFO).unwrap();
        assert_eq!(report(&value).unwrap(), INFO);
        assert_eq!(report(&reversed(value)).unwrap(), INFO);
    }

    #[test]
    fn orders_seen_in_other_reports() {
        let orders: [&[&str]; 4] = [
            &["bitmaps", "required", "fully-allocated"],
            &[
                "image-end-offset",
                "total-clusters",
                "corruptions",
                "check-errors",
                "allocated-clusters",
                "filename",
                "format",
            ],
            &[
                "icount",
                "vm-clock-nsec",
                "name",
                "date-sec",
                "date-nsec",
                "vm-clock-sec",
                "id",
                "vm-state-size",
            ],
            &[
                "ivgen-alg",
                "detached-header",
                "hash-alg",
                "cipher-alg",
                "uuid",
                "ivgen-hash-alg",
                "format",
                "cipher-mode",
                "slots",
                "payload-offset",
                "master-key-iters",
            ],
        ];
        for order in orders {
            assert!(order.is_sorted_by_key(|key| rank(key)), "{order:?}");
            assert!(order.iter().all(|key| ORDER.contains(key)), "{order:?}");
        }
    }

    #[test]
    fn strings_are_ascii() {
        let mut text = String::new();
        write_string(&mut text, "w\u{e9} \"q\" \\ \t\u{1}\u{7f}\u{1f600} <_>");
        assert_eq!(text, r#""w\u00E9 \"q\" \\ \t\u0001\u007F\uD83D\uDE00 <_>""#);
    }

    #[test]
    fn our_own_reports_keep_their_order() {
        assert_eq!(
            own_report(&json!({"z": 1, "compat": []})).unwrap(),
            "{\n    \"z\": 1,\n    \"compat\": [\n    ]\n}"
        );
    }
}
