//! The README's program compiles and runs, and its table of exit codes is that of the program.

use std::num::NonZeroU64;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Fingerprint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};
use dwcp_core::{Guest, Layout};

const README: &str = include_str!("../README.md");

async fn move_it(to: &str, peer: Fingerprint, us: &Identity, dir: &Path, vm: Arc<dyn Guest>) -> anyhow::Result<Owner> {
    let endpoint = Endpoint::new(us, &Trust::fingerprints([peer]))?.with_records(dir)?;
    let transfer = Transfer::new(Name::new("vm1")?, GuestKind::Live);
    let mut session = endpoint.send(to, transfer, vm, SourceConfig::default()).await?;
    session.set_bandwidth(NonZeroU64::new(500_000_000));
    let progress = session.progress();
    let outcome = session.outcome().await;
    println!("{:.0} % did not travel", progress.borrow().saved() * 100.0);
    Ok(outcome.owner)
}

#[test]
fn the_readme_shows_the_program_that_this_file_compiles() {
    let shown = README.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    assert!(include_str!("readme.rs").contains(shown), "README.md and tests/readme.rs differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_program_moves_a_guest() {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let sink = Endpoint::new(&b, &Trust::fingerprints([a.fingerprint()])).unwrap();
    let mut listener = sink.listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().to_string();
    let records = tempfile::tempdir().unwrap();
    let guest = Arc::new(Memory::new(Layout::new(&[1 << 20]).unwrap()));
    guest.start();
    let receiving = tokio::spawn(async move {
        let Some(Incoming::Offer(incoming)) = listener.accept().await else { panic!("no offer") };
        let there = Arc::new(Memory::new(incoming.offer().layout.clone()));
        incoming.accept(there, SinkConfig::default()).outcome().await.owner
    });
    let owner = move_it(&to, b.fingerprint(), &a, records.path(), guest).await.unwrap();
    assert_eq!((owner, receiving.await.unwrap()), (Owner::Sink, Owner::Sink));
}

#[test]
fn the_readme_has_the_exit_codes_of_the_help() {
    let help = Command::new(env!("CARGO_BIN_EXE_dwcp")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let table = help.split_once("Exit codes:\n").unwrap().1;
    for line in table.lines().filter(|line| !line.trim().is_empty()) {
        let mut columns = line.split_whitespace();
        let (code, word) = (columns.next().unwrap(), columns.next().unwrap());
        let meaning = columns.collect::<Vec<_>>().join(" ");
        let row = format!("| {code} | {word} | {meaning} |");
        assert!(README.contains(&row), "README.md lacks: {row}");
    }
}
