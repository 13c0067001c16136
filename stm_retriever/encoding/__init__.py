"""What :class:`stm_retriever.Embedder` is made of: engines, batches, stored precisions, processes."""
