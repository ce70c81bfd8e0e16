//! The tables in the kernel.
