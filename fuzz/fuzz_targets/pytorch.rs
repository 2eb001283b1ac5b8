#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lathe_fuzz::read("model.bin", bytes));
