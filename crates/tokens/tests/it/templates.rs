//! Chat templates and prompt formats against what transformers makes of the same conversations
//! (`goldens/templates`).

use std::{fs, path::PathBuf};

use lathe_tokens::{Error, FORMATS, Message, Render, Template, Tokenizer};
use serde_json::{Map, Value, json};

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/templates")
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(goldens().join(name)).unwrap()).unwrap()
}

/// A tokenizer that has nothing but the special tokens that the goldens were made with.
fn tokenizer(bos: &str) -> Tokenizer {
    let added = |id: u32, text: &str| {
        json!({"id": id, "content": text, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false})
    };
    let json = json!({
        "version": "1.0", "added_tokens": [added(0, bos), added(1, "</s>")],
        "model": {"type": "BPE", "vocab": {bos: 0, "</s>": 1}, "merges": []},
    });
    let config = json!({"bos_token": bos, "eos_token": "</s>"});
    let source = lathe_tokens::Source {
        json: Some(json.to_string().into_bytes().into()),
        config: Some(config.to_string().into_bytes().into()),
        ..Default::default()
    };
    Tokenizer::from_source(&source).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    serde_json::from_value(value.clone()).unwrap()
}

fn template(name: &str) -> Template {
    let text = fs::read_to_string(goldens().join(name)).unwrap();
    Template::from_text(name, &text, &tokenizer("<s>")).unwrap()
}

/// What else than messages a golden conversation gives the template.
fn how(conversation: &Value, case: &Value, now: &str) -> Render {
    let mut extras: Map<String, Value> = conversation.as_object().unwrap().clone();
    extras.remove("messages");
    let tools = extras.remove("tools").map(|tools| tools.as_array().unwrap().clone());
    Render {
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        tools,
        extras,
        now: Some(now.parse().unwrap()),
        ..Render::default()
    }
}

/// The one known difference: a loop over the letters of a string does not know how many are to
/// come, so `loop.revindex` is undefined in it. Templates loop over lists.
fn without_count_of_letters(expected: &str) -> String {
    expected.replace("loop: 14o-23e-32o-41e", "loop: 1o-2e-3o-4e")
}

#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    let (rendered, conversations) = (golden("rendered.json"), golden("conversations.json"));
    let mut wrong = Vec::new();
    for case in rendered["cases"].as_array().unwrap() {
        let conversation = &conversations[case["conversation"].as_str().unwrap()];
        let how = how(conversation, case, rendered["now"].as_str().unwrap());
        let template = template(case["template"].as_str().unwrap());
        let ours = template.render(&messages(&conversation["messages"]), &how);
        let right = match (&ours, &case["text"], &case["raised"]) {
            (Ok(text), Value::String(expected), _) => *text == without_count_of_letters(expected),
            (Err(Error::Refused { why, .. }), _, Value::String(words)) => why == words,
            (Err(Error::Template { .. }), _, _) => case.get("fails").is_some(),
            _ => false,
        };
        if !right {
            wrong.push(format!("{case}\n  ours: {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn built_in_formats_write_what_their_makers_publish() {
    let golden = golden("prompts.json");
    for format in FORMATS.iter().filter(|f| f.name != "alpaca") {
        let bos = if format.name == "gemma" { "<bos>" } else { "<s>" };
        let template = Template::by_name(format.name, &tokenizer(bos)).unwrap();
        for (which, conversation) in golden["conversations"].as_object().unwrap() {
            let text = template.render(&messages(conversation), &Render::reply()).unwrap();
            let expected = &golden["formats"][format.name][which]["text"];
            assert_eq!(text, expected.as_str().unwrap(), "{} {which}", format.name);
        }
    }
}

#[test]
fn alpaca_takes_instruction_input_and_response() {
    let golden = &golden("prompts.json")["formats"]["alpaca"];
    let template = Template::by_name("alpaca", &tokenizer("<s>")).unwrap();
    for which in ["instruction", "instruction-input"] {
        let case = &golden[which];
        let mut message = Message::user(case["instruction"].as_str().unwrap());
        message.more.insert("input".to_owned(), case["input"].clone());
        let prompt = template.prompt(&[message], &Render::reply()).unwrap();
        assert_eq!(prompt.text, case["text"].as_str().unwrap());
        assert!(prompt.add_special, "Alpaca's text has no bos of its own");
    }
    let talk = [Message::user("One?"), Message::assistant("Two."), Message::user("Three?")];
    let text = template.render(&talk, &Render::reply()).unwrap();
    assert!(text.ends_with(
        "### Instruction:\nOne?\n\n### Response:\nTwo.</s>\n\n### Instruction:\nThree?\n\n### Response:"
    ));
}

fn from_text(text: &str) -> Template {
    Template::from_text("a test", text, &tokenizer("<s>")).unwrap()
}

fn rendered(text: &str, how: &Render) -> Result<String, Error> {
    from_text(text).render(&[Message::user("Hi")], how)
}

fn source(config: Value) -> lathe_tokens::Source {
    lathe_tokens::Source {
        model: "models/x".to_owned(),
        config: Some(config.to_string().into_bytes().into()),
        ..Default::default()
    }
}

#[test]
fn without_a_template_the_error_lists_the_formats() {
    let error =
        Template::from_source(&source(json!({})), &tokenizer("<s>")).unwrap_err().to_string();
    assert!(error.contains("models/x") && error.contains("--prompt-format"), "{error}");
    for format in FORMATS {
        assert!(error.contains(format.name), "{error}");
    }
    let error = Template::by_name("chatlm", &tokenizer("<s>")).unwrap_err().to_string();
    assert!(error.contains("chatlm") && error.contains("chatml, vicuna"), "{error}");
}

#[test]
fn a_template_file_wins_over_the_one_in_the_config() {
    let mut both = source(json!({"chat_template": "config"}));
    let text = |source: &lathe_tokens::Source| {
        let template = Template::from_source(source, &tokenizer("<s>")).unwrap();
        template.render(&[Message::user("Hi")], &Render::reply()).unwrap()
    };
    assert_eq!(text(&both), "config");
    both.template_json = Some(json!({"chat_template": "json"}).to_string().into_bytes().into());
    assert_eq!(text(&both), "json");
    both.template = Some(b"jinja".to_vec().into());
    assert_eq!(text(&both), "jinja");
}

#[test]
fn of_several_templates_the_one_for_tools_is_for_tools() {
    let named = |name: &str| json!({"name": name, "template": format!("I am {name}")});
    let source =
        source(json!({"chat_template": [named("default"), named("tool_use"), named("rag")]}));
    let template = Template::from_source(&source, &tokenizer("<s>")).unwrap();
    let text = |how: &Render| template.render(&[Message::user("Hi")], how);
    let tools = Render { tools: Some(Vec::new()), ..Render::default() };
    let rag = Render { template: Some("rag".to_owned()), ..tools.clone() };
    assert_eq!(text(&Render::default()).unwrap(), "I am default");
    assert_eq!(text(&tools).unwrap(), "I am tool_use");
    assert_eq!(text(&rag).unwrap(), "I am rag");
    let other = Render { template: Some("poems".to_owned()), ..Render::default() };
    let error = text(&other).unwrap_err().to_string();
    assert!(error.contains("poems") && error.contains("default, tool_use, rag"), "{error}");
}

#[test]
fn the_last_message_can_be_left_open() {
    let template = from_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}",
    );
    let trimming = from_text("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}");
    let dropping = from_text("{{ messages[0].content }}");
    let talk = [Message::user("Count."), Message::assistant("One, two, ")];
    let open = Render { continue_final_message: true, ..Render::default() };
    assert_eq!(template.render(&talk, &open).unwrap(), "<user>Count.</user><assistant>One, two, ");
    assert_eq!(trimming.render(&talk, &open).unwrap(), "<Count.><One, two,");
    assert!(matches!(dropping.render(&talk, &open), Err(Error::Template { .. })));
    let both = Render { add_generation_prompt: true, ..open };
    assert!(matches!(template.render(&talk, &both), Err(Error::Template { .. })));
}

#[test]
fn a_template_with_wrong_syntax_is_refused_with_its_line() {
    let error = Template::from_text("x.jinja", "a\n{% for %}", &tokenizer("<s>")).unwrap_err();
    let words = error.to_string();
    assert!(words.contains("x.jinja") && words.contains("line 2"), "{words}");
}

#[test]
fn a_template_that_never_ends_or_floods_is_stopped() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a + b %}{% endfor %}{% endfor %}";
    let error = rendered(endless, &Render::default()).unwrap_err().to_string();
    assert!(error.contains("does not come to an end"), "{error}");
    let flood = "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}";
    let error = rendered(flood, &Render::default()).unwrap_err().to_string();
    assert!(error.contains("more than"), "{error}");
    let deep = "{% macro a(x) %}{{ a(x) }}{% endmacro %}{{ a(1) }}";
    assert!(matches!(rendered(deep, &Render::default()), Err(Error::Template { .. })));
}

#[test]
fn json_is_written_as_python_writes_it() {
    let cases = [
        (
            "{{ {'b': [], 'a': {}} | tojson(indent=2, sort_keys=true) }}",
            "{\n  \"a\": {},\n  \"b\": []\n}",
        ),
        ("{{ 'é🙂\u{7f}' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83d\\ude42\\u007f\""),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ {1: 1e16, none: true} | tojson }}", "{\"1\": 1e+16, \"null\": true}"),
        ("{{ ['</s>', \"'\"] | tojson }}", "[\"</s>\", \"'\"]"),
    ];
    for (template, text) in cases {
        assert_eq!(rendered(template, &Render::default()).unwrap(), text, "{template}");
    }
    assert!(rendered("{{ nothing | tojson }}", &Render::default()).is_err());
}

#[test]
fn bytes_beyond_text_never_panic_a_template() {
    for text in [
        "{{",
        "{% generation",
        "{% endgeneration %}",
        "{#",
        "{{ ''.join() }}",
        "{{ 1 / 0 }}",
        "{{ 'a'[9] }}",
    ] {
        if let Ok(template) = Template::from_text("a test", text, &tokenizer("<s>")) {
            let _ = template.render(&[Message::user("Hi")], &Render::reply());
        }
    }
}
