//! libhound.so.
