"""Training pairs from documents: written by a language model, or extracted without one."""
