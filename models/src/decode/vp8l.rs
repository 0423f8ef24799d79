//! VP8L: how many groups of prefix codes a lossless WebP has, read without making them.
//!
//! Each group is some hundred bytes of the file and some ten thousand of the decoder's memory, and their number is the
//! greatest that one image of the file names, be the picture of a single pixel (RFC 9649, section 3). So that image is
//! read first. Copies and cached colours in it repeat what came before, so the literals are all that has to be looked at.

/// Groups that are taken. libwebp's encoder writes 2,600 at the most.
pub(super) const MAX_GROUPS: u32 = 4096;

/// Symbols of the five codes of a group, the first without those of the colour cache.
const ALPHABETS: [usize; 5] = [280, 256, 256, 256, 40];

/// The order in which lengths of the code for lengths are written.
const LENGTHS_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const LONGEST: usize = 15;

/// Columns and rows that the data tells itself.
pub(super) fn size(data: &[u8]) -> Option<(u32, u32)> {
    let mut bits = Bits::new(data);
    (bits.read(8)? == 0x2f).then_some(())?;
    Some((bits.read(14)? + 1, bits.read(14)? + 1))
}

/// The number of groups of data that begins with its size; none where it is broken.
pub(super) fn groups(data: &[u8]) -> Option<u32> {
    let mut bits = Bits::new(data);
    let ((width, height), _) = (size(data)?, (bits.read(8)?, bits.read(28)?));
    // Whether there is transparency, and the version.
    bits.read(4)?;
    bits.groups(width, height)
}

/// The same for transparency, whose size is told elsewhere.
pub(super) fn groups_of_alpha(data: &[u8], width: u32, height: u32) -> Option<u32> {
    Bits::new(data).groups(width, height)
}

/// The bits of the data, the lowest of a byte first.
struct Bits<'a> {
    rest: &'a [u8],
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest, held: 0, count: 0 }
    }

    fn read(&mut self, count: u32) -> Option<u32> {
        while self.count < count {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            self.held |= u64::from(byte) << self.count;
            self.count += 8;
        }
        let value = self.held & ((1 << count) - 1);
        self.held >>= count;
        self.count -= count;
        Some(value as u32)
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.read(1)? == 1)
    }

    fn groups(&mut self, width: u32, height: u32) -> Option<u32> {
        let width = self.transforms(width, height)?;
        self.colour_cache()?;
        if !self.flag()? {
            return Some(1);
        }
        let block = self.read(3)? + 2;
        Some(self.image(parts(width, block), parts(height, block))? + 1)
    }

    /// Goes past the transforms; gives the columns that are left to be coded.
    fn transforms(&mut self, mut width: u32, height: u32) -> Option<u32> {
        let mut had = [false; 4];
        while self.flag()? {
            let kind = self.read(2)?;
            // Each at most once.
            (!std::mem::replace(&mut had[kind as usize], true)).then_some(())?;
            match kind {
                // Predictors and colour transforms, one a block.
                0 | 1 => {
                    let block = self.read(3)? + 2;
                    self.image(parts(width, block), parts(height, block))?;
                }
                // A palette, of which up to 16 colours share a pixel's place.
                3 => {
                    let colours = self.read(8)? + 1;
                    self.image(colours, 1)?;
                    let together = match colours {
                        1..=2 => 3,
                        3..=4 => 2,
                        5..=16 => 1,
                        _ => 0,
                    };
                    width = parts(width, together);
                }
                _ => {}
            }
        }
        Some(width)
    }

    /// Symbols that the colour cache adds to the first code.
    fn colour_cache(&mut self) -> Option<usize> {
        if !self.flag()? {
            return Some(0);
        }
        let bits = self.read(4)?;
        (1..=11).contains(&bits).then(|| 1 << bits)
    }

    /// Goes past an image of one group; gives the greatest number in red and green of its pixels.
    fn image(&mut self, width: u32, height: u32) -> Option<u32> {
        let cached = self.colour_cache()?;
        let [green, red, blue, alpha, distance] = {
            let mut codes = Vec::with_capacity(ALPHABETS.len());
            for (at, symbols) in ALPHABETS.into_iter().enumerate() {
                codes.push(Code::read(self, if at == 0 { symbols + cached } else { symbols })?);
            }
            <[Code; 5]>::try_from(codes).ok()?
        };
        let alone = [&green, &red, &blue, &alpha].into_iter().all(Code::is_alone);
        let (pixels, mut at, mut greatest) = (u64::from(width) * u64::from(height), 0u64, 0);
        while at < pixels {
            match green.symbol(self)? {
                literal @ ..256 => {
                    greatest = greatest.max(red.symbol(self)? << 8 | literal);
                    blue.symbol(self)?;
                    alpha.symbol(self)?;
                    // Nothing of the others is written.
                    at = if alone { pixels } else { at + 1 };
                }
                copied @ 256..280 => {
                    at += u64::from(self.length(copied - 256)?);
                    let symbol = distance.symbol(self)?;
                    self.length(symbol)?;
                }
                _ => at += 1,
            }
        }
        (at == pixels).then_some(greatest)
    }

    /// A length or a distance, by its symbol and the bits behind it.
    fn length(&mut self, symbol: u32) -> Option<u32> {
        if symbol < 4 {
            return Some(symbol + 1);
        }
        let more = (symbol - 2) >> 1;
        Some(((2 + (symbol & 1)) << more) + self.read(more)? + 1)
    }
}

/// How many blocks of `1 << bits` pixels cover so many.
fn parts(pixels: u32, bits: u32) -> u32 {
    pixels.div_ceil(1 << bits)
}

/// A prefix code: how many symbols have each length, and the symbols in the order of their codes.
struct Code {
    counts: [u16; LONGEST + 1],
    symbols: Vec<u16>,
}

impl Code {
    fn read(bits: &mut Bits<'_>, alphabet: usize) -> Option<Self> {
        let mut lengths = vec![0u8; alphabet];
        if bits.flag()? {
            return Self::simple(bits, alphabet);
        }
        let mut of_lengths = [0u8; 19];
        let written = bits.read(4)? as usize + 4;
        for place in LENGTHS_ORDER.into_iter().take(written) {
            of_lengths[place] = bits.read(3)? as u8;
        }
        let of_lengths = Self::new(&of_lengths)?;
        let mut left = match bits.flag()? {
            true => {
                let size = 2 + 2 * bits.read(3)?;
                let most = 2 + bits.read(size)? as usize;
                (most <= alphabet).then_some(most)?
            }
            false => alphabet,
        };
        let (mut at, mut before) = (0, 8);
        while at < alphabet && left > 0 {
            left -= 1;
            let (length, times) = match of_lengths.symbol(bits)? {
                16 => (before, 3 + bits.read(2)?),
                17 => (0, 3 + bits.read(3)?),
                18 => (0, 11 + bits.read(7)?),
                length => (length as u8, 1),
            };
            if length > 0 {
                before = length;
            }
            lengths.get_mut(at..at + times as usize)?.fill(length);
            at += times as usize;
        }
        Self::new(&lengths)
    }

    /// One symbol, or two of one bit.
    fn simple(bits: &mut Bits<'_>, alphabet: usize) -> Option<Self> {
        let two = bits.flag()?;
        let size = if bits.flag()? { 8 } else { 1 };
        let mut symbols = vec![bits.read(size)? as u16];
        if two {
            symbols.push(bits.read(8)? as u16);
        }
        let known = symbols.iter().all(|&symbol| usize::from(symbol) < alphabet);
        let mut counts = [0; LONGEST + 1];
        counts[1] = symbols.len() as u16;
        known.then_some(Self { counts, symbols })
    }

    /// Of the length of each symbol's code; none where these do not make a whole code.
    fn new(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0u16; LONGEST + 1];
        lengths.iter().for_each(|&length| counts[usize::from(length)] += 1);
        counts[0] = 0;
        let mut symbols: Vec<u16> = (0..lengths.len() as u16).collect();
        symbols.retain(|&symbol| lengths[usize::from(symbol)] > 0);
        symbols.sort_by_key(|&symbol| lengths[usize::from(symbol)]);
        let taken: u32 =
            (1..).zip(&counts[1..]).map(|(length, &count)| u32::from(count) << (LONGEST - length)).sum();
        let whole = taken == 1 << LONGEST || symbols.len() == 1;
        whole.then_some(Self { counts, symbols })
    }

    /// Whether there is one symbol, which takes no bit.
    fn is_alone(&self) -> bool {
        self.symbols.len() == 1
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Option<u32> {
        if let [symbol] = *self.symbols {
            return Some(u32::from(symbol));
        }
        // Codes of a length follow each other, behind those that begin as the shorter ones do.
        let (mut code, mut first, mut index) = (0u32, 0u32, 0u32);
        for &count in &self.counts[1..] {
            code |= bits.read(1)?;
            if code < first + u32::from(count) {
                return self.symbols.get((index + code - first) as usize).map(|&symbol| u32::from(symbol));
            }
            index += u32::from(count);
            first = (first + u32::from(count)) << 1;
            code <<= 1;
        }
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Bits written the lowest first.
    #[derive(Default)]
    struct Writer(Vec<bool>);

    impl Writer {
        fn put(&mut self, count: u32, value: u32) -> &mut Self {
            self.0.extend((0..count).map(|at| value >> at & 1 == 1));
            self
        }

        fn one_symbol(&mut self, symbol: u32) -> &mut Self {
            self.put(3, 0b101).put(8, symbol)
        }

        fn bytes(&self) -> Vec<u8> {
            let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
            self.0.chunks(8).map(byte).collect()
        }
    }

    /// The head, then an image of one pixel that names `last`.
    pub fn naming(last: u32) -> Vec<u8> {
        let mut data = Writer::default();
        data.put(8, 0x2f).put(28, 0).put(4, 0);
        data.put(1, 0).put(1, 0).put(1, 1).put(3, 0).put(1, 0);
        for symbol in [last & 255, last >> 8, 0, 255, 0] {
            data.one_symbol(symbol);
        }
        data.bytes()
    }

    #[test]
    fn the_greatest_number_is_found() {
        for last in [0, 1, 255, 256, 65_535] {
            assert_eq!(groups(&naming(last)), Some(last + 1));
        }
        assert_eq!(size(&naming(0)), Some((1, 1)));
        assert_eq!(groups(&naming(7)[..9]), None);
        assert_eq!(groups(&[]), None);
    }

    #[test]
    fn whole_codes_alone_are_read() {
        assert!(Code::new(&[1, 2, 2]).is_some() && Code::new(&[0, 5, 0]).is_some());
        assert!(
            Code::new(&[1, 2]).is_none() && Code::new(&[1, 1, 1]).is_none() && Code::new(&[0; 9]).is_none()
        );
        let code = Code::new(&[2, 1, 3, 3]).unwrap();
        let read = |bits: &[u32]| {
            let mut data = Writer::default();
            for &bit in bits {
                data.put(1, bit);
            }
            code.symbol(&mut Bits::new(&data.bytes()))
        };
        assert_eq!(
            (read(&[0]), read(&[1, 0]), read(&[1, 1, 0]), read(&[1, 1, 1])),
            (Some(1), Some(0), Some(2), Some(3))
        );
    }
}
