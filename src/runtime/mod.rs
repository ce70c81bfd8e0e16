//! The container runtime: CRI over tonic, its event stream, images, logs and the pause image.
