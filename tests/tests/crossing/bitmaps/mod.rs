//! Persistent dirty bitmaps while the library changes an image: the same bits as native qemu-io leaves, never a
//! bitmap that anybody trusts wrongly, whatever is cut off when.

mod actions;
mod crash;
mod image;
mod layouts;
mod limits;
mod script;
mod stored;
