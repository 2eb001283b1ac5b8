//! `generate`, `chat` and `prompt`.

use serde_json::Value;

use super::{fed, golden, json, run, stderr, stdout};

#[test]
fn a_text_is_continued_and_streamed() {
    let text = stdout(&["generate", "demo", "Once upon a time", "-n", "12", "--quiet"]);
    assert!(text.starts_with("Once upon a time") && text.len() > 30, "{text}");
    let seen = json(&["generate", "demo", "Once upon a time", "-n", "12"]);
    assert_eq!(
        text.trim_end_matches('\n'),
        format!("Once upon a time{}", seen["text"].as_str().unwrap())
    );
    assert_eq!(seen["ids"].as_array().unwrap().len(), 12);
    assert_eq!(seen["usage"]["finish"], "length");
    assert!(seen["timings"]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(seen["prompt_ids"][0], 0, "the text begins with bos");
}

#[test]
fn the_model_says_how_likely_it_found_prompt_and_text() {
    let words = ["generate", "demo", "Once upon a time", "-n", "6"];
    let asked = [&words[..], &["--prompt-logprobs", "2", "--logprobs", "1"]].concat();
    let seen = json(&asked);
    let (prompt, text) = (&seen["prompt_logprobs"], &seen["logprobs"]);
    let list = |of: &Value| of.as_array().unwrap().clone();
    assert_eq!(list(prompt).len(), list(&seen["prompt_ids"]).len());
    assert!(prompt[0]["logprob"].is_null() && list(&prompt[0]["likeliest"]).is_empty());
    for (place, id) in list(prompt).iter().zip(list(&seen["prompt_ids"])).skip(1) {
        assert_eq!(place["id"], id);
        let logprob = |of: &Value| of["logprob"].as_f64().unwrap();
        let best = list(&place["likeliest"]);
        assert!(logprob(&best[0]) >= logprob(&best[1]) && logprob(&best[0]) >= logprob(place));
        assert!(logprob(&best[0]) <= 0.0 && best.len() == 2);
    }
    // Greedy texts are of the likeliest tokens.
    assert_eq!(list(text).len(), 6);
    assert!(list(text).iter().all(|place| place["likeliest"][0]["id"] == place["id"]));
    assert_eq!(seen["ids"], json(&words)["ids"]);
    assert!(json(&words)["logprobs"].is_null());
    let table = stdout(&[&asked[..], &["--quiet"]].concat());
    assert!(table.contains("token of the prompt") && table.contains("ln p"), "{table}");
}

#[test]
fn a_prompt_comes_from_stdin() {
    let piped = fed(&["generate", "demo", "-", "-n", "5", "--json"], "The cat sat");
    let piped: Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!(piped["ids"], json(&["generate", "demo", "The cat sat", "-n", "5"])["ids"]);
}

#[test]
fn the_same_seed_gives_the_same_text_at_any_thread_count() {
    let draw = |seed: &str, threads: &str| {
        let hot = ["--temperature", "1.2", "--top-p", "0.95", "--seed", seed, "--threads", threads];
        let first = ["generate", "demo", "Once upon a time", "-n", "40"];
        json(&[&first[..], &hot[..]].concat())["ids"].clone()
    };
    assert_eq!(draw("7", "1"), draw("7", "2"));
    assert_ne!(draw("7", "2"), draw("8", "2"));
}

#[test]
fn sampling_options_reach_the_sampler() {
    let first = |more: &[&str]| {
        let base = ["generate", "demo", "Once upon a time", "-n", "6"];
        json(&[&base[..], more].concat())
    };
    let plain = first(&[]);
    let id = plain["ids"][0].as_u64().unwrap();
    let banned = first(&["--logit-bias", &format!("{id}:-inf")]);
    assert_ne!(banned["ids"][0], plain["ids"][0]);
    // Greedy by another way.
    assert_eq!(first(&["--temperature", "1", "--top-k", "1"])["ids"], plain["ids"]);
    let text = plain["text"].as_str().unwrap();
    let stop = text.split_whitespace().nth(1).unwrap();
    let stopped = first(&["--stop", stop]);
    assert_eq!(stopped["usage"]["finish"], "stop");
    assert!(
        text.starts_with(stopped["text"].as_str().unwrap())
            && !stopped["text"].as_str().unwrap().contains(stop)
    );
}

#[test]
fn every_golden_model_generates_from_folder_and_gguf_alike() {
    for name in ["llama", "llama3", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3"] {
        // The tiny tokenizers of the two containers may differ: ids are held against each other
        // where the prompts are the same ids.
        let ids =
            |model: &str| json(&["generate", model, "a", "-n", "4", "--ignore-eos", "--kv", "f32"]);
        let (folder, gguf) = (ids(&golden(name)), ids(&golden(&format!("{name}/model.gguf"))));
        assert_eq!(folder["ids"].as_array().unwrap().len(), 4, "{name}");
        if folder["prompt_ids"] == gguf["prompt_ids"] {
            assert_eq!(folder["ids"], gguf["ids"], "{name}");
        }
    }
}

#[test]
fn a_chat_answers_once_or_line_by_line() {
    let once = json(&["chat", "demo", "-m", "Tell me a story.", "-n", "10"]);
    assert_eq!(once["template"], "chat_template.jinja");
    assert!(!once["text"].as_str().unwrap().is_empty());

    let piped = fed(&["chat", "demo", "-n", "8", "--json", "-q"], "Hi\n\n/reset\nHi\nBye\n");
    let turns: Vec<Value> = String::from_utf8(piped.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(turns.len(), 3);
    let tokens = |turn: usize| turns[turn]["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(0), tokens(1), "/reset forgets the first turn");
    assert!(tokens(2) > tokens(1), "the third message follows the second");
    assert_eq!(turns[0]["text"], turns[1]["text"]);
}

#[test]
fn a_full_context_is_said_and_not_cut() {
    let long = "word ".repeat(600);
    let output = run(&["chat", "demo", "-m", &long]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("context") && said.lines().count() == 1, "{said}");
}

#[test]
fn without_a_template_a_format_must_be_named() {
    let model = golden("llama");
    let refused = run(&["chat", &model, "-m", "a"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--prompt-format"));
    let named = json(&["chat", &model, "-m", "a", "-n", "2", "--prompt-format", "llama2"]);
    assert_eq!(named["template"], "the built-in format llama2");
    let unknown = run(&["chat", &model, "-m", "a", "--prompt-format", "x"]);
    assert!(stderr(&unknown).contains("llama2, mistral, chatml, vicuna, alpaca, tinyllama, gemma"));
}

#[test]
fn a_prompt_is_shown_as_the_model_sees_it() {
    let text = stdout(&["prompt", "demo", "Hello there", "--system", "Be kind."]);
    assert!(text.contains("[<|im_start|>]system\nBe kind.[<|im_end|>]"), "{text}");
    assert!(text.contains("[<|im_start|>]user\nHello there[<|im_end|>]"));
    let seen = json(&["prompt", "demo", "Hello there"]);
    assert!(seen["text"].as_str().unwrap().ends_with("<|im_start|>assistant\n"));
    let ids = seen["ids"].as_array().unwrap();
    assert_eq!(ids.len(), seen["tokens"].as_array().unwrap().len());
    assert_eq!(seen["tokens"][0]["special"], true);

    let raw = json(&["prompt", "demo", "Hello", "--raw"]);
    assert_eq!(raw["text"], "Hello");
    assert_eq!(raw["template"], Value::Null);
    assert_eq!(raw["ids"], json(&["generate", "demo", "Hello", "-n", "1"])["prompt_ids"]);
}

#[test]
fn a_conversation_is_read_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("messages.json");
    let messages = r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"}]"#;
    std::fs::write(&path, messages).unwrap();
    let seen = json(&["prompt", "demo", "--messages", super::text(&path)]);
    let text = seen["text"].as_str().unwrap();
    assert!(text.contains("assistant\nYes?<|im_end|>\n<|im_start|>user\nBye"), "{text}");
}

#[test]
fn an_answer_is_what_it_is_asked_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let schema = r#"{"type":"object","properties":{"n":{"type":"integer","maximum":9,"minimum":0},
        "ok":{"type":"boolean"}},"required":["n","ok"],"additionalProperties":false}"#;
    let gbnf = file("sum.gbnf", "root ::= [0-9] (\" + \" [0-9]){2} \"\\n\"\n");
    let lark = file("turn.lark", "start: side \"!\"\nside: \"left\" | \"right\"\n");
    let answer = |more: &[&str]| {
        let base = ["generate", "demo", "Once", "-n", "200", "--temperature", "1.5"];
        let seen = json(&[&base[..], more].concat());
        assert_eq!(seen["usage"]["finish"], "stop", "{seen}");
        seen["text"].as_str().unwrap().to_owned()
    };
    for schema in [schema, &file("schema.json", schema)] {
        let seen: Value = serde_json::from_str(&answer(&["--json-schema", schema])).unwrap();
        assert!(seen["n"].is_u64() && seen["ok"].is_boolean(), "{seen}");
    }
    assert_eq!(answer(&["--regex", "^(ab){3}$"]), "ababab");
    let choice = answer(&["--choice", "yes", "--choice", "no"]);
    assert!(["yes", "no"].contains(&choice.as_str()), "{choice}");
    let sum = answer(&["--grammar", &gbnf]);
    assert_eq!(sum.replace(|c: char| c.is_ascii_digit(), "9"), "9 + 9 + 9\n");
    let turn = answer(&["--grammar", &lark]);
    assert!(["left!", "right!"].contains(&turn.as_str()), "{turn}");
    let said = json(&["chat", "demo", "-m", "Hello", "--choice", "aye"]);
    assert_eq!((&said["text"], &said["usage"]["finish"]), (&"aye".into(), &"stop".into()));
    let cut = run(&["generate", "demo", "Once", "-n", "3", "--json-object"]);
    assert!(stderr(&cut).contains("may not be all that its grammar wants"), "{}", stderr(&cut));
}

#[test]
fn mistakes_in_a_grammar_are_told_before_the_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let gbnf = folder.path().join("bad.gbnf");
    std::fs::write(&gbnf, "root ::= item\nitme ::= \"x\"\n").unwrap();
    let gbnf = gbnf.display().to_string();
    let cases: [(&[&str], &str); 6] = [
        (&["--json-schema", "{\"type\": }"], "--json-schema: the JSON schema, line 1, column 10"),
        (&["--json-schema", "no/such.json"], "no/such.json cannot be read"),
        (&["--json-schema", "{\"type\":\"cat\"}"], "--json-schema"),
        (&["--regex", "a(b"], "--regex: the regular expression cannot be used"),
        (&["--grammar", &gbnf], "bad.gbnf: the GBNF grammar, line 1, column 10: there is no rule"),
        (&["--regex", "a", "--choice", "b"], "cannot be used with"),
    ];
    for (options, expected) in cases {
        let output = run(&[&["generate", "no/such/model", "Once"], options].concat());
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains(expected), "{options:?}: {said}");
    }
}
