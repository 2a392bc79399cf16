//! From token bytes to text that may be sent: holds back what could still
//! become part of a stop sequence, and characters whose bytes are incomplete.

/// The text of one answer as it grows. However the bytes are cut into tokens,
/// the pieces joined give the same text.
#[derive(Debug)]
pub(crate) struct TextStream {
    stops: Vec<Vec<u8>>,
    /// Bytes that were not sent yet.
    held: Vec<u8>,
}

/// What one more token brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Text that may be sent now; may be empty.
    pub(crate) text: String,
    /// A stop sequence was completed: the answer ends before it.
    pub(crate) stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first completed one of `stops` (none of them empty).
    pub(crate) fn new(stops: &[String]) -> Self {
        TextStream {
            stops: stops.iter().map(|s| s.clone().into_bytes()).collect(),
            held: Vec::new(),
        }
    }

    /// Takes the bytes of the next token.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Piece {
        // Bytes before this index were searched already: a new match ends after it.
        let searched = self.held.len();
        self.held.extend_from_slice(bytes);
        if let Some(start) = self.first_stop(searched) {
            self.held.truncate(start);
            let text = self.finish();
            return Piece { text, stopped: true };
        }
        let sendable = self.held.len() - self.stop_prefix();
        Piece { text: self.take_characters(sendable), stopped: false }
    }

    /// The rest, when no more tokens come. An incomplete character becomes U+FFFD.
    pub(crate) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }

    /// Where the stop sequence that is completed first begins, looking only at
    /// those that end after `searched`; of those that end together, the longest.
    fn first_stop(&self, searched: usize) -> Option<usize> {
        (searched + 1..=self.held.len()).find_map(|end| {
            self.stops
                .iter()
                .filter(|stop| self.held[..end].ends_with(stop))
                .map(|stop| end - stop.len())
                .min()
        })
    }

    /// Length of the longest tail that is the beginning of a stop sequence.
    fn stop_prefix(&self) -> usize {
        self.stops
            .iter()
            .flat_map(|stop| {
                (1..stop.len().min(self.held.len() + 1))
                    .rev()
                    .find(|&n| self.held.ends_with(&stop[..n]))
            })
            .max()
            .unwrap_or(0)
    }

    /// Removes and returns the complete characters among the first `limit` bytes.
    fn take_characters(&mut self, limit: usize) -> String {
        let mut text = String::new();
        let mut done = 0;
        while done < limit {
            match std::str::from_utf8(&self.held[done..limit]) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = limit;
                }
                Err(e) => {
                    let valid = done + e.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[done..valid]));
                    done = valid;
                    match e.error_len() {
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            done += bad;
                        }
                        // The character's other bytes come with later tokens.
                        None => break,
                    }
                }
            }
        }
        self.held.drain(..done);
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut pieces = Vec::new();
        for token in tokens {
            let piece = stream.push(token);
            pieces.push(piece.text);
            if piece.stopped {
                return (pieces, true);
            }
        }
        pieces.push(stream.finish());
        (pieces, false)
    }

    #[test]
    fn a_stop_sequence_across_tokens_is_never_sent() {
        let (pieces, stopped) = run(&["\n\nUser:"], &[b"Hi", b"\n", b"\nUs", b"er: more"]);
        assert_eq!(pieces, ["Hi", "", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn what_only_looked_like_a_stop_sequence_is_sent_late_but_whole() {
        let (pieces, stopped) = run(&["END"], &[b"an E", b"N", b"E", b"ND"]);
        assert_eq!(pieces, ["an ", "", "EN", ""]);
        assert!(stopped);
        let (pieces, stopped) = run(&["END"], &[b"E", b"N"]);
        assert_eq!(pieces, ["", "", "EN"]);
        assert!(!stopped);
    }

    #[test]
    fn the_stop_sequence_that_is_completed_first_wins() {
        assert_eq!(run(&["abcd", "bc"], &[b"abcd"]).0.concat(), "a");
        assert_eq!(run(&["bc", "abc"], &[b"xabc"]).0.concat(), "x");
    }

    #[test]
    fn characters_are_sent_whole() {
        let euro = "€".as_bytes();
        let (pieces, _) = run(&[], &[b"5 ", &euro[..1], &euro[1..2], &euro[2..], b"!"]);
        assert_eq!(pieces, ["5 ", "", "", "€", "!", ""]);
        let (pieces, _) = run(&[], &[b"a", &euro[..2]]);
        assert_eq!(pieces.concat(), "a\u{fffd}");
        let (pieces, _) = run(&[], &[b"a\xff", b"b"]);
        assert_eq!(pieces, ["a\u{fffd}", "b", ""]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_text_does_not_depend_on_where_tokens_are_cut(
            bytes in prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0xe2), Just(0x82), Just(0xac), any::<u8>()], 0..60),
            stops in prop::collection::vec("[ab€]{1,4}", 0..4),
            cuts in prop::collection::vec(0_usize..60, 0..12),
        ) {
            let refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| c <= bytes.len()).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let tokens: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let (pieces, stopped) = run(&refs, &tokens);

            // The plain way: look at every prefix of the whole.
            let end = (1..=bytes.len()).find_map(|end| {
                stops.iter().filter(|s| bytes[..end].ends_with(s.as_bytes())).map(|s| end - s.len()).min()
            });
            let whole = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned();
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(pieces.concat(), whole);
        }
    }
}
