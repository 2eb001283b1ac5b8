use std::{cell::Cell, sync::OnceLock};

#[cfg(target_arch = "x86_64")]
use crate::avx512::{AMX, BF16, PLAIN};
#[cfg(target_arch = "aarch64")]
use crate::neon::{DOT, I8MM, PLAIN};
use crate::{Isa, Scalar};

/// An algorithm over vectors, written once.
///
/// `run` and everything it calls with the token must be `#[inline(always)]`, or the code is
/// compiled without the instruction set; closures that use vectors are out for the same reason.
pub trait Op {
    /// Whether it takes [`Isa::dot_bf16`]: only then is it compiled for machines that have an
    /// instruction for it.
    const BF16: bool = false;
    /// Whether it takes [`Isa::dot`], [`Isa::dot_small`] or [`Isa::dot_matrix`], or asks how they
    /// are: only then is it compiled for machines that differ in nothing else.
    const BYTES: bool = false;
    /// Whether it takes [`Isa::half_tiles`], or asks for them: only then is it compiled for machines
    /// that have instructions for them.
    const TILES: bool = false;
    /// What it gives back.
    type Out;
    /// Does the work with `isa`.
    fn run<I: Isa>(self, isa: I) -> Self::Out;
}

/// The instruction set that [`run`] uses in this process, and how it came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its name: `scalar`, `avx2`, `avx512`, `avx512bf16`, `amx`, `neon`, `neondot`
    /// or `neoni8mm`.
    pub name: &'static str,
    /// What `LATHE_ISA` asked for and could not be given, to be told to the user once.
    pub refused: Option<String>,
}

/// Which instruction set [`run`] uses: the best here, or what `LATHE_ISA` names if it is here.
pub fn chosen() -> &'static Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    CHOICE.get_or_init(|| choose(std::env::var("LATHE_ISA").ok().as_deref()))
}

fn choose(wanted: Option<&str>) -> Choice {
    let here = available();
    let best = *here.last().expect("scalar is everywhere");
    match wanted {
        None | Some("") => Choice { name: best, refused: None },
        Some(wanted) => match here.iter().find(|name| **name == wanted) {
            Some(name) => Choice { name, refused: None },
            None => Choice {
                name: best,
                refused: Some(format!(
                    "LATHE_ISA={wanted} is not available here, using {best}; this machine has {}",
                    here.join(", ")
                )),
            },
        },
    }
}

/// Does nothing: `run_all` of it lists the instruction sets.
#[derive(Clone)]
struct Name;

impl Op for Name {
    const BF16: bool = true;
    const BYTES: bool = true;
    const TILES: bool = true;
    type Out = ();
    fn run<I: Isa>(self, _: I) {}
}

/// The token behind [`chosen`].
#[derive(Clone, Copy)]
enum Token {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(crate::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(crate::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(crate::Avx512<BF16>),
    #[cfg(target_arch = "x86_64")]
    Amx(crate::Avx512<AMX>),
    #[cfg(target_arch = "aarch64")]
    Neon(crate::Neon),
    #[cfg(target_arch = "aarch64")]
    NeonDot(crate::Neon<DOT>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(crate::Neon<I8MM>),
}

thread_local! {
    /// What [`with_isa`] has set.
    static FORCED: Cell<Option<Token>> = const { Cell::new(None) };
}

/// Runs `f` with [`run`] on this thread using the instruction set `name`; `None` where this
/// machine does not have it. For tests and benchmarks: other threads keep the [`chosen`] one.
pub fn with_isa<T>(name: &str, f: impl FnOnce() -> T) -> Option<T> {
    /// Puts the former choice back, also when `f` panics.
    struct Restore(Option<Token>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let token = find(name)?;
    let _restore = Restore(FORCED.replace(Some(token)));
    Some(f())
}

/// The names of the instruction sets of this machine: each can do all that those before it can.
pub fn available() -> Vec<&'static str> {
    run_all(Name).into_iter().map(|(name, ())| name).collect()
}

#[inline]
fn token() -> Token {
    static TOKEN: OnceLock<Token> = OnceLock::new();
    let forced = FORCED.get();
    forced.unwrap_or_else(|| {
        *TOKEN.get_or_init(|| find(chosen().name).unwrap_or(Token::Scalar(Scalar)))
    })
}

fn find(name: &str) -> Option<Token> {
    match name {
        Scalar::NAME => Some(Token::Scalar(Scalar)),
        #[cfg(target_arch = "x86_64")]
        crate::Avx2::NAME => crate::Avx2::detect().map(Token::Avx2),
        #[cfg(target_arch = "x86_64")]
        crate::Avx512::<PLAIN>::NAME => crate::Avx512::detect().map(Token::Avx512),
        #[cfg(target_arch = "x86_64")]
        crate::Avx512::<BF16>::NAME => crate::Avx512::detect().map(Token::Avx512Bf16),
        #[cfg(target_arch = "x86_64")]
        crate::Avx512::<AMX>::NAME => crate::Avx512::detect().map(Token::Amx),
        #[cfg(target_arch = "aarch64")]
        crate::Neon::<PLAIN>::NAME => crate::Neon::detect().map(Token::Neon),
        #[cfg(target_arch = "aarch64")]
        crate::Neon::<DOT>::NAME => crate::Neon::detect().map(Token::NeonDot),
        #[cfg(target_arch = "aarch64")]
        crate::Neon::<I8MM>::NAME => crate::Neon::detect().map(Token::NeonI8mm),
        _ => None,
    }
}

/// Runs `op` on the [`chosen`] instruction set.
#[inline]
pub fn run<O: Op>(op: O) -> O::Out {
    match token() {
        Token::Scalar(isa) => isa.enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Avx2(isa) => isa.enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Avx512(isa) => isa.enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Avx512Bf16(isa) if O::BF16 => isa.enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Avx512Bf16(isa) => isa.plain().enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Amx(isa) if O::TILES => isa.enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Amx(isa) if O::BF16 => isa.without_tiles().enter(op),
        #[cfg(target_arch = "x86_64")]
        Token::Amx(isa) => isa.plain().enter(op),
        #[cfg(target_arch = "aarch64")]
        Token::Neon(isa) => isa.enter(op),
        #[cfg(target_arch = "aarch64")]
        Token::NeonDot(isa) if O::BYTES => isa.enter(op),
        #[cfg(target_arch = "aarch64")]
        Token::NeonDot(isa) => isa.plain().enter(op),
        #[cfg(target_arch = "aarch64")]
        Token::NeonI8mm(isa) if O::BYTES => isa.enter(op),
        #[cfg(target_arch = "aarch64")]
        Token::NeonI8mm(isa) => isa.plain().enter(op),
    }
}

/// Runs `op` on every instruction set of this machine, `scalar` first, the best last.
pub fn run_all<O: Op + Clone>(op: O) -> Vec<(&'static str, O::Out)> {
    let mut all = vec![(Scalar::NAME, Scalar.enter(op.clone()))];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(on::<crate::Avx2, O>(&op));
        all.extend(on::<crate::Avx512, O>(&op));
        if O::BF16 {
            all.extend(on::<crate::Avx512<BF16>, O>(&op));
        }
        if O::TILES {
            all.extend(on::<crate::Avx512<AMX>, O>(&op));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        all.extend(on::<crate::Neon, O>(&op));
        if O::BYTES {
            all.extend(on::<crate::Neon<DOT>, O>(&op));
            all.extend(on::<crate::Neon<I8MM>, O>(&op));
        }
    }
    all
}

/// What one named instruction set makes of `op`, if it is here.
fn on<I: Isa, O: Op + Clone>(op: &O) -> Option<(&'static str, O::Out)> {
    I::detect().map(|isa| (I::NAME, isa.enter(op.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_best_instruction_set_when_nothing_is_asked() {
        let (best, ()) = run_all(Name).pop().unwrap();
        assert_eq!(choose(None), Choice { name: best, refused: None });
        assert_eq!(choose(Some("")), Choice { name: best, refused: None });
    }

    #[test]
    fn takes_what_is_asked_for_where_it_is_here() {
        assert_eq!(choose(Some("scalar")), Choice { name: "scalar", refused: None });
    }

    #[test]
    fn says_what_is_here_when_it_must_refuse() {
        let refused = choose(Some("sse9")).refused.unwrap();
        assert!(refused.contains("LATHE_ISA=sse9") && refused.contains("scalar"), "{refused}");
    }
}
