//! Vector code in a closure is compiled without the instruction set, and each of its instructions
//! becomes a call: the same results, several times slower. No test of results can see that, but the
//! program's symbols show it.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use object::{Object, ObjectSymbol};

/// What other crates call on their own account.
const OTHERS: [&str; 2] = ["_mm256_loadu_si256", "_xgetbv"];

#[test]
fn no_vector_instruction_has_become_a_function() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_lathe")).unwrap();
    let symbols = object::File::parse(&*program).unwrap();
    let names: Vec<&str> = symbols.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    assert!(names.iter().any(|name| name.contains("lathe_kernels")), "the symbols are stripped");
    let arch = if cfg!(target_arch = "x86_64") { "_mm" } else { "neon" };
    let called = |name: &&&str| {
        // Mangled names have each part's length before it: only functions named so, no types.
        name.contains("core_arch") && name.contains(arch) && !name.contains("drop_in_place")
    };
    let known = |name: &&&str| OTHERS.iter().any(|other| name.contains(other));
    let ours: Vec<_> = names.iter().filter(called).filter(|name| !known(name)).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}
