//! Pictures, as far as a test has to look into one: PNG as browsers write it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use flate2::read::ZlibDecoder;

/// How often each colour is in a picture, which has 8 bits each of red, green, blue and perhaps opacity.
pub fn colours(path: &Path) -> BTreeMap<[u8; 3], usize> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("the picture can be read");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let (mut at, mut packed) = (8, Vec::new());
    while at < bytes.len() {
        let length = number(at);
        if &bytes[at + 4..at + 8] == b"IDAT" {
            packed.extend(&bytes[at + 8..at + 8 + length]);
        }
        at += length + 12;
    }
    let (width, channels) = (number(16), if bytes[25] == 6 { 4 } else { 3 });
    assert_eq!(bytes[24], 8, "bits of a channel");
    let mut lines = Vec::new();
    ZlibDecoder::new(&*packed).read_to_end(&mut lines).expect("the picture can be unpacked");
    let mut before = vec![0; width * channels];
    let mut colours = BTreeMap::new();
    for line in lines.chunks_exact(width * channels + 1) {
        let mut now = line[1..].to_vec();
        for at in 0..now.len() {
            let left = if at >= channels { now[at - channels] } else { 0 };
            let corner = if at >= channels { before[at - channels] } else { 0 };
            let guess = match line[0] {
                0 => 0,
                1 => left,
                2 => before[at],
                3 => u16::midpoint(left.into(), before[at].into()) as u8,
                _ => paeth(left, before[at], corner),
            };
            now[at] = now[at].wrapping_add(guess);
        }
        for pixel in now.chunks_exact(channels) {
            *colours.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
        }
        before = now;
    }
    colours
}

/// The neighbour that is nearest to left + above - corner.
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, above, corner].map(i16::from);
    let far = |from: i16| (a + b - c - from).abs();
    if far(a) <= far(b) && far(a) <= far(c) {
        left
    } else if far(b) <= far(c) {
        above
    } else {
        corner
    }
}
