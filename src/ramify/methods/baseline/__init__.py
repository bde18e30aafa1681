"""Other implementations of decoding, as rows to compare with."""
