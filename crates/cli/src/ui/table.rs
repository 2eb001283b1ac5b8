use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// A table with a header. Columns whose header starts with `>` are aligned to the right.
///
/// Fits the terminal's width; without a terminal, lines are as long as they need to be.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let right: Vec<bool> = header.iter().map(|name| name.starts_with('>')).collect();
    let align = |index: usize, text: &str| {
        let side = if right.get(index) == Some(&true) {
            CellAlignment::Right
        } else {
            CellAlignment::Left
        };
        Cell::new(text).set_alignment(side)
    };
    table.set_header(
        header.iter().enumerate().map(|(i, name)| align(i, name.trim_start_matches('>'))),
    );
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(i, text)| align(i, text)));
    }
    trim_lines(&table.to_string())
}

/// Labels and values below each other.
pub(crate) fn facts(facts: &[(String, String)]) -> String {
    let width = facts.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    facts
        .iter()
        .map(|(label, value)| {
            let gap = " ".repeat(width - label.chars().count() + 2);
            format!("{}{gap}{value}\n", super::dim(label))
        })
        .collect()
}

fn trim_lines(text: &str) -> String {
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
