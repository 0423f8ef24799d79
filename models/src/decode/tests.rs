//! Decoding of every format, orientation and colour type, and of broken files.
