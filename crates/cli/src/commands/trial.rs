use std::time::Instant;

use lathe_base::Silent;
use lathe_bench::{Order, answer};
use lathe_optimize::EngineOrder;

use crate::{exit::Ended, open, peers::PeerOrder};

/// Measures in this process what the parent asks for on stdin, and answers on stdout.
pub(crate) fn run() -> anyhow::Result<Ended> {
    let make = |order: &Order| {
        let unread = |error| format!("the engine order is not understood: {error}");
        if order.engine.get("peer").is_some() {
            let peer: PeerOrder = serde_json::from_value(order.engine.clone()).map_err(unread)?;
            return peer.start().map_err(|error| format!("{error:#}"));
        }
        let order: EngineOrder = serde_json::from_value(order.engine.clone()).map_err(unread)?;
        let start = Instant::now();
        let engine = open::engine(&order).map_err(|error| format!("{error:#}"))?;
        Ok((engine, start.elapsed().into()))
    };
    answer(make, &Silent)?;
    Ok(Ended::Well)
}
