//! The layer of the demo model that goldens were made of.

// Not every test uses all of it.
#![allow(dead_code)]

use std::{fs, path::PathBuf};

use lathe_quantizers::{Dense, Stats};

pub(crate) struct Layer {
    pub(crate) weights: Dense,
    pub(crate) hessian: Vec<f32>,
}

impl Layer {
    /// Reads the safetensors file: two tensors of f32.
    pub(crate) fn open() -> Self {
        let bytes = fs::read(goldens("gptq/layer.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let tensor = |name: &str| {
            let list = |key: &str| -> Vec<usize> {
                serde_json::from_value(header[name][key].clone()).unwrap()
            };
            let (shape, at) = (list("shape"), list("data_offsets"));
            let numbers = bytes[8 + length..][at[0]..at[1]].as_chunks::<4>().0;
            let data = numbers.iter().map(|x| f32::from_le_bytes(*x)).collect();
            Dense { rows: shape[0], cols: shape[1], data }
        };
        Self { weights: tensor("weights"), hessian: tensor("hessian").data }
    }

    pub(crate) fn stats(&self) -> Stats {
        let cols = self.weights.cols;
        Stats {
            count: 1,
            importance: (0..cols).map(|i| self.hessian[i * cols + i]).collect(),
            hessian: Some(self.hessian.clone()),
            ..Stats::default()
        }
    }

    /// tr(ΔW·H·ΔWᵀ) of weights that stand for the layer's.
    pub(crate) fn loss(&self, coded: &[f32]) -> f64 {
        let cols = self.weights.cols;
        let rows = self.weights.data.chunks_exact(cols).zip(coded.chunks_exact(cols));
        rows.map(|(w, q)| {
            let e: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(w - q)).collect();
            let products = self.hessian.chunks_exact(cols).zip(&e);
            products
                .map(|(h, a)| a * h.iter().zip(&e).map(|(h, b)| f64::from(*h) * b).sum::<f64>())
                .sum::<f64>()
        })
        .sum()
    }
}

pub(crate) fn goldens(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens").join(name)
}
