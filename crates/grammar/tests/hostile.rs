//! Grammars made to take the machine: each is refused or cut off, and none panics.

use std::time::Instant;

use lathe_api::Grammar;
use lathe_base::Buf;
use lathe_grammar::{Compiled, Error, Vocabulary};
use lathe_tokens::{Source, Tokenizer};

fn vocabulary() -> Vocabulary {
    let read = |name: &str| {
        let files = lathe_demo::files().iter();
        files.clone().find(|(file, _)| *file == name).map(|(_, bytes)| Buf::from_static(bytes))
    };
    let source = Source { json: read("tokenizer.json"), ..Source::default() };
    let tokenizer = Tokenizer::from_source(&source).unwrap();
    Vocabulary::new(&tokenizer, tokenizer.vocab_size()).unwrap()
}

/// Follows one text for a while, always by the last token that may come. Gives how far it came.
fn follow(grammar: &Grammar, vocabulary: &Vocabulary, most: usize) -> Result<usize, Error> {
    let mut guide = Compiled::new(grammar, vocabulary)?.guide();
    let mut logits = vec![0.0; 4096];
    for count in 0..most {
        if guide.is_over() {
            return Ok(count);
        }
        logits.fill(0.0);
        guide.restrict(&mut logits, &[])?;
        let last = logits.iter().rposition(|logit| *logit == 0.0).unwrap();
        guide.take(last as u32)?;
    }
    Ok(most)
}

fn schema(text: impl Into<String>) -> Grammar {
    Grammar::JsonSchema(text.into())
}

fn regex(text: impl Into<String>) -> Grammar {
    Grammar::Regex(text.into())
}

fn lark(text: impl Into<String>) -> Grammar {
    Grammar::Lark(text.into())
}

fn gbnf(text: impl Into<String>) -> Grammar {
    Grammar::Gbnf(text.into())
}

fn hostile() -> Vec<(&'static str, Grammar)> {
    let nested = |open: &str, inner: &str, close: &str, n: usize| {
        format!("{}{inner}{}", open.repeat(n), close.repeat(n))
    };
    let list =
        |n: usize, item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(",");
    let any_of = list(2000, &|i| format!("{{\"const\":\"a{i}\"}}"));
    let names = list(20_000, &|i| format!("\"name {i}\""));
    let all_of = list(300, &|i| {
        format!(
            "{{\"properties\":{{\"p{i}\":{{\"anyOf\":[{{\"type\":\"string\"}},{{\"type\":\"null\"}}]}}}}}}"
        )
    });
    let products =
        list(24, &|i| format!("{{\"anyOf\":[{{\"pattern\":\"a{i}\"}},{{\"pattern\":\"b{i}\"}}]}}"));
    let optional = list(3000, &|i| format!("\"p{i}\":{{\"type\":\"integer\"}}"));
    let rules: String = (0..9000).map(|i| format!("r{i} ::= \"a\" r{}\n", i + 1)).collect();
    let doubling: String = (0..40).map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1)).collect();
    vec![
        ("schema, deep arrays", schema(nested("{\"items\":", "{}", "}", 5000))),
        ("schema, arrays as deep as may be", schema(nested("{\"items\":", "{}", "}", 120))),
        ("schema, not closed", schema("{\"items\":".repeat(20_000))),
        ("schema of itself", schema("{\"$ref\":\"#\"}")),
        (
            "schema in a circle",
            schema(
                "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"$ref\":\"#/$defs/b\"},\"b\":{\"$ref\":\"#/$defs/a\"}}}",
            ),
        ),
        ("schema, allOf of itself", schema("{\"allOf\":[{\"$ref\":\"#\"},{\"type\":\"object\"}]}")),
        (
            "schema, endless items",
            schema("{\"type\":\"array\",\"minItems\":1,\"items\":{\"$ref\":\"#\"}}"),
        ),
        (
            "schema, many items",
            schema("{\"type\":\"array\",\"minItems\":1000000,\"maxItems\":1000000}"),
        ),
        ("schema, long string", schema("{\"type\":\"string\",\"minLength\":1000000000}")),
        ("schema, slow pattern", schema("{\"type\":\"string\",\"pattern\":\"^((a+)+)+$\"}")),
        (
            "schema, wide pattern",
            schema("{\"type\":\"string\",\"pattern\":\"a.{100}$\",\"maxLength\":200}"),
        ),
        ("schema, many choices", schema(format!("{{\"anyOf\":[{any_of}]}}"))),
        ("schema, many names", schema(format!("{{\"enum\":[{names}]}}"))),
        ("schema, much at once", schema(format!("{{\"allOf\":[{all_of}]}}"))),
        ("schema, products", schema(format!("{{\"type\":\"string\",\"allOf\":[{products}]}}"))),
        (
            "schema, many properties",
            schema(format!("{{\"type\":\"object\",\"properties\":{{{optional}}}}}")),
        ),
        (
            "schema, large numbers",
            schema(
                "{\"type\":\"number\",\"minimum\":1e300,\"maximum\":1e308,\"multipleOf\":1e-300}",
            ),
        ),
        ("schema, odd multiples", schema("{\"type\":\"integer\",\"multipleOf\":99999989}")),
        ("expression, many repeats", regex("a{1000000}")),
        ("expression, repeats of repeats", regex("((a{1000}){1000}){1000}")),
        ("expression, repeats of letters", regex(r"(\w{1,100}\d{1,100}){1,100}")),
        ("expression, slow", regex("(a|a)*(a|aa)*(a*)*b")),
        ("expression, exponential", regex("(a|b)*a(a|b){60}")),
        ("expression, exponential in all letters", regex(r"(?s:.)*a\w{200}")),
        ("expression, brackets", regex(nested("(", "a", ")", 20_000))),
        ("expression, long", regex("ab?".repeat(100_000))),
        (
            "expression, many words",
            regex((0..30_000).map(|i| format!("w{i}|")).collect::<String>()),
        ),
        ("choices, many", Grammar::Choice((0..50_000).map(|i| format!("choice {i}")).collect())),
        ("choices, long", Grammar::Choice(vec!["x".repeat(200_000)])),
        ("lark, begins with itself", lark("start: start \"a\" | \"a\"")),
        ("lark, in all ways", lark("start: start start | \"a\" | \"b\"")),
        ("lark, of itself", lark("start: start")),
        ("lark, in a circle", lark("start: a\na: b\nb: a")),
        ("lark, brackets", lark(format!("start: {}", nested("(", "\"a\"", ")", 20_000)))),
        (
            "lark, brackets as deep as may be",
            lark(format!("start: {}", nested("(", "\"a\"", ")", 190))),
        ),
        ("lark, questions", lark(format!("start: \"a\"{}", "?".repeat(100_000)))),
        ("lark, many repeats", lark("start: a{1000000}\na: \"x\" | \"y\" a")),
        ("lark, repeats of repeats", lark("start: ((\"a\"{1000}){1000}){1000}")),
        (
            "lark, many rules",
            lark(
                (0..20_000).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect::<String>()
                    + "start: r0\nr20000: \"b\"",
            ),
        ),
        ("lark, exponential", lark("start: A\nA: /(a|b)*a(a|b){60}/ & ~/(?s:.*)bab(?s:.*)/")),
        ("lark, special tokens", lark("start: <[0]> <[1-5]>")),
        ("gbnf, begins with itself", gbnf("root ::= root \"a\" | \"a\"")),
        ("gbnf, many repeats", gbnf("root ::= [a-z]{1000000}")),
        ("gbnf, repeats of repeats", gbnf("root ::= (([a-z]{1000}){1000}){1000}")),
        ("gbnf, brackets", gbnf(format!("root ::= {}", nested("(", "\"a\"", ")", 20_000)))),
        ("gbnf, questions", gbnf(format!("root ::= \"a\"{}", "?".repeat(100_000)))),
        ("gbnf, long chain", gbnf(format!("root ::= r0\n{rules}r9000 ::= \"b\""))),
        ("gbnf, doubling", gbnf(format!("root ::= r0\n{doubling}r40 ::= \"a\"?"))),
        (
            "gbnf, in all ways",
            gbnf("root ::= x* y* root?\nx ::= [a-z]? y\ny ::= [a-y]? | \"(\" root \")\""),
        ),
        ("gbnf, exponential", gbnf("root ::= [ab]* \"a\" [ab]{60}")),
        ("gbnf, wide", gbnf(format!("root ::= ({})*", "[a-z] | ".repeat(5000) + "\"x\""))),
        (
            "gbnf, rules without end",
            gbnf(
                (0..12_000).map(|i| format!("r{i} ::= \"a\"\n")).collect::<String>()
                    + "root ::= r0",
            ),
        ),
    ]
}

#[test]
fn nothing_takes_the_machine() {
    let vocabulary = vocabulary();
    for (name, grammar) in hostile() {
        let start = Instant::now();
        let came = follow(&grammar, &vocabulary, 100);
        let took = start.elapsed();
        println!(
            "{name}: {took:.2?}, {}",
            match &came {
                Ok(count) => format!("{count} tokens"),
                Err(error) => error.to_string().chars().take(200).collect(),
            }
        );
        if let Err(Error::Unusable { why, .. } | Error::TooComplex { why }) = &came {
            assert!(!why.contains("panic"), "{name}: {why}");
        }
        // Limits are counts. Seconds only show that none was forgotten.
        assert!(took.as_secs() < 30, "{name} took {took:?}");
    }
}
