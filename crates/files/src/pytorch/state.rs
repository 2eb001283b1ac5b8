use std::{path::Path, rc::Rc};

use lathe_base::Buf;

use super::pickle::{Call, Heap, Value};
use crate::{Dtype, Error, Result, Stored, tensors::count};

/// More dimensions than any weight has; PyTorch itself stops at 64.
const DIMS_CAP: usize = 8;

/// A run of elements that tensors are views of.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) key: String,
    /// `None` for bytes to which each tensor gives its own type.
    pub(crate) dtype: Option<Dtype>,
    pub(crate) elements: usize,
}

/// A tensor as a pickle describes it: a view of a storage.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: Rc<Storage>,
    dtype: Dtype,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor {
    /// From the arguments `(storage, offset, sizes, strides, requires_grad, hooks, [type], …)`.
    pub(crate) fn build(heap: &Heap, arguments: usize) -> Option<Self> {
        let [Value::Storage(storage), Value::Int(offset), sizes, strides, rest @ ..] =
            heap.lists[arguments].as_slice()
        else {
            return None;
        };
        let given = rest.iter().find_map(|v| match v {
            Value::Call(Call::Dtype(dtype)) => Some(*dtype),
            _ => None,
        });
        let (shape, strides) = (sizes_of(heap, sizes)?, sizes_of(heap, strides)?);
        if shape.len() != strides.len() || shape.len() > DIMS_CAP {
            return None;
        }
        Some(Self {
            storage: storage.clone(),
            dtype: storage.dtype.or(given)?,
            offset: usize::try_from(*offset).ok()?,
            shape,
            strides,
        })
    }

    /// The tensor over its storage's bytes, after checks that it stays inside.
    pub(crate) fn place(&self, path: &Path, name: &str, storage: &Buf) -> Result<Stored> {
        let bad = |what: &str| Error::malformed(path, format!("tensor `{name}` {what}"));
        let (_, size) = self.dtype.block();
        // An untyped storage counts bytes.
        let element = self.storage.dtype.map_or(1, |d| d.block().1);
        if storage.len() / element < self.storage.elements {
            return Err(bad("lies in a storage that is cut short"));
        }
        let Some(count) = count(&self.shape) else { return Err(bad("has an impossible shape")) };
        let held = storage.len() / size;
        // Also keeps a view that repeats elements from growing beyond the file when it is copied.
        if count > held {
            return Err(bad(&format!("needs {count} elements, but its storage holds {held}")));
        }
        let end = if count == 0 { Some(self.offset) } else { self.reach() };
        let Some(end) = end.filter(|&end| end <= held) else {
            return Err(bad(&format!("reaches beyond its storage of {held} elements")));
        };
        let strides = (!self.is_contiguous()).then(|| self.strides.clone());
        Ok(Stored {
            dtype: self.dtype,
            shape: self.shape.clone(),
            data: storage.slice(self.offset * size..end * size),
            strides,
        })
    }

    /// One past the last element of the storage that the view touches.
    fn reach(&self) -> Option<usize> {
        let steps = self.shape.iter().zip(&self.strides);
        steps
            .map(|(n, step)| (n - 1).checked_mul(*step))
            .try_fold(self.offset + 1, |sum, step| sum.checked_add(step?))
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (n, step) in self.shape.iter().zip(&self.strides).rev() {
            if *n != 1 && *step != expected {
                return false;
            }
            expected *= n;
        }
        true
    }
}

fn sizes_of(heap: &Heap, value: &Value) -> Option<Vec<usize>> {
    let (Value::Tuple(id) | Value::List(id)) = *value else { return None };
    let list = &heap.lists[id];
    if list.len() > DIMS_CAP {
        return None;
    }
    let one = |v: &Value| match v {
        // An offset or stride beyond 2^48 elements is damage, and would overflow sums of them.
        Value::Int(n) => usize::try_from(*n).ok().filter(|n| *n < 1 << 48),
        _ => None,
    };
    list.iter().map(one).collect()
}

/// The named tensors of what a pickle built: a state dict, or a dict that holds one.
pub(crate) fn tensors(path: &Path, heap: &Heap, top: Value) -> Result<Vec<(String, Rc<Tensor>)>> {
    let Value::Dict(top) = top else { return Err(no_dict(path)) };
    let found = named(heap, top);
    if !found.is_empty() {
        return Ok(found);
    }
    for key in ["state_dict", "model_state_dict", "model", "module"] {
        let inner = heap.dicts[top].iter().find_map(|(k, v)| match (k, v) {
            (Value::Text(k), Value::Dict(inner)) if k.as_ref() == key => Some(*inner),
            _ => None,
        });
        if let Some(inner) = inner {
            return Ok(named(heap, inner));
        }
    }
    Err(no_dict(path))
}

fn named(heap: &Heap, dict: usize) -> Vec<(String, Rc<Tensor>)> {
    let entries = heap.dicts[dict].iter();
    entries
        .filter_map(|(key, value)| match (key, value) {
            (Value::Text(name), Value::Tensor(t)) => Some((name.as_ref().to_owned(), t.clone())),
            _ => None,
        })
        .collect()
}

fn no_dict(path: &Path) -> Error {
    Error::unsupported(
        path,
        "a PyTorch file that is not a state dict",
        "save the model with torch.save(model.state_dict(), …) or as safetensors",
    )
}
