use lathe_base::Buf;
use lathe_formats::{AnyFormat, Blocks};
use serde_json::Value;

use super::{
    Activations, Layout, awq, bitsandbytes, choice::is_dense, compressed, fp4, fp8, gptq,
    ints::Ints,
};
use crate::Dtype;

/// How the quantized weights of a folder are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style<'a> {
    /// A layout that holds every format of the folder; not `Auto`.
    pub(crate) layout: Layout,
    pub(crate) activations: Activations,
    /// The type that the weights decode to, by PyTorch's name.
    pub(crate) dtype: &'a str,
    /// Whether columns may be coded out of order (GPTQ's act-order).
    pub(crate) act_order: bool,
}

/// One format, and the linear modules that are in it.
pub(crate) type Group = (&'static dyn AnyFormat, Vec<String>);

/// A tensor that a weight is stored as.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// `None`: a text whose length is known only with the weight's numbers, at most [`TEXT`] bytes.
    pub(crate) shape: Option<Vec<usize>>,
}

/// A weight that is to be stored in parts.
pub(super) struct Module<'a> {
    /// The weight's name without `.weight`.
    name: &'a str,
    pub(super) format: &'static dyn AnyFormat,
    pub(super) style: &'a Style<'a>,
}

impl Module<'_> {
    pub(super) fn part(&self, part: &str, dtype: Dtype, shape: &[usize]) -> Part {
        Part::new(format!("{}.{part}", self.name), dtype, shape)
    }
}

impl Part {
    /// An upper bound of the length of a text part: keys, two sizes, one float.
    pub(crate) const TEXT: usize = 320;

    fn new(name: String, dtype: Dtype, shape: &[usize]) -> Self {
        Self { name, dtype, shape: Some(shape.to_vec()) }
    }

    pub(super) fn text(name: String) -> Self {
        Self { name, dtype: Dtype::U8, shape: None }
    }

    /// The tensors that weight `name` of `shape` takes in `format`; `None` where a matrix format
    /// is asked for something that is not a matrix, or that the layout's words cannot hold.
    pub(crate) fn plan(
        name: &str,
        shape: &[usize],
        format: &'static dyn AnyFormat,
        style: &Style<'_>,
    ) -> Option<Vec<Self>> {
        let dense = |dtype| vec![Self::new(name.to_owned(), dtype, shape)];
        match format.name() {
            "f32" => return Some(dense(Dtype::F32)),
            "f16" => return Some(dense(Dtype::F16)),
            "bf16" => return Some(dense(Dtype::Bf16)),
            _ => {}
        }
        let &[rows, cols] = shape else { return None };
        if !style.layout.holds(format) {
            return None;
        }
        let module = Module { name: name.strip_suffix(".weight").unwrap_or(name), format, style };
        match style.layout {
            Layout::Gptq | Layout::GptqV2 => gptq::plan(&module, (rows, cols)),
            Layout::Awq => awq::plan(&module, (rows, cols)),
            Layout::BitsAndBytes => bitsandbytes::plan(&module, name, (rows, cols)),
            Layout::CompressedTensors => compressed::plan(&module, (rows, cols)),
            Layout::Fp8 => fp8::plan(&module, (rows, cols)),
            Layout::Auto => None,
        }
    }
}

/// A weight's bytes, part by part as planned, and its text part.
pub(crate) struct Split {
    pub(crate) parts: Vec<Buf>,
    pub(crate) text: Option<String>,
}

/// Takes `blocks` of a format that the style holds apart; `None` where their columns are out of
/// order and the style has no place for that, or the scale of their inputs is wanted and missing.
pub(crate) fn split(blocks: &Blocks, style: &Style<'_>) -> Option<Split> {
    let made = |parts: Vec<Vec<u8>>, text| Split {
        parts: parts.into_iter().map(Buf::from).collect(),
        text,
    };
    if blocks.order.is_some() && !style.act_order {
        return None;
    }
    if is_dense(blocks.format) {
        return Some(Split { parts: vec![blocks.data.clone()], text: None });
    }
    if style.layout == Layout::BitsAndBytes {
        let (parts, text) = bitsandbytes::split(blocks, style.dtype)?;
        return Some(made(parts, text));
    }
    if fp8::Scaled::of(blocks.format).is_some() {
        return Some(Split { parts: fp8::split(blocks, style.activations)?, text: None });
    }
    if let Some(parts) = fp4::split(blocks) {
        return Some(Split { parts, text: None });
    }
    let ints = Ints::of(blocks)?;
    let parts = match style.layout {
        Layout::Gptq => gptq::split(&ints, false),
        Layout::GptqV2 => gptq::split(&ints, true),
        Layout::Awq => awq::split(&ints),
        _ => compressed::split(&ints, style.activations),
    };
    Some(made(parts, None))
}

/// The `quantization_config` of a folder with these quantized modules; `dense` are the linear
/// modules that are not quantized.
pub(crate) fn config(style: &Style<'_>, groups: &[Group], dense: &[String]) -> Value {
    match style.layout {
        Layout::Gptq | Layout::GptqV2 => {
            gptq::config(groups, dense, style.act_order, style.layout == Layout::GptqV2)
        }
        Layout::Awq => awq::config(groups, dense),
        Layout::BitsAndBytes => bitsandbytes::config(groups, style.dtype, dense),
        Layout::Fp8 => fp8::config(groups, dense, style.activations),
        _ => compressed::config(groups, dense, style.activations),
    }
}
