use lathe_api::{Error, Event, Finish, Flow, Request, UNKNOWN_TOKEN, Usage};

use super::{
    LlamaCpp, failed,
    wire::{Update, body},
};

/// One request from start to end.
pub(super) fn one(
    engine: &LlamaCpp,
    request: &Request,
    on: &mut dyn FnMut(Event<'_>) -> Flow,
) -> Result<Usage, Error> {
    crate::check(&engine.info, request)?;
    let name = &engine.info.engine;
    // Where the connection broke because the process is gone, that is what has to be told.
    let explained = |error: Error| match (error, engine.server.ended_soon()) {
        (Error::Failed { .. }, Some(ended)) => failed(name, ended),
        (error, _) => error,
    };
    let mut stream =
        engine.client.stream("/completion", &body(request, &engine.avoid)).map_err(explained)?;
    let mut tokens = Tokens { request, seen: 0, on };
    loop {
        let Some(event) = stream.next().map_err(explained)? else {
            let (seen, asked) = (tokens.seen, request.max_tokens);
            let why = format!("its answer broke off after {seen} of {asked} tokens");
            return Err(explained(failed(name, why)));
        };
        if event.data == "[DONE]" {
            continue;
        }
        let update = Update::read(&event.kind, &event.data).map_err(|why| failed(name, why))?;
        let ended = match update {
            Update::Token { count, id, text } => tokens.add(count, id, &text),
            Update::End { count, finish } => tokens.rest(count).or(Some(finish)),
            Update::Failed(why) => return Err(failed(name, why)),
        };
        if let Some(finish) = ended {
            let (prompt_tokens, generated_tokens) = (request.prompt.len(), tokens.seen);
            return Ok(Usage { prompt_tokens, generated_tokens, finish });
        }
    }
}

/// The tokens of a request as they are told.
struct Tokens<'a, 'b> {
    request: &'a Request,
    seen: usize,
    on: &'b mut dyn FnMut(Event<'_>) -> Flow,
}

impl Tokens<'_, '_> {
    /// One more event with a token. A server that counts may have kept tokens back that are no
    /// whole characters: they are told with the one that made them whole.
    fn add(&mut self, count: Option<usize>, id: Option<u32>, text: &str) -> Option<Finish> {
        if !self.request.ignore_stop && id.is_some_and(|id| self.request.stop_tokens.contains(&id))
        {
            return Some(Finish::Stop);
        }
        let kept = count.map_or(0, |count| count.saturating_sub(self.seen + 1));
        for _ in 0..kept {
            if self.tell(UNKNOWN_TOKEN, "") == Flow::Stop {
                return Some(Finish::Cancelled);
            }
        }
        let flow = self.tell(id.unwrap_or(UNKNOWN_TOKEN), text);
        (flow == Flow::Stop).then_some(Finish::Cancelled)
    }

    /// What was kept back until the end.
    fn rest(&mut self, count: Option<usize>) -> Option<Finish> {
        while count.is_some_and(|count| self.seen < count) && self.request.ignore_stop {
            if self.tell(UNKNOWN_TOKEN, "") == Flow::Stop {
                return Some(Finish::Cancelled);
            }
        }
        None
    }

    fn tell(&mut self, id: u32, text: &str) -> Flow {
        self.seen += 1;
        (self.on)(Event::Token { id, text })
    }
}
