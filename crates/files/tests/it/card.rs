//! Model cards: front matter that YAML reads, and what people are told.

use lathe_base::{Buf, Bytes};
use lathe_files::{Card, Checkpoint, Figure, Layout, Origin};

fn card(layout: Option<Layout>, format: &str) -> Card {
    Card {
        name: "name-int4".into(),
        origin: Origin { base_model: Some("org/name".into()), license: Some("apache-2.0".into()) },
        method: "GPTQ with act-order".into(),
        format: format.into(),
        layout,
        data: Some("128 samples of a | b".into()),
        bits_per_weight: 4.254,
        size: Bytes(1 << 30),
        quality: vec![Figure {
            what: "KL divergence".into(),
            on: "wiki.test".into(),
            value: "0.031 nats (0.030 to 0.032)".into(),
        }],
    }
}

#[test]
fn a_card_says_where_the_model_comes_from_and_how_it_was_made() {
    let text = card(Some(Layout::Gptq), "int4_g128_f16").markdown();
    let (head, body) = text.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
    assert_eq!(
        head,
        "base_model: \"org/name\"\nbase_model_relation: \"quantized\"\nlicense: \"apache-2.0\"\n\
         library_name: \"transformers\"\npipeline_tag: \"text-generation\"\n\
         tags: [\"lathe\",\"quantized\",\"gptq\",\"int4_g128_f16\"]\n"
    );
    for said in [
        "# name-int4",
        "GPTQ with act-order",
        "128 samples of a \\| b",
        "4.25, everything included",
        "| KL divergence | wiki.test | 0.031 nats (0.030 to 0.032) |",
        "lathe generate",
        "gptqmodel",
        "vllm serve",
    ] {
        assert!(body.contains(said), "{said} is not in {body}");
    }
}

#[test]
fn engines_that_have_no_kernel_are_not_named() {
    let text = |layout, format| card(layout, format).markdown();
    assert!(!text(Some(Layout::CompressedTensors), "int3_g128").contains("vLLM"));
    assert!(text(Some(Layout::CompressedTensors), "int8_g128").contains("vLLM"));
    let gguf = text(None, "q4_0");
    assert!(gguf.contains("llama-cli") && !gguf.contains("vLLM"), "{gguf}");
}

#[test]
fn a_name_that_is_no_id_or_would_break_yaml_stays_out_of_the_front_matter() {
    let mut card = card(None, "q4_0");
    card.origin.base_model = Some("a: b\n---\nevil/x".into());
    card.origin.license = Some("x\"\nextra: true".into());
    let text = card.markdown();
    let head = text.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0;
    assert!(!head.contains("base_model") && !head.contains("\nextra"), "{head}");
}

#[test]
fn a_gguf_is_told_the_same() {
    let all = card(None, "q4_0").gguf();
    assert!(all.str("general.quantized_by").unwrap().starts_with("Lathe "));
    assert_eq!(all.u64("general.base_model.count"), Some(1));
    assert_eq!(all.str("general.base_model.0.name"), Some("name"));
    assert_eq!(all.str("general.base_model.0.organization"), Some("org"));
    assert_eq!(all.str("general.license"), Some("apache-2.0"));
    assert!(all.str("general.description").unwrap().contains("KL divergence"));
}

#[test]
fn the_sources_own_card_gives_the_licence() {
    let weights = b"\x50\0\0\0\0\0\0\0{\"x.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    let mut weights = weights.to_vec();
    weights.resize(8 + 0x50, b' ');
    weights.extend([0; 4]);
    let files = [
        ("config.json", Buf::from_static(b"{}")),
        ("model.safetensors", weights.into()),
        ("README.md", Buf::from_static(b"---\nlicense: mit\n---\n")),
    ];
    let origin = Origin::of(&Checkpoint::from_memory(&files).unwrap());
    assert_eq!(origin.license.as_deref(), Some("mit"));
}

#[test]
fn figures_measured_later_take_the_place_of_the_first() {
    let later = [Figure { what: "perplexity".into(), on: "stories".into(), value: "7.5".into() }];
    let with = card(Some(Layout::Gptq), "int4_g128_f16");
    let text = Card::with_figures(&with.markdown(), &later).unwrap();
    assert!(text.contains("| perplexity | stories | 7.5 |"), "{text}");
    assert!(!text.contains("0.031 nats"), "{text}");
    let bare = Card { quality: Vec::new(), ..with }.markdown();
    assert_eq!(Card::with_figures(&bare, &later).as_ref(), Some(&text));
    assert_eq!(Card::with_figures(&text, &[]), Some(bare));
    assert_eq!(Card::with_figures("# Somebody else's card\n", &later), None);
}
