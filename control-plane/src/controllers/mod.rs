//! What follows from stored objects: one file per controller.
