//! Services and EndpointSlices as rules of the kernel.
