"""Retriever folders on the Hugging Face hub."""
