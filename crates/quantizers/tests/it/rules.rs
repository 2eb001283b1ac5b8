//! Formats of single tensors: rules, exact names, and what they are checked against.

use std::collections::BTreeMap;

use crate::common::{Case, Source, out, recipe};
use lathe_base::Silent;
use lathe_files::Checkpoint;
use lathe_formats::by_name;
use lathe_models::Kind;
use lathe_quantizers::{Error, Overrides, Recipe, Rule};

fn rules(rules: &[&str]) -> Overrides {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Overrides { rules, ..Overrides::default() }
}

#[test]
fn rules_choose_formats_by_either_name_and_the_first_counts() {
    let source = Source::new(false);
    // The first is a name in GGUFs, the second one in Hugging Face folders.
    let tensors = rules(&["blk.0.FFN_down=q8_0", "down_proj=f16", "attn_v|attn_k=q5_0"]);
    let case = Case::new(&source.path(), &Recipe { tensors, ..recipe("q4_0") }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = out(&folder, &case.plan);
    case.run(&out, 2, &Silent).unwrap();
    let made = Checkpoint::open(&out).unwrap();
    let format = |name: &str| made.weight(name).unwrap().format.name();
    assert_eq!(format("blk.0.ffn_down.weight"), "q8_0");
    assert_eq!(format("blk.1.ffn_down.weight"), "f16");
    assert_eq!(format("blk.1.attn_v.weight"), "q5_0");
    assert_eq!(format("blk.0.attn_k.weight"), "q5_0");
    assert_eq!(format("blk.0.attn_q.weight"), "q4_0");
}

#[test]
fn folders_mix_formats_too() {
    let source = Source::new(false);
    let tensors = rules(&["ffn_down=int8", "o_proj=bf16"]);
    let case = Case::new(&source.path(), &Recipe { tensors, ..recipe("int4_g32") }).unwrap();
    for planned in case.plan.tensors.iter().filter(|planned| planned.kind == Kind::Linear) {
        let expected = match &planned.name {
            name if name.contains("down_proj") => "int8",
            name if name.contains("o_proj") => "bf16",
            _ => "int4_g32",
        };
        assert_eq!(planned.format.name(), expected, "{}", planned.name);
    }
}

#[test]
fn exact_names_are_the_names_of_the_result() {
    let source = Source::new(true);
    let q8_0 = by_name("q8_0").unwrap();
    let exact = BTreeMap::from([("blk.1.attn_q.weight".to_owned(), q8_0)]);
    let tensors = Overrides { exact, ..rules(&["attn_output=f16"]) };
    let case = Case::new(&source.path(), &Recipe { tensors, ..recipe("q4_0") }).unwrap();
    let formats: BTreeMap<_, _> =
        case.plan.tensors.iter().map(|t| (t.name.as_str(), t.format.name())).collect();
    assert_eq!(formats["blk.1.attn_q.weight"], "q8_0");
    assert_eq!(formats["blk.0.attn_q.weight"], "q4_0");
    assert_eq!(formats["blk.0.attn_output.weight"], "f16");
}

#[test]
fn what_fits_no_matrix_is_refused() {
    let source = Source::new(false);
    let refused = |tensors: Overrides, pattern: &str| {
        let error = Case::new(&source.path(), &Recipe { tensors, ..recipe("q4_0") }).err();
        match error {
            Some(Error::NoSuchTensor { pattern: found, has }) => {
                assert_eq!(found, pattern);
                assert!(has.contains("token_embd.weight"), "{has}");
            }
            other => panic!("{pattern}: {other:?}"),
        }
    };
    refused(rules(&["attn_q=q8_0", "ffn_downn=q8_0"]), "ffn_downn");
    // Norms are vectors, which stay as they are.
    refused(rules(&["attn_norm=q8_0"]), "attn_norm");
    let exact = BTreeMap::from([("blk.7.attn_q.weight".to_owned(), by_name("q8_0").unwrap())]);
    refused(Overrides { exact, ..Overrides::default() }, "blk.7.attn_q.weight");
    let foreign = Recipe { tensors: rules(&["attn_q=nf4"]), ..recipe("q4_0") };
    assert!(matches!(Case::new(&source.path(), &foreign), Err(Error::Container { .. })));
}

#[test]
fn rules_that_cannot_be_read_say_why() {
    for bad in ["ffn_down", "=q8_0", "ffn_down=q9_9", "ffn_(down=q8_0", "", "="] {
        let error = bad.parse::<Rule>().unwrap_err();
        assert!(matches!(error, Error::Pattern { .. }), "{bad}: {error}");
    }
    assert_eq!("a.*b=Q8_0".parse::<Rule>().unwrap().to_string(), "a.*b=q8_0");
}
