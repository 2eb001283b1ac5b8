//! `docs/cli.md` is what `--help` says: written from the same definitions, and held against them.

use std::{env, fmt::Write, fs, path::Path};

use clap::{Arg, Command, CommandFactory};

use crate::args::Cli;

const HEAD: &str = "\
# The command line

This page is written from the program's own definitions; `LATHE_BLESS=1 cargo test -p lathe
reference` writes it anew.
";

#[test]
fn the_reference_on_paper_is_the_one_in_the_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = page();
    if env::var_os("LATHE_BLESS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(
        committed == page,
        "docs/cli.md is out of date: LATHE_BLESS=1 cargo test -p lathe reference"
    );
}

fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let mut page = HEAD.to_owned();
    // The options of every command are told once.
    let everywhere: Vec<String> = root
        .get_arguments()
        .filter(|a| a.is_global_set())
        .map(|a| a.get_id().to_string())
        .collect();
    page += &section(&root, &[]);
    for command in root.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        page += &section(command, &everywhere);
    }
    page
}

fn section(command: &Command, told: &[String]) -> String {
    let name = command.get_display_name().unwrap_or(command.get_name()).replace('-', " ");
    let mut text = format!("\n## {name}\n\n");
    if let Some(about) = command.get_about() {
        let _ = writeln!(text, "{about}\n");
    }
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(text, "```text\n{}\n```", usage.trim_start_matches("Usage: "));
    let mut heading = None;
    for arg in command.get_arguments().filter(|a| is_shown(a, told)) {
        let group = arg.get_help_heading().unwrap_or(match arg.is_positional() {
            true => "Arguments",
            false => "Options",
        });
        if heading != Some(group) {
            heading = Some(group);
            let _ = writeln!(text, "\n{group}\n");
        }
        text += &line(arg);
    }
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(text, "\n```text\n{}\n```", after.to_string().trim_end());
    }
    text
}

fn is_shown(arg: &Arg, told: &[String]) -> bool {
    let id = arg.get_id().as_str();
    !arg.is_hide_set() && !["help", "version"].contains(&id) && !told.iter().any(|t| t == id)
}

fn line(arg: &Arg) -> String {
    let mut names = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let takes_value = arg.get_action().takes_values();
    let value = arg
        .get_value_names()
        .filter(|_| takes_value)
        .map(|names| names.iter().map(|n| format!("<{n}>")).collect::<Vec<_>>().join(" "))
        .unwrap_or_default();
    let shown = match (names.is_empty(), value.is_empty()) {
        (true, _) => value,
        (false, true) => names.join(", "),
        (false, false) => format!("{} {value}", names.join(", ")),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    let mut line = format!("- `{shown}`: {help}");
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    if takes_value && !defaults.is_empty() {
        let _ = write!(line, " [default: {}]", defaults.join(", "));
    }
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| takes_value)
        .map(|v| v.get_name().to_owned())
        .collect();
    if !values.is_empty() {
        let _ = write!(line, " [values: {}]", values.join(", "));
    }
    line + "\n"
}

#[test]
fn every_format_is_named_where_it_can_be_asked_for() {
    let mut root = Cli::command();
    let mut help =
        |command: &str| root.find_subcommand_mut(command).unwrap().render_long_help().to_string();
    let quantize = help("quantize");
    for family in lathe_formats::families() {
        let named = |at: (usize, _)| {
            let rest = &quantize[at.0 + family.len()..];
            !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        };
        assert!(quantize.match_indices(family).any(named), "{family}");
    }
    let mut names = |command: &str| -> Vec<String> {
        help(command)
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .map(str::to_owned)
            .collect()
    };
    for command in ["chat", "prompt"] {
        let words = names(command);
        for format in lathe_tokens::FORMATS {
            assert!(words.iter().any(|word| word == format.name), "{command}: {}", format.name);
        }
    }
}
