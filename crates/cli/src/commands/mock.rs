use std::{io, net::TcpListener, sync::Arc, thread};

use anyhow::Context;
use clap::Args;
use lathe_adapters::mock::{Distribution, Mock, Options, serve};
use lathe_base::Seconds;

use crate::{exit::Ended, ui};

/// Options of `lathe mock`.
#[derive(Args)]
pub(crate) struct MockArgs {
    /// Time before the first token, but for its own
    #[arg(long, value_name = "TIME")]
    start: Seconds,
    /// Time of each token
    #[arg(long, value_name = "TIME")]
    decode: Seconds,
    /// Listen here; 0 takes a free port
    #[arg(long, value_name = "PORT", default_value = "0")]
    port: u16,
}

/// Serves the mock engine, whose address it prints, until stdin ends.
pub(crate) fn run(args: &MockArgs) -> anyhow::Result<Ended> {
    let mock = Mock::new(Options {
        start: args.start,
        decode: args.decode,
        context: usize::MAX / 2,
        // Nobody looks at what it says, which is to cost nothing.
        distribution: Distribution::Uniform,
        vocab: 8,
        sleepy: true,
        ..Options::default()
    })?;
    let listener = TcpListener::bind(("127.0.0.1", args.port))
        .with_context(|| format!("--port {}: cannot listen there", args.port))?;
    ui::out(&format!("http://{}\n", listener.local_addr()?))?;
    thread::spawn(|| {
        // Nothing is ever sent: the end of the pipe means that the parent is gone.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    });
    serve(&Arc::new(mock), &listener)?;
    Ok(Ended::Well)
}
