"""Bulk encoding of documents into Parquet shards."""
