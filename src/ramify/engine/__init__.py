"""The engine: sessions, token trees, verifiers and the loops that every method shares."""
