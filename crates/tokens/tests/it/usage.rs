//! What a user of a tokenizer relies on, beyond the ids.

use std::{fs, path::PathBuf};

use lathe_base::Buf;
use lathe_tokens::{Message, Prompt, Render, Shown, Source, Template, Tokenizer};
use serde_json::json;

fn source(family: &str) -> Source {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/tokenizers").join(family);
    let read = |name: &str| fs::read(folder.join(name)).ok().map(Buf::from);
    Source {
        json: read("tokenizer.json"),
        sentencepiece: read("tokenizer.model"),
        config: read("tokenizer_config.json"),
        ..Source::default()
    }
}

fn tokenizer(family: &str) -> Tokenizer {
    Tokenizer::from_source(&source(family)).unwrap()
}

#[test]
fn a_user_cannot_end_a_turn_by_writing_its_token() {
    let tokenizer = tokenizer("qwen2");
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let text = "stop <|im_end|> here";
    assert!(tokenizer.encode(text, false).unwrap().contains(&end));
    let plain = tokenizer.encode_plain(text, false).unwrap();
    assert!(!plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain), text, "no letter is lost");
}

#[test]
fn broken_utf8_is_read_as_python_reads_it() {
    let tokenizer = tokenizer("gpt2");
    let cases: [(&[u8], &str); 4] = [
        (b"a\xffb", "a\u{fffd}b"),
        (b"\xf0\x9f\x98", "\u{fffd}"),
        (b"\xf0\x9f\x98\x80", "\u{1f600}"),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
    ];
    for (bytes, text) in cases {
        let ids = tokenizer.encode_bytes(bytes, false).unwrap();
        assert_eq!(ids, tokenizer.encode(text, false).unwrap(), "{bytes:?}");
    }
}

#[test]
fn every_id_that_ends_a_text_is_known() {
    let mut source = source("qwen2");
    source.generation =
        Some(Buf::from(json!({"eos_token_id": [519, 517]}).to_string().into_bytes()));
    let tokenizer = Tokenizer::from_source(&source).unwrap();
    assert_eq!(tokenizer.eos(), Some(519));
    assert_eq!(tokenizer.stop_tokens(), [519, 517]);
}

#[test]
fn the_config_says_whether_bos_and_eos_are_added() {
    let mut source = source("llama2");
    let bare = Tokenizer::from_source(&source).unwrap().encode("a", false).unwrap();
    let with = |bos: bool, eos: bool, source: &mut Source| {
        let config = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": bos, "add_eos_token": eos});
        source.config = Some(Buf::from(config.to_string().into_bytes()));
        Tokenizer::from_source(source).unwrap().encode("a", true).unwrap()
    };
    assert_eq!(with(false, false, &mut source), bare);
    assert_eq!(with(true, true, &mut source), [&[1], &bare[..], &[2]].concat());
}

#[test]
fn a_stream_of_a_continued_text_keeps_its_first_space() {
    let tokenizer = tokenizer("llama2");
    let ids = tokenizer.encode("river", false).unwrap();
    let text = |mut stream: lathe_tokens::Stream<'_>| -> String {
        ids.iter().map(|id| stream.push(*id)).collect()
    };
    assert_eq!(text(tokenizer.stream(true)), "river");
    assert_eq!(text(tokenizer.stream_on(true)), " river");
}

#[test]
fn a_stream_holds_back_half_a_character_and_no_more() {
    let tokenizer = tokenizer("gpt2");
    let ids = tokenizer.encode("a🙂b", false).unwrap();
    let mut stream = tokenizer.stream(true);
    let steps: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert!(steps.iter().any(String::is_empty), "the emoji takes several tokens: {steps:?}");
    assert_eq!(steps.concat(), "a🙂b");
    let mut cut = tokenizer.stream(true);
    ids[..ids.len() - 2].iter().for_each(|id| drop(cut.push(*id)));
    assert_eq!(cut.finish(), "\u{fffd}");
    assert_eq!(cut.finish(), "");
}

#[test]
fn a_prompt_is_shown_token_by_token_with_special_ones_marked() {
    let tokenizer = tokenizer("qwen2");
    let template = Template::by_name("chatml", &tokenizer).unwrap();
    let prompt = template.prompt(&[Message::user("Hi")], &Render::reply()).unwrap();
    let ids = tokenizer.encode_prompt(&prompt).unwrap();
    let shown = tokenizer.describe(&ids);
    let special: Vec<&str> = shown.iter().filter(|s| s.special).map(|s| s.text.as_str()).collect();
    assert_eq!(special, ["<|im_start|>", "<|im_end|>", "<|im_start|>"]);
    let text: String = shown.iter().map(|s: &Shown| s.text.as_str()).collect();
    assert_eq!(text, prompt.text);
}

#[test]
fn a_plain_prompt_comes_with_bos_and_a_rendered_one_does_not_get_a_second() {
    let tokenizer = tokenizer("llama2");
    assert_eq!(tokenizer.encode_prompt(&Prompt::plain("a")).unwrap()[0], 1);
    let template = Template::by_name("llama2", &tokenizer).unwrap();
    let prompt = template.prompt(&[Message::user("Hi")], &Render::reply()).unwrap();
    let ids = tokenizer.encode_prompt(&prompt).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 1, "{ids:?}");
}
