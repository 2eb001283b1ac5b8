use lathe_api::{Finish, Request};
use serde_json::{Value, json};

/// The body of a request to `/completion`.
///
/// Everything that a server has a default for is said, so that its defaults do not count.
pub(super) fn body(request: &Request, avoid: &[u32]) -> Value {
    let sampling = &request.sampling;
    let greedy = sampling.temperature == 0.0;
    let penalties = sampling.repetition_penalty != 1.0
        || sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0;
    let mut samplers = Vec::new();
    if penalties {
        samplers.push("penalties");
    }
    // The likeliest token is the best one; any further sampler would only sort for nothing.
    match greedy {
        true => samplers.push("top_k"),
        false => samplers.extend(["temperature", "top_k", "top_p", "min_p"]),
    }
    let mut bias: Vec<Value> =
        sampling.logit_bias.iter().map(|(id, value)| biased(*id, *value)).collect();
    if request.ignore_stop {
        bias.extend(avoid.iter().map(|id| json!([id, false])));
    }
    json!({
        "prompt": request.prompt,
        "n_predict": request.max_tokens,
        "stream": true,
        "return_tokens": true,
        "cache_prompt": false,
        "ignore_eos": request.ignore_stop,
        "stop": request.stop_strings,
        "samplers": samplers,
        "temperature": sampling.temperature,
        "top_k": if greedy { 1 } else { sampling.top_k },
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": 1.0,
        "tfs_z": 1.0,
        "mirostat": 0,
        "dry_multiplier": 0.0,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": if penalties { -1 } else { 0 },
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": bias,
        "n_keep": 0,
        "n_probs": 0,
        // Servers take 32 bits.
        "seed": sampling.seed & 0xffff_ffff,
    })
}

/// JSON has no infinity; `false` bans a token.
fn biased(id: u32, value: f32) -> Value {
    if value == f32::NEG_INFINITY { json!([id, false]) } else { json!([id, value]) }
}

/// What one event of the stream says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Update {
    /// A token came. `count` is how many came so far, and `id` which, where the server tells.
    Token { count: Option<usize>, id: Option<u32>, text: String },
    /// The request ended.
    End { count: Option<usize>, finish: Finish },
    /// The request failed.
    Failed(String),
}

impl Update {
    /// Reads an event; an error says why it is none.
    pub(super) fn read(kind: &str, data: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(data)
            .map_err(|error| format!("it sent an event that is no JSON ({error}): {data:.200}"))?;
        if kind == "error" || value.get("error").is_some() {
            return Ok(Self::Failed(crate::http::message(&value).unwrap_or(data.to_owned())));
        }
        if !value.is_object() {
            return Err(format!("it sent an event that is no object: {data:.200}"));
        }
        let count = value["tokens_predicted"].as_u64().map(|count| count as usize);
        if value["stop"].as_bool() != Some(true) {
            let id = value["tokens"][0].as_u64().and_then(|id| u32::try_from(id).ok());
            let text = value["content"].as_str().unwrap_or_default().to_owned();
            return Ok(Self::Token { count, id, text });
        }
        let said = |key: &str| value[key].as_bool() == Some(true);
        let stopped = matches!(value["stop_type"].as_str(), Some("eos" | "word"))
            || said("stopped_eos")
            || said("stopped_word");
        Ok(Self::End { count, finish: if stopped { Finish::Stop } else { Finish::Length } })
    }
}

#[cfg(test)]
mod tests {
    use lathe_api::Sampling;

    use super::*;

    fn request() -> Request {
        Request {
            prompt: vec![3, 4],
            max_tokens: 7,
            sampling: Sampling::default(),
            stop_tokens: vec![],
            stop_strings: vec![],
            ignore_stop: true,
            grammar: None,
        }
    }

    #[test]
    fn a_greedy_request_asks_for_the_likeliest_token_and_for_nothing_cached() {
        let body = body(&request(), &[9]);
        assert_eq!(body["prompt"], json!([3, 4]));
        assert_eq!(body["n_predict"], 7);
        assert_eq!((&body["samplers"], &body["top_k"]), (&json!(["top_k"]), &json!(1)));
        assert_eq!(body["logit_bias"], json!([[9, false]]));
        assert_eq!((&body["cache_prompt"], &body["ignore_eos"]), (&json!(false), &json!(true)));
    }

    #[test]
    fn sampling_is_passed_on_and_nothing_is_avoided_in_a_text_that_may_end() {
        let sampling = Sampling {
            temperature: 0.5,
            top_k: 40,
            repetition_penalty: 1.5,
            logit_bias: vec![(1, f32::NEG_INFINITY), (2, 0.5)],
            seed: (1 << 40) + 5,
            ..Sampling::default()
        };
        let body = body(&Request { sampling, ignore_stop: false, ..request() }, &[9]);
        assert_eq!(
            body["samplers"],
            json!(["penalties", "temperature", "top_k", "top_p", "min_p"])
        );
        assert_eq!(body["logit_bias"], json!([[1, false], [2, 0.5]]));
        assert_eq!((&body["top_k"], &body["seed"]), (&json!(40), &json!(5)));
        assert_eq!(body["repeat_last_n"], -1);
    }

    #[test]
    fn events_of_newer_and_older_servers_are_read() {
        let newer = r#"{"index":0,"content":" a","tokens":[79],"stop":false,"tokens_predicted":4}"#;
        let token = Update::Token { count: Some(4), id: Some(79), text: " a".into() };
        assert_eq!(Update::read("", newer), Ok(token));
        let older = r#"{"content":" a","stop":false,"id_slot":0,"multimodal":false}"#;
        let token = Update::Token { count: None, id: None, text: " a".into() };
        assert_eq!(Update::read("", older), Ok(token));
        for (text, finish) in [
            (r#"{"stop":true,"tokens_predicted":5,"stop_type":"limit"}"#, Finish::Length),
            (r#"{"stop":true,"tokens_predicted":5,"stop_type":"eos"}"#, Finish::Stop),
            (r#"{"stop":true,"tokens_predicted":5,"stopped_limit":true}"#, Finish::Length),
            (r#"{"stop":true,"tokens_predicted":5,"stopped_word":true}"#, Finish::Stop),
        ] {
            assert_eq!(Update::read("", text), Ok(Update::End { count: Some(5), finish }));
        }
        let error = r#"{"error":{"code":500,"message":"Compute error."}}"#;
        assert_eq!(Update::read("", error), Ok(Update::Failed("Compute error.".into())));
        let bare = r#"{"code":500,"message":"Compute error."}"#;
        assert_eq!(Update::read("error", bare), Ok(Update::Failed("Compute error.".into())));
        assert!(Update::read("", "{\"content\":").is_err() && Update::read("", "3").is_err());
    }
}
