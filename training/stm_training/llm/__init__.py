"""One interface to any language model that writes training data; every completion is journalled."""
