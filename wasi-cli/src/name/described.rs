//! Names in QEMU's words: what reports call images that no path is enough for.

use serde_json::Value;

use super::{Guise, NO_PATH, Name, Under};

/// The options that tell one image from another, in the order in which QEMU puts them; what is under an image comes
/// before the last.
const TELLING: &[&str] = &[
    "encrypt.key-secret",
    "offset",
    "read-zeroes",
    "driver",
    "size",
];
const LAST: &str = "key-secret";

impl Name {
    /// What QEMU calls the driver; `format` is what was found where the name does not say it.
    pub fn driver_name<'a>(&'a self, format: Option<&'a str>) -> &'a str {
        let said = self.guise.map(Guise::name).or(self.format.as_deref());
        said.or(format).unwrap_or("raw")
    }

    /// How QEMU calls the image, whose format is `format`: by a path, where nothing else is said of it.
    pub fn described(&self, format: &str) -> String {
        let is_told = TELLING
            .iter()
            .chain([&LAST])
            .filter(|key| **key != "driver")
            .any(|key| self.option(key).is_some());
        match &self.under {
            Under::File { path, .. } if !is_told => path.clone(),
            Under::Zeros(_) if self.zeros_object().is_none() && !is_told => NO_PATH.to_owned(),
            Under::Zeros(_) if matches!(self.guise, Some(Guise::Zeros(_))) => {
                self.zeros_described()
            }
            _ => format!("json:{}", self.object(format)),
        }
    }

    /// What it is stored in, in as few words as possible.
    pub fn in_short(&self) -> String {
        match (&self.under, self.guise, self.window) {
            // So that it is no path inside the folder of the image above.
            (Under::File { path, kind: None }, None | Some(Guise::File(_)), None) => {
                format!("file:{path}")
            }
            _ => self.in_full(),
        }
    }

    /// All that it says.
    pub fn in_full(&self) -> String {
        let mut fields = serde_json::Map::new();
        for (key, value) in &self.options {
            fields.insert(key.clone(), Value::from(value.as_str()));
        }
        let driver = self.driver_name(None);
        fields.insert("driver".to_owned(), Value::from(driver));
        format!("json:{}", Value::Object(fields))
    }

    /// Which of the drivers it is that gives zeros.
    pub fn zeros_driver(&self) -> &str {
        match self.guise {
            Some(Guise::Zeros(driver)) => driver,
            _ => self.option("file.driver").unwrap_or("null-co"),
        }
    }

    /// What the zeros are called that an image is stored in.
    pub fn zeros_described(&self) -> String {
        match self.zeros_object() {
            Some(object) => format!("json:{object}"),
            None => NO_PATH.to_owned(),
        }
    }

    /// What says how many zeros there are and what they are; `None` where nothing does.
    fn zeros_object(&self) -> Option<String> {
        let prefix = match self.guise {
            Some(Guise::Zeros(_)) => "",
            _ => "file.",
        };
        let option = |key: &str| {
            let value = self.option(&format!("{prefix}{key}"))?;
            Some(format!("{}: {}", Value::from(key), self.value(value)))
        };
        let telling = [option("read-zeroes"), option("size")];
        if telling.iter().all(Option::is_none) {
            return None;
        }
        let [zeroes, size] = telling;
        let driver = Some(format!("\"driver\": \"{}\"", self.zeros_driver()));
        let fields: Vec<_> = [zeroes, driver, size].into_iter().flatten().collect();
        Some(format!("{{{}}}", fields.join(", ")))
    }

    fn object(&self, format: &str) -> String {
        let driver = Value::from(self.driver_name(Some(format))).to_string();
        let mut fields = Vec::new();
        let mut field = |key: &str, text: String| {
            fields.push(format!("{}: {text}", Value::from(key)));
        };
        for key in TELLING {
            match *key {
                "driver" => field(key, driver.clone()),
                key => {
                    if let Some(value) = self.option(key) {
                        field(key, self.value(value));
                    }
                }
            }
        }
        let file = match &self.under {
            Under::File { path, kind } => {
                let driver = kind.map_or("file", super::FileKind::name);
                let path = Value::from(path.as_str());
                format!("{{\"driver\": \"{driver}\", \"filename\": {path}}}")
            }
            Under::Zeros(_) => match self.zeros_object() {
                Some(object) => object,
                None => format!("{{\"driver\": \"{}\"}}", self.zeros_driver()),
            },
            Under::Image(inner) => inner.object("raw"),
        };
        field("file", file);
        if let Some(value) = self.option(LAST) {
            field(LAST, self.value(value));
        }
        format!("{{{}}}", fields.join(", "))
    }

    /// A value as it was given: numbers and switches of a `json:` name are none of its strings.
    fn value(&self, value: &str) -> String {
        let is_json = self.given.starts_with("json:");
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        match value {
            "on" if is_json => "true".to_owned(),
            "off" if is_json => "false".to_owned(),
            value if is_json && is_number => value.to_owned(),
            value => Value::from(value).to_string(),
        }
    }
}
