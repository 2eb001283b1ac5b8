//! Just enough of safetensors to read goldens (the real reader is in a crate above this one).

use std::{collections::BTreeMap, fs, ops::Index};

use half::{bf16, f16};
use serde_json::Value;

pub(crate) struct Tensors(BTreeMap<String, Tensor>);

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Tensors {
    /// Reads a file under `goldens/`.
    pub(crate) fn open(name: &str) -> Self {
        Self::read(&format!("{}/../../goldens/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    pub(crate) fn read(path: &str) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> =
            serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let data = &bytes[8 + length..];
        let numbers = |v: &Value| -> Vec<usize> { serde_json::from_value(v.clone()).unwrap() };
        let tensor = |v: &Value| {
            let at = numbers(&v["data_offsets"]);
            let dtype = v["dtype"].as_str().unwrap().to_owned();
            Tensor { dtype, shape: numbers(&v["shape"]), data: data[at[0]..at[1]].to_vec() }
        };
        let named = header.iter().filter(|(name, _)| *name != "__metadata__");
        Self(named.map(|(name, v)| (name.clone(), tensor(v))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

impl Index<&str> for Tensors {
    type Output = Tensor;

    fn index(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("the golden file has no tensor {name}"))
    }
}

impl Index<&String> for Tensors {
    type Output = Tensor;

    fn index(&self, name: &String) -> &Tensor {
        &self[name.as_str()]
    }
}

impl Tensor {
    pub(crate) fn matrix(&self) -> (usize, usize) {
        (self.shape[..self.shape.len() - 1].iter().product(), self.shape[self.shape.len() - 1])
    }

    pub(crate) fn floats(&self) -> Vec<f32> {
        let pairs = self.data.chunks_exact(2).map(|c| [c[0], c[1]]);
        match self.dtype.as_str() {
            "F32" => {
                let words = self.data.chunks_exact(4);
                words.map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
            }
            "BF16" => pairs.map(|c| bf16::from_le_bytes(c).to_f32()).collect(),
            "F16" => pairs.map(|c| f16::from_le_bytes(c).to_f32()).collect(),
            other => panic!("{other} is not a floating-point type"),
        }
    }
}
