//! What was found, for people.

use lathe_report::Agreement;

use super::Verified;
use crate::{conformance::ALL, ui};

pub(super) fn text(found: &Verified) -> String {
    let mut header = vec!["engine"];
    header.extend(ALL.iter().map(|(what, _)| *what));
    let rows: Vec<Vec<String>> = found
        .engines
        .iter()
        .map(|asked| {
            let cells = ALL.iter().map(|(what, _)| {
                let check = asked.found.checks.iter().find(|check| check.what == *what);
                match check.map(|check| check.outcome) {
                    Some(Agreement::Same) => ui::green("same"),
                    Some(Agreement::Deviates) => ui::red("deviates"),
                    Some(Agreement::Unasked) => ui::dim("not asked"),
                    None => ui::red("failed"),
                }
            });
            std::iter::once(asked.engine.clone()).chain(cells).collect()
        })
        .collect();
    let mut text = format!("{}\n{}", ui::bold(&found.model), ui::table(&header, &rows));
    for asked in &found.engines {
        let version = asked.found.version.as_deref().map(|version| format!(", {version}"));
        text += &format!("\n{}{}\n", ui::bold(&asked.engine), version.unwrap_or_default());
        if let Some(why) = &asked.found.failed {
            text += &format!("  {why}\n");
        }
        for check in &asked.found.checks {
            text += &format!("  {:9} {}\n", check.what, check.words);
        }
    }
    for (name, why) in &found.left_out {
        text += &format!("\n{} is left out: {why}\n", ui::bold(name));
    }
    let noise = &found.noise;
    text += &ui::dim(&format!(
        "\nAgainst {}.\nNoise: KL {:.1e} nats with Lathe's usual arithmetic, {:.1e} in bfloat16; \
         deviating is\nmore than {:.1e}.\n",
        found.reference,
        noise.fast,
        noise.bf16,
        noise.limit()
    ));
    text
}
