//! The DNS server in a network namespace of its own, asked by `dig`, with a name server behind it that tests tell what to say.

mod lab;
mod outside;
mod records;
