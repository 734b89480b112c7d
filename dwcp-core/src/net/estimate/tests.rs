use super::*;
use crate::extent::{Layout, RegionId};
use crate::guest::Memory;
use crate::session::EffortPolicy;

/// A guest of so many pages that no compressor makes smaller.
fn noise(pages: u32) -> Arc<Memory> {
    let guest = Memory::new(Layout::new(&[u64::from(pages) * 4096]).unwrap());
    for page in 0..pages {
        let mut bytes = vec![0; 4096];
        blake3::Hasher::new().update(&page.to_le_bytes()).finalize_xof().fill(&mut bytes);
        guest.write(RegionId(0), page, &bytes).unwrap();
    }
    Arc::new(guest)
}

fn over(link: u64, guest: Arc<Memory>, sample: Option<u64>) -> Estimate {
    at(dwcp_hde::Effort::Raw, link, guest, sample)
}

fn at(effort: dwcp_hde::Effort, link: u64, guest: Arc<Memory>, sample: Option<u64>) -> Estimate {
    estimate(guest, &asked(effort, link, sample)).unwrap()
}

fn asked(effort: dwcp_hde::Effort, link: u64, sample: Option<u64>) -> EstimateConfig {
    let source = SourceConfig { lanes: 4, effort: EffortPolicy::Fixed(effort), ..SourceConfig::default() };
    EstimateConfig {
        source,
        link: NonZeroU64::new(link).unwrap(),
        rtt: Duration::from_millis(40),
        cores: NonZeroU16::new(2).unwrap(),
        written_pages: 0,
        device_state: 0,
        sample,
        zeros: None,
        baseline: None,
    }
}

#[test]
fn no_guest_writes_so_much_that_it_is_taken_to_write_nothing() {
    for written_pages in [1 << 40, 1 << 63, u64::MAX] {
        let config = EstimateConfig { written_pages, ..asked(dwcp_hde::Effort::Raw, 1_250_000, None) };
        let told = estimate(noise(2048), &config).unwrap();
        assert!(told.not_converging.is_some(), "{written_pages} pages a second");
    }
}

#[test]
fn a_thin_link_takes_long_and_loses_no_lane() {
    let guest = noise(2048);
    // 256 kbit/s, 512 kbit/s, 1 Mbit/s, 2 Mbit/s.
    for link in [32_000, 64_000, 125_000, 250_000] {
        let told = over(link, Arc::clone(&guest), None);
        let Progress { lanes_lost, pages_resent, wire_bytes, .. } = told.progress;
        assert_eq!((lanes_lost, pages_resent), (0, 0), "{link} bytes a second");
        let whole = Duration::from_secs((wire_bytes + told.packet_bytes) / link);
        assert!(
            told.elapsed >= whole && told.elapsed < whole + whole / 20,
            "{link}: {:?}, not {whole:?}",
            told.elapsed
        );
    }
}

/// Zeros lie together, and not where a transfer begins.
#[test]
fn a_sample_takes_zeros_for_as_many_as_there_are() {
    let guest = Memory::new(Layout::new(&[64 << 20]).unwrap());
    let mut bytes = vec![0; 16 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    guest.write(RegionId(0), 0, &bytes).unwrap();
    let guest = Arc::new(guest);
    let told = |sample| over(125_000_000, Arc::clone(&guest), sample).progress.wire_bytes;
    let (whole, sampled) = (told(None), told(Some(16 << 20)));
    assert!(sampled.abs_diff(whole) < whole / 10, "{sampled}, not {whole}");
}

/// A guest's first pages are its kernel, which packs worse than what comes after it: what was met first says nothing of that.
#[test]
fn a_sample_says_of_each_part_of_a_guest_what_that_part_takes() {
    let guest = noise(16_384);
    let mut page = [0; 4096];
    for number in 3000..16_384_u32 {
        page.chunks_mut(8).zip(number..).for_each(|(word, value)| word[..4].copy_from_slice(&value.to_le_bytes()));
        guest.write(RegionId(0), number, &page).unwrap();
    }
    let told = |sample| at(dwcp_hde::Effort::Light, 125_000_000, Arc::clone(&guest), sample);
    let (whole, sampled) = (told(None), told(Some(16 << 20)));
    let (bytes, of_sample) = (whole.progress.wire_bytes, sampled.progress.wire_bytes);
    assert!(of_sample.abs_diff(bytes) < bytes / 10, "{of_sample}, not {bytes}");
    assert_eq!(sampled.looked_at, 16 << 20);
    let methods = sampled.progress.methods;
    let sum = methods.used().fold(methods.head_bytes, |sum, (_, share)| sum + share.bytes_out);
    assert_eq!(sum, of_sample);
}
