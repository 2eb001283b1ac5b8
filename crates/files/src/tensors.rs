use std::{collections::HashMap, path::Path};

use lathe_base::Buf;

use crate::{Dtype, Error, Result, near::nearest};

/// A tensor as it lies in its file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The element type.
    pub dtype: Dtype,
    /// Outermost dimension first, as Hugging Face and NumPy count.
    pub shape: Vec<usize>,
    /// The bytes, row-major and contiguous unless `strides` says otherwise.
    pub data: Buf,
    /// Steps per dimension in elements, for a PyTorch view that is not contiguous.
    pub strides: Option<Vec<usize>>,
}

impl Stored {
    /// How many elements the shape holds.
    pub fn count(&self) -> usize {
        // Every reader has checked this product against the file's length.
        self.shape.iter().product()
    }

    /// The tensor as a matrix: rows are all dimensions but the last; a vector is one row.
    pub fn matrix(&self) -> (usize, usize) {
        match self.shape.split_last() {
            Some((&cols, outer)) => (outer.iter().product(), cols),
            None => (1, 1),
        }
    }
}

/// The tensors of a container by name, in the order in which the files hold them.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    list: Vec<(String, Stored)>,
    by_name: HashMap<String, usize>,
}

impl Tensors {
    /// Adds a tensor; a name that is already there is refused.
    pub(crate) fn add(&mut self, path: &Path, name: String, tensor: Stored) -> Result<()> {
        if self.by_name.insert(name.clone(), self.list.len()).is_some() {
            return Err(Error::malformed(path, format!("tensor `{name}` is there twice")));
        }
        self.list.push((name, tensor));
        Ok(())
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(name).map(|&i| &self.list[i].1)
    }

    /// The tensor called `name`, or an error that names the nearest one.
    pub fn find(&self, path: &Path, name: &str) -> Result<&Stored> {
        self.get(name).ok_or_else(|| Error::NoTensor {
            path: path.to_owned(),
            name: name.to_owned(),
            near: nearest(name, self.names()).map(str::to_owned),
        })
    }

    /// All names, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|(name, _)| name.as_str())
    }

    /// All tensors, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.list.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// The number of elements of `shape`, or `None` where it overflows.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the product zero whatever overflows before it, so look for it first.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
