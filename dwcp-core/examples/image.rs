//! Sends an image over loopback, both ends in one process: `cargo run --example image`.

use std::error::Error;
use std::sync::Arc;

use dwcp_core::guest::{ImageFolder, ImageSource};
use dwcp_core::net::{Endpoint, Identity, Incoming, Transfer, Trust};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{GuestKind, Name};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Each end knows the other by the fingerprint of its key.
    let (ours, theirs) = (Identity::generate("a")?, Identity::generate("b")?);
    let source = Endpoint::new(&ours, &Trust::fingerprints([theirs.fingerprint()]))?;
    let sink = Endpoint::new(&theirs, &Trust::fingerprints([ours.fingerprint()]))?;

    let folder = tempfile::tempdir()?;
    let (image, store) = (folder.path().join("disk.img"), folder.path().join("store"));
    std::fs::create_dir(&store)?;
    std::fs::write(&image, vec![7; 3_000_001])?;

    // The receiver decides where an image goes; the name is only data.
    let mut listener = sink.listen("127.0.0.1:0").await?;
    let address = listener.local_addr().to_string();
    let dir = store.clone();
    let receiving = tokio::spawn(async move {
        let Some(Incoming::Offer(incoming)) = listener.accept().await else { return Err("no offer".to_owned()) };
        let offer = incoming.offer();
        let folder = ImageFolder::open(dir).map_err(|error| error.to_string())?;
        let staging = folder.create(&offer.name, offer.transfer, offer.layout.clone());
        let staging = staging.map_err(|error| error.to_string())?;
        Ok(incoming.accept(Arc::new(staging), SinkConfig::default()).outcome().await)
    });

    let transfer = Transfer::new(Name::new("disk")?, GuestKind::Image);
    let guest = Arc::new(ImageSource::open(&image)?);
    let mut session = source.send(&address, transfer, guest, SourceConfig::default()).await?;
    let outcome = session.outcome().await;
    let progress = session.progress().borrow().clone();
    drop(session);
    let received = receiving.await??;

    assert_eq!((outcome.owner, received.owner), (Owner::Sink, Owner::Sink), "{:?}", outcome.error);
    assert!(std::fs::read(store.join("disk"))? == std::fs::read(&image)?, "the images are the same");
    println!("{} bytes are there, {} travelled, roots agree", progress.guest_bytes, progress.wire_bytes);
    Ok(())
}
