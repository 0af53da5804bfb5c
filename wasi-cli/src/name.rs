//! What a name on the command line, or inside an image, stands for.
//!
//! QEMU's names can be paths, `protocol:` names, `json:{…}` descriptions and, with `--image-opts`, lists of
//! options. Here they can only say where a file is and what format it has; whatever else they ask for is
//! refused by name.

use serde_json::Value;

use crate::node::Node;
use crate::secret::{self, KeySecret};
use crate::size;

/// An image file as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it was given: what messages repeat.
    pub given: String,
    /// The file's path.
    pub path: String,
    /// The format, where the name says it.
    pub format: Option<String>,
    /// Whether the name forbids a backing file.
    pub no_backing: bool,
    /// Whether the image is opened for reading only, where the name says it.
    pub read_only: Option<bool>,
    /// Whether the name says that others may have the image open, whatever they do with it.
    pub force_share: bool,
    /// The secrets that encrypted images of the chain are opened with.
    pub keys: Vec<KeySecret>,
    /// What it says beyond that.
    pub node: Node,
    /// The options that it consists of, if it does.
    pub options: Options,
    /// How many zeros it stands for, in place of a file: QEMU's driver null-co.
    pub zeros: Option<u64>,
}

/// What stands for zeros where a path would be.
const NO_PATH: &str = "null-co://";
/// How many, where nothing says so.
const ZEROS: u64 = 1 << 30;

/// Dotted option names and their values, in order.
pub type Options = Vec<(String, String)>;

/// Options that change how a file is cached, locked or scheduled, which has no meaning here.
const WITHOUT_MEANING: &[&str] = &[
    "auto-read-only",
    "node-name",
    "discard",
    "detect-zeroes",
    "cache.direct",
    "cache.no-flush",
    "cache.writeback",
    "copy-on-read",
    "locking",
    "aio",
    "aio-max-batch",
];

/// Whether an option has no effect here and may be given.
pub fn is_without_meaning(key: &str) -> bool {
    let own = key.strip_prefix("file.").unwrap_or(key);
    WITHOUT_MEANING.contains(&own)
}

impl Name {
    /// A file name as sub-commands take it: a path, `file:` and a path, or `json:{…}`.
    pub fn parse(given: &str) -> Result<Self, String> {
        if let Some(json) = given.strip_prefix("json:") {
            return Self::from_options(given, json_options(json)?);
        }
        let path = plain_path(given)?;
        Ok(Self {
            given: given.to_owned(),
            path,
            format: None,
            no_backing: false,
            read_only: None,
            force_share: false,
            keys: Vec::new(),
            node: Node::default(),
            options: Options::new(),
            zeros: None,
        })
    }

    /// A list of options, as after `--image-opts`.
    pub fn parse_options(given: &str) -> Result<Self, String> {
        let mut options = Options::new();
        for (index, part) in split_options(given).into_iter().enumerate() {
            match part.split_once('=') {
                Some((key, value)) => options.push((key.to_owned(), value.to_owned())),
                None if index == 0 => options.push(("file".to_owned(), part)),
                None => match part.strip_prefix("no") {
                    Some(key) => options.push((key.to_owned(), "off".to_owned())),
                    None => options.push((part, "on".to_owned())),
                },
            }
        }
        // A lone word names a device of a running machine, which there is none of here.
        if let [(key, node)] = &options[..]
            && key == "file"
        {
            return Err(no_such_node(node));
        }
        Self::from_options(given, options)
    }

    /// The value of an option that it has.
    pub fn option(&self, key: &str) -> Option<&str> {
        let found = self.options.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// How QEMU calls an image of `format` that no plain name is enough for, because it takes a secret too.
    pub fn described(&self, format: &str) -> Option<String> {
        let text = |text: &str| Value::from(text).to_string();
        let file = format!(
            "\"file\": {{\"driver\": \"file\", \"filename\": {}}}",
            text(&self.path)
        );
        if let Some(id) = self.option("encrypt.key-secret") {
            let id = text(id);
            return Some(format!(
                "json:{{\"encrypt.key-secret\": {id}, \"driver\": \"{format}\", {file}}}"
            ));
        }
        let id = text(self.option("key-secret")?);
        Some(format!(
            "json:{{\"driver\": \"{format}\", {file}, \"key-secret\": {id}}}"
        ))
    }

    fn from_options(given: &str, options: Options) -> Result<Self, String> {
        let mut left = options.clone();
        let keys = secret::take_keys(&mut left);
        let node_options = Node::take(&mut left)?;
        let mut take = |key: &str| {
            let at = left.iter().position(|(name, _)| name == key)?;
            Some(left.remove(at).1)
        };
        let mut driver = take("driver");
        let mut file_driver = take("file.driver");
        let zeros = take_zeros(&mut driver, &mut file_driver, &mut take)?;
        let path = take("file.filename").or(zeros.map(|_| NO_PATH.to_owned()));
        let node = take("file");
        let is_protocol = matches!(driver.as_deref(), Some("file" | "host_device"));
        let (path, format) = if is_protocol {
            (take("filename"), Some("raw".to_owned()))
        } else {
            (path, driver.clone())
        };
        let no_backing = take("backing").map(|name| match name.as_str() {
            "" => Ok(true),
            node => Err(no_such_node(node)),
        });
        let no_backing = no_backing.transpose()?.unwrap_or(false);
        let mut switch = |key| {
            let value = take(key);
            value.map(|value| read_switch(key, &value)).transpose()
        };
        let file_read_only = switch("file.read-only")?;
        let read_only = switch("read-only")?.or(file_read_only);
        let force_share = switch("force-share")?.unwrap_or(false);

        if let Some(node) = node {
            return Err(no_such_node(&node));
        }
        match file_driver.as_deref() {
            None | Some("file" | "host_device") => {}
            Some("raw" | "qcow2") => {
                return Err(format!(
                    "Driver '{}' inside of another one is not supported",
                    file_driver.unwrap_or_default()
                ));
            }
            Some(other) => return Err(format!("Unknown driver '{other}'")),
        }
        let Some(path) = path else {
            return Err(match driver.as_deref() {
                Some("file" | "host_device") => {
                    "The 'file' block driver requires a file name".to_owned()
                }
                Some("raw" | "qcow2" | "luks") => {
                    "A block device must be specified for \"file\"".to_owned()
                }
                Some(other) => format!("Unknown driver '{other}'"),
                None if file_driver.is_some() => {
                    "The 'file' block driver requires a file name".to_owned()
                }
                None => "Must specify either driver or file".to_owned(),
            });
        };
        for (key, _) in &left {
            if !is_without_meaning(key) {
                let format = format.as_deref().unwrap_or("file");
                return Err(format!(
                    "Block format '{format}' does not support the option '{key}'"
                ));
            }
        }
        Ok(Self {
            given: given.to_owned(),
            path,
            format,
            no_backing,
            read_only,
            force_share,
            keys,
            node: node_options,
            options,
            zeros,
        })
    }
}

/// The size of what is no file at all, and only reads as zeros; the format above it stays.
fn take_zeros(
    driver: &mut Option<String>,
    file_driver: &mut Option<String>,
    mut take: impl FnMut(&str) -> Option<String>,
) -> Result<Option<u64>, String> {
    let is_null = |name: &String| matches!(name.as_str(), "null-co" | "null-aio");
    let prefix = if driver.take_if(|name| is_null(name)).is_some() {
        *driver = Some("raw".to_owned());
        ""
    } else if file_driver.take_if(|name| is_null(name)).is_some() {
        "file."
    } else {
        return Ok(None);
    };
    let key = format!("{prefix}read-zeroes");
    if let Some(value) = take(&key) {
        read_switch(&key, &value)?;
    }
    take(&format!("{prefix}latency-ns"));
    let size = take(&format!("{prefix}size"));
    let size = size
        .map(|text| size::parameter("size", &text))
        .transpose()?;
    Ok(Some(size.unwrap_or(ZEROS)))
}

/// Reads the value of an option that is on or off.
pub fn read_switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

fn no_such_node(node: &str) -> String {
    format!("Cannot find device='{node}' nor node-name='{node}'")
}

/// The path in a name without `json:`.
fn plain_path(name: &str) -> Result<String, String> {
    let path = match protocol(name) {
        // What follows may have a colon of its own, which must not be taken for another protocol.
        Some("file") => match &name["file:".len()..] {
            rest if protocol(rest).is_some() => format!("./{rest}"),
            rest => rest.to_owned(),
        },
        Some(other) => return Err(format!("Unknown protocol '{other}'")),
        None => name.to_owned(),
    };
    if path.is_empty() {
        return Err("The 'file' block driver requires a file name".to_owned());
    }
    Ok(path)
}

/// What stands before the first colon, unless a slash stands before that.
fn protocol(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    name[at..].starts_with(':').then(|| &name[..at])
}

/// The name of a backing or data file in full: relative ones are relative to the folder of the image that
/// names them, not to where the program runs.
pub fn resolve(base: &str, name: &str) -> String {
    if name.starts_with('/') || protocol(name).is_some() {
        return name.to_owned();
    }
    let folder = base.rfind('/').map_or("", |at| &base[..=at]);
    format!("{folder}{name}")
}

/// Splits at commas; a doubled comma stands for one in a value.
pub fn split_options(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let last = parts.len() - 1;
        match letter {
            ',' if letters.peek() == Some(&',') => {
                letters.next();
                parts[last].push(',');
            }
            ',' => parts.push(String::new()),
            letter => parts[last].push(letter),
        }
    }
    parts
}

fn json_options(text: &str) -> Result<Options, String> {
    let wrong = |what: String| format!("Could not parse the JSON options: {what}");
    if text.trim().is_empty() {
        return Err(wrong("Expecting a JSON value".to_owned()));
    }
    let value: Value = serde_json::from_str(&double_quoted(text)).map_err(|error| {
        let what = if error.is_eof() {
            "premature EOI"
        } else {
            "invalid syntax"
        };
        wrong(format!("JSON parse error, {what}"))
    })?;
    let Value::Object(fields) = value else {
        return Err("Invalid JSON object given".to_owned());
    };
    let mut options = Options::new();
    for (key, value) in fields {
        flatten(&mut options, key, value);
    }
    Ok(options)
}

fn flatten(options: &mut Options, key: String, value: Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(options, format!("{key}.{name}"), value);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.into_iter().enumerate() {
                flatten(options, format!("{key}.{index}"), value);
            }
        }
        Value::String(text) => options.push((key, text)),
        Value::Null => options.push((key, String::new())),
        Value::Bool(on) => options.push((key, if on { "on" } else { "off" }.to_owned())),
        Value::Number(number) => options.push((key, number.to_string())),
    }
}

/// QEMU also takes 'single quotes' around strings; turned into the usual ones here.
fn double_quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', Some(_)) => match letters.next() {
                Some('\'') => result.push('\''),
                Some(escaped) => result.extend(['\\', escaped]),
                None => result.push('\\'),
            },
            ('\'' | '"', None) => {
                quote = Some(letter);
                result.push('"');
            }
            (letter, Some(open)) if letter == open => {
                quote = None;
                result.push('"');
            }
            ('"', Some(_)) => result.push_str("\\\""),
            (letter, _) => result.push(letter),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: &str) -> Result<String, String> {
        Name::parse(given).map(|name| name.path)
    }

    // Sentences taken from qemu-img 10.0.2.
    #[test]
    fn plain_names_and_protocols() {
        assert_eq!(path("a.qcow2").unwrap(), "a.qcow2");
        assert_eq!(path("file:a.qcow2").unwrap(), "a.qcow2");
        assert_eq!(path("file:foo:bar").unwrap(), "./foo:bar");
        assert_eq!(path("./foo:bar").unwrap(), "./foo:bar");
        assert_eq!(path("/x/foo:bar").unwrap(), "/x/foo:bar");
        assert_eq!(path("foo:bar").unwrap_err(), "Unknown protocol 'foo'");
        assert_eq!(
            path("").unwrap_err(),
            "The 'file' block driver requires a file name"
        );
    }

    #[test]
    fn json_names() {
        let name =
            Name::parse(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#)
                .unwrap();
        assert_eq!(
            (name.path.as_str(), name.format.as_deref()),
            ("a", Some("qcow2"))
        );
        assert_eq!(
            path("json:{'driver':'raw','file.filename':'it\\'s \"a\"'}").unwrap(),
            "it's \"a\""
        );
        assert!(
            Name::parse(r#"json:{"file.filename":"a","backing":null}"#)
                .unwrap()
                .no_backing
        );
        assert_eq!(
            path(r#"json:{"driver":"qcow2""#).unwrap_err(),
            "Could not parse the JSON options: JSON parse error, premature EOI"
        );
        assert_eq!(path("json:[]").unwrap_err(), "Invalid JSON object given");
        assert_eq!(
            path(r#"json:{"filename":"a"}"#).unwrap_err(),
            "Must specify either driver or file"
        );
    }

    #[test]
    fn image_options() {
        let name =
            Name::parse_options("driver=qcow2,file.driver=file,file.filename=a,,b,read-only=on")
                .unwrap();
        assert_eq!(
            (name.path.as_str(), name.format.as_deref()),
            ("a,b", Some("qcow2"))
        );
        assert_eq!((name.read_only, name.force_share), (Some(true), false));
        let wrong = |text| Name::parse_options(text).unwrap_err();
        assert_eq!(
            wrong("driver=qcow2,file.filename=a,read-only=foo"),
            "Parameter 'read-only' expects 'on' or 'off'"
        );
        assert_eq!(
            wrong("a.qcow2"),
            "Cannot find device='a.qcow2' nor node-name='a.qcow2'"
        );
        assert_eq!(
            wrong("driver=qcow2"),
            "A block device must be specified for \"file\""
        );
        assert_eq!(wrong("filename=a"), "Must specify either driver or file");
        assert_eq!(
            wrong("driver=qcow2,foo=bar,file.filename=a"),
            "Block format 'qcow2' does not support the option 'foo'"
        );
    }

    #[test]
    fn relative_names_are_relative_to_the_overlay() {
        assert_eq!(resolve("over.qcow2", "base.raw"), "base.raw");
        assert_eq!(resolve("sub/over.qcow2", "../base.raw"), "sub/../base.raw");
        assert_eq!(resolve("/a/b/over.qcow2", "c/base.raw"), "/a/b/c/base.raw");
        assert_eq!(resolve("/a/b/over.qcow2", "/base.raw"), "/base.raw");
        assert_eq!(resolve("sub/over.qcow2", "file:base.raw"), "file:base.raw");
    }
}
