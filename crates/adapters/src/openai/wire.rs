use lathe_api::{Finish, Request};
use serde_json::{Map, Value, json};

/// The body of a request to `/v1/completions`.
pub(super) fn body(model: &str, request: &Request) -> Value {
    let sampling = &request.sampling;
    let bias: Map<String, Value> = sampling
        .logit_bias
        .iter()
        // The interface's own way to ban a token.
        .map(|(id, value)| (id.to_string(), json!(value.clamp(-100.0, 100.0))))
        .collect();
    let mut body = json!({
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed & 0xffff_ffff,
        "stream": true,
        "stream_options": {"include_usage": true},
        "return_token_ids": true,
        "ignore_eos": request.ignore_stop,
    });
    if request.ignore_stop {
        body["min_tokens"] = request.max_tokens.into();
    }
    if !bias.is_empty() {
        body["logit_bias"] = Value::Object(bias);
    }
    if !request.stop_strings.is_empty() {
        body["stop"] = json!(request.stop_strings);
    }
    // Names that not every server takes are sent where they say something only.
    for (name, value, neutral) in [
        ("top_k", sampling.top_k as f32, 0.0),
        ("min_p", sampling.min_p, 0.0),
        ("repetition_penalty", sampling.repetition_penalty, 1.0),
    ] {
        if value != neutral {
            body[name] = if name == "top_k" { json!(sampling.top_k) } else { json!(value) };
        }
    }
    body
}

/// What one event of the stream says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Update {
    pub(super) text: String,
    /// The ids of the tokens that came, where the server tells.
    pub(super) ids: Option<Vec<u32>>,
    /// All tokens of the request, told at its end.
    pub(super) count: Option<usize>,
    pub(super) finish: Option<Finish>,
}

impl Update {
    /// Reads an event; an error says why it is none, or what went wrong.
    pub(super) fn read(data: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(data)
            .map_err(|error| format!("it sent an event that is no JSON ({error}): {data:.200}"))?;
        if value.get("error").is_some_and(|error| !error.is_null()) {
            return Err(crate::http::message(&value).unwrap_or(data.to_owned()));
        }
        let choice = &value["choices"][0];
        let ids = choice["token_ids"].as_array().map(|ids| {
            let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
            ids.iter().filter_map(id).collect()
        });
        Ok(Self {
            text: choice["text"].as_str().unwrap_or_default().to_owned(),
            ids,
            count: value["usage"]["completion_tokens"].as_u64().map(|count| count as usize),
            finish: match choice["finish_reason"].as_str() {
                None => None,
                Some("length") => Some(Finish::Length),
                Some(_) => Some(Finish::Stop),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use lathe_api::Sampling;

    use super::*;

    #[test]
    fn a_request_says_only_what_every_server_takes_unless_more_is_meant() {
        let request = Request {
            prompt: vec![3],
            max_tokens: 7,
            sampling: Sampling::default(),
            stop_tokens: vec![],
            stop_strings: vec![],
            ignore_stop: true,
            grammar: None,
        };
        let body = body("m", &request);
        assert_eq!((&body["min_tokens"], &body["ignore_eos"]), (&json!(7), &json!(true)));
        assert!(body.get("top_k").is_none() && body.get("logit_bias").is_none());
        let sampling =
            Sampling { top_k: 4, logit_bias: vec![(9, f32::NEG_INFINITY)], ..Sampling::default() };
        let body = super::body("m", &Request { sampling, ignore_stop: false, ..request });
        assert_eq!((&body["top_k"], &body["logit_bias"]), (&json!(4), &json!({"9": -100.0})));
        assert!(body.get("min_tokens").is_none());
    }

    #[test]
    fn events_with_and_without_ids_are_read() {
        let seen = Update::read(r#"{"choices":[{"text":"a","token_ids":[5,6]}]}"#).unwrap();
        assert_eq!(seen.ids, Some(vec![5, 6]));
        let seen = Update::read(r#"{"choices":[{"text":"a","finish_reason":"length"}]}"#).unwrap();
        assert_eq!((seen.ids, seen.finish), (None, Some(Finish::Length)));
        let seen = Update::read(r#"{"choices":[],"usage":{"completion_tokens":9}}"#).unwrap();
        assert_eq!((seen.count, seen.text.as_str()), (Some(9), ""));
        let wrong = Update::read(r#"{"error":{"message":"out of memory"}}"#);
        assert_eq!(wrong, Err("out of memory".to_owned()));
        assert!(Update::read("{").is_err());
    }
}
