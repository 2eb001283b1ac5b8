use lathe_api::Info;
use lathe_base::{Bytes, Seconds};
use serde::{Deserialize, Serialize};

/// What one fresh process measured: every raw sample, nothing summed up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub info: Info,
    /// From the start of reading the model until the engine was ready; until it answered, where it
    /// was found running.
    pub load: Seconds,
    /// The largest resident set of the engine's process, where the system tells; of all its
    /// processes where it runs in processes of its own; unknown of one that was found running.
    pub peak_memory: Option<Bytes>,
    /// Requests one after another, warm-up left out.
    pub requests: Vec<RequestSample>,
    /// Requests generated together, by number of streams.
    pub batches: Vec<BatchSample>,
}

/// One request, stamped by the harness. Times are since the request was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestSample {
    pub prompt_tokens: usize,
    /// When the prompt was processed, where the engine tells.
    pub prefilled: Option<Seconds>,
    /// When each generated token came.
    pub tokens: Vec<Seconds>,
    /// When the request ended.
    pub end: Seconds,
}

impl RequestSample {
    /// Time to first token.
    pub fn ttft(&self) -> Option<Seconds> {
        self.tokens.first().copied()
    }

    /// Prompt tokens per second up to the first token. Few engines tell when prefill ends, so for
    /// all of them it ends here.
    pub fn prefill_rate(&self) -> Option<f64> {
        let took = self.ttft()?.0;
        (took > 0.0).then(|| self.prompt_tokens as f64 / took)
    }

    /// Tokens per second after the first.
    pub fn decode_rate(&self) -> Option<f64> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        let span = last.0 - first.0;
        (span > 0.0).then(|| (self.tokens.len() - 1) as f64 / span)
    }

    /// The gaps between tokens, in seconds.
    pub fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.tokens.windows(2).map(|pair| pair[1].0 - pair[0].0)
    }
}

/// Several requests generated together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchSample {
    pub streams: usize,
    pub prompt_tokens: usize,
    /// When each token came, by stream; since all requests were sent.
    pub tokens: Vec<Vec<Seconds>>,
    /// When everything ended.
    pub end: Seconds,
}

impl BatchSample {
    /// Tokens per second of all streams together, while all of them decode: from the moment when
    /// the last stream has its first token until the first stream has its last one. `None` where
    /// there is no such time.
    pub fn decode_rate(&self) -> Option<f64> {
        let all = |of: fn(&Vec<Seconds>) -> Option<&Seconds>| -> Option<Vec<f64>> {
            self.tokens.iter().map(|stream| of(stream).map(|at| at.0)).collect()
        };
        let from = all(|stream| stream.first())?.into_iter().reduce(f64::max)?;
        let until = all(|stream| stream.last())?.into_iter().reduce(f64::min)?;
        let within = |at: &&Seconds| at.0 > from && at.0 <= until;
        let count = self.tokens.iter().flatten().filter(within).count();
        (count > 0).then(|| count as f64 / (until - from))
    }

    /// Median time to first token over the streams.
    pub fn ttft(&self) -> Option<Seconds> {
        let firsts: Option<Vec<f64>> =
            self.tokens.iter().map(|stream| stream.first().map(|at| at.0)).collect();
        lathe_stats::median(&firsts?).ok().map(Seconds)
    }

    /// Generated tokens per second of all streams together, prompts included in the time.
    pub fn throughput(&self) -> Option<f64> {
        let generated: usize = self.tokens.iter().map(Vec::len).sum();
        (self.end.0 > 0.0).then(|| generated as f64 / self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_the_stamps() {
        let sample = RequestSample {
            prompt_tokens: 100,
            prefilled: Some(Seconds(0.5)),
            tokens: [0.6, 0.7, 0.8, 1.1].map(Seconds).to_vec(),
            end: Seconds(1.1),
        };
        assert!((sample.prefill_rate().unwrap() - 100.0 / 0.6).abs() < 1e-9);
        assert!((sample.decode_rate().unwrap() - 6.0).abs() < 1e-9);
        let gaps: Vec<f64> = sample.gaps().collect();
        assert!((gaps[2] - 0.3).abs() < 1e-9 && gaps.len() == 3);
    }

    #[test]
    fn a_batch_is_timed_while_all_its_streams_decode() {
        let stream = |from: u32, to: u32| (from..=to).map(|i| Seconds(f64::from(i))).collect();
        // All three decode from 3 to 6: three seconds of three tokens.
        let tokens = vec![stream(1, 6), stream(2, 7), stream(3, 8)];
        let batch = BatchSample { streams: 3, prompt_tokens: 1, tokens, end: Seconds(9.0) };
        assert_eq!(batch.decode_rate(), Some(3.0));
        assert_eq!(batch.ttft(), Some(Seconds(2.0)));
        assert_eq!(batch.throughput(), Some(2.0));
        let in_turn = BatchSample { tokens: vec![stream(1, 3), stream(4, 6)], ..batch.clone() };
        assert_eq!(in_turn.decode_rate(), None);
        assert_eq!(BatchSample { tokens: vec![stream(1, 3), vec![]], ..batch }.ttft(), None);
    }

    #[test]
    fn a_single_token_has_no_decode_rate() {
        let sample = RequestSample {
            prompt_tokens: 1,
            prefilled: None,
            tokens: vec![Seconds(0.25)],
            end: Seconds(0.25),
        };
        assert_eq!(sample.decode_rate(), None);
        assert_eq!(sample.prefill_rate(), Some(4.0));
    }
}
