//! What a name on the command line, or inside an image, stands for.
//!
//! QEMU's names can be paths, `protocol:` names, `json:{…}` descriptions and, with `--image-opts`, lists of
//! options. Here they can say where a file is, what format it has, and what formats stand over one another in it;
//! whatever else they ask for is refused by name.

mod described;

use serde_json::Value;

use crate::file::Window;
use crate::node::Node;
use crate::secret::{self, KeySecret};
use crate::size;

/// An image file as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it was given: what messages repeat.
    pub given: String,
    /// What the image is stored in.
    pub under: Under,
    /// What of that its disk is, where raw is told that it is not all of it.
    pub window: Option<Window>,
    /// The format, where the name says it.
    pub format: Option<String>,
    /// What is called by another name than its format, which is raw.
    pub guise: Option<Guise>,
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
}

/// What an image can be stored in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Under {
    /// A file.
    File {
        /// The file's path.
        path: String,
        /// What the file has to be, where the name says it.
        kind: Option<FileKind>,
    },
    /// So many zeros and no file at all: QEMU's driver null-co.
    Zeros(u64),
    /// The disk of another image.
    Image(Box<Name>),
}

/// QEMU's drivers for files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    HostDevice,
    HostCdrom,
}

impl FileKind {
    fn named(driver: &str) -> Option<Self> {
        match driver {
            "file" => Some(Self::File),
            "host_device" => Some(Self::HostDevice),
            "host_cdrom" => Some(Self::HostCdrom),
            _ => None,
        }
    }

    /// QEMU's name of the driver.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::HostDevice => "host_device",
            Self::HostCdrom => "host_cdrom",
        }
    }
}

/// Drivers that show what is under them as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guise {
    /// A file without a format above it.
    File(FileKind),
    /// Zeros without a format above them, and which of the two drivers it is.
    Zeros(&'static str),
    /// What is written becomes compressed clusters of the image under it.
    Compress,
    /// What is read from a backing file is kept in the image under it.
    CopyOnRead,
}

impl Guise {
    /// QEMU's name of the driver.
    pub fn name(self) -> &'static str {
        match self {
            Self::File(kind) => kind.name(),
            Self::Zeros(driver) => driver,
            Self::Compress => "compress",
            Self::CopyOnRead => "copy-on-read",
        }
    }

    /// Whether it stands under formats rather than above one.
    pub fn is_protocol(self) -> bool {
        matches!(self, Self::File(_) | Self::Zeros(_))
    }
}

/// What stands for zeros where a path would be.
const NO_PATH: &str = "null-co://";
/// How many, where nothing says so.
const ZEROS: u64 = 1 << 30;
/// How many formats there may be over one another, and how many images inside of others one is opened with. Each
/// takes room on the stack.
pub const MOST_INSIDE: usize = 8;

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
    WITHOUT_MEANING.contains(&key)
}

impl Name {
    /// A file name as sub-commands take it: a path, `file:` and a path, or `json:{…}`.
    pub fn parse(given: &str) -> Result<Self, String> {
        Self::parse_as(given, None)
    }

    /// The same with a driver that counts more than what the name says.
    pub fn parse_as(given: &str, driver: Option<&str>) -> Result<Self, String> {
        if let Some(json) = given.strip_prefix("json:") {
            let mut options = json_options(json)?;
            if let Some(driver) = driver {
                options.retain(|(key, _)| key != "driver");
                options.push(("driver".to_owned(), driver.to_owned()));
            }
            return Self::from_options(given, options);
        }
        let path = plain_path(given)?;
        Ok(Self {
            format: driver.map(str::to_owned),
            ..Self::over(given, Under::File { path, kind: None })
        })
    }

    /// A name that says no more than what it is stored in.
    fn over(given: &str, under: Under) -> Self {
        Self {
            given: given.to_owned(),
            under,
            window: None,
            format: None,
            guise: None,
            no_backing: false,
            read_only: None,
            force_share: false,
            keys: Vec::new(),
            node: Node::default(),
            options: Options::new(),
        }
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
        // What is said last counts.
        let all = options.clone();
        let mut index = 0;
        options.retain(|(key, _)| {
            index += 1;
            all[index..].iter().all(|(later, _)| later != key)
        });
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

    /// The path of the file that everything is stored in.
    pub fn path(&self) -> &str {
        match &self.under {
            Under::File { path, .. } => path,
            Under::Zeros(_) => NO_PATH,
            Under::Image(inner) => inner.path(),
        }
    }

    /// The path of the file that the image is, all of it; an error where it is inside of something else.
    pub fn file_path(&self) -> Result<&str, String> {
        match (&self.under, self.window) {
            (Under::File { path, .. }, None) => Ok(path),
            _ => Err("Only a file by itself is supported here".to_owned()),
        }
    }

    /// Whether it shows what it is stored in and says no more than what part of that.
    pub fn is_plain_raw(&self) -> bool {
        self.format.as_deref() == Some("raw")
            && self.guise.is_none()
            && self.keys.is_empty()
            && self.node == Node::default()
    }

    /// What options call an image, all of them.
    pub fn from_options(given: &str, options: Options) -> Result<Self, String> {
        Self::read(given, options, Place::Top)
    }

    /// The same of options about what another image stands in or on, which may be a file without a driver.
    pub fn from_child(options: Options) -> Result<Self, String> {
        Self::read("", options, Place::Under(1))
    }

    fn read(given: &str, options: Options, place: Place) -> Result<Self, String> {
        let mut left = options.clone();
        let driver = take(&mut left, "driver");
        let has_path = left.iter().any(|(key, _)| key == "filename");
        let name = match driver.as_deref() {
            Some(name) if FileKind::named(name).is_some() => {
                Self::read_file(given, FileKind::named(name), &mut left)?
            }
            None if place != Place::Top && has_path => Self::read_file(given, None, &mut left)?,
            Some("null-co") => Self::read_zeros(given, "null-co", &mut left)?,
            Some("null-aio") => Self::read_zeros(given, "null-aio", &mut left)?,
            Some("raw" | "qcow2" | "luks" | "compress" | "copy-on-read") | None => {
                Self::read_format(given, driver.as_deref(), &mut left, place)?
            }
            Some(other) => return Err(format!("Unknown driver '{other}'")),
        };
        if let Some((key, _)) = left.iter().find(|(key, _)| !is_without_meaning(key)) {
            return Err(match name.guise {
                Some(guise) if guise.is_protocol() => format!(
                    "Block protocol '{}' doesn't support the option '{key}'",
                    guise.name()
                ),
                guise => {
                    let driver = guise.map(Guise::name).or(name.format.as_deref());
                    format!(
                        "Block format '{}' does not support the option '{key}'",
                        driver.unwrap_or("file")
                    )
                }
            });
        }
        Ok(Self { options, ..name })
    }

    fn read_file(given: &str, kind: Option<FileKind>, left: &mut Options) -> Result<Self, String> {
        let driver = kind.unwrap_or(FileKind::File);
        let Some(path) = take(left, "filename") else {
            return Err(format!(
                "The '{}' block driver requires a file name",
                driver.name()
            ));
        };
        Self {
            format: Some("raw".to_owned()),
            guise: Some(Guise::File(driver)),
            ..Self::over(given, Under::File { path, kind })
        }
        .with_access(left)
    }

    fn read_zeros(given: &str, driver: &'static str, left: &mut Options) -> Result<Self, String> {
        take_switch(left, "read-zeroes")?;
        take(left, "latency-ns");
        let size = take_size(left, "size")?.unwrap_or(ZEROS);
        Self {
            format: Some("raw".to_owned()),
            guise: Some(Guise::Zeros(driver)),
            ..Self::over(given, Under::Zeros(size))
        }
        .with_access(left)
    }

    fn read_format(
        given: &str,
        driver: Option<&str>,
        left: &mut Options,
        place: Place,
    ) -> Result<Self, String> {
        let keys = secret::take_keys(left);
        let node = Node::take(left)?;
        let reference = take(left, "file");
        let inside = under(left, "file.");
        let inner = match (reference, inside.is_empty()) {
            (None, false) => Self::read(given, inside, place.below()?)?,
            (Some(_), false) => {
                return Err(
                    "Cannot reference an existing block device with additional options or a new filename"
                        .to_owned(),
                );
            }
            (Some(node), true) => return Err(no_such_node(&node)),
            (None, true) if driver.is_none() => {
                return Err("Must specify either driver or file".to_owned());
            }
            (None, true) => {
                return Err("A block device must be specified for \"file\"".to_owned());
            }
        };
        if driver.is_none() && place != Place::Top {
            return Err("Must specify either driver or file".to_owned());
        }
        let guise = match driver {
            Some("compress") => Some(Guise::Compress),
            Some("copy-on-read") => Some(Guise::CopyOnRead),
            _ => None,
        };
        if guise == Some(Guise::Compress)
            && let what = inner.driver_name(None)
            && what != "qcow2"
        {
            return Err(format!(
                "Compression is not supported for underlying format: {what}"
            ));
        }
        let window = match driver {
            Some("raw") | None => {
                let (offset, size) = (take_size(left, "offset")?, take_size(left, "size")?);
                let window = Window {
                    offset: offset.unwrap_or(0),
                    size,
                };
                (offset.is_some() || size.is_some()).then_some(window)
            }
            _ => None,
        };
        let no_backing = take(left, "backing").map(|name| match name.as_str() {
            "" => Ok(true),
            node => Err(no_such_node(node)),
        });
        // What a file says of itself holds for the image in it.
        let (of_file, shared, under) = match inner.guise.filter(|guise| guise.is_protocol()) {
            Some(_) => (inner.read_only, inner.force_share, inner.under),
            None => (None, false, Under::Image(Box::new(inner))),
        };
        let name = Self {
            window,
            format: match guise {
                Some(_) => Some("raw".to_owned()),
                None => driver.map(str::to_owned),
            },
            guise,
            no_backing: no_backing.transpose()?.unwrap_or(false),
            keys,
            node,
            ..Self::over(given, under)
        };
        let name = name.with_access(left)?;
        Ok(Self {
            read_only: name.read_only.or(of_file),
            force_share: name.force_share || shared,
            ..name
        })
    }

    /// Takes what may be said of everything.
    fn with_access(self, left: &mut Options) -> Result<Self, String> {
        Ok(Self {
            read_only: take_switch(left, "read-only")?,
            force_share: take_switch(left, "force-share")?.unwrap_or(false),
            ..self
        })
    }
}

/// Where options stand among those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Above all.
    Top,
    /// Under so many others.
    Under(usize),
}

impl Place {
    fn below(self) -> Result<Self, String> {
        match self {
            Self::Top => Ok(Self::Under(1)),
            Self::Under(depth) if depth < MOST_INSIDE => Ok(Self::Under(depth + 1)),
            Self::Under(_) => Err(too_many_inside()),
        }
    }
}

/// What is said of too many images inside of one another.
pub fn too_many_inside() -> String {
    format!("More than {MOST_INSIDE} images inside of one another are not supported")
}

/// Takes an option out of `options`.
pub fn take(options: &mut Options, key: &str) -> Option<String> {
    let at = options.iter().position(|(name, _)| name == key)?;
    Some(options.remove(at).1)
}

/// Takes the options that begin with `prefix`, and gives them back without it.
pub fn under(options: &mut Options, prefix: &str) -> Options {
    let taken = options.extract_if(.., |(key, _)| key.starts_with(prefix));
    taken
        .map(|(key, value)| (key[prefix.len()..].to_owned(), value))
        .collect()
}

fn take_size(options: &mut Options, key: &str) -> Result<Option<u64>, String> {
    let value = take(options, key);
    value.map(|value| size::parameter(key, &value)).transpose()
}

fn take_switch(options: &mut Options, key: &str) -> Result<Option<bool>, String> {
    let value = take(options, key);
    value.map(|value| read_switch(key, &value)).transpose()
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

/// What a file's name says beside a list of options, in their form, but for what the list says already.
pub fn options_of(given: &str, list: &[String]) -> Result<Vec<String>, String> {
    let said: Vec<_> = list.iter().flat_map(|list| split_options(list)).collect();
    let value = |key: &str| {
        let mut options = said.iter().filter_map(|option| option.split_once('='));
        options.find_map(|(name, value)| (name == key).then_some(value))
    };
    let options = match given.strip_prefix("json:") {
        Some(json) => json_options(json)?,
        None => vec![(path_option(value), given.to_owned())],
    };
    let left = options.into_iter().filter(|(key, _)| value(key).is_none());
    Ok(left
        .map(|(key, value)| format!("{key}={}", value.replace(',', ",,")))
        .collect())
}

/// The option that a path is meant for: that of the file under all formats that are named.
fn path_option<'a>(value: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut level = String::new();
    for depth in 0..=MOST_INSIDE {
        match value(&format!("{level}driver")) {
            Some(driver) if FileKind::named(driver).is_some() => break,
            None if depth > 0 => break,
            _ => level.push_str("file."),
        }
    }
    level + "filename"
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
        Name::parse(given).map(|name| name.path().to_owned())
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
        assert_eq!((name.path(), name.format.as_deref()), ("a", Some("qcow2")));
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
            (name.path(), name.format.as_deref()),
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
    fn formats_stand_over_one_another() {
        let name = Name::parse(
            "json:{'driver':'raw','offset':512,'file':{'driver':'qcow2','file':{'driver':'file','filename':'a'}}}",
        )
        .unwrap();
        let window = Window {
            offset: 512,
            size: None,
        };
        assert_eq!((name.path(), name.window), ("a", Some(window)));
        let Under::Image(inner) = &name.under else {
            panic!("{:?}", name.under);
        };
        assert_eq!(inner.format.as_deref(), Some("qcow2"));
        assert_eq!(inner.described("qcow2"), "a");
        assert_eq!(
            name.described("raw"),
            "json:{\"offset\": 512, \"driver\": \"raw\", \"file\": {\"driver\": \"qcow2\", \"file\": \
             {\"driver\": \"file\", \"filename\": \"a\"}}}"
        );
        let zeros = Name::parse_options("driver=null-co,size=64k").unwrap();
        assert_eq!(
            (zeros.path(), &zeros.under),
            (NO_PATH, &Under::Zeros(64 << 10))
        );
        assert_eq!(
            zeros.described("raw"),
            "json:{\"driver\": \"null-co\", \"size\": \"64k\"}"
        );
        let nested = |depth: usize| {
            let level = |level: usize| format!("{}driver=raw,", "file.".repeat(level));
            let all: String = (0..depth).map(level).collect();
            Name::parse_options(&format!("{all}{}filename=a", "file.".repeat(depth)))
        };
        assert_eq!(nested(MOST_INSIDE).unwrap().path(), "a");
        assert_eq!(nested(MOST_INSIDE + 1).unwrap_err(), too_many_inside());
    }

    #[test]
    fn a_path_beside_options_is_that_of_the_file_under_them() {
        let beside = |given: &str, list: &str| options_of(given, &[list.to_owned()]).unwrap();
        assert_eq!(beside("a,b", "driver=qcow2"), ["file.filename=a,,b"]);
        assert_eq!(beside("a", "driver=file"), ["filename=a"]);
        assert_eq!(
            beside("a", "driver=copy-on-read,file.driver=qcow2"),
            ["file.file.filename=a"]
        );
        assert_eq!(
            beside("json:{'driver':'raw','file.filename':'a'}", "driver=qcow2"),
            ["file.filename=a"]
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
