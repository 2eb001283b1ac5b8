//! The paged KV cache.
//!
//! A page of one layer and KV head holds the keys as `[K, PAGE_TOKENS]`, so that scores of sixteen
//! tokens fall into the lanes of a vector, and the values as `[PAGE_TOKENS, K]`.
//!
//! Grouped types code a page as a whole, once it is full, and their results must not depend on how
//! a run of tokens was cut. So a token sees the page that it lies in itself in f16, whether that is
//! full by then or not, and all pages before it in codes. The f16 pages that this takes are kept
//! beside the codes: one for each sequence (`recent`), and, while a layer works through a run
//! that touches several pages, one for each of those (`fresh`).

mod page;

use std::ops::Range;

use lathe_formats::KvType;

use crate::{
    Error, Pool,
    memory::{self, Room},
    output::Output,
};
use page::{Close, Put};

/// Tokens of a page. Pages start at positions that are multiples of it.
pub const PAGE_TOKENS: usize = KvType::PAGE;

/// Neighbouring tokens of one sequence within a run of tokens.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Which rows of the queries, keys and values.
    pub rows: Range<usize>,
    /// Position of the first of them in its sequence.
    pub start: usize,
    /// The sequence's pages: positions `32 i .. 32 i + 32` lie in `pages[i]`.
    pub pages: &'a [u32],
    /// The sequence's place among the recent pages; unused by types that have none.
    pub recent: u32,
}

impl Span<'_> {
    /// The position after the last.
    pub(crate) fn end(&self) -> usize {
        self.start + self.rows.len()
    }

    /// Which runs of `length` positions, counted from the sequence's start, its tokens lie in.
    pub(crate) fn cut(&self, length: usize) -> Range<usize> {
        let first = self.start / length;
        first..if self.rows.is_empty() { first } else { self.end().div_ceil(length) }
    }

    /// The pages that its tokens lie in, as indices of [`Span::pages`].
    pub(crate) fn touched(&self) -> Range<usize> {
        self.cut(PAGE_TOKENS)
    }

    /// How many fresh pages it needs: a run within one page makes do with the recent one.
    pub(crate) fn fresh(&self) -> usize {
        if self.touched().len() > 1 { self.touched().len() } else { 0 }
    }
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub kind: KvType,
    pub layers: usize,
    /// Pages of each layer.
    pub pages: usize,
    /// Sequences that may be under way at the same time: each has one page in f16 where the type
    /// is grouped.
    pub recent: usize,
    pub kv_heads: usize,
    /// A multiple of 16.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of one head's page.
    fn page_bytes(&self, kind: KvType) -> usize {
        kind.key_bytes(self.head_dim) + kind.value_bytes(self.head_dim)
    }

    /// Bytes of the pages and of the recent ones; `None` where no number holds them.
    fn bytes(&self) -> Option<(usize, usize)> {
        let of = |kind, pages: usize| {
            let heads = self.layers.checked_mul(self.kv_heads)?.checked_mul(pages)?;
            heads.checked_mul(self.page_bytes(kind))
        };
        let recent = if self.kind.is_grouped() { self.recent } else { 0 };
        Some((of(self.kind, self.pages)?, of(KvType::F16, recent)?))
    }
}

/// Keys and values of all layers, in pages that sequences share out among themselves. Who owns
/// which page is not known here.
#[derive(Debug)]
pub struct KvPages {
    shape: KvShape,
    /// Pages `[pages, layers, G]`: all layers of a page side by side, so that a short text keeps to
    /// few of the system's pages, which can be huge.
    data: Room,
    /// f16 pages `[recent, layers, G]`.
    recent: Room,
    /// f16 pages `[fresh, G]` of the run that was written last.
    fresh: Vec<u8>,
}

impl KvPages {
    /// Makes the room. Memory that has never been written to is not resident yet.
    ///
    /// **Errors**: a head dimension that is not a multiple of 16; not enough memory.
    pub fn new(shape: KvShape) -> Result<Self, Error> {
        let KvShape { layers, pages, head_dim, .. } = shape;
        if !head_dim.is_multiple_of(16) || head_dim == 0 {
            return Err(Error::HeadDim { found: head_dim });
        }
        let (data, recent) = shape.bytes().unwrap_or((usize::MAX, 0));
        let refused = || Error::KvMemory { bytes: data.saturating_add(recent), layers, pages };
        let room = |bytes| Room::new(bytes).ok_or_else(refused);
        let huge = |bytes| Room::huge(bytes).ok_or_else(refused);
        Ok(Self { shape, data: huge(data)?, recent: room(recent)?, fresh: Vec::new() })
    }

    /// What it holds.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// How numbers are kept.
    pub fn kind(&self) -> KvType {
        self.shape.kind
    }

    /// Bytes that a cache of this shape takes; `None` where no number holds them.
    pub fn bytes_of(shape: &KvShape) -> Option<usize> {
        let (data, recent) = shape.bytes()?;
        data.checked_add(recent)
    }

    /// Bytes set aside, resident or not.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.recent.len() + self.fresh.len()
    }

    /// Makes all of it resident and keeps it from being paged out.
    ///
    /// **Errors**: [`Error::Lock`].
    pub fn lock(&self) -> Result<(), Error> {
        memory::lock(&self.data)?;
        memory::lock(&self.recent)
    }

    /// Keeps the keys and values `[T, G, K]` of a run of tokens in one layer; attention of that
    /// run in that layer must follow before the next run is written.
    pub fn write(&mut self, pool: &Pool, layer: usize, spans: &[Span<'_>], k: &[f32], v: &[f32]) {
        let KvShape { kv_heads, head_dim, recent, pages, layers, .. } = self.shape;
        let grouped = self.kind().is_grouped();
        assert!(layer < layers && k.len() == v.len());
        let tokens = k.len() / (kv_heads * head_dim);
        for span in spans {
            let fits = span.rows.end <= tokens && span.end() <= span.pages.len() * PAGE_TOKENS;
            assert!(fits && (!grouped || (span.recent as usize) < recent), "{span:?}");
            assert!(span.pages.iter().all(|page| (*page as usize) < pages), "{span:?}");
        }
        if grouped {
            let fresh: usize = spans.iter().map(Span::fresh).sum();
            let bytes = fresh * kv_heads * self.shape.page_bytes(KvType::F16);
            self.fresh.resize(bytes.max(self.fresh.len()), 0);
        }
        let write = Write {
            shape: self.shape,
            layer,
            spans,
            rows: (k, v),
            data: Output::new(&mut self.data),
            recent: Output::new(&mut self.recent),
            fresh: Output::new(&mut self.fresh),
        };
        // A token or two take less time than to wake the others.
        const FEW: usize = 4;
        if tokens <= FEW {
            (0..kv_heads).for_each(|head| write.head(head));
        } else {
            pool.run(kv_heads, &|head| write.head(head));
        }
    }

    /// Copies a page in every layer: the first write to a shared one needs it. What is in f16
    /// belongs to a sequence and is copied by [`KvPages::copy_recent`].
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let at = |page: u32| place(&self.shape, self.kind(), (0, page as usize, 0));
        let (from, to) = (at(from), at(to));
        let bytes = self.shape.layers * self.shape.kv_heads * self.shape.page_bytes(self.kind());
        self.data.copy_within(from..from + bytes, to);
    }

    /// Copies a sequence's recent page to another sequence that goes on from there.
    pub fn copy_recent(&mut self, from: u32, to: u32) {
        if self.kind().is_grouped() {
            let bytes = self.recent.len() / self.shape.recent;
            let from = from as usize * bytes;
            self.recent.copy_within(from..from + bytes, to as usize * bytes);
        }
    }

    /// Keys, then values, of one page, layer and head, as coded.
    pub(crate) fn head(&self, layer: usize, page: u32, head: usize) -> (&[u8], &[u8]) {
        let kind = self.kind();
        let at = place(&self.shape, kind, (layer, page as usize, head));
        self.data[at..at + self.shape.page_bytes(kind)]
            .split_at(kind.key_bytes(self.shape.head_dim))
    }

    /// The same in f16 of a page that the tokens of `span` lie in themselves; `fresh` is the
    /// first fresh page of the span.
    pub(crate) fn own(
        &self,
        layer: usize,
        (span, fresh): (&Span<'_>, usize),
        page: usize,
        head: usize,
    ) -> (&[u8], &[u8]) {
        let from: (&[u8], usize) = if span.fresh() > 0 {
            let index = fresh + page - span.touched().start;
            (&self.fresh, fresh_place(&self.shape, index, head))
        } else {
            (&self.recent, recent_place(&self.shape, span.recent, layer, head))
        };
        from.0[from.1..from.1 + self.shape.page_bytes(KvType::F16)]
            .split_at(KvType::F16.key_bytes(self.shape.head_dim))
    }
}

/// Where the page of a layer and head starts.
fn place(shape: &KvShape, kind: KvType, (layer, page, head): (usize, usize, usize)) -> usize {
    assert!(layer < shape.layers && page < shape.pages && head < shape.kv_heads);
    ((page * shape.layers + layer) * shape.kv_heads + head) * shape.page_bytes(kind)
}

fn recent_place(shape: &KvShape, recent: u32, layer: usize, head: usize) -> usize {
    ((recent as usize * shape.layers + layer) * shape.kv_heads + head)
        * shape.page_bytes(KvType::F16)
}

fn fresh_place(shape: &KvShape, index: usize, head: usize) -> usize {
    (index * shape.kv_heads + head) * shape.page_bytes(KvType::F16)
}

/// One run on its way into a layer.
struct Write<'a> {
    shape: KvShape,
    layer: usize,
    spans: &'a [Span<'a>],
    rows: (&'a [f32], &'a [f32]),
    data: Output<'a, u8>,
    recent: Output<'a, u8>,
    fresh: Output<'a, u8>,
}

impl Write<'_> {
    /// Everything of one head: heads share no places.
    fn head(&self, head: usize) {
        let mut fresh = 0;
        for span in self.spans {
            for page in span.touched() {
                if self.shape.kind.is_grouped() {
                    self.grouped(head, span, page, fresh);
                } else {
                    self.put(self.shape.kind, head, (span, page), self.coded(head, span, page));
                }
            }
            fresh += span.fresh();
        }
    }

    /// Writes the span's tokens of a page to `to`.
    fn put(&self, kind: KvType, head: usize, (span, page): (&Span<'_>, usize), to: &mut [u8]) {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let (keys, values) = to.split_at_mut(kind.key_bytes(head_dim));
        let first = span.start.max(page * PAGE_TOKENS);
        let tokens = span.end().min((page + 1) * PAGE_TOKENS) - first;
        let width = kv_heads * head_dim;
        let at = (span.rows.start + first - span.start) * width + head * head_dim;
        let (k, v) = (&self.rows.0[at..], &self.rows.1[at..]);
        let offset = first % PAGE_TOKENS;
        lathe_simd::run(Put { kind, k, v, width, dim: head_dim, tokens, offset, keys, values });
    }

    /// The same by way of f16, and codes where the page is full.
    fn grouped(&self, head: usize, span: &Span<'_>, page: usize, fresh: usize) {
        let shape = &self.shape;
        let bytes = shape.page_bytes(KvType::F16);
        let recent = recent_place(shape, span.recent, self.layer, head);
        // SAFETY: each head of a sequence's recent page is this task's alone, and no other part of
        // it is in use on this thread.
        let recent = unsafe { self.recent.part(recent, bytes) };
        let full = span.end() >= (page + 1) * PAGE_TOKENS;
        if span.fresh() == 0 {
            self.put(KvType::F16, head, (span, page), recent);
            if full {
                self.close(head, span, page, recent);
            }
            return;
        }
        let at = fresh_place(shape, fresh + page - span.touched().start, head);
        // SAFETY: as above.
        let own = unsafe { self.fresh.part(at, bytes) };
        if span.start > page * PAGE_TOKENS {
            // What earlier runs have put there.
            own.copy_from_slice(recent);
        }
        self.put(KvType::F16, head, (span, page), own);
        if full {
            self.close(head, span, page, own);
        } else {
            recent.copy_from_slice(own);
        }
    }

    /// Codes a full page.
    fn close(&self, head: usize, span: &Span<'_>, page: usize, from: &[u8]) {
        let (kind, dim) = (self.shape.kind, self.shape.head_dim);
        let from = from.split_at(KvType::F16.key_bytes(dim));
        let to = self.coded(head, span, page).split_at_mut(kind.key_bytes(dim));
        lathe_simd::run(Close { kind, dim, from, to });
    }

    /// The coded page.
    #[allow(clippy::mut_from_ref)] // As `Output::part`, on whose promise it stands.
    fn coded(&self, head: usize, span: &Span<'_>, page: usize) -> &mut [u8] {
        let kind = self.shape.kind;
        let at = place(&self.shape, kind, (self.layer, span.pages[page] as usize, head));
        // SAFETY: each head of a page is this task's alone, and it uses one at a time.
        unsafe { self.data.part(at, self.shape.page_bytes(kind)) }
    }
}
