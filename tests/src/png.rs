//! Pictures, as far as a test has to look into one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// How often each colour is in a picture, which has 8 bits each of red, green, blue and perhaps opacity.
pub fn colours(path: &Path) -> BTreeMap<[u8; 3], usize> {
    let file = File::open(path).expect("the picture can be opened");
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().expect("it is a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a picture that fits into memory")];
    let frame = reader.next_frame(&mut pixels).expect("the picture is whole");
    assert_eq!(frame.bit_depth, png::BitDepth::Eight);
    let mut colours = BTreeMap::new();
    for pixel in pixels[..frame.buffer_size()].chunks_exact(frame.color_type.samples()) {
        let [red, green, blue, ..] = *pixel else { panic!("{:?} has no colours", frame.color_type) };
        *colours.entry([red, green, blue]).or_default() += 1;
    }
    colours
}
