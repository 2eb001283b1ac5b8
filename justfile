# The everyday commands; `just` lists them.

default:
    @just --list

# Everything that must hold before a commit
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# The main job on the built-in demo model
demo:
    cargo run --release -- optimize

# Kernel benchmarks against the machine's own limits
bench:
    cargo bench -p lathe-kernels

# What each quantizer, transform and pruning takes; a name narrows it: just bench-quantizers gptq
bench-quantizers *name:
    cargo bench -p lathe-quantizers -- {{name}}

# Licences, advisories and duplicates of dependencies (needs cargo-deny)
deny:
    cargo deny check
