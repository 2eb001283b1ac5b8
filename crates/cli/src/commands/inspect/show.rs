use lathe_base::Bytes;

use super::{ExpertFacts, Inspection, MemoryTable, SpecFacts, TokenizerFacts};
use crate::ui;

/// The inspection for people.
pub(super) fn text(seen: &Inspection, template: bool) -> String {
    let mut text = ui::facts(&facts(seen));
    text += "\n";
    text += &ui::table(&["stored as", ">weights", ">bytes", ""], &formats(seen));
    if let Some(memory) = &seen.memory {
        text += "\n";
        text += &memory_table(memory);
    }
    if let Some(tensors) = &seen.tensors {
        let rows: Vec<Vec<String>> = tensors
            .iter()
            .map(|t| {
                vec![t.name.clone(), shape(&t.shape), t.format.clone(), Bytes(t.bytes).to_string()]
            })
            .collect();
        text += "\n";
        text += &ui::table(&["tensor", "shape", "format", ">bytes"], &rows);
    }
    if let Some(own) = seen.template.as_ref().filter(|_| template) {
        text += &format!("\n{}\n{}\n", ui::dim("Chat template"), own.text);
    }
    for warning in &seen.warnings {
        text += &format!("{} {warning}\n", ui::yellow("warning:"));
    }
    text
}

fn facts(seen: &Inspection) -> Vec<(String, String)> {
    let mut facts = vec![
        ("Model", seen.model.clone()),
        ("Architecture", seen.architecture.clone()),
        ("Container", format!("{}, {}", seen.container, Bytes(seen.stored_bytes))),
    ];
    if let Some(spec) = &seen.spec {
        facts.extend(spec_facts(spec));
    }
    facts.push((
        "Tokenizer",
        seen.tokenizer.as_ref().map_or_else(|| "none".to_owned(), tokenizer_words),
    ));
    facts.push((
        "Chat template",
        match &seen.template {
            Some(template) => format!("the model's own ({})", template.origin),
            None => "none: needs --prompt-format".to_owned(),
        },
    ));
    facts.into_iter().map(|(label, value)| (label.to_owned(), value)).collect()
}

fn spec_facts(spec: &SpecFacts) -> Vec<(&'static str, String)> {
    let head = if spec.tied_head { "shared with the embedding" } else { "a matrix of its own" };
    let mut facts = vec![
        ("Parameters", count(spec.parameters)),
        ("Context", format!("{} tokens", spec.context)),
        ("Layers", format!("{}, width {}", spec.layers, spec.width)),
        (
            "Attention",
            format!(
                "{} heads of {}, {} for keys and values",
                spec.heads, spec.head_dim, spec.kv_heads
            ),
        ),
        ("Feed-forward", feed_forward(spec)),
        ("Vocabulary", format!("{}, output head {head}", spec.vocab)),
        ("Rope", spec.rope.join("; ")),
    ];
    if let Some(window) = &spec.window {
        facts.push(("Sliding window", window.clone()));
    }
    if !spec.extras.is_empty() {
        facts.push(("Also", spec.extras.join(", ")));
    }
    facts
}

fn tokenizer_words(tokenizer: &TokenizerFacts) -> String {
    let special: Vec<String> =
        tokenizer.special.iter().map(|(role, id, text)| format!("{role} {text} ({id})")).collect();
    let stops: Vec<String> = tokenizer.stop_tokens.iter().map(u32::to_string).collect();
    let mut words = format!("{}, {} tokens", tokenizer.kind, tokenizer.vocab);
    if !special.is_empty() {
        words += &format!(", {}", special.join(", "));
    }
    if !stops.is_empty() {
        words += &format!(", ends at {}", stops.join(", "));
    }
    words
}

fn formats(seen: &Inspection) -> Vec<Vec<String>> {
    seen.formats
        .iter()
        .map(|f| {
            let runs = if f.runs { String::new() } else { ui::yellow("cannot be run yet") };
            vec![f.format.clone(), f.weights.to_string(), Bytes(f.bytes).to_string(), runs]
        })
        .collect()
}

fn feed_forward(spec: &SpecFacts) -> String {
    let (width, act) = (spec.feed_forward, spec.activation);
    let Some(experts) = &spec.experts else { return format!("width {width}, gated {act}") };
    let ExpertFacts { count: number, active, layers, .. } = experts;
    let mut text = format!("{number} experts of width {width}, gated {act}, {active} per token");
    if let Some(shared) = experts.shared_feed_forward {
        text += &format!("; one of width {shared} for all tokens");
    }
    if *layers < spec.layers {
        text += &format!("; in {layers} of {} layers", spec.layers);
    }
    let parameters = count(experts.active_parameters);
    text + &format!("; {parameters} parameters active")
}

fn memory_table(memory: &MemoryTable) -> String {
    let (kv, activations) = (Bytes(memory.kv_bytes), Bytes(memory.activation_bytes));
    let rows: Vec<Vec<String>> = memory
        .rows
        .iter()
        .map(|row| {
            vec![
                row.format.clone(),
                format!("{:.2}", row.bits_per_weight),
                Bytes(row.weight_bytes).to_string(),
                kv.to_string(),
                activations.to_string(),
                Bytes(row.total_bytes).to_string(),
            ]
        })
        .collect();
    let streams = if memory.batch == 1 { "sequence" } else { "sequences" };
    let title = format!(
        "Memory for {} {streams} of {} tokens, KV cache in {}",
        memory.batch, memory.context, memory.kv
    );
    let header = ["format", ">bits/weight", ">weights", ">KV cache", ">activations", ">total"];
    format!("{}\n{}", ui::dim(&title), ui::table(&header, &rows))
}

fn shape(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}

/// `1.54 billion (1543714304)`.
pub(crate) fn count(n: u64) -> String {
    let (scale, word) = match n {
        0..1_000_000 => return n.to_string(),
        1_000_000..1_000_000_000 => (1e6, "million"),
        _ => (1e9, "billion"),
    };
    format!("{:.2} {word} ({n})", n as f64 / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_said_in_words() {
        assert_eq!(count(53_808), "53808");
        assert_eq!(count(4_200_000), "4.20 million (4200000)");
        assert_eq!(count(1_543_714_304), "1.54 billion (1543714304)");
    }
}
