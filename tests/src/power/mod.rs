//! A power cut, as far as one machine can show it: a program is traced at its system calls, files are rebuilt as
//! a cut at any moment may have left them, and each is judged by the native tools and by the model.

pub mod cut;
pub mod scenario;
pub mod states;
pub mod verdict;
