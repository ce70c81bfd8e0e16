//! Streams of exec, attach and port-forward, where one side speaks websockets and the other SPDY.

pub mod spdy;
pub mod websocket;
