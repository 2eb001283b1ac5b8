use lathe_base::f16;

use crate::proto::{
    Attribute, AttributeType, Dimension, Entry, Extent, Graph, Location, Model, Node, Opset, Shape,
    Tensor, TensorType, Type, TypeOf, ValueInfo,
};

/// What a graph computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Float {
    #[default]
    F32,
    F16,
}

impl Float {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    pub(crate) fn of(self) -> Type {
        match self {
            Self::F32 => Type::Float,
            Self::F16 => Type::Float16,
        }
    }

    /// Appends numbers as they are stored. An f16 that is not finite stands for a number that it
    /// cannot hold.
    pub(crate) fn put(self, numbers: &[f32], bytes: &mut Vec<u8>) -> Result<(), OutOfRange> {
        match self {
            Self::F32 => bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => {
                for x in numbers {
                    let half = f16::from_f32(*x);
                    if x.is_finite() && !half.is_finite() {
                        return Err(OutOfRange);
                    }
                    bytes.extend(half.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

/// A number is beyond what the type holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfRange;

/// The operators of ONNX Runtime.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// Of ONNX itself: the first set with a root-mean-square norm.
const OPSET: i64 = 23;
/// The oldest version of the file's format that allows this opset.
const IR: i64 = 11;

/// A setting of a node.
pub(crate) enum Set {
    Int(&'static str, usize),
    Negative(&'static str, i64),
    Float(&'static str, f32),
    Text(&'static str, &'static str),
}

impl From<Set> for Attribute {
    fn from(set: Set) -> Self {
        let of = |name: &str, r#type: AttributeType| Self {
            name: name.to_owned(),
            r#type: r#type.into(),
            ..Self::default()
        };
        match set {
            Set::Int(name, i) => Self { i: Some(i as i64), ..of(name, AttributeType::Int) },
            Set::Negative(name, i) => Self { i: Some(i), ..of(name, AttributeType::Int) },
            Set::Float(name, f) => Self { f: Some(f), ..of(name, AttributeType::Float) },
            Set::Text(name, s) => {
                Self { s: Some(s.as_bytes().to_vec()), ..of(name, AttributeType::String) }
            }
        }
    }
}

/// An extent of a value's shape.
#[derive(Clone, Copy)]
pub(crate) enum Dim {
    Of(usize),
    Named(&'static str),
}

/// A graph that grows node by node; values are known by their names.
#[derive(Default)]
pub(crate) struct Nodes {
    graph: Graph,
}

impl Nodes {
    /// Adds a node of ONNX Runtime's own operators; gives the names of its outputs.
    pub(crate) fn own<const N: usize>(
        &mut self,
        name: &str,
        op: &str,
        inputs: &[&str],
        outputs: [&str; N],
        set: Vec<Set>,
    ) -> [String; N] {
        self.add((name, op, MICROSOFT), inputs, outputs, set)
    }

    /// Adds a node of ONNX's operators with one output; gives the output's name.
    pub(crate) fn op(&mut self, name: &str, op: &str, inputs: &[&str], set: Vec<Set>) -> String {
        let [output] = self.add((name, op, ""), inputs, ["output_0"], set);
        output
    }

    /// An empty output is one that nobody wants; the others are called after the node.
    fn add<const N: usize>(
        &mut self,
        (name, op, domain): (&str, &str, &str),
        inputs: &[&str],
        outputs: [&str; N],
        set: Vec<Set>,
    ) -> [String; N] {
        let outputs = outputs.map(|output| match output {
            "" => String::new(),
            output if output.starts_with("output_") => format!("{name}/{output}"),
            output => output.to_owned(),
        });
        self.graph.node.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: outputs.to_vec(),
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute: set.into_iter().map(Attribute::from).collect(),
            domain: domain.to_owned(),
        });
        outputs
    }

    /// Adds numbers that lie in the graph's own file.
    pub(crate) fn here(&mut self, name: &str, of: Type, dims: &[usize], bytes: Vec<u8>) -> String {
        let raw_data = Some(bytes);
        self.graph.initializer.push(Tensor { raw_data, ..tensor(name, of, dims) });
        name.to_owned()
    }

    /// Adds numbers that lie in another file.
    pub(crate) fn there(
        &mut self,
        name: &str,
        of: Type,
        dims: &[usize],
        (file, at): (&str, u64),
    ) -> String {
        let length = dims.iter().product::<usize>() * of.size();
        let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
        self.graph.initializer.push(Tensor {
            external_data: vec![
                entry("location", file.to_owned()),
                entry("offset", at.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: Location::External.into(),
            ..tensor(name, of, dims)
        });
        name.to_owned()
    }

    /// Adds whole numbers: a vector, or where there is one and no dimensions, that one. Those of a
    /// name that is known are added once.
    pub(crate) fn integers(&mut self, name: &str, dims: &[usize], values: &[i64]) -> String {
        if self.graph.initializer.iter().any(|known| known.name == name) {
            return name.to_owned();
        }
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.here(name, Type::Int64, dims, bytes)
    }

    /// Gives the last node's output another name.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let outputs = self.graph.node.iter_mut().rev().flat_map(|node| &mut node.output);
        outputs.filter(|name| *name == from).for_each(|name| *name = to.to_owned());
    }

    pub(crate) fn input(&mut self, name: &str, of: Type, dims: &[Dim]) {
        self.graph.input.push(value(name, of, dims));
    }

    pub(crate) fn output(&mut self, name: &str, of: Type, dims: &[Dim]) {
        self.graph.output.push(value(name, of, dims));
    }

    /// The whole file.
    pub(crate) fn finish(self, name: &str) -> Model {
        let opset = |domain: &str, version| Opset { domain: domain.to_owned(), version };
        Model {
            ir_version: IR,
            producer_name: "lathe".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(Graph { name: name.to_owned(), ..self.graph }),
            opset_import: vec![opset("", OPSET), opset(MICROSOFT, 1)],
        }
    }
}

fn tensor(name: &str, of: Type, dims: &[usize]) -> Tensor {
    Tensor {
        dims: dims.iter().map(|d| *d as i64).collect(),
        data_type: of.into(),
        name: name.to_owned(),
        ..Tensor::default()
    }
}

fn value(name: &str, of: Type, dims: &[Dim]) -> ValueInfo {
    let dim = |dim: &Dim| Dimension {
        value: Some(match dim {
            Dim::Of(count) => Extent::Known(*count as i64),
            Dim::Named(name) => Extent::Named((*name).to_owned()),
        }),
    };
    let shape = Some(Shape { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorType { elem_type: of.into(), shape });
    ValueInfo { name: name.to_owned(), r#type: Some(TypeOf { tensor_type }) }
}
