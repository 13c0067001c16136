"""Collections, passages and pairs: reading, checking, splitting and writing them (no torch)."""
