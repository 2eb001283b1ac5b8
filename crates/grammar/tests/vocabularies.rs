//! Grammars over the vocabularies of every family: what is drawn by their masks is what they say.

use std::{fs, path::PathBuf};

use lathe_api::Grammar;
use lathe_base::Buf;
use lathe_grammar::{Compiled, Error, Guide, Vocabulary};
use lathe_tokens::{Source, TokenKind, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Byte-level, SentencePiece with bytes to fall back on, from `tokenizer.json` and
/// `tokenizer.model`.
const FAMILIES: [&str; 8] =
    ["gpt2", "gpt2-added", "llama3", "qwen2", "llama2", "llama2-model", "gemma", "gemma-model"];

fn tokenizer(family: &str) -> Tokenizer {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/tokenizers");
    let read = |name: &str| fs::read(folder.join(family).join(name)).ok().map(Buf::from);
    let source = Source {
        model: family.to_owned(),
        json: read("tokenizer.json"),
        sentencepiece: read("tokenizer.model"),
        config: read("tokenizer_config.json"),
        ..Source::default()
    };
    Tokenizer::from_source(&source).unwrap()
}

/// A text drawn from what may come, all tokens alike, and the tokens of it. It ends where it can
/// once it is long enough.
struct Drawn {
    text: String,
    ids: Vec<u32>,
    ended: bool,
}

fn draw(tokenizer: &Tokenizer, mut guide: Guide, long: usize, seed: u64) -> Result<Drawn, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let end = tokenizer.eos().unwrap();
    let mut stream = tokenizer.stream_on(false);
    let (mut text, mut ids) = (String::new(), Vec::new());
    let mut ended = guide.is_over();
    while !ended && ids.len() < 3 * long {
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        guide.restrict(&mut logits, &[end])?;
        let may = |(id, logit): (usize, &f32)| (*logit == 0.0).then_some(id as u32);
        let allowed: Vec<u32> = logits.iter().enumerate().filter_map(may).collect();
        if ids.len() >= long && allowed.contains(&end) {
            ended = true;
            break;
        }
        let others: Vec<u32> = allowed.into_iter().filter(|id| *id != end).collect();
        if others.is_empty() {
            ended = true;
            break;
        }
        let id = others[rng.random_range(0..others.len())];
        guide.take(id)?;
        ids.push(id);
        text.push_str(&stream.push(id));
        ended = guide.is_over();
    }
    text.push_str(&stream.finish());
    Ok(Drawn { text, ids, ended })
}

fn compiled(tokenizer: &Tokenizer, grammar: &Grammar) -> Compiled {
    let vocabulary = Vocabulary::new(tokenizer, tokenizer.vocab_size()).unwrap();
    Compiled::new(grammar, &vocabulary).unwrap()
}

#[test]
fn texts_of_characters_that_are_split_between_tokens_are_whole() {
    let pattern = "^[éß☃🐈🦀a]{8,14}( 漢字)?$";
    let expected = regex::Regex::new(pattern).unwrap();
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let regex = compiled(&tokenizer, &Grammar::Regex(pattern.into()));
        let gbnf = Grammar::Gbnf("root ::= [éß☃🐈🦀a]{8,14} (\" 漢字\")?".into());
        let gbnf = compiled(&tokenizer, &gbnf);
        let mut split = 0;
        for seed in 0..20 {
            for grammar in [&regex, &gbnf] {
                let drawn = draw(&tokenizer, grammar.guide(), 100, seed).unwrap();
                assert!(
                    drawn.ended && expected.is_match(&drawn.text),
                    "{family}: {:?}",
                    drawn.text
                );
                let whole = |id: &u32| String::from_utf8(tokenizer.token_bytes(*id)).is_ok();
                split += drawn.ids.iter().filter(|id| !whole(id)).count();
            }
        }
        assert!(split > 100, "{family}: {split} tokens of broken characters");
    }
}

#[test]
fn no_token_without_text_is_ever_drawn() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let all = compiled(&tokenizer, &Grammar::Regex("(?s:.)*".into()));
        let gbnf = compiled(&tokenizer, &Grammar::Gbnf("root ::= .*".into()));
        for grammar in [&all, &gbnf] {
            let mut logits = vec![0.0; tokenizer.vocab_size() + 7];
            grammar.guide().restrict(&mut logits, &[]).unwrap();
            for (id, logit) in (0..).zip(&logits) {
                let text = matches!(
                    tokenizer.kind(id),
                    TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte
                );
                // Bytes that can begin no character cannot come first.
                let bytes = tokenizer.token_bytes(id);
                let begins = std::str::from_utf8(&bytes)
                    .map_or_else(|e| e.error_len().is_none(), |text| !text.is_empty());
                let ends = [tokenizer.bos(), tokenizer.eos(), tokenizer.unk(), tokenizer.pad()];
                let expected = text && begins && !ends.contains(&Some(id));
                assert_eq!(*logit == 0.0, expected, "{family}: {id} {bytes:?}");
            }
        }
    }
}

#[test]
fn both_machines_allow_the_same_tokens() {
    let pairs = [
        (r"[a-z]{2,5}(, [a-z]+)*\.", "root ::= [a-z]{2,5} (\", \" [a-z]+)* \".\""),
        (r"(ab?|a?b)*(abc)+", "root ::= (\"a\" \"b\"? | \"a\"? \"b\")* \"abc\"+"),
        (
            "\"([^\"\\\\\\x00-\\x1f]|\\\\[\"n\\\\])*\"",
            r#"root ::= "\"" ([^"\\\x00-\x1f] | "\\" ["n\\])* "\"""#,
        ),
        (
            r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,4})?",
            r#"root ::= "-"? ("0" | [1-9] [0-9]{0,8}) ("." [0-9]{1,4})?"#,
        ),
        ("(?s:.){3}[é-ü]?\n*", "root ::= .{3} [é-ü]? \"\\n\"*"),
    ];
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        for (regex, gbnf) in pairs {
            let regex = compiled(&tokenizer, &Grammar::Regex(regex.into()));
            let gbnf = compiled(&tokenizer, &Grammar::Gbnf(gbnf.into()));
            for seed in 0..4 {
                let drawn = draw(&tokenizer, regex.guide(), 6, seed).unwrap();
                let (mut one, mut other) = (regex.guide(), gbnf.guide());
                for id in drawn.ids {
                    let mut logits =
                        [vec![0.0; tokenizer.vocab_size()], vec![0.0; tokenizer.vocab_size()]];
                    one.restrict(&mut logits[0], &[]).unwrap();
                    other.restrict(&mut logits[1], &[]).unwrap();
                    assert!(logits[0] == logits[1], "{family} after {:?}", drawn.text);
                    one.take(id).unwrap();
                    other.take(id).unwrap();
                    assert_eq!(one.is_over(), other.is_over());
                }
            }
        }
    }
}

/// JSON in GBNF, with what a greedy lexer could not tell apart.
const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (string ":" value ("," string ":" value)*)? "}"
array  ::= "[" (value ("," value)*)? "]"
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-c] [0-9a-f]{3}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]{0,5}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,2})?
"#;

#[test]
fn objects_are_json_in_every_vocabulary() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        for grammar in [Grammar::JsonObject, Grammar::Gbnf(JSON.into())] {
            let grammar = compiled(&tokenizer, &grammar);
            let mut complete = 0;
            for seed in 0..30 {
                let drawn = draw(&tokenizer, grammar.guide(), 2, seed).unwrap();
                if drawn.ended {
                    let value = serde_json::from_str::<serde_json::Value>(&drawn.text);
                    assert!(value.unwrap().is_object(), "{family}: {}", drawn.text);
                    complete += 1;
                }
            }
            assert!(complete > 0, "{family}");
        }
    }
}

#[test]
fn a_vocabulary_without_the_characters_says_so() {
    let tokenizer = tokenizer("unigram");
    let grammar = compiled(&tokenizer, &Grammar::Regex("\u{1f9a4}".into()));
    let mut logits = vec![0.0; tokenizer.vocab_size()];
    let error = grammar.guide().restrict(&mut logits, &[0]).unwrap_err();
    assert!(matches!(error, Error::DeadEnd), "{error:?}");
}

#[test]
fn guides_share_nothing_that_changes() {
    let tokenizer = tokenizer("gpt2");
    let grammar = compiled(&tokenizer, &Grammar::JsonObject);
    let alone = draw(&tokenizer, grammar.guide(), 40, 5).unwrap();
    let others: Vec<Drawn> =
        (0..5).map(|seed| draw(&tokenizer, grammar.guide(), 40, seed).unwrap()).collect();
    let again = draw(&tokenizer, grammar.guide(), 40, 5).unwrap();
    assert_eq!((alone.ids, alone.text), (again.ids, again.text));
    assert!(others[0].text != others[1].text);
}

#[test]
fn choices_are_taken_as_they_are_written() {
    let tokenizer = tokenizer("gpt2");
    let signs: String = (1..=127).map(char::from).collect();
    let texts =
        ["a/b\\/c\\\\", "line\nbreak\ttab", &signs, "(x|y)*[z]{2}^$.?+", "'\"`#//%&~-", "☃\u{0}é"];
    let all = Grammar::Choice(texts.iter().map(|text| (*text).to_owned()).collect());
    let all = compiled(&tokenizer, &all);
    for text in texts {
        let alone = compiled(&tokenizer, &Grammar::Choice(vec![text.to_owned()]));
        let drawn = draw(&tokenizer, alone.guide(), 1000, 1).unwrap();
        assert!(drawn.ended && drawn.text == text, "{:?} is not {text:?}", drawn.text);
    }
    for seed in 0..20 {
        let drawn = draw(&tokenizer, all.guide(), 1000, seed).unwrap();
        assert!(texts.contains(&drawn.text.as_str()), "{:?}", drawn.text);
    }
}

#[test]
fn schemas_that_ask_for_what_is_not_known_are_refused() {
    let vocabulary = Vocabulary::new(&tokenizer("gpt2"), 300).unwrap();
    let refused = |schema: &str| {
        let grammar = Grammar::JsonSchema(schema.into());
        Compiled::new(&grammar, &vocabulary).map(drop).unwrap_err().to_string()
    };
    let asked = refused(r#"{ "type": "array", "uniqueItems": true }"#);
    assert!(asked.contains("not supported: [\"uniqueItems\"]"), "{asked}");
    assert!(refused("false").contains("allows nothing"));
    assert!(refused("3").contains("must be a JSON object"));
    assert!(refused("{\n  \"type\": oops }").contains("line 2, column 11"));
    Compiled::new(&Grammar::JsonSchema("true".into()), &vocabulary).unwrap();
}
