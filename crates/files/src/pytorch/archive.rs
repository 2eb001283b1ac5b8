use std::{collections::HashMap, path::Path};

use lathe_base::Buf;

use crate::{Error, Result};

/// The entries of a zip archive by name, as slices of the mapped file.
///
/// Own code because the entries must come out as ranges of the map, and the subset that
/// `torch.save` writes (stored entries, zip64) is small.
///
/// **Source**: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
pub(crate) struct Archive {
    entries: HashMap<String, Buf>,
}

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// Sizes of the fixed parts of those records.
const LOCAL_SIZE: usize = 30;
const CENTRAL_SIZE: usize = 46;
const END_SIZE: usize = 22;
const LOCATOR_SIZE: usize = 20;
/// In a 32-bit field: look into the zip64 record instead.
const ELSEWHERE: u64 = 0xffff_ffff;

/// Whether these bytes begin like a zip archive.
pub(crate) fn looks_like(whole: &[u8]) -> bool {
    whole.starts_with(&LOCAL.to_le_bytes())
}

impl Archive {
    pub(crate) fn read(path: &Path, whole: &Buf) -> Result<Self> {
        let records = Records { path, whole };
        let (mut at, count) = records.directory()?;
        let mut entries = HashMap::new();
        for _ in 0..count {
            let (name, bytes, next) = records.entry(at)?;
            if entries.insert(name.clone(), bytes).is_some() {
                return Err(Error::malformed(path, format!("entry {name} is there twice")));
            }
            at = next;
        }
        Ok(Self { entries })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Buf> {
        self.entries.get(name).cloned()
    }

    /// The entry called `name` in whichever top folder it is, with that folder's prefix.
    pub(crate) fn find(&self, name: &str) -> Option<(String, Buf)> {
        let found = self.entries.iter().find(|(entry, _)| {
            entry.strip_suffix(name).is_some_and(|root| {
                root.is_empty() || (root.ends_with('/') && root.matches('/').count() == 1)
            })
        });
        found.map(|(entry, bytes)| (entry[..entry.len() - name.len()].to_owned(), bytes.clone()))
    }
}

struct Records<'a> {
    path: &'a Path,
    whole: &'a Buf,
}

impl Records<'_> {
    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::malformed(self.path, problem)
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let found = self.whole.get(at..).and_then(|rest| rest.first_chunk());
        found.copied().ok_or_else(|| self.bad("its zip directory points beyond its end"))
    }

    fn u16(&self, at: usize) -> Result<usize> {
        Ok(u16::from_le_bytes(self.bytes(at)?).into())
    }

    fn u32(&self, at: usize) -> Result<u64> {
        Ok(u32::from_le_bytes(self.bytes(at)?).into())
    }

    fn size(&self, at: usize) -> Result<usize> {
        self.offset(u64::from_le_bytes(self.bytes(at)?))
    }

    /// A position within the file; anything else is damage.
    fn offset(&self, n: u64) -> Result<usize> {
        let inside = usize::try_from(n).ok().filter(|&n| n <= self.whole.len());
        inside.ok_or_else(|| self.bad("its zip directory points beyond its end"))
    }

    fn expect(&self, at: usize, signature: u32, what: &str) -> Result<()> {
        if self.u32(at)? == u64::from(signature) {
            Ok(())
        } else {
            Err(self.bad(format!("its zip {what} is not where it should be")))
        }
    }

    /// Where the central directory starts and how many entries it has.
    fn directory(&self) -> Result<(usize, usize)> {
        let end = self.end()?;
        let (mut count, mut start) = (self.u16(end + 10)?, self.u32(end + 16)?);
        if let Some(locator) = end.checked_sub(LOCATOR_SIZE)
            && self.u32(locator)? == u64::from(LOCATOR_64)
        {
            let end = self.size(locator + 8)?;
            self.expect(end, END_64, "end record")?;
            count = self.size(end + 32)?;
            start = self.size(end + 48)? as u64;
        }
        // Each entry takes its fixed part at least, so that a claimed count cannot run away.
        if count > self.whole.len() / CENTRAL_SIZE {
            return Err(self.bad(format!("its zip directory claims {count} entries")));
        }
        Ok((self.offset(start)?, count))
    }

    /// The end record is the last thing in the file, but for a comment of at most 64 KiB.
    fn end(&self) -> Result<usize> {
        let last = self.whole.len().checked_sub(END_SIZE);
        let last = last.ok_or_else(|| self.bad("it is too short to be a zip archive"))?;
        let first = last.saturating_sub(u16::MAX.into());
        (first..=last)
            .rev()
            .find(|&at| self.whole[at..].starts_with(&END.to_le_bytes()))
            .ok_or_else(|| self.bad("its end is missing (no zip directory)"))
    }

    /// The entry whose directory record is at `at`: name, bytes, and where the next record is.
    fn entry(&self, at: usize) -> Result<(String, Buf, usize)> {
        self.expect(at, CENTRAL, "directory")?;
        let method = self.u16(at + 10)?;
        let (mut packed, mut size) = (self.u32(at + 20)?, self.u32(at + 24)?);
        let (name, extra, comment) = (self.u16(at + 28)?, self.u16(at + 30)?, self.u16(at + 32)?);
        let mut local = self.u32(at + 42)?;
        let names = at + CENTRAL_SIZE;
        let extras = names + name;
        self.widen(extras, extra, [&mut size, &mut packed, &mut local])?;
        let name = self.slice(names, name)?;
        let name = String::from_utf8(name.to_vec())
            .map_err(|_| self.bad("the name of a zip entry is not UTF-8"))?;
        if method != 0 || packed != size {
            return Err(Error::unsupported(
                self.path,
                format!("the compressed entry {name}"),
                "torch.save stores its entries; unpack the archive or save the model again",
            ));
        }
        let local = self.offset(local)?;
        self.expect(local, LOCAL, "entry")?;
        let data = local + LOCAL_SIZE + self.u16(local + 26)? + self.u16(local + 28)?;
        let bytes = self.slice(data, self.offset(size)?)?;
        Ok((name, bytes, extras + extra + comment))
    }

    /// Replaces 32-bit fields that say "elsewhere" by those of the zip64 extra field, in order.
    fn widen(&self, at: usize, length: usize, fields: [&mut u64; 3]) -> Result<()> {
        if fields.iter().all(|field| **field != ELSEWHERE) {
            return Ok(());
        }
        let (mut at, end) = (at, at + length);
        while at + 4 <= end {
            let (id, length) = (self.u16(at)?, self.u16(at + 2)?);
            if id == 1 {
                let mut value = at + 4;
                for field in fields {
                    if *field == ELSEWHERE {
                        *field = u64::from_le_bytes(self.bytes(value)?);
                        value += 8;
                    }
                }
                return Ok(());
            }
            at += 4 + length;
        }
        Err(self.bad("a large zip entry has no zip64 sizes"))
    }

    fn slice(&self, at: usize, length: usize) -> Result<Buf> {
        match at.checked_add(length) {
            Some(end) if end <= self.whole.len() => Ok(self.whole.slice(at..end)),
            _ => Err(self.bad("a zip entry goes on beyond its end")),
        }
    }
}
