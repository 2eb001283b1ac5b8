use std::time::Instant;

use lathe_api::Engine;
use lathe_base::{Seconds, Silent};
use lathe_bench::{Order, answer, measure};
use lathe_optimize::EngineOrder;

use crate::{conformance::Question, exit::Ended, open, peers::PeerOrder};

/// Measures in this process what the parent asks for on stdin, and answers on stdout.
pub(crate) fn run() -> anyhow::Result<Ended> {
    answer(|order: Order| {
        let (engine, load) = start(order.engine)?;
        measure(engine.as_ref(), load, &order.workload, &Silent).map_err(|error| error.to_string())
    })?;
    Ok(Ended::Well)
}

/// Finds out in this process whether an engine computes what Lathe's own does.
pub(crate) fn conform() -> anyhow::Result<Ended> {
    answer(|question: Question| question.answer().map_err(|error| format!("{error:#}")))?;
    Ok(Ended::Well)
}

/// The engine that an order names, and what it took until it was ready.
fn start(order: serde_json::Value) -> Result<(Box<dyn Engine>, Seconds), String> {
    let unread = |error| format!("the engine order is not understood: {error}");
    if order.get("peer").is_some() {
        let peer: PeerOrder = serde_json::from_value(order).map_err(unread)?;
        return peer.start().map_err(|error| format!("{error:#}"));
    }
    let order: EngineOrder = serde_json::from_value(order).map_err(unread)?;
    let start = Instant::now();
    let engine = open::engine(&order).map_err(|error| format!("{error:#}"))?;
    Ok((engine, start.elapsed().into()))
}
