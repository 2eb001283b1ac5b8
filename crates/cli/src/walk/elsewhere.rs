//! What a run asks of engines other than Lathe's own.

use std::{fs, path::Path, time::Instant};

use anyhow::Context;
use lathe_base::{AtomicFile, Progress, Seconds, Silent};
use lathe_optimize::{
    Candidate, EngineFacts, EngineOrder, Made, NATIVE, Precision, Start, size_of,
};
use lathe_preflight::Artifact;

use super::shop::Shop;
use crate::{
    conformance::{Question, TOKENS, room},
    graphs, loading, open,
    peers::{Peer, PeerOrder, Served, avoided},
};

/// What an engine may be silent for: the trial's own limit is what ends it.
const PATIENCE: Seconds = Seconds(3600.0);

impl Shop {
    /// Engines beside Lathe's own, as they were found.
    pub(crate) fn engines(&self) -> Vec<EngineFacts> {
        let facts = |peer: &Peer| {
            let (place, version) = peer.place();
            EngineFacts { name: peer.name.clone(), place, version, own_kv: !peer.chooses_kv() }
        };
        self.peers.iter().map(facts).collect()
    }

    /// Whether there is anything to try: another KV cache only where the engine lets it be chosen.
    pub(crate) fn suits(&self, peer: &Peer, candidate: &Candidate) -> bool {
        candidate.kv == self.settings.kv || peer.chooses_kv()
    }

    /// Why an engine will not run a candidate, as far as is known before its files are made.
    pub(crate) fn refusal(&self, peer: &Peer, candidate: &Candidate) -> Option<String> {
        if !peer.reads_files() {
            return (candidate.weights.is_some() || candidate.files() != candidate.id).then(|| {
                "a server that runs already has its own model: it is asked for the model as it came"
                    .to_owned()
            });
        }
        let artifact = match self.artifact(candidate) {
            Ok(artifact) => artifact,
            Err(why) => return Some(format!("{why:#}")),
        };
        peer.refuses(&artifact).or_else(|| peer.refuses_kv(&candidate.kv))
    }

    /// The files of a candidate, described for preflight.
    fn artifact(&self, candidate: &Candidate) -> anyhow::Result<Artifact> {
        let Some(coding) = &candidate.weights else {
            return Ok(loading::stored(&self.model, &self.checkpoint));
        };
        self.planned(coding, |weights, (plan, _)| {
            Ok(loading::planned(weights.model(), &self.checkpoint, plan))
        })
    }

    fn peer(&self, name: &str) -> anyhow::Result<&Peer> {
        let found = self.peers.iter().find(|peer| peer.name == name);
        found.with_context(|| format!("there is no engine `{name}` in this run"))
    }

    /// A folder for the built-in model, which has no files; a graph for ONNX Runtime.
    pub(super) fn adapted(
        &self,
        order: &EngineOrder,
        made: &Made,
        out: &Path,
        progress: &dyn Progress,
    ) -> anyhow::Result<Option<Made>> {
        let peer = self.peer(&order.engine)?;
        let start = Instant::now();
        let mut own = None;
        if peer.reads_files() && open::is_demo(&order.model.to_string_lossy()) {
            let folder = out.with_file_name(lathe_demo::NAME);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            for (name, bytes) in lathe_demo::files() {
                let path = folder.join(name);
                AtomicFile::write_all(&path, bytes).with_context(|| path.display().to_string())?;
            }
            own = Some(Made { path: folder, ..made.clone() });
        }
        let model = own.as_ref().map_or(&order.model, |made| &made.path);
        if let Some(options) = peer.graph() {
            graphs::graph(model, options?, order.context, out, progress)?;
            let size = size_of(out)?;
            let parameters = self.spec().parameters().max(1) as f64;
            let written =
                format!("written from the same files: lathe convert {} --to onnx", model.display());
            own = Some(Made {
                path: out.to_owned(),
                size,
                bits_per_weight: size.0 as f64 * 8.0 / parameters,
                seconds: start.elapsed().into(),
                notes: [made.notes.clone(), vec![written]].concat(),
            });
        }
        Ok(own)
    }

    pub(super) fn started(&self, order: &EngineOrder) -> anyhow::Result<Start> {
        if order.engine == NATIVE {
            return Ok(Start { order: serde_json::to_value(order)?, command: None });
        }
        let peer = self.order_for(order, order.context)?;
        Ok(Start { command: peer.command(), order: serde_json::to_value(peer)? })
    }

    pub(super) fn asked(
        &self,
        order: &EngineOrder,
        files: &Path,
    ) -> anyhow::Result<serde_json::Value> {
        let context = room(TOKENS).min(order.context);
        let question = Question {
            files: files.to_owned(),
            order: EngineOrder {
                engine: NATIVE.to_owned(),
                model: files.to_owned(),
                context,
                batch: 1,
                precision: Precision::Fast,
                ..order.clone()
            },
            name: order.engine.clone(),
            engine: self.order_for(&EngineOrder { batch: 1, ..order.clone() }, context)?,
        };
        Ok(serde_json::to_value(question)?)
    }

    fn order_for(&self, order: &EngineOrder, context: usize) -> anyhow::Result<PeerOrder> {
        let kv = open::kv(&order.kv)?;
        // What takes long was made when the files were adapted.
        self.peer(&order.engine)?.order(
            &Served {
                model: &order.model,
                threads: order.threads,
                context,
                streams: order.batch,
                kv: &order.kv,
                kv_bytes: self.spec().cache_bytes(context, order.batch, kv).0,
                vocab: self.vocab(),
                avoid: &avoided(&self.tokenizer),
                patience: PATIENCE,
            },
            &Silent,
        )
    }
}
