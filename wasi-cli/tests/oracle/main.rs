//! The command beside qemu-img and qemu-io: the same lines to both, and the same words, codes and images from both.
#![cfg(unix)]

mod answers;
mod background;
mod bench;
mod changes;
mod headers;
mod repairs;
mod steps;
mod words;
