//! Reports as plain objects: qemu-img's JSON names in camelCase, numbers as `number`, or as `bigint` past 2^53.

use std::fmt;

use js_sys::{Array, BigInt, Object, Reflect};
use serde::ser::{self, Serialize};
use wasm_bindgen::JsValue;

/// `value` as a plain object, array, string, number or `undefined`.
pub fn to_js<T: Serialize + ?Sized>(value: &T) -> Result<JsValue, Unserializable> {
    value.serialize(ToJs)
}

/// A value that has no form in JavaScript: a mistake of this crate's own, not of an image.
#[derive(Debug)]
pub struct Unserializable(String);

impl fmt::Display for Unserializable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unserializable {}

impl ser::Error for Unserializable {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl From<Unserializable> for JsValue {
    fn from(error: Unserializable) -> Self {
        js_sys::Error::new(&error.0).into()
    }
}

/// `virtual-size` and `virtual_size` as `virtualSize`.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut raise = false;
    for letter in name.chars() {
        match letter {
            '-' | '_' => raise = true,
            letter if raise => {
                out.push(letter.to_ascii_uppercase());
                raise = false;
            }
            letter => out.push(letter),
        }
    }
    out
}

const MAX_SAFE: u64 = (1 << 53) - 1;

type JsResult = Result<JsValue, Unserializable>;

struct ToJs;

macro_rules! small_numbers {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, value: $type) -> JsResult {
            Ok(f64::from(value).into())
        })*
    };
}

impl ser::Serializer for ToJs {
    type Ok = JsValue;
    type Error = Unserializable;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = Variant<List>;
    type SerializeMap = Record;
    type SerializeStruct = Record;
    type SerializeStructVariant = Variant<Record>;

    small_numbers!(serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_u8: u8,
        serialize_u16: u16, serialize_u32: u32, serialize_f32: f32, serialize_f64: f64);

    fn serialize_bool(self, value: bool) -> JsResult {
        Ok(value.into())
    }

    fn serialize_i64(self, value: i64) -> JsResult {
        Ok(if value.unsigned_abs() <= MAX_SAFE {
            (value as f64).into()
        } else {
            BigInt::from(value).into()
        })
    }

    fn serialize_u64(self, value: u64) -> JsResult {
        Ok(if value <= MAX_SAFE {
            (value as f64).into()
        } else {
            BigInt::from(value).into()
        })
    }

    fn serialize_char(self, value: char) -> JsResult {
        Ok(JsValue::from_str(value.encode_utf8(&mut [0; 4])))
    }

    fn serialize_str(self, value: &str) -> JsResult {
        Ok(value.into())
    }

    fn serialize_bytes(self, value: &[u8]) -> JsResult {
        Ok(js_sys::Uint8Array::from(value).into())
    }

    fn serialize_none(self) -> JsResult {
        Ok(JsValue::UNDEFINED)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> JsResult {
        value.serialize(self)
    }

    fn serialize_unit(self) -> JsResult {
        Ok(JsValue::UNDEFINED)
    }

    fn serialize_unit_struct(self, _: &'static str) -> JsResult {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> JsResult {
        Ok(variant.into())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> JsResult {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> JsResult {
        Ok(tagged(variant, &to_js(value)?))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List, Unserializable> {
        Ok(List(Array::new()))
    }

    fn serialize_tuple(self, _: usize) -> Result<List, Unserializable> {
        Ok(List(Array::new()))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List, Unserializable> {
        Ok(List(Array::new()))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Variant<List>, Unserializable> {
        Ok(Variant {
            variant,
            content: List(Array::new()),
        })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Record, Unserializable> {
        Ok(Record::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Record, Unserializable> {
        Ok(Record::default())
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Variant<Record>, Unserializable> {
        Ok(Variant {
            variant,
            content: Record::default(),
        })
    }
}

fn tagged(variant: &str, content: &JsValue) -> JsValue {
    let mut record = Record::default();
    record.set(variant, content);
    record.object.into()
}

struct List(Array);

impl ser::SerializeSeq for List {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_element<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), Unserializable> {
        self.0.push(&to_js(value)?);
        Ok(())
    }

    fn end(self) -> JsResult {
        Ok(self.0.into())
    }
}

impl ser::SerializeTuple for List {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_element<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), Unserializable> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> JsResult {
        Ok(self.0.into())
    }
}

impl ser::SerializeTupleStruct for List {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unserializable> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> JsResult {
        Ok(self.0.into())
    }
}

#[derive(Default)]
struct Record {
    object: Object,
    key: String,
}

impl Record {
    /// Sets a property; a value that is not there gives no property.
    fn set(&mut self, key: &str, value: &JsValue) {
        if !value.is_undefined() {
            // A new plain object takes every property.
            let _ = Reflect::set(&self.object, &camel_case(key).into(), value);
        }
    }
}

impl ser::SerializeStruct for Record {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Unserializable> {
        self.set(key, &to_js(value)?);
        Ok(())
    }

    fn end(self) -> JsResult {
        Ok(self.object.into())
    }
}

impl ser::SerializeMap for Record {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unserializable> {
        self.key = to_js(key)?
            .as_string()
            .ok_or_else(|| Unserializable("a key is not a string".into()))?;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unserializable> {
        let key = std::mem::take(&mut self.key);
        self.set(&key, &to_js(value)?);
        Ok(())
    }

    fn end(self) -> JsResult {
        Ok(self.object.into())
    }
}

/// An enum's variant with content: `{ variant: content }`.
struct Variant<C> {
    variant: &'static str,
    content: C,
}

impl ser::SerializeTupleVariant for Variant<List> {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unserializable> {
        ser::SerializeSeq::serialize_element(&mut self.content, value)
    }

    fn end(self) -> JsResult {
        Ok(tagged(self.variant, &self.content.0.into()))
    }
}

impl ser::SerializeStructVariant for Variant<Record> {
    type Ok = JsValue;
    type Error = Unserializable;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Unserializable> {
        ser::SerializeStruct::serialize_field(&mut self.content, key, value)
    }

    fn end(self) -> JsResult {
        Ok(tagged(self.variant, &self.content.object.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_camel_case() {
        assert_eq!(camel_case("virtual-size"), "virtualSize");
        assert_eq!(camel_case("vm_clock_nsec"), "vmClockNsec");
        assert_eq!(camel_case("extended-l2"), "extendedL2");
        assert_eq!(camel_case("name"), "name");
    }
}
