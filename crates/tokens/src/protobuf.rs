//! As much of the protocol buffers wire format as a SentencePiece model needs.
//!
//! **Source**: protobuf.dev, "Encoding".

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    /// A 64-bit fixed value, which SentencePiece does not use.
    Other,
}

/// Calls `each` with the number and value of every field of a message, in file order.
///
/// **Errors**: what is wrong with the bytes. Nothing is allocated, so a length that the file does
/// not have costs nothing.
pub(crate) fn fields<'a>(
    mut bytes: &'a [u8],
    mut each: impl FnMut(u64, Field<'a>) -> Result<(), String>,
) -> Result<(), String> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                Field::Other
            }
            2 => {
                let length = varint(&mut bytes)?;
                Field::Bytes(take(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                let mut raw = [0; 4];
                raw.copy_from_slice(take(&mut bytes, 4)?);
                Field::Float(f32::from_le_bytes(raw))
            }
            other => return Err(format!("wire type {other} does not exist")),
        };
        each(key >> 3, field)?;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is longer than 64 bits".to_owned())
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (head, tail) = bytes.split_at_checked(count).ok_or_else(|| {
        format!("it ends too early: {count} bytes are missing from {}", bytes.len())
    })?;
    *bytes = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, String)>, String> {
        let mut seen = Vec::new();
        fields(bytes, |number, field| {
            seen.push((number, format!("{field:?}")));
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn reads_numbers_floats_and_bytes() {
        let seen = all(&[0x08, 0xac, 0x02, 0x15, 0, 0, 0x80, 0x3f, 0x1a, 2, b'h', b'i']).unwrap();
        let expected = [(1, "Number(300)"), (2, "Float(1.0)"), (3, "Bytes([104, 105])")];
        assert_eq!(seen, expected.map(|(n, t)| (n, t.to_owned())));
    }

    #[test]
    fn rejects_lengths_beyond_the_end_endless_numbers_and_unknown_types() {
        for bytes in [&[0x0a, 0xff, 0xff, 0xff, 0x7f][..], &[0xff; 12], &[0x0b], &[0x15, 1]] {
            assert!(all(bytes).is_err(), "{bytes:?}");
        }
    }
}
