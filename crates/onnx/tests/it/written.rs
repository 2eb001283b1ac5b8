//! A written folder, read back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_base::{Silent, f16};
use lathe_files::Checkpoint;
use lathe_models::Model;
use lathe_onnx::{
    Export, Options, Summary, Tokens, export,
    proto::{Graph, Location, Tensor, Type},
};
use prost::Message;
use tempfile::TempDir;

/// A folder of `goldens/`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens").join(name)
}

pub(crate) struct Written {
    pub(crate) model: Model,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) graph: Graph,
    pub(crate) summary: Summary,
    data: Vec<u8>,
    pub(crate) place: TempDir,
}

impl Written {
    pub(crate) fn new(model: &Path, options: Options) -> Result<Self, String> {
        let checkpoint = Checkpoint::open(model).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let place = tempfile::tempdir().unwrap();
        let out = &place.path().join("onnx");
        let tokens = Tokens { begin: Some(1), ends: vec![2, 3], pad: None };
        let (model_, checkpoint_) = (&model, &checkpoint);
        let job =
            Export { model: model_, checkpoint: checkpoint_, options, tokens, out, replace: false };
        let summary = export(&job, &Silent).map_err(|error| error.to_string())?;
        let bytes = fs::read(out.join(lathe_onnx::GRAPH)).unwrap();
        let file = lathe_onnx::proto::Model::decode(&*bytes).unwrap();
        let data = fs::read(out.join(lathe_onnx::DATA)).unwrap();
        Ok(Self { model, checkpoint, graph: file.graph.unwrap(), summary, data, place })
    }

    pub(crate) fn tensor(&self, name: &str) -> &Tensor {
        let named = |tensor: &&Tensor| tensor.name == name;
        self.graph.initializer.iter().find(named).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// The bytes of a tensor, wherever they are; panics where they are not as many as its shape
    /// says, or beyond the file.
    pub(crate) fn bytes(&self, tensor: &Tensor) -> Vec<u8> {
        let count: i64 = tensor.dims.iter().product();
        let expected = count as usize * Type::try_from(tensor.data_type).unwrap().size();
        let bytes = match tensor.data_location() {
            Location::Default => tensor.raw_data.clone().unwrap(),
            Location::External => {
                let entry = |key: &str| {
                    let entry = tensor.external_data.iter().find(|entry| entry.key == key);
                    entry.unwrap_or_else(|| panic!("{} has no {key}", tensor.name)).value.clone()
                };
                assert_eq!(entry("location"), lathe_onnx::DATA);
                let at: usize = entry("offset").parse().unwrap();
                let length: usize = entry("length").parse().unwrap();
                self.data[at..at + length].to_vec()
            }
        };
        assert_eq!(bytes.len(), expected, "{}", tensor.name);
        bytes
    }

    /// A tensor's numbers.
    pub(crate) fn numbers(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensor(name);
        let bytes = self.bytes(tensor);
        match tensor.data_type() {
            Type::Float => {
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Type::Float16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            other => panic!("{name} holds {other:?}"),
        }
    }
}
