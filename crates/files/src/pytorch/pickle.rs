//! A pickle machine that builds plain data and tensor descriptions, and can do nothing else.
//!
//! Containers live in one flat arena and refer to each other by index: sharing, cycles and depth
//! cost nothing, and nothing recurses, whatever the pickle builds.
//!
//! **Source**: Lib/pickletools.py of CPython.

use std::{collections::HashMap, path::Path, rc::Rc};

use super::state::{Storage, Tensor};
use crate::{Dtype, Error, Result};

/// The description of a model's tensors takes some 200 bytes per tensor; this is room for 300,000
/// of them, and keeps what a hostile pickle can build within a few GB.
const PICKLE_CAP: u64 = 64 << 20;

/// A value on the machine's stack; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Call(Call),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
    /// Something that no tensor depends on, such as a device.
    Other,
}

/// The globals that a state dict may name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    OrderedDict,
    /// Storage, offset, sizes, strides.
    Tensor,
    /// As `Tensor`, with the type as a later argument.
    TypedTensor,
    /// A tensor as the first argument.
    Parameter,
    Size,
    Device,
    /// A storage class, and the type of its elements (`None`: bytes that a tensor gives a type).
    Storage(Option<Dtype>),
    Dtype(Dtype),
}

impl Call {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::TypedTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Self::Parameter
            }
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("torch.storage" | "torch", "UntypedStorage") => Self::Storage(None),
            ("torch", storage) => match storage.strip_suffix("Storage") {
                Some(kind) => Self::Storage(Some(storage_type(kind)?)),
                None => Self::Dtype(torch_type(storage)?),
            },
            _ => return None,
        })
    }
}

fn storage_type(name: &str) -> Option<Dtype> {
    Some(match name {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::Bf16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        _ => return None,
    })
}

fn torch_type(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e5m2" => Dtype::F8E5m2,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        _ => return None,
    })
}

/// The containers that a pickle built.
#[derive(Default)]
pub(crate) struct Heap {
    /// Tuples and lists.
    pub(crate) lists: Vec<Vec<Value>>,
    pub(crate) dicts: Vec<Vec<(Value, Value)>>,
}

/// Runs one pickle; returns its containers, its value, and how many bytes it took.
pub(crate) fn run(path: &Path, bytes: &[u8]) -> Result<(Heap, Value, usize)> {
    let found = bytes.len() as u64;
    let bytes = &bytes[..found.min(PICKLE_CAP) as usize];
    let mut machine = Machine {
        path,
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        heap: Heap::default(),
    };
    loop {
        if machine.at == bytes.len() && found > PICKLE_CAP {
            let what = "the length of its pickle".to_owned();
            return Err(Error::OverCap { path: path.to_owned(), what, found, cap: PICKLE_CAP });
        }
        if let Some(value) = machine.step()? {
            return Ok((machine.heap, value, machine.at));
        }
    }
}

struct Machine<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    heap: Heap,
}

impl Machine<'_> {
    /// Runs one opcode; returns the pickle's value at its end.
    fn step(&mut self) -> Result<Option<Value>> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => self.stack.push(self.top()?.clone()),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.text(opcode)?,
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'a' | b'e' => self.list(opcode)?,
            b'}' | b'd' | b's' | b'u' => self.dict(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' => self.reduce()?,
            b'Q' => self.persistent()?,
            // The state of a dict is its `_metadata`, which says nothing about the tensors.
            b'b' => drop(self.pop()?),
            other => {
                return Err(Error::unsupported(
                    self.path,
                    format!("pickle opcode 0x{other:02x} at byte {}", self.at - 1),
                    "save the state dict with a current torch.save, or convert it to safetensors",
                ));
            }
        }
        Ok(None)
    }

    fn bad(&self, problem: &str) -> Error {
        Error::malformed(self.path, format!("its pickle {problem} (at byte {})", self.at))
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let Some(end) = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()) else {
            return Err(self.bad("ends in the middle"));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian length or number of `n` bytes.
    fn uint(&mut self, n: usize) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..n].copy_from_slice(self.take(n)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn sized(&mut self, length: usize) -> Result<&[u8]> {
        let n = self.uint(length)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn top(&self) -> Result<&Value> {
        self.stack.last().ok_or_else(|| self.bad("takes from an empty stack"))
    }

    fn pop(&mut self) -> Result<Value> {
        // What lies below an open mark belongs to it.
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err(self.bad("takes what lies below a mark"));
        }
        self.stack.pop().ok_or_else(|| self.bad("takes from an empty stack"))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| self.bad("takes a mark that is not there"))?;
        Ok(self.stack.split_off(mark))
    }

    fn number(&mut self, opcode: u8) -> Result<()> {
        let value = match opcode {
            b'J' => Value::Int(i64::from(self.uint(4)? as i32)),
            b'K' => Value::Int(self.uint(1)? as i64),
            b'M' => Value::Int(self.uint(2)? as i64),
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            _ => long(self.sized(if opcode == 0x8a { 1 } else { 4 })?),
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Result<()> {
        let length = match opcode {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        };
        let value = match str::from_utf8(self.sized(length)?) {
            Ok(text) => Value::Text(text.into()),
            // Raw bytes may be anything; text may not.
            Err(_) if matches!(opcode, b'B' | b'C' | 0x8e) => Value::Other,
            Err(_) => return Err(self.bad("holds text that is not UTF-8")),
        };
        self.stack.push(value);
        Ok(())
    }

    fn list(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b't' | b'l' | b'e' => self.since_mark()?,
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                items
            }
            b'a' => vec![self.pop()?],
            _ => Vec::new(),
        };
        if matches!(opcode, b'a' | b'e') {
            let &Value::List(list) = self.top()? else {
                return Err(self.bad("appends to what is not a list"));
            };
            self.heap.lists[list].extend(items);
            return Ok(());
        }
        let id = self.heap.lists.len();
        self.heap.lists.push(items);
        let list = matches!(opcode, b']' | b'l');
        self.stack.push(if list { Value::List(id) } else { Value::Tuple(id) });
        Ok(())
    }

    fn dict(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b'd' | b'u' => self.since_mark()?,
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => Vec::new(),
        };
        if items.len() % 2 != 0 {
            return Err(self.bad("sets a key without a value"));
        }
        if matches!(opcode, b'}' | b'd') {
            self.new_dict();
        }
        let &Value::Dict(dict) = self.top()? else {
            return Err(self.bad("sets items of what is not a dict"));
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.heap.dicts[dict].push((key, value));
        }
        Ok(())
    }

    fn new_dict(&mut self) {
        self.stack.push(Value::Dict(self.heap.dicts.len()));
        self.heap.dicts.push(Vec::new());
    }

    fn memo(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'q' | b'h' => self.uint(1)? as u32,
            b'r' | b'j' => self.uint(4)? as u32,
            _ => self.memo.len() as u32,
        };
        if matches!(opcode, b'h' | b'j') {
            let Some(value) = self.memo.get(&key).cloned() else {
                return Err(self.bad("recalls what it did not store"));
            };
            self.stack.push(value);
        } else {
            self.memo.insert(key, self.top()?.clone());
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<()> {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => (module, name),
                _ => return Err(self.bad("names a global by what is not text")),
            }
        };
        let Some(call) = Call::named(&module, &name) else {
            let global = format!("{module}.{name}");
            return Err(Error::RefusedCode { path: self.path.to_owned(), global });
        };
        self.stack.push(Value::Call(call));
        Ok(())
    }

    fn line(&mut self) -> Result<Rc<str>> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|&b| b == b'\n') else {
            return Err(self.bad("ends in the middle of a name"));
        };
        let line = self.take(length + 1)?;
        match str::from_utf8(&line[..length]) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(self.bad("names a global that is not UTF-8")),
        }
    }

    /// Calls one of the allowed globals: each builds data and nothing else.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let (Value::Call(call), Value::Tuple(arguments)) = (callee, arguments) else {
            return Err(self.bad("calls what cannot be called"));
        };
        let first = self.heap.lists[arguments].first().cloned();
        let value = match call {
            Call::OrderedDict => {
                self.new_dict();
                return Ok(());
            }
            Call::Tensor | Call::TypedTensor => {
                let tensor = Tensor::build(&self.heap, arguments);
                let Some(tensor) = tensor else {
                    return Err(self.bad("describes a tensor with arguments that make no sense"));
                };
                Value::Tensor(tensor.into())
            }
            Call::Parameter | Call::Size => {
                first.ok_or_else(|| self.bad("calls without arguments"))?
            }
            Call::Device => Value::Other,
            Call::Storage(_) | Call::Dtype(_) => {
                return Err(self.bad("calls a type"));
            }
        };
        self.stack.push(value);
        Ok(())
    }

    /// `('storage', class, key, device, elements, …)`.
    fn persistent(&mut self) -> Result<()> {
        let Value::Tuple(id) = self.pop()? else {
            return Err(self.bad("refers to a storage by what is not a tuple"));
        };
        let storage = match self.heap.lists[id].as_slice() {
            [
                Value::Text(kind),
                Value::Call(Call::Storage(dtype)),
                Value::Text(key),
                _,
                Value::Int(n),
                rest @ ..,
            ] if kind.as_ref() == "storage" && rest.iter().all(|v| matches!(v, Value::None)) => {
                usize::try_from(*n).ok().map(|elements| Storage {
                    key: key.as_ref().to_owned(),
                    dtype: *dtype,
                    elements,
                })
            }
            _ => None,
        };
        let Some(storage) = storage else {
            return Err(self.bad("refers to a storage in a way that Lathe does not know"));
        };
        self.stack.push(Value::Storage(storage.into()));
        Ok(())
    }
}

/// Two's complement, little-endian; beyond 64 bits there is only the legacy format's magic number.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Other;
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}
