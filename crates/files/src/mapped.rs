use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use lathe_base::Buf;
use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a whole file for reading. Pages come in when they are touched; an empty file is empty.
pub(crate) fn map(path: &Path) -> Result<Buf> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, "read", e))?;
    if !meta.is_file() {
        return Err(Error::missing(path, "not a regular file; pass a model file or folder"));
    }
    if meta.len() == 0 {
        return Ok(Buf::new());
    }
    // SAFETY: the map is only read, and it lives inside the `Buf` that hands out its slices. Another
    // process that shortens the file under us would raise SIGBUS, as in every tool that maps model
    // files; Lathe itself replaces files only by rename, which leaves old maps whole.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
    let map = Arc::new(map);
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|map| map.strong_count() > 0);
    maps.push(Arc::downgrade(&map));
    Ok(Buf::from_owner(Owner(map)))
}

/// Gives back the memory that `bytes` occupy, if they are mapped from a file; when they are read
/// again, they come from there (from the system's cache, as a rule). Other bytes are left alone.
///
/// Who goes through a large model once, tensor by tensor, stays small by this.
pub fn release(bytes: &Buf) {
    if let Some((map, offset)) = map_of(bytes) {
        give_back(&map, offset, bytes.len());
    }
}

/// Whether `bytes` are mapped from a file, so that [`release`] can give their memory back.
pub fn is_mapped(bytes: &Buf) -> bool {
    map_of(bytes).is_some()
}

/// The map that holds `bytes`, and where.
fn map_of(bytes: &Buf) -> Option<(Arc<Mmap>, usize)> {
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|map| map.strong_count() > 0);
    let holds = |map: &Arc<Mmap>| map.as_ptr_range().contains(&bytes.as_ptr());
    let map = maps.iter().filter_map(Weak::upgrade).find(holds)?;
    let offset = bytes.as_ptr() as usize - map.as_ptr() as usize;
    (offset + bytes.len() <= map.len()).then_some((map, offset))
}

/// Every map that is alive: only of these is it known that their pages can be read again.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(unix)]
fn give_back(map: &Mmap, offset: usize, length: usize) {
    // SAFETY: the map is read-only, so that its pages hold nothing but the file's bytes: dropped,
    // they are read from there again. Refusal costs memory only.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, length) };
}

#[cfg(not(unix))]
fn give_back(_: &Mmap, _: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_are_read_from_the_file_again_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let written: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &written).unwrap();
        let mapped = map(&path).unwrap();
        assert_eq!(mapped, written);
        assert!(is_mapped(&mapped) && is_mapped(&mapped.slice(5000..60_000)));
        release(&mapped.slice(5000..60_000));
        assert_eq!(mapped, written);
        let heap = Buf::from(written.clone());
        assert!(!is_mapped(&heap));
        release(&heap);
        assert_eq!(heap, written);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_released_map_leaves_resident_memory() {
        let resident = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|l| l.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 64 << 20]).unwrap();
        let mapped = map(&path).unwrap();
        assert_eq!(mapped.iter().map(|b| u64::from(*b)).sum::<u64>(), 64 << 20);
        let before = resident();
        release(&mapped);
        assert!(
            before.saturating_sub(resident()) > 48 << 10,
            "{before} kB, then {} kB",
            resident()
        );
    }
}
