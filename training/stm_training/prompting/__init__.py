"""The retrieval instruction: candidates, a linter, GEPA, and an honest choice on development queries."""
