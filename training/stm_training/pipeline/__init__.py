"""A recipe's stages, from documents to a retriever folder, an index folder and a report."""
