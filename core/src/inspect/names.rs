//! Names of other files inside an image: where they would lead a program that follows them.

use crate::error::{Place, Role};
use crate::inspect::report::{Draft, Severity};

/// Where a file name inside an image leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Reach {
    /// Beside the image, or in a folder beside it.
    SameFolder,
    /// Out of the image's folder, by `..`.
    OutsideFolder,
    /// To a place of its own choice on the computer.
    Absolute,
    /// To no file at all: `json:`, `nbd:`, `http:` and the like, which open network connections, devices
    /// or whatever the options say.
    Protocol,
}

/// How much of a name a message shows, in characters.
const SHOWN: usize = 120;

/// Where `name` leads, by QEMU's rules and by those of Windows.
pub(super) fn reach(name: &str) -> Reach {
    let path = name.strip_prefix("file:").unwrap_or(name);
    match protocol(path) {
        Some(protocol) if protocol.len() == 1 && protocol.as_bytes()[0].is_ascii_alphabetic() => {
            return Reach::Absolute;
        }
        Some(_) => return Reach::Protocol,
        None => {}
    }
    if path.starts_with(['/', '\\']) {
        Reach::Absolute
    } else if path.split(['/', '\\']).any(|part| part == "..") {
        Reach::OutsideFolder
    } else {
        Reach::SameFolder
    }
}

/// What stands before the first colon, if that comes before any slash.
fn protocol(path: &str) -> Option<&str> {
    let (before, _) = path.split_once(':')?;
    (!before.contains(['/', '\\'])).then_some(before)
}

/// `name` as a message may show it: in quotes, cut, and [`harmless`].
pub(super) fn shown(name: &str) -> String {
    let mut text = String::from("'");
    text.extend(name.chars().take(SHOWN));
    if name.chars().nth(SHOWN).is_some() {
        text.push('…');
    }
    text.push('\'');
    harmless(text)
}

/// `text` with nothing in it that moves a terminal's cursor or turns the writing direction.
pub(super) fn harmless(text: String) -> String {
    if !text.contains(is_deceiving) {
        return text;
    }
    let mut harmless = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_deceiving(character) {
            harmless.extend(character.escape_unicode());
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// Whether a character is invisible, or changes how its neighbours look.
fn is_deceiving(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// The findings that a name gives rise to.
pub(super) fn judge(draft: &mut Draft, role: Role, name: &[u8], place: Place) {
    let text = String::from_utf8_lossy(name);
    let file = shown(&text);
    let (severity, suffix, words) = match reach(&text) {
        Reach::SameFolder => (
            Severity::Warning,
            Suffix::Plain,
            format!(
                "The image needs another file: the {role} {file}. Use it only if you know that file."
            ),
        ),
        Reach::OutsideFolder => (
            Severity::Danger,
            Suffix::Outside,
            format!(
                "The image asks for the {role} {file}, outside its own folder: a program that follows the name \
                 reads whatever file is there."
            ),
        ),
        Reach::Absolute => (
            Severity::Danger,
            Suffix::Absolute,
            format!(
                "The image asks for the {role} {file}, a fixed place on the computer it is opened on: a program \
                 that follows the name reads whatever file is there."
            ),
        ),
        Reach::Protocol => (
            Severity::Danger,
            Suffix::Protocol,
            format!(
                "The image asks for the {role} {file}, which is no file name: it tells a program to open a \
                 connection, a device or anything else on the image's behalf."
            ),
        ),
    };
    draft.find(severity, suffix.code(role), words).at(place);
    if text.chars().any(is_deceiving) {
        draft
            .danger(
                "name-deceives",
                format!("The name of the {role} {file} has control or invisible characters in it, which hide what it says."),
            )
            .at(place);
    }
    if std::str::from_utf8(name).is_err() {
        draft
            .note(
                "name-not-utf-8",
                format!("The name of the {role} {file} is not UTF-8; some characters show as �."),
            )
            .at(place);
    }
}

/// The end of a finding's code.
#[derive(Clone, Copy)]
enum Suffix {
    Plain,
    Outside,
    Absolute,
    Protocol,
}

impl Suffix {
    fn code(self, role: Role) -> &'static str {
        match (role, self) {
            (Role::Backing, Self::Plain) => "backing-file",
            (Role::Backing, Self::Outside) => "backing-file-outside-folder",
            (Role::Backing, Self::Absolute) => "backing-file-absolute",
            (Role::Backing, Self::Protocol) => "backing-file-protocol",
            (Role::DataFile, Self::Plain) => "data-file",
            (Role::DataFile, Self::Outside) => "data-file-outside-folder",
            (Role::DataFile, Self::Absolute) => "data-file-absolute",
            (Role::DataFile, Self::Protocol) => "data-file-protocol",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_names_lead() {
        for name in [
            "base.qcow2",
            "images/base.qcow2",
            "./a:b.raw",
            "a..b",
            "file:base.raw",
            "...",
            "",
        ] {
            assert_eq!(reach(name), Reach::SameFolder, "{name}");
        }
        for name in [
            "../base.qcow2",
            "a/../../b",
            "..",
            "file:../x",
            "..\\x",
            "a/..",
        ] {
            assert_eq!(reach(name), Reach::OutsideFolder, "{name}");
        }
        for name in [
            "/etc/passwd",
            "file:/etc/passwd",
            "file:///etc/passwd",
            "C:\\x",
            "c:x",
            "\\\\server\\share",
            "/dev/sda",
        ] {
            assert_eq!(reach(name), Reach::Absolute, "{name}");
        }
        for name in [
            "json:{\"driver\":\"nbd\"}",
            "nbd://host",
            "http://host/x",
            "fat:rw:/etc",
            "ab:c",
            ":x",
        ] {
            assert_eq!(reach(name), Reach::Protocol, "{name}");
        }
    }

    #[test]
    fn names_are_shown_without_their_tricks() {
        assert_eq!(shown("plain é"), "'plain é'");
        assert_eq!(
            shown("a\u{1b}[2Jb\u{202e}c\0"),
            "'a\\u{1b}[2Jb\\u{202e}c\\u{0}'"
        );
        assert_eq!(shown(&"x".repeat(500)).chars().count(), SHOWN + 3);
    }
}
