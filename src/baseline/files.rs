//! Files that together are one guest.

use std::path::PathBuf;

use dwcp_core::guest::ImageSource;
use dwcp_core::{Guest, GuestError, Layout, RegionId};

/// One region for each file.
#[derive(Debug)]
pub(super) struct Files {
    images: Vec<ImageSource>,
    layout: Layout,
}

impl Files {
    pub(super) fn open(paths: Vec<PathBuf>) -> Result<Self, GuestError> {
        let images = paths.into_iter().map(ImageSource::open).collect::<Result<Vec<_>, _>>()?;
        let sizes: Vec<u64> = images.iter().map(|image| image.layout().bytes()).collect();
        let layout =
            Layout::new(&sizes).map_err(|error| GuestError::Other(format!("the files make no guest: {error}")))?;
        Ok(Self { images, layout })
    }
}

impl Guest for Files {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let image = self.images.get(usize::from(region.0)).ok_or(GuestError::Outside { region, first })?;
        image.read(RegionId(0), first, into)
    }
}
