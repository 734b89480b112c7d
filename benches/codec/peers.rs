//! General compressors on the same pages. They are given what flatters them: pages packed without a head, a list or a digest.

use dwcp_hde::PAGE_BYTES;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

use crate::measure::{Method, Place};
use crate::rounds::Round;

/// What general movers compress at once.
const CHUNK: usize = 64 << 10;
const WINDOW_LOG: u32 = 27;

pub fn methods<'a>(round: &'a Round<'_>, slow: bool) -> Vec<Box<dyn Method + 'a>> {
    let mut methods: Vec<Box<dyn Method>> = Vec::new();
    for codec in [Codec::Lz4, Codec::Zstd(1), Codec::Zstd(3), Codec::Zstd(9)] {
        methods.push(Box::new(Chunks::new(codec, &round.solid)));
    }
    let levels: &[i32] = match (&round.old, slow) {
        (None, true) => &[3, 9, 19],
        (None, false) => &[3, 9],
        (Some(_), _) => &[],
    };
    for &level in levels {
        methods.push(Box::new(Whole::new(level, &round.solid, None)));
    }
    if let Some(old) = round.old {
        methods.push(Box::new(Whole::new(3, round.image, Some(old))));
    }
    methods
}

#[derive(Debug, Clone, Copy)]
enum Codec {
    Lz4,
    Zstd(i32),
}

/// 64 KiB at a time.
struct Chunks<'a> {
    codec: Codec,
    plain: &'a [u8],
    packer: CCtx<'static>,
    unpacker: DCtx<'static>,
    squeezed: Vec<u8>,
    unpacked: Vec<u8>,
    packed: Vec<u8>,
    ends: Vec<usize>,
}

impl<'a> Chunks<'a> {
    fn new(codec: Codec, plain: &'a [u8]) -> Self {
        Self {
            codec,
            plain,
            packer: CCtx::create(),
            unpacker: DCtx::create(),
            squeezed: vec![0; 2 * CHUNK],
            unpacked: vec![0; CHUNK],
            packed: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl Method for Chunks<'_> {
    fn name(&self) -> String {
        match self.codec {
            Codec::Lz4 => "lz4 64K".into(),
            Codec::Zstd(level) => format!("zstd-{level} 64K"),
        }
    }

    fn encode(&mut self) {
        self.packed.clear();
        self.ends.clear();
        for chunk in self.plain.chunks(CHUNK) {
            let length = match self.codec {
                Codec::Lz4 => lz4_flex::block::compress_into(chunk, &mut self.squeezed).expect("room"),
                Codec::Zstd(level) => self.packer.compress(self.squeezed.as_mut_slice(), chunk, level).expect("room"),
            };
            self.packed.extend_from_slice(&self.squeezed[..length]);
            self.ends.push(self.packed.len());
        }
    }

    fn bytes_out(&self) -> usize {
        self.packed.len()
    }

    fn decode(&mut self, put: &mut dyn FnMut(Place<'_>, &[u8])) {
        let mut start = 0;
        for end in &self.ends {
            let packed = &self.packed[start..*end];
            let length = match self.codec {
                Codec::Lz4 => lz4_flex::block::decompress_into(packed, &mut self.unpacked).expect("a block"),
                Codec::Zstd(_) => self.unpacker.decompress(self.unpacked.as_mut_slice(), packed).expect("a frame"),
            };
            put(Place::Next, &self.unpacked[..length]);
            start = *end;
        }
    }
}

/// One frame over everything, with long-distance matches; with an old image before it, as `zstd --patch-from` does.
struct Whole<'a> {
    level: i32,
    plain: &'a [u8],
    old: Option<&'a [u8]>,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
}

impl<'a> Whole<'a> {
    fn new(level: i32, plain: &'a [u8], old: Option<&'a [u8]>) -> Self {
        let packed = vec![0; zstd_safe::compress_bound(plain.len())];
        Self { level, plain, old, packed, unpacked: vec![0; plain.len()] }
    }
}

impl Method for Whole<'_> {
    fn name(&self) -> String {
        let what = if self.old.is_some() { "patch" } else { "long" };
        format!("zstd-{} {what}", self.level)
    }

    fn encode(&mut self) {
        let mut frames = CCtx::create();
        let parameters = [
            CParameter::CompressionLevel(self.level),
            CParameter::WindowLog(WINDOW_LOG),
            CParameter::EnableLongDistanceMatching(true),
        ];
        for parameter in parameters {
            frames.set_parameter(parameter).expect("a parameter");
        }
        if let Some(old) = self.old {
            frames.ref_prefix(old).expect("a prefix");
        }
        let capacity = zstd_safe::compress_bound(self.plain.len());
        self.packed.resize(capacity, 0);
        let length = frames.compress2(self.packed.as_mut_slice(), self.plain).expect("room");
        self.packed.truncate(length);
    }

    fn bytes_out(&self) -> usize {
        self.packed.len()
    }

    fn decode(&mut self, put: &mut dyn FnMut(Place<'_>, &[u8])) {
        let mut frames = DCtx::create();
        frames.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).expect("a window");
        if let Some(old) = self.old {
            frames.ref_prefix(old).expect("a prefix");
        }
        let mut input = InBuffer::around(&self.packed);
        let mut output = OutBuffer::around(self.unpacked.as_mut_slice());
        while frames.decompress_stream(&mut output, &mut input).expect("a frame") != 0 {}
        assert_eq!(output.pos() % PAGE_BYTES, 0, "whole pages");
        put(if self.old.is_some() { Place::Image } else { Place::Next }, &self.unpacked);
    }
}
