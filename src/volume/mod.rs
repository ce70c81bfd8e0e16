//! Volumes of pods: one file per plugin, and the atomic writer.
