//! The layouts of other tools: what is written is read back, and their own checkpoints are read
//! with the numbers that they themselves compute.

use std::{fs, path::Path, sync::Arc};

use lathe_base::Buf;
use lathe_files::{
    Activations, Checkpoint, Error, Folder, FolderPlan, Layout, Planned, Result, Target,
    write_folder,
};
use lathe_formats::{Blocks, by_name};
use serde_json::{Map, Value, json};

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let one = |i: usize| ((i as f32 + seed as f32) * 0.7313).sin() * ((i % 17) as f32 - 7.0);
    (0..count).map(one).collect()
}

/// Two matrices of a layer, an embedding and a norm.
fn tensors(format: &str) -> Vec<(Planned, Blocks)> {
    let shapes: [(&str, &[usize], &str); 4] = [
        ("model.embed_tokens.weight", &[40, 128], "bf16"),
        ("model.layers.0.self_attn.q_proj.weight", &[64, 128], format),
        ("model.layers.0.mlp.down_proj.weight", &[32, 256], format),
        ("model.norm.weight", &[128], "f32"),
    ];
    let one = |(i, (name, shape, format)): (usize, (&str, &[usize], &str))| {
        let format = by_name(format).unwrap();
        let cols = *shape.last().unwrap();
        let count: usize = shape.iter().product();
        let blocks = format.encode(count / cols, cols, &numbers(count, i as u32), 1).unwrap();
        (Planned { name: name.to_owned(), shape: shape.to_vec(), format }, blocks)
    };
    shapes.into_iter().enumerate().map(one).collect()
}

fn try_write(
    path: &Path,
    tensors: &[(Planned, Blocks)],
    change: impl Fn(&mut FolderPlan<'_>),
) -> Result<()> {
    let plan: Vec<_> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let config = json!({"model_type": "llama", "hidden_size": 128});
    let config: Map<_, _> = config.as_object().unwrap().clone();
    let sides = Folder::Memory(vec![
        ("tokenizer.json".into(), Buf::from_static(b"{}")),
        ("generation_config.json".into(), Buf::from_static(b"{}")),
        ("chat_template.jinja".into(), Buf::from_static(b"x")),
        ("quantize_config.json".into(), Buf::from_static(b"of the source")),
    ]);
    let mut plan = FolderPlan::new(&config, &sides, &plan);
    change(&mut plan);
    let mut writer = write_folder(Target { path, replace: false, fingerprint: "" }, plan)?;
    for (planned, blocks) in tensors {
        writer.add(&planned.name, &planned.shape, blocks)?;
    }
    writer.finish()
}

fn written(
    tensors: &[(Planned, Blocks)],
    change: impl Fn(&mut FolderPlan<'_>),
) -> (tempfile::TempDir, Checkpoint) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model");
    try_write(&path, tensors, change).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (place, checkpoint)
}

/// Every pair of layout and format that can be written.
fn pairs() -> Vec<(Layout, &'static str)> {
    let formats = lathe_formats::FORMATS.iter().filter(|f| f.check(128).is_ok());
    let all = formats.flat_map(|format| Layout::ALL.map(|layout| (layout, *format)));
    let held =
        all.filter(|(layout, f)| layout.holds(*f) && !["f32", "f16", "bf16"].contains(&f.name()));
    held.map(|(layout, format)| (layout, format.name())).collect()
}

#[test]
fn every_layout_gives_back_what_was_written() {
    let pairs = pairs();
    for layout in Layout::ALL {
        assert!(pairs.iter().any(|(l, _)| *l == layout), "{layout} holds nothing");
    }
    for (layout, format) in pairs {
        let tensors = tensors(format);
        let (_place, checkpoint) = written(&tensors, |plan| plan.layout = layout);
        let mut names: Vec<_> = checkpoint.names().collect();
        let mut wanted: Vec<_> = tensors.iter().map(|(p, _)| p.name.as_str()).collect();
        names.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(names, wanted, "{layout} {format}");
        for (planned, blocks) in &tensors {
            let found = checkpoint.weight(&planned.name).unwrap();
            assert_eq!(checkpoint.shape(&planned.name), Some(planned.shape.as_slice()));
            assert_eq!(found.decode(), blocks.decode(), "{layout} {planned:?}");
            // AWQ always has zero points, even where all are in the middle.
            if layout != Layout::Awq || format.contains("asym") {
                assert_eq!(found.format.name(), planned.format.name(), "{layout} {planned:?}");
                assert_eq!(found.data, blocks.data, "{layout} {planned:?}");
                assert_eq!(checkpoint.format(&planned.name).unwrap(), planned.format.name());
            }
        }
    }
}

#[test]
fn side_files_are_carried_along_in_every_layout_but_not_the_sources_quantization() {
    for layout in Layout::ALL {
        let (_, format) = pairs().into_iter().find(|(l, _)| *l == layout).unwrap();
        let (_place, checkpoint) = written(&tensors(format), |plan| {
            plan.layout = layout;
            plan.card = Some("# Card\n");
        });
        let path = &checkpoint.path;
        for name in ["tokenizer.json", "generation_config.json", "chat_template.jinja"] {
            assert!(path.join(name).exists(), "{layout} {name}");
        }
        assert_eq!(fs::read(path.join("README.md")).unwrap(), b"# Card\n");
        let beside = fs::read(path.join("quantize_config.json"));
        match layout {
            Layout::Gptq | Layout::GptqV2 => {
                let beside: Value = serde_json::from_slice(&beside.unwrap()).unwrap();
                assert_eq!(beside, checkpoint.config["quantization_config"]);
            }
            _ => assert!(beside.is_err(), "{layout}"),
        }
    }
}

#[test]
fn act_order_goes_through_gptq_and_back() {
    let turned: Arc<[u32]> = (0..128).map(|j| (j * 37 + 11) % 128).collect();
    for format in ["int4_g32_f16", "int3_asym_g64_f16", "int8_g128_f16", "int2_asym_g32_f16"] {
        let mut tensors = tensors(format);
        let blocks = tensors[1].1.clone().with_order(turned.clone()).unwrap();
        tensors[1].1 = blocks.clone();
        for layout in [Layout::Gptq, Layout::GptqV2] {
            let (_place, checkpoint) = written(&tensors, |plan| {
                plan.layout = layout;
                plan.act_order = true;
            });
            assert_eq!(checkpoint.config["quantization_config"]["desc_act"], true);
            let found = checkpoint.weight(&tensors[1].0.name).unwrap();
            assert_eq!(found.decode(), blocks.decode(), "{layout} {format}");
            // One group has no order: its columns may lie anyhow.
            assert_eq!(found.order.is_some(), !format.contains("g128"), "{layout} {format}");
        }
        let place = tempfile::tempdir().unwrap();
        let refused = try_write(&place.path().join("m"), &tensors, |_| {});
        assert!(matches!(refused, Err(Error::OutOfPlan { .. })), "not announced");
        let refused = try_write(&place.path().join("m"), &tensors, |plan| {
            plan.layout = Layout::CompressedTensors;
            plan.act_order = true;
        });
        assert!(refused.unwrap_err().to_string().contains("act-order"));
    }
}

#[test]
fn the_usual_layout_follows_the_formats() {
    let choose = |layout: Layout, names: &[&str]| {
        layout.choose(names.iter().map(|name| by_name(name).unwrap() as _))
    };
    let auto = |names: &[&str]| choose(Layout::Auto, names);
    assert_eq!(auto(&["bf16", "int4_g128_f16"]), Some(Layout::Gptq));
    assert_eq!(auto(&["int4_asym_g128_f16"]), Some(Layout::Awq));
    assert_eq!(auto(&["int3_asym_g128_f16", "f32"]), Some(Layout::GptqV2));
    assert_eq!(auto(&["int4_g128"]), Some(Layout::CompressedTensors));
    assert_eq!(auto(&["int8"]), Some(Layout::CompressedTensors));
    assert_eq!(auto(&["nf4_dq", "nf4"]), Some(Layout::BitsAndBytes));
    assert_eq!(auto(&["nf4_dq", "int8"]), None, "load_in_4bit or load_in_8bit");
    assert_eq!(auto(&["int4_g128_f16", "int4_g64"]), Some(Layout::CompressedTensors));
    assert_eq!(auto(&["nf4", "int4_g64"]), None);
    assert_eq!(auto(&["q4_0"]), None);
    assert_eq!(choose(Layout::Awq, &["int3_asym_g128_f16"]), None);
    for layout in Layout::ALL {
        assert_eq!(Layout::by_name(layout.name()), Some(layout));
    }
}

#[test]
fn configurations_say_what_their_tools_need() {
    let config = |format, layout, activations| {
        let (_place, checkpoint) = written(&tensors(format), |plan| {
            plan.layout = layout;
            plan.activations = activations;
        });
        checkpoint.config["quantization_config"].clone()
    };
    let float = Activations::Float;
    let gptq = config("int3_asym_g64_f16", Layout::GptqV2, float);
    for (key, value) in [
        ("bits", json!(3)),
        ("group_size", json!(64)),
        ("sym", json!(false)),
        ("desc_act", json!(false)),
        ("lm_head", json!(false)),
        ("checkpoint_format", json!("gptq_v2")),
        ("quant_method", json!("gptq")),
    ] {
        assert_eq!(gptq[key], value, "{key}");
    }
    assert_eq!(config("int8_row_f16", Layout::Gptq, float)["group_size"], -1);
    let awq = config("int4_asym_g64_f16", Layout::Auto, float);
    assert_eq!((&awq["version"], &awq["zero_point"]), (&json!("gemm"), &json!(true)));
    assert_eq!(awq["modules_to_not_convert"], json!(["lm_head"]));
    let eight = config("int8", Layout::BitsAndBytes, float);
    assert_eq!((&eight["load_in_8bit"], &eight["load_in_4bit"]), (&json!(true), &json!(false)));
    let w8a8 = config("int8", Layout::Auto, Activations::Int8PerToken);
    let group = &w8a8["config_groups"]["group_0"];
    assert_eq!(
        (&w8a8["format"], &group["format"]),
        (&json!("int-quantized"), &json!("int-quantized"))
    );
    assert_eq!(group["input_activations"]["strategy"], "token");
    assert_eq!(config("int8", Layout::Auto, float)["format"], "pack-quantized");
    let fp8 = config("fp8_row", Layout::Auto, Activations::Fp8);
    let group = &fp8["config_groups"]["group_0"];
    assert_eq!(
        (&fp8["format"], &group["weights"]["strategy"]),
        (&json!("float-quantized"), &json!("channel"))
    );
    assert_eq!(group["input_activations"]["dynamic"], true);
    assert_eq!(config("fp8_row", Layout::Auto, float)["format"], "naive-quantized");
    let block = config("fp8_block", Layout::Fp8, Activations::Fp8);
    assert_eq!(block["weight_block_size"], json!([128, 128]));
    assert_eq!(
        (&block["quant_method"], &block["activation_scheme"]),
        (&json!("fp8"), &json!("dynamic"))
    );
    assert_eq!(config("nvfp4", Layout::Auto, float)["format"], "nvfp4-pack-quantized");
    assert_eq!(config("mxfp4", Layout::Auto, float)["format"], "mxfp4-pack-quantized");
    let fp4 = config("fp4_dq", Layout::Auto, float);
    assert_eq!(
        (&fp4["bnb_4bit_quant_type"], &fp4["bnb_4bit_use_double_quant"]),
        (&json!("fp4"), &json!(true))
    );
}

#[test]
fn scales_of_inputs_are_stored_beside_their_weights() {
    for layout in [Layout::CompressedTensors, Layout::Fp8] {
        let mut tensors = tensors("fp8_tensor");
        tensors[1].1.input_scale = Some(0.125);
        tensors[2].1.input_scale = Some(0.75);
        let fixed = |plan: &mut FolderPlan<'_>| {
            (plan.layout, plan.activations) = (layout, Activations::Fp8Static);
        };
        let (_place, checkpoint) = written(&tensors, fixed);
        assert_eq!(checkpoint.names().count(), tensors.len());
        for (planned, blocks) in &tensors {
            let found = checkpoint.weight(&planned.name).unwrap();
            assert_eq!(found.input_scale, blocks.input_scale, "{layout} {}", planned.name);
            assert_eq!(found.data, blocks.data);
        }
        tensors[2].1.input_scale = None;
        let place = tempfile::tempdir().unwrap();
        let refused = try_write(&place.path().join("m"), &tensors, fixed);
        assert!(matches!(refused, Err(Error::OutOfPlan { .. })), "{refused:?}");
    }
}

#[test]
fn activations_that_no_engine_would_apply_are_refused() {
    let place = tempfile::tempdir().unwrap();
    for (format, layout, activations) in [
        ("int4_g32", Layout::Auto, Activations::Int8PerToken),
        ("int8", Layout::Auto, Activations::Fp8),
        ("fp8_row", Layout::Auto, Activations::Int8PerToken),
        ("fp8_block", Layout::Fp8, Activations::Fp8Static),
        ("fp8_tensor", Layout::Fp8, Activations::Float),
        ("int8", Layout::BitsAndBytes, Activations::Int8PerToken),
    ] {
        let refused = try_write(&place.path().join("m"), &tensors(format), |plan| {
            (plan.layout, plan.activations) = (layout, activations);
        });
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("activations"), "{format} {layout}: {error}");
    }
}

#[test]
fn what_differs_from_the_most_common_format_is_an_exception() {
    let mut tensors = tensors("int4_g128_f16");
    let mut more = |name: &str, format: &str| {
        let format = by_name(format).unwrap();
        let blocks = format.encode(32, 128, &numbers(32 * 128, 9), 1).unwrap();
        tensors.push((Planned { name: name.into(), shape: vec![32, 128], format }, blocks));
    };
    more("model.layers.1.mlp.up_proj.weight", "int8_g32_f16");
    more("model.layers.1.mlp.down_proj.weight", "bf16");
    let (_place, checkpoint) = written(&tensors, |_| {});
    let config = &checkpoint.config["quantization_config"];
    assert_eq!((&config["bits"], &config["group_size"]), (&json!(4), &json!(128)));
    let dynamic = &config["dynamic"];
    assert_eq!(dynamic["-:^model\\.layers\\.1\\.mlp\\.down_proj$"], json!({}));
    assert_eq!(dynamic["+:^model\\.layers\\.1\\.mlp\\.up_proj$"]["bits"], 8);
    for (planned, blocks) in &tensors {
        assert_eq!(checkpoint.weight(&planned.name).unwrap().decode(), blocks.decode());
    }
    let place = tempfile::tempdir().unwrap();
    let awq = try_write(&place.path().join("m"), &tensors[..4], |plan| plan.layout = Layout::Awq);
    assert!(awq.is_ok());
    tensors.truncate(4);
    tensors[1].0.format = by_name("int4_g32_f16").unwrap();
    let refused = try_write(&place.path().join("n"), &tensors, |plan| plan.layout = Layout::Awq);
    assert!(refused.unwrap_err().to_string().contains("group size"));
}

#[test]
fn rows_that_do_not_fill_whole_words_are_refused_with_their_layout() {
    let format = by_name("int4_g32_f16").unwrap();
    let blocks = format.encode(3, 64, &numbers(192, 1), 1).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight".to_owned();
    let tensors = [(Planned { name, shape: vec![3, 64], format }, blocks)];
    let place = tempfile::tempdir().unwrap();
    for layout in [Layout::Gptq, Layout::GptqV2, Layout::Awq] {
        let refused = try_write(&place.path().join("m"), &tensors, |plan| plan.layout = layout);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("up_proj") && error.contains("whole words"), "{error}");
    }
    let kept = try_write(&place.path().join("m"), &tensors, |plan| {
        plan.layout = Layout::CompressedTensors;
    });
    kept.unwrap();
}

/// Opens a folder and decodes every weight; errors are fine, panics are not.
fn read_all(path: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint
        .names()
        .try_for_each(|name| checkpoint.weight(name).map(|blocks| drop(blocks.decode())))
}

/// The header of a safetensors file with each tensor's name, type or shape changed, one at a time,
/// so that its length stays.
fn lies(header: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    for (name, entry) in header.as_object().unwrap() {
        let Some(shape) = entry["shape"].as_array() else { continue };
        // Of the two matrices that are coded alike, one will do.
        if !name.contains("q_proj") {
            continue;
        }
        let mut with = |key: &str, value: Value| {
            let mut lie = header.clone();
            lie[name][key] = value;
            all.push(lie);
        };
        for dtype in ["U8", "I8", "F8_E4M3", "F16", "BF16", "I32", "F32", "I64"] {
            with("dtype", dtype.into());
        }
        with("shape", shape.iter().rev().cloned().collect());
        with("shape", json!([]));
        with("shape", json!([shape.iter().map(|n| n.as_u64().unwrap()).product::<u64>()]));
        with("shape", json!([0, 4]));
        with("shape", [vec![json!(1)], shape.clone()].concat().into());
        let mut renamed = header.clone();
        let entry = renamed.as_object_mut().unwrap().remove(name).unwrap();
        renamed[format!("{name}x")] = entry;
        all.push(renamed);
    }
    all
}

/// A configuration with each of its values replaced by others, one at a time.
fn twisted(value: &Value) -> Vec<Value> {
    let junk = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!("?"),
        json!([]),
        json!({}),
        json!(0),
        json!(3),
    ];
    let inside = match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, inner)| {
                twisted(inner).into_iter().map(move |inner| {
                    let mut map = map.clone();
                    map.insert(key.clone(), inner);
                    Value::Object(map)
                })
            })
            .collect(),
        _ => Vec::new(),
    };
    inside.into_iter().chain(junk).collect()
}

#[test]
fn folders_whose_parts_or_configuration_lie_are_read_or_refused() {
    for (layout, format) in pairs() {
        // Formats that differ in bits or groups alone are read by the same code.
        if format.starts_with("int")
            && !["int4_asym_g128", "int8", "int3_g128_f16"].contains(&format)
        {
            continue;
        }
        let (_place, checkpoint) = written(&tensors(format), |plan| plan.layout = layout);
        let path = checkpoint.path.clone();
        drop(checkpoint);
        read_all(&path).unwrap();
        let file = path.join("model.safetensors");
        let whole = fs::read(&file).unwrap();
        let length = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
        let lies = lies(&header);
        let mut refused = 0;
        for lie in &lies {
            let text = lie.to_string();
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.extend(&whole[8 + length..]);
            fs::write(&file, &bytes).unwrap();
            refused += usize::from(read_all(&path).is_err());
        }
        assert!(2 * refused > lies.len(), "{layout} {format}: {refused} of {}", lies.len());
        fs::write(&file, &whole).unwrap();
        let config = path.join("config.json");
        let honest: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        for twisted in twisted(&honest["quantization_config"]) {
            let mut config_ = honest.clone();
            config_["quantization_config"] = twisted;
            fs::write(&config, config_.to_string()).unwrap();
            // What is said beside the tensors often does not matter; it must not do harm.
            let _ = read_all(&path);
        }
    }
}
