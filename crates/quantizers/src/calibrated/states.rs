use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use lathe_engine::Sequences;

use crate::Error;

/// The hidden states of all calibration sequences, in a folder of their own beside the result.
///
/// They are on disk whatever their size: the system's cache makes that as fast as memory where
/// there is memory to spare, and a run that was killed goes on at the layer where it was. At the
/// beginning of a layer `hidden.N` holds the residual stream; while the layer is worked on,
/// `next` and `inner` take what comes after its stages.
pub(crate) struct States {
    folder: PathBuf,
    /// What the numbers depend on.
    fingerprint: String,
    /// First token of each sequence, and the end.
    starts: Vec<u64>,
    width: usize,
    layer: usize,
    hidden: Tape,
    next: Tape,
    inner: Tape,
}

/// Numbers in a file.
struct Tape {
    path: PathBuf,
    file: Option<File>,
}

impl States {
    /// Where the states of a run that makes `out` lie.
    pub(crate) fn folder(out: &Path) -> PathBuf {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".hidden");
        out.with_file_name(name)
    }

    /// Takes up the states of an interrupted run, if they are at most at layer `newest`.
    pub(crate) fn open(
        out: &Path,
        fingerprint: &str,
        (lengths, width): (&[usize], usize),
        newest: usize,
    ) -> Result<Self, Error> {
        let folder = Self::folder(out);
        fs::create_dir_all(&folder).map_err(|source| fail(&folder, source))?;
        let starts = lengths.iter().scan(0, |at, length| {
            *at += *length as u64;
            Some(*at)
        });
        let starts = std::iter::once(0).chain(starts).collect();
        let tape = |name: &str| Tape { path: folder.join(name), file: None };
        let (hidden, next, inner) = (tape("hidden.0"), tape("next"), tape("inner"));
        let fingerprint = fingerprint.to_owned();
        let mut states = Self { folder, fingerprint, starts, width, layer: 0, hidden, next, inner };
        for layer in (1..=newest).rev() {
            if states.take_up(layer)? {
                break;
            }
        }
        Ok(states)
    }

    /// The layer whose inputs they are; 0 where nothing is there yet.
    pub(crate) fn layer(&self) -> usize {
        self.layer
    }

    /// The states of some sequences before a stage of the layer.
    pub(crate) fn read(
        &mut self,
        sequences: Range<usize>,
        (stage, cols): (usize, usize),
    ) -> Result<Sequences, Error> {
        let tokens = self.starts[sequences.start]..self.starts[sequences.end];
        let lengths = self.starts[sequences.start..=sequences.end].windows(2);
        let lengths = lengths.map(|pair| (pair[1] - pair[0]) as usize).collect();
        let (width, head) = (self.width, self.head());
        let residual = if stage < 2 { &mut self.hidden } else { &mut self.next };
        let x = residual.read(head, &tokens, width)?;
        let inner = match stage {
            1 | 3 => self.inner.read(0, &tokens, cols)?,
            _ => Vec::new(),
        };
        Ok(Sequences { lengths, x, inner })
    }

    /// Keeps the states of some sequences before a stage; 4 is the end of the layer.
    pub(crate) fn write(
        &mut self,
        sequences: Range<usize>,
        stage: usize,
        states: &Sequences,
    ) -> Result<(), Error> {
        let first = self.starts[sequences.start];
        if matches!(stage, 1 | 3) {
            let cols = states.inner.len() / states.tokens().max(1);
            return self.inner.write(0, first * cols as u64, &states.inner);
        }
        let head = self.head();
        let residual = if stage == 0 { &mut self.hidden } else { &mut self.next };
        residual.write(head, first * self.width as u64, &states.x)
    }

    /// The layer is done: what comes after it is what comes before the next.
    pub(crate) fn complete(&mut self) -> Result<(), Error> {
        self.layer += 1;
        let fingerprint = self.fingerprint.clone();
        self.next.head(&fingerprint)?;
        let old = std::mem::replace(&mut self.hidden.file, self.next.file.take());
        drop(old);
        let path = self.folder.join(format!("hidden.{}", self.layer));
        fs::rename(&self.next.path, &path).map_err(|source| fail(&path, source))?;
        let old = std::mem::replace(&mut self.hidden.path, path);
        // What is left of an older layer is not used again; it goes with the folder.
        let _ = fs::remove_file(old);
        Ok(())
    }

    /// Removes everything.
    pub(crate) fn remove(self) -> Result<(), Error> {
        let Self { folder, hidden, next, inner, .. } = self;
        drop((hidden, next, inner));
        fs::remove_dir_all(&folder).map_err(|source| fail(&folder, source))
    }

    /// Whether there are whole states of this layer; they are used then.
    fn take_up(&mut self, layer: usize) -> Result<bool, Error> {
        let path = self.folder.join(format!("hidden.{layer}"));
        let Ok(mut file) = File::open(&path) else { return Ok(false) };
        let mut head = vec![0; self.fingerprint.len()];
        let tokens = self.starts.last().copied().unwrap_or(0);
        let length = self.head() + 4 * tokens * self.width as u64;
        let whole = file.metadata().is_ok_and(|meta| meta.len() == length)
            && file.read_exact(&mut head).is_ok()
            && head == self.fingerprint.as_bytes();
        if whole {
            self.layer = layer;
            self.hidden = Tape { path, file: Some(file) };
        }
        Ok(whole)
    }

    /// Bytes before the numbers of a residual stream.
    fn head(&self) -> u64 {
        (self.fingerprint.len() as u64).next_multiple_of(4)
    }
}

impl Tape {
    fn open(&mut self) -> Result<&mut File, Error> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(true);
            self.file = Some(options.open(&self.path).map_err(|source| fail(&self.path, source))?);
        }
        self.file.as_mut().ok_or_else(|| fail(&self.path, std::io::ErrorKind::NotFound.into()))
    }

    fn read(&mut self, head: u64, tokens: &Range<u64>, width: usize) -> Result<Vec<f32>, Error> {
        let mut numbers = vec![0.0f32; (tokens.end - tokens.start) as usize * width];
        let file = self.open()?;
        let at = head + 4 * tokens.start * width as u64;
        let read = file
            .seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut numbers)));
        read.map_err(|source| fail(&self.path, source))?;
        Ok(numbers)
    }

    fn write(&mut self, head: u64, first: u64, numbers: &[f32]) -> Result<(), Error> {
        let file = self.open()?;
        let written = file
            .seek(SeekFrom::Start(head + 4 * first))
            .and_then(|_| file.write_all(bytemuck::cast_slice(numbers)));
        written.map_err(|source| fail(&self.path, source))
    }

    fn head(&mut self, text: &str) -> Result<(), Error> {
        let file = self.open()?;
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(text.as_bytes()));
        written.map_err(|source| fail(&self.path, source))
    }
}

fn fail(path: &Path, source: std::io::Error) -> Error {
    Error::States { path: path.to_owned(), source }
}
