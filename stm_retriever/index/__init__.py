"""The index folder: documents in SQLite, vectors in FAISS, and what holds the two together."""
