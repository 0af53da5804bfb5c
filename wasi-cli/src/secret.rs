//! `--object secret,…`: passphrases, by the names under which options ask for them.

mod encrypted;

use std::cell::RefCell;
use std::collections::BTreeMap;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine, alphabet};
use oxcow::crypto::Passphrase;
use serde_json::Value;

use crate::failure::Failure;
use crate::name::split_options;
use crate::outln;

thread_local! {
    /// What the command line has defined so far.
    static SECRETS: RefCell<BTreeMap<String, Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The passphrase that is called `id`.
pub fn get(id: &str) -> Result<Passphrase, String> {
    let data = SECRETS
        .with_borrow(|secrets| secrets.get(id).cloned())
        .ok_or_else(|| format!("No secret with id '{id}'"))?;
    // QEMU's rule: other tools would type it in.
    match std::str::from_utf8(&data) {
        Ok(_) => Ok(Passphrase::new(data)),
        Err(_) => Err(format!("Data from secret {id} is not valid UTF-8")),
    }
}

/// Takes the value of `--object`: of all kinds that QEMU has only secrets mean anything here.
pub fn define(definition: &str) -> Result<(), Failure> {
    let fields = fields(definition).map_err(Failure::new)?;
    if let Some(lines) = help(&fields) {
        lines.iter().for_each(|line| outln!("{line}"));
        return Err(Failure::said(0));
    }
    define_fields(&fields).map_err(Failure::new)
}

/// What `help` asks for: the kinds of objects, or the options of one.
fn help(fields: &Fields) -> Option<&'static [&'static str]> {
    let asked = |word: &str| matches!(word, "help" | "?");
    let ((_, kind), options) = fields.split_first()?;
    if asked(kind) {
        return Some(&["List of user creatable objects:", "  secret"]);
    }
    let about_options = options.iter().any(|(key, _)| asked(key));
    (kind == "secret" && about_options).then_some(&[
        "secret options:",
        "  data=<string>",
        "  file=<string>",
        "  format=<QCryptoSecretFormat>",
        "  iv=<string>",
        "  keyid=<string>",
    ])
}

type Fields = Vec<(String, String)>;

fn fields(definition: &str) -> Result<Fields, String> {
    if definition.starts_with('{') {
        let parsed = serde_json::from_str(definition);
        let Ok(Value::Object(fields)) = parsed else {
            return Err("JSON parse error, invalid syntax".to_owned());
        };
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let fields = fields.into_iter();
        return Ok(fields.map(|(key, value)| (key, text(value))).collect());
    }
    let parts = split_options(definition).into_iter().enumerate();
    Ok(parts
        .filter_map(|(index, part)| match part.split_once('=') {
            Some((key, value)) => Some((key.to_owned(), value.to_owned())),
            None if index == 0 => Some(("qom-type".to_owned(), part)),
            None if part.is_empty() => None,
            None => Some((part, "on".to_owned())),
        })
        .collect())
}

fn define_fields(fields: &Fields) -> Result<(), String> {
    let get = |name: &str| {
        let found = fields.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    let needed = |name: &str| get(name).ok_or_else(|| format!("Parameter '{name}' is missing"));
    match needed("qom-type")? {
        "secret" => {}
        other => {
            return Err(format!(
                "Parameter 'qom-type' does not accept value '{other}'"
            ));
        }
    }
    let id = needed("id")?;
    let known = ["qom-type", "id", "data", "file", "format", "keyid", "iv"];
    if let Some((key, _)) = fields
        .iter()
        .find(|(key, _)| !known.contains(&key.as_str()))
    {
        return Err(format!("Parameter '{key}' is unexpected"));
    }
    let base64 = match get("format") {
        None | Some("raw") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(format!(
                "Parameter 'format' does not accept value '{other}'"
            ));
        }
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !id.starts_with(|c: char| c.is_ascii_alphabetic()) || !id.chars().all(letters) {
        return Err(
            "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', \
             starting with a letter."
                .to_owned(),
        );
    }
    let data = match (get("data"), get("file")) {
        (Some(_), Some(_)) => return Err("'file' and 'data' are mutually exclusive".to_owned()),
        (None, None) => return Err("Either 'file' or 'data' must be provided".to_owned()),
        (Some(data), None) => data.as_bytes().to_vec(),
        (None, Some(path)) => std::fs::read(path).map_err(|source| {
            let what = format!("Unable to read {path}: Failed to open file “{path}”");
            oxcow::Error::io(what, 0, source).to_string()
        })?,
    };
    let decoded = |data: Vec<u8>| match base64 {
        true => decode_base64(&data),
        false => Ok(data),
    };
    let data = match get("keyid") {
        None => decoded(data)?,
        Some(keyid) => {
            let key = master_key(keyid, id)?;
            let key = encrypted::key(&key)?;
            let iv = get("iv").ok_or("IV is required to decrypt secret")?;
            let iv = decode_base64(iv.as_bytes())?;
            encrypted::decrypt(key, encrypted::iv(&iv)?, decoded(data)?)?
        }
    };
    let old = SECRETS.with_borrow_mut(|secrets| match secrets.contains_key(id) {
        true => true,
        false => {
            secrets.insert(id.to_owned(), data);
            false
        }
    });
    match old {
        true => Err(format!(
            "attempt to add duplicate property '{id}' to object (type 'container')"
        )),
        false => Ok(()),
    }
}

/// The bytes of the secret called `keyid`, by which the new one called `id` is encrypted.
fn master_key(keyid: &str, id: &str) -> Result<Vec<u8>, String> {
    let known = SECRETS.with_borrow(|secrets| secrets.get(keyid).cloned());
    known.ok_or_else(|| match keyid == id {
        true => format!("Secret with id '{id}' has no data"),
        false => format!("No secret with id '{keyid}'"),
    })
}

/// RFC 4648, with or without padding, with line breaks as mail programs make them.
fn decode_base64(text: &[u8]) -> Result<Vec<u8>, String> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let letters = text.iter().filter(|letter| !b"\r\n".contains(letter));
    let decoded = LENIENT.decode(letters.copied().collect::<Vec<u8>>());
    decoded.map_err(|error| match error {
        DecodeError::InvalidByte(..) => "Base64 data contains invalid characters".to_owned(),
        _ => "Base64 data is not valid".to_owned(),
    })
}

/// Which secret an option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySecret {
    /// Of which image of the chain: 0 is the image itself.
    pub depth: usize,
    /// What the option says how the image is encrypted, by QEMU's name.
    pub format: Option<String>,
    /// The secret's name, where there is one.
    pub id: Option<String>,
    /// Whether the option is one of qcow2's, `encrypt.…`, and not of plain LUKS.
    pub inside: bool,
}

/// Takes those options out of `options` that say how content is encrypted.
pub fn take_keys(options: &mut Fields) -> Vec<KeySecret> {
    let mut keys: Vec<KeySecret> = Vec::new();
    options.retain(|(name, value)| {
        let (mut own, mut depth) = (name.as_str(), 0);
        while let Some(below) = own.strip_prefix("backing.") {
            (own, depth) = (below, depth + 1);
        }
        let own = match own {
            "encrypt.format" | "encrypt.key-secret" | "key-secret" => own,
            _ => return true,
        };
        let inside = own != "key-secret";
        let at = keys.iter().position(|key| key.depth == depth);
        let at = at.unwrap_or_else(|| {
            keys.push(KeySecret {
                depth,
                format: None,
                id: None,
                inside,
            });
            keys.len() - 1
        });
        match own {
            "encrypt.format" => keys[at].format = Some(value.clone()),
            _ => keys[at].id = Some(value.clone()),
        }
        false
    });
    keys
}

/// The keys of a chain that begins `depth` images further down.
pub fn below(keys: Vec<KeySecret>, depth: usize) -> Vec<KeySecret> {
    let keys = keys.into_iter().filter_map(|key| {
        let depth = key.depth.checked_sub(depth)?;
        Some(KeySecret { depth, ..key })
    });
    keys.collect()
}

/// The passphrases of a chain, as [`oxcow::OpenOptions`] takes them.
pub fn passphrases(keys: &[KeySecret]) -> Result<Vec<Option<Passphrase>>, String> {
    let mut found = Vec::new();
    for key in keys {
        if let Some(id) = &key.id {
            if found.len() <= key.depth {
                found.resize(key.depth + 1, None);
            }
            found[key.depth] = Some(get(id)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode_base64(b"YWJj").unwrap(), b"abc");
        assert_eq!(decode_base64(b"YWI=").unwrap(), b"ab");
        assert_eq!(decode_base64(b"YQ==\n").unwrap(), b"a");
        assert_eq!(decode_base64(b"YW\r\nI").unwrap(), b"ab");
        let refused = |text: &[u8]| decode_base64(text).unwrap_err();
        assert!(refused(b"YW!j").contains("invalid characters"));
        assert!(refused(b"YWJjY").contains("not valid"));
    }

    #[test]
    fn help_is_given_where_it_is_asked_for() {
        let lines = |definition: &str| help(&fields(definition).unwrap());
        assert_eq!(
            lines("help"),
            Some(&["List of user creatable objects:", "  secret"][..])
        );
        assert_eq!(lines("?"), lines("help"));
        assert_eq!(lines("secret,help").unwrap().len(), 6);
        assert_eq!(lines("secret,id=a,?"), lines("secret,help"));
        assert_eq!(lines("secret,id=help,data=help"), None);
        assert_eq!(lines("other,help"), None);
    }

    #[test]
    fn options_about_keys_are_taken_out() {
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut options = vec![
            option("encrypt.key-secret", "top"),
            option("discard", "on"),
            option("backing.encrypt.key-secret", "below"),
            option("backing.encrypt.format", "luks"),
            option("backing.backing.key-secret", "deep"),
        ];
        let keys = take_keys(&mut options);
        assert_eq!(options, [option("discard", "on")]);
        let told: Vec<_> = keys
            .iter()
            .map(|key| {
                (
                    key.depth,
                    key.id.as_deref(),
                    key.format.as_deref(),
                    key.inside,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (0, Some("top"), None, true),
                (1, Some("below"), Some("luks"), true),
                (2, Some("deep"), None, false)
            ]
        );
    }
}
