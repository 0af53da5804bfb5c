//! Encrypted images: what one side made and wrote the other reads, in every layout and cipher that both know;
//! the same words where a key is missing or wrong; and LUKS headers that are damaged.

mod damage;
mod scripts;
mod words;
