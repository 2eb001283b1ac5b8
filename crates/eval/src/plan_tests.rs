use std::path::Path;

use super::*;
use crate::ReadOptions;

/// One token per byte.
fn bytes(text: &str) -> Result<Vec<u32>, String> {
    Ok(text.bytes().map(u32::from).collect())
}

const WITH_BOS: Encoder<'static> = Encoder { encode: &bytes, bos: Some(256) };
const WITHOUT: Encoder<'static> = Encoder { encode: &bytes, bos: None };

fn texts(text: &str) -> Texts {
    Texts::from_text(Path::new("t.txt"), text.as_bytes(), &ReadOptions::default()).unwrap()
}

fn digits(n: usize) -> String {
    (0..n).map(|i| char::from(b'a' + (i % 26) as u8)).collect()
}

fn plan(convention: Convention, text: &str, encoder: Encoder<'_>, context: usize) -> Plan {
    Plan::new(convention, &texts(text), encoder, context).unwrap()
}

#[test]
fn windows_do_not_overlap_and_drop_the_tail() {
    let p = plan(Convention::Windows { context: 8 }, &digits(29), WITH_BOS, 100);
    // 30 tokens with BOS: three windows of 8, six tokens left out.
    assert_eq!(p.segments.len(), 3);
    assert_eq!(p.segments[0].tokens[0], 256);
    assert_eq!(p.segments[1].tokens, bytes(&digits(29)[7..15]).unwrap());
    assert_eq!(p.scored(), 3 * 7);
}

#[test]
fn llama_cpp_scores_the_second_half_behind_bos() {
    let p = plan(Convention::LlamaCpp { context: 8 }, &digits(29), WITH_BOS, 100);
    for segment in &p.segments {
        assert_eq!((segment.tokens[0], segment.first_scored), (256, 5));
    }
    // context − context / 2 − 1 tokens of each chunk count, as in llama-perplexity.
    assert_eq!(p.scored(), 3 * 3);
    let p = plan(Convention::LlamaCpp { context: 8 }, &digits(29), WITHOUT, 100);
    assert_eq!(p.segments[1].tokens, bytes(&digits(29)[8..16]).unwrap());
}

#[test]
fn sliding_windows_count_each_token_once() {
    let p = plan(Convention::Sliding { window: 8, stride: 4 }, &digits(21), WITHOUT, 100);
    let counts: Vec<usize> = p.segments.iter().map(Segment::scored).collect();
    assert_eq!(counts, [7, 4, 4, 4, 1]);
    let counted: Vec<u32> =
        p.segments.iter().flat_map(|s| s.tokens[s.first_scored..].to_vec()).collect();
    assert_eq!(counted, bytes(&digits(21)[1..]).unwrap());
    assert!(p.segments[1..].iter().all(|s| s.first_scored >= 4));
}

#[test]
fn documents_begin_with_bos_and_long_ones_are_cut() {
    let text = format!("{}\n<|endoftext|>\nxy", digits(9));
    let p = plan(Convention::Documents, &text, WITH_BOS, 6);
    let lengths: Vec<(usize, usize)> =
        p.segments.iter().map(|s| (s.document, s.tokens.len())).collect();
    assert_eq!(lengths, [(0, 6), (0, 6), (1, 3)]);
    assert!(p.segments.iter().all(|s| s.tokens[0] == 256));
    assert_eq!(p.scored(), 10 + 2);
    assert_eq!(plan(Convention::Documents, &text, WITHOUT, 6).scored(), 5 + 3 + 1);
}

#[test]
fn clipping_is_said_and_what_becomes_equal_is_there_once() {
    let p = plan(Convention::Windows { context: 2048 }, &digits(100), WITHOUT, 32);
    assert_eq!(p.segments[0].tokens.len(), 32);
    assert!(p.label.contains("context 32") && p.label.contains("clipped from 2048"), "{}", p.label);
    assert_eq!(Convention::all(512).len(), 4);
    assert_eq!(Convention::all(8192).len(), 5);
    assert_eq!(
        Convention::Sliding { window: 512, stride: 256 }.clip(128),
        Convention::Sliding { window: 128, stride: 64 }
    );
}

#[test]
fn segments_of_the_joined_text_know_their_document() {
    let text = format!(" = A = \n\n{}\n\n = B = \n\n{}\n", digits(100), digits(100));
    let p = plan(Convention::Windows { context: 20 }, &text, WITHOUT, 100);
    let documents: Vec<usize> = p.segments.iter().map(|s| s.document).collect();
    let turn = documents.iter().position(|&d| d == 1).unwrap();
    assert!(documents[..turn].iter().all(|&d| d == 0) && documents[turn..].iter().all(|&d| d == 1));
    assert!(turn.abs_diff(documents.len() / 2) <= 1, "{documents:?}");
}

#[test]
fn a_short_text_is_one_short_window_and_too_short_is_an_error() {
    let p = plan(Convention::Windows { context: 64 }, &digits(10), WITHOUT, 100);
    assert_eq!((p.segments.len(), p.scored()), (1, 9));
    let p = plan(Convention::LlamaCpp { context: 64 }, &digits(10), WITHOUT, 100);
    assert_eq!((p.segments.len(), p.scored()), (1, 4));
    let one = Plan::new(Convention::Windows { context: 64 }, &texts("a"), WITHOUT, 100);
    assert!(matches!(one, Err(Error::TooShort { found: 1, .. })));
    let small = Plan::new(Convention::Documents, &texts("abc"), WITHOUT, 3);
    assert!(matches!(small, Err(Error::ContextTooShort { context: 3 })));
}

#[test]
fn the_hash_sees_tokens_and_cuts() {
    let a = plan(Convention::Windows { context: 8 }, &digits(40), WITHOUT, 100);
    let b = plan(Convention::LlamaCpp { context: 8 }, &digits(40), WITHOUT, 100);
    assert_eq!(a.token_hash(), a.clone().token_hash());
    assert_ne!(a.token_hash(), b.token_hash());
}

#[test]
fn a_tokenizer_error_names_the_document() {
    let refuse = |_: &str| Err("no such byte".to_owned());
    let encoder = Encoder { encode: &refuse, bos: None };
    let error = Plan::new(Convention::Documents, &texts("abc"), encoder, 9).unwrap_err();
    assert_eq!(error.to_string(), "tokenizing document 1: no such byte");
}
