"""Stage 1: training pairs from raw text, before any query was written (BMRetriever, arXiv 2404.18443)."""
