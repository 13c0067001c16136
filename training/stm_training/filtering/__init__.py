"""Filters on finished training pairs: near-duplicates, language, round trip, reranker, close negatives."""
