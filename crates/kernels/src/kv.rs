use half::f16;

use crate::{Error, memory::Room};

/// Tokens of a page. Pages start at positions that are multiples of it.
pub const PAGE_TOKENS: usize = 32;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    F32,
    F16,
}

impl KvType {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Where one token's keys and values lie, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Which page.
    pub page: u32,
    /// Which of its tokens: the token's position modulo [`PAGE_TOKENS`].
    pub offset: usize,
}

/// Keys and values of all layers, in pages that sequences share out among themselves.
///
/// A page of one layer and KV head holds the keys as `[K, PAGE_TOKENS]`, so that scores of
/// sixteen tokens fall into the lanes of a vector, and the values as `[PAGE_TOKENS, K]`. Who owns
/// which page is not known here.
#[derive(Debug)]
pub struct KvPages {
    kind: KvType,
    layers: usize,
    pages: usize,
    kv_heads: usize,
    head_dim: usize,
    data: Room,
}

impl KvPages {
    /// Room for `pages` pages in each of `layers` layers. Memory that has never been written to
    /// is not resident yet.
    ///
    /// **Errors**: a head dimension that is not a multiple of 16; not enough memory.
    pub fn new(
        kind: KvType,
        layers: usize,
        pages: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, Error> {
        if !head_dim.is_multiple_of(16) || head_dim == 0 {
            return Err(Error::HeadDim { found: head_dim });
        }
        let head = 2 * PAGE_TOKENS * head_dim * kind.bytes();
        let bytes = [layers, pages, kv_heads]
            .iter()
            .try_fold(head, |product, n| product.checked_mul(*n))
            .unwrap_or(usize::MAX);
        let data = Room::new(bytes).ok_or(Error::KvMemory { bytes, layers, pages })?;
        Ok(Self { kind, layers, pages, kv_heads, head_dim, data })
    }

    /// How numbers are kept.
    pub fn kind(&self) -> KvType {
        self.kind
    }

    /// Pages of each layer.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes set aside, resident or not.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Keeps one token's keys and values `[G, K]` of one layer.
    pub fn write(&mut self, layer: usize, slot: Slot, k: &[f32], v: &[f32]) {
        let (dim, size) = (self.head_dim, self.kind.bytes());
        assert!(slot.offset < PAGE_TOKENS && k.len() == self.kv_heads * dim && v.len() == k.len());
        let kind = self.kind;
        for head in 0..self.kv_heads {
            let at = self.at(layer, slot.page, head);
            let half = PAGE_TOKENS * dim * size;
            let (keys, values) = self.data[at..at + 2 * half].split_at_mut(half);
            for (d, k) in k[head * dim..][..dim].iter().enumerate() {
                put(kind, keys, d * PAGE_TOKENS + slot.offset, *k);
            }
            for (d, v) in v[head * dim..][..dim].iter().enumerate() {
                put(kind, values, slot.offset * dim + d, *v);
            }
        }
    }

    /// Copies a page in every layer: the first write to a shared one needs it.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let bytes = self.kv_heads * self.head_bytes();
        for layer in 0..self.layers {
            let (from, to) = (self.at(layer, from, 0), self.at(layer, to, 0));
            self.data.copy_within(from..from + bytes, to);
        }
    }

    /// Keys, then values, of one page, layer and head.
    pub(crate) fn head(&self, layer: usize, page: u32, head: usize) -> (&[u8], &[u8]) {
        let at = self.at(layer, page, head);
        self.data[at..at + self.head_bytes()].split_at(self.head_bytes() / 2)
    }

    fn head_bytes(&self) -> usize {
        2 * PAGE_TOKENS * self.head_dim * self.kind.bytes()
    }

    fn at(&self, layer: usize, page: u32, head: usize) -> usize {
        let page = page as usize;
        assert!(layer < self.layers && page < self.pages && head < self.kv_heads);
        ((layer * self.pages + page) * self.kv_heads + head) * self.head_bytes()
    }
}

fn put(kind: KvType, to: &mut [u8], index: usize, x: f32) {
    match kind {
        KvType::F32 => to[4 * index..4 * index + 4].copy_from_slice(&x.to_le_bytes()),
        KvType::F16 => {
            to[2 * index..2 * index + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
        }
    }
}
