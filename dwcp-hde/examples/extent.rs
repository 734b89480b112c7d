//! Packs one small extent, unpacks it, and shows what each method saved.
//!
//! `cargo run -p dwcp-hde --example extent`

use dwcp_hde::{Bases, Decoder, Effort, Encoder, PAGE_BYTES, Stats};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let old = guest_pages();
    let mut new = old.clone();
    for counter in new.iter_mut().skip(4 * PAGE_BYTES).step_by(512).take(8) {
        *counter = counter.wrapping_add(1); // page 4 is written after the first round
    }

    let (mut encoder, mut decoder, mut scratch) = (Encoder::new(), Decoder::new(), Vec::new());
    let all_sent = Bases::new([0b11_1111, 0, 0, 0], &old);
    for (round, pages, bases) in [("first round", &old, Bases::none()), ("second round", &new, all_sent)] {
        let mut block = Vec::new();
        let done = encoder.encode(pages, &bases, Effort::Balanced, &mut block)?;
        if done.raw_tail {
            block.extend_from_slice(pages); // a sender writes head and pages vectored instead
        }
        show(round, &done.stats);

        let mut sink = bases; // at the sink: its own guest memory
        let plain = decoder.decode(&block, pages.len() / PAGE_BYTES, &mut sink, &mut scratch)?;
        println!("  decoded: {}", if plain == pages.as_slice() { "equal" } else { "DIFFERENT" });
    }
    Ok(())
}

/// Six pages: zero, two equal pages of text, pointers, a little-changing record page, random bytes.
fn guest_pages() -> Vec<u8> {
    let text: Vec<u8> =
        b"the quick brown fox jumps over the lazy dog. ".iter().copied().cycle().take(PAGE_BYTES).collect();
    let pointers = (0..512_u64).flat_map(|slot| (0xffff_8880_1234_0000 + slot * slot * 192).to_le_bytes());
    let records = (0..1024_u32).flat_map(|slot| (slot / 3).to_le_bytes());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let random = (0..512).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut pages = vec![0; PAGE_BYTES];
    pages.extend(text.iter().chain(&text));
    pages.extend(pointers.chain(records).chain(random));
    pages
}

fn show(round: &str, stats: &Stats) {
    println!("{round}: {} -> {} bytes", stats.bytes_in(), stats.bytes_out());
    for (method, share) in stats.used() {
        println!("  {:9} {:2} pages {:6} -> {:5} bytes", method.name(), share.pages, share.bytes_in, share.bytes_out);
    }
}
