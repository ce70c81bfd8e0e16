//! Services on the real kernel: each test in network namespaces of its own, with real connections. Needs root.

mod lab;

mod affinity;
mod ipvs;
mod leftovers;
mod memory;
mod policies;
mod proxy;
mod reach;
mod restart;
mod robust;
