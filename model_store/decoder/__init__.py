"""Decoding under limits of time and memory: in the calling thread, or in a replaceable process."""
