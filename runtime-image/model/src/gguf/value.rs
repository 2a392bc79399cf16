//! Values of metadata.

/// Declares [`Value`] and [`Array`] of all kinds of one fixed width.
macro_rules! values {
    ($($kind:ident: $type:ty = $id:literal,)*) => {
        /// What an entry of the metadata is.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = concat!("One `", stringify!($type), "`.")] $kind($type),)*
            /// True or false, one byte.
            Bool(bool),
            /// Text.
            String(String),
            /// Several of one kind.
            Array(Array),
        }

        /// Several values of one kind. (Arrays of arrays are in the format, but in no model's file.)
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = concat!("Of `", stringify!($type), "`.")] $kind(Vec<$type>),)*
            /// Of true or false.
            Bool(Vec<bool>),
            /// Of texts.
            String(Vec<String>),
        }

        impl Value {
            /// Its kind's number in a file (`enum gguf_type`).
            pub(super) fn kind(&self) -> u32 {
                match self {
                    $(Self::$kind(_) => $id,)*
                    Self::Bool(_) => 7,
                    Self::String(_) => 8,
                    Self::Array(_) => 9,
                }
            }

            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$kind(value) => out.extend(value.to_le_bytes()),)*
                    Self::Bool(value) => out.push((*value).into()),
                    Self::String(text) => write_string(text, out),
                    Self::Array(array) => array.write(out),
                }
            }

            pub(super) fn read(kind: u32, from: &mut Bytes<'_>) -> Result<Self, Malformed> {
                match kind {
                    $($id => from.array().map(<$type>::from_le_bytes).map(Self::$kind),)*
                    7 => from.bool().map(Self::Bool),
                    8 => from.string().map(Self::String),
                    9 => Array::read(from).map(Self::Array),
                    _ => Err(from.wrong("a kind of value from 0 to 12", kind)),
                }
            }
        }

        impl Array {
            /// How many.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$kind(values) => values.len(),)*
                    Self::Bool(values) => values.len(),
                    Self::String(values) => values.len(),
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                let kind: u32 = match self {
                    $(Self::$kind(_) => $id,)*
                    Self::Bool(_) => 7,
                    Self::String(_) => 8,
                };
                out.extend(kind.to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Self::$kind(values) => values.iter().for_each(|v| out.extend(v.to_le_bytes())),)*
                    Self::Bool(values) => out.extend(values.iter().map(|&v| u8::from(v))),
                    Self::String(values) => values.iter().for_each(|v| write_string(v, out)),
                }
            }

            fn read(from: &mut Bytes<'_>) -> Result<Self, Malformed> {
                let kind = from.u32()?;
                match kind {
                    $($id => {
                        let count = from.count(size_of::<$type>())?;
                        (0..count)
                            .map(|_| from.array().map(<$type>::from_le_bytes))
                            .collect::<Result<_, _>>()
                            .map(Self::$kind)
                    })*
                    7 => {
                        let count = from.count(1)?;
                        (0..count).map(|_| from.bool()).collect::<Result<_, _>>().map(Self::Bool)
                    }
                    8 => {
                        let count = from.count(size_of::<u64>())?;
                        (0..count).map(|_| from.string()).collect::<Result<_, _>>().map(Self::String)
                    }
                    _ => Err(from.wrong("an array of numbers, of true or false, or of texts", kind)),
                }
            }
        }
    };
}

values! {
    U8: u8 = 0,
    I8: i8 = 1,
    U16: u16 = 2,
    I16: i16 = 3,
    U32: u32 = 4,
    I32: i32 = 5,
    F32: f32 = 6,
    U64: u64 = 10,
    I64: i64 = 11,
    F64: f64 = 12,
}

impl Array {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Value {
    /// A whole number of any width, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// A float of either width. Of an f32 it is the shortest decimal that reads back as that
    /// f32: 1e-5 stays what its writer meant.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(n) => n.to_string().parse().ok(),
            Self::F64(n) => Some(n),
            _ => None,
        }
    }

    /// Text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Texts, if it is an array of them.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::String(texts)) => Some(texts),
            _ => None,
        }
    }

    /// In a message: short.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Array(array) => format!("an array of {}", array.len()),
            Self::String(text) if text.chars().count() > 60 => {
                format!("{:?}", text.chars().take(59).chain(['…']).collect::<String>())
            }
            Self::String(text) => format!("{text:?}"),
            Self::Bool(value) => value.to_string(),
            number => number
                .as_u64()
                .map(|n| n.to_string())
                .or_else(|| number.as_f64().map(|n| n.to_string()))
                .unwrap_or_else(|| "a negative number".to_owned()),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// What is wrong with a file, and at which of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Malformed {
    /// Where, from the file's start.
    pub at: usize,
    /// What was expected there, and what is there.
    pub what: String,
}

/// Bytes of a file that are read one after another.
pub(super) struct Bytes<'a> {
    pub(super) all: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Bytes<'a> {
    pub(super) fn wrong(&self, expected: &str, found: impl std::fmt::Display) -> Malformed {
        Malformed { at: self.at, what: format!("expected {expected}, found {found}") }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let left = &self.all[self.at..];
        let taken = left.get(..count).ok_or_else(|| {
            self.wrong(
                &format!("{count} more bytes"),
                format!("the file's end after {}", left.len()),
            )
        })?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many things follow, each of `least` bytes or more: never more than the file has room
    /// for, so that what is made of them is in proportion to the file.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.u64()?;
        let room = (self.all.len() - self.at) / least;
        usize::try_from(count).ok().filter(|&count| count <= room).ok_or_else(|| {
            self.wrong(&format!("a count of at most {room}, for which the file has room"), count)
        })
    }

    pub(super) fn string(&mut self) -> Result<String, Malformed> {
        let length = self.count(1)?;
        let start = self.at;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|e| Malformed {
            at: start + e.valid_up_to(),
            what: "expected UTF-8, found another byte".to_owned(),
        })?;
        Ok(text.to_owned())
    }

    fn bool(&mut self) -> Result<bool, Malformed> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.wrong("0 or 1 for false or true", other)),
        }
    }
}

pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
