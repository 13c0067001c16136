"""Synthesize, train, merge: from documents to a retriever folder that is proven better than its base."""
