//! Zeros, for storages that have no other word for them.

use std::ops::Range;

/// How many are written at once.
const PIECE: u64 = 256 << 10;

/// Calls `write` for one piece of `range` after the other, with as many zeros as the piece is long.
pub(crate) async fn in_zeros<E>(
    range: Range<u64>,
    mut write: impl AsyncFnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let zeros = vec![0; range.end.saturating_sub(range.start).min(PIECE) as usize];
    let mut at = range.start;
    while at < range.end {
        let piece = &zeros[..(range.end - at).min(PIECE) as usize];
        write(at, piece).await?;
        at += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn pieces(range: Range<u64>) -> Vec<(u64, usize)> {
        let mut pieces = Vec::new();
        let written = in_zeros(range, async |at, zeros: &[u8]| {
            assert!(zeros.iter().all(|byte| *byte == 0));
            pieces.push((at, zeros.len()));
            Ok::<(), ()>(())
        });
        written.now_or_never().unwrap().unwrap();
        pieces
    }

    #[test]
    fn a_range_is_written_whole_and_in_pieces() {
        assert_eq!(pieces(5..5), []);
        assert_eq!(pieces(5..12), [(5, 7)]);
        assert_eq!(
            pieces(1..(512 << 10) + 2),
            [
                (1, 256 << 10),
                (1 + (256 << 10), 256 << 10),
                (1 + (512 << 10), 1)
            ]
        );
    }

    #[test]
    fn what_fails_is_the_last_thing_tried() {
        let mut tried = 0;
        let written = in_zeros(0..1 << 30, async |_, _: &[u8]| {
            tried += 1;
            Err::<(), &str>("no")
        });
        assert_eq!(written.now_or_never(), Some(Err("no")));
        assert_eq!(tried, 1);
    }
}
