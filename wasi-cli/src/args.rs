//! Options as getopt_long reads them, because scripts rely on all of its habits: bundled short options,
//! values attached or apart, unambiguous abbreviations of long ones, options after operands, `--`.

use std::collections::VecDeque;

use crate::failure::Failure;

/// The options of a sub-command in the order of its table, which is the order ambiguities are listed in.
///
/// `"f/format="` has a short and a long name and takes a value, `"p"` is only short, `"image-opts"` only
/// long.
pub type Spec = &'static [&'static str];

/// What stands next on the command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Arg {
    /// An option, by its long name where it has one; its value is empty where it takes none.
    Option(&'static str, String),
    /// Anything else.
    Operand(String),
}

/// Reads arguments one by one; an error about one comes only after everything before it was handed out.
pub struct Args {
    spec: Spec,
    rest: VecDeque<String>,
    /// What is left of a group of short options.
    bundle: String,
    only_operands: bool,
}

struct Known {
    short: Option<char>,
    long: Option<&'static str>,
    name: &'static str,
    takes_value: bool,
}

fn known(entry: &'static str) -> Known {
    let (names, takes_value) = match entry.strip_suffix('=') {
        Some(names) => (names, true),
        None => (entry, false),
    };
    let (short, long) = match names.split_once('/') {
        Some((short, long)) => (short.chars().next(), Some(long)),
        None if names.len() == 1 => (names.chars().next(), None),
        None => (None, Some(names)),
    };
    Known {
        short,
        long,
        name: long.unwrap_or(names),
        takes_value,
    }
}

impl Args {
    /// Arguments after the sub-command's name.
    pub fn new(spec: Spec, rest: impl IntoIterator<Item = String>) -> Self {
        Self {
            spec,
            rest: rest.into_iter().collect(),
            bundle: String::new(),
            only_operands: false,
        }
    }

    /// The next argument.
    pub fn next(&mut self) -> Result<Option<Arg>, Failure> {
        if let Some(letter) = self.bundle.chars().next() {
            self.bundle.remove(0);
            return self.short(letter).map(Some);
        }
        let Some(arg) = self.rest.pop_front() else {
            return Ok(None);
        };
        if self.only_operands {
            return Ok(Some(Arg::Operand(arg)));
        }
        if arg == "--" {
            self.only_operands = true;
            return self.next();
        }
        if let Some(long) = arg.strip_prefix("--") {
            return self.long(long).map(Some);
        }
        match arg.strip_prefix('-') {
            Some(letters) if !letters.is_empty() => {
                self.bundle = letters.to_owned();
                self.next()
            }
            _ => Ok(Some(Arg::Operand(arg))),
        }
    }

    /// Takes the next word as it stands, whatever it looks like, if it is `wanted`.
    pub fn take_if(&mut self, wanted: impl FnOnce(&str) -> bool) -> Option<String> {
        self.rest
            .front()
            .is_some_and(|word| wanted(word))
            .then(|| self.rest.pop_front())?
    }

    /// Whether `--` came by: nothing is an option any more.
    pub fn only_operands(&self) -> bool {
        self.only_operands
    }

    fn short(&mut self, letter: char) -> Result<Arg, Failure> {
        let found = self
            .spec
            .iter()
            .map(|entry| known(entry))
            .find(|known| known.short == Some(letter));
        let Some(option) = found else {
            return Err(Failure::syntax(format!("invalid option -- '{letter}'")));
        };
        if !option.takes_value {
            return Ok(Arg::Option(option.name, String::new()));
        }
        let attached = std::mem::take(&mut self.bundle);
        let value = if attached.is_empty() {
            self.rest.pop_front()
        } else {
            Some(attached)
        };
        value
            .map(|value| Arg::Option(option.name, value))
            .ok_or_else(|| Failure::syntax(format!("option requires an argument -- '{letter}'")))
    }

    fn long(&mut self, text: &str) -> Result<Arg, Failure> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let option = self.find_long(name, text)?;
        let full = option.name;
        match (option.takes_value, value) {
            (false, None) => Ok(Arg::Option(full, String::new())),
            (false, Some(_)) => Err(Failure::syntax(format!(
                "option '--{full}' doesn't allow an argument"
            ))),
            (true, Some(value)) => Ok(Arg::Option(full, value)),
            (true, None) => match self.rest.pop_front() {
                Some(value) => Ok(Arg::Option(full, value)),
                None => Err(Failure::syntax(format!(
                    "option '--{full}' requires an argument"
                ))),
            },
        }
    }

    fn find_long(&self, name: &str, text: &str) -> Result<Known, Failure> {
        let mut candidates = Vec::new();
        for option in self.spec.iter().map(|entry| known(entry)) {
            match option.long {
                Some(long) if long == name => return Ok(option),
                Some(long) if long.starts_with(name) => candidates.push(option),
                _ => {}
            }
        }
        if candidates.len() > 1 {
            let list: String = candidates
                .iter()
                .map(|option| format!(" '--{}'", option.name))
                .collect();
            return Err(Failure::syntax(format!(
                "option '--{text}' is ambiguous; possibilities:{list}"
            )));
        }
        candidates
            .pop()
            .ok_or_else(|| Failure::syntax(format!("unrecognized option '--{text}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Spec = &[
        "h/help",
        "f/format=",
        "image-opts",
        "U/force-share",
        "output=",
        "object=",
        "p",
    ];

    fn read(line: &str) -> Result<Vec<Arg>, String> {
        let mut args = Args::new(SPEC, line.split_whitespace().map(str::to_owned));
        let mut all = Vec::new();
        loop {
            match args.next() {
                Ok(Some(arg)) => all.push(arg),
                Ok(None) => return Ok(all),
                Err(failure) => return Err(failure.text().to_owned()),
            }
        }
    }

    fn option(name: &'static str, value: &str) -> Arg {
        Arg::Option(name, value.to_owned())
    }

    #[test]
    fn options_may_be_bundled_abbreviated_attached_and_last() {
        let image = Arg::Operand("a.img".to_owned());
        let expected = [
            option("p", ""),
            option("force-share", ""),
            option("format", "raw"),
            image,
        ];
        assert_eq!(read("-pUfraw a.img").unwrap(), expected);
        assert_eq!(
            read("a.img --outp json --image --form=raw").unwrap(),
            [
                Arg::Operand("a.img".into()),
                option("output", "json"),
                option("image-opts", ""),
                option("format", "raw")
            ]
        );
        assert_eq!(
            read("- -- -p").unwrap(),
            [Arg::Operand("-".into()), Arg::Operand("-p".into())]
        );
        assert_eq!(read("-f=raw").unwrap(), [option("format", "=raw")]);
    }

    // The words were taken from qemu-img 10.0.2.
    #[test]
    fn errors_read_as_getopt_words_them() {
        assert_eq!(
            read("--bogus").unwrap_err(),
            "unrecognized option '--bogus'"
        );
        assert_eq!(read("-Z").unwrap_err(), "invalid option -- 'Z'");
        assert_eq!(
            read("-f").unwrap_err(),
            "option requires an argument -- 'f'"
        );
        assert_eq!(
            read("--format").unwrap_err(),
            "option '--format' requires an argument"
        );
        assert_eq!(
            read("--image-opts=3").unwrap_err(),
            "option '--image-opts' doesn't allow an argument"
        );
        assert_eq!(
            read("--fo x").unwrap_err(),
            "option '--fo' is ambiguous; possibilities: '--format' '--force-share'"
        );
    }
}
