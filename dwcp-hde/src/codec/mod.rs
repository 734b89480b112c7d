//! The general compressors behind the group methods: bytes to fewer bytes, into buffers that their owner reuses.

pub(crate) mod dictionary;
pub(crate) mod lz4;
pub(crate) mod zstd;
