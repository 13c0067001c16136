"""Our models in MTEB: as an encoder, with their metadata, on tasks from the hub or from local copies.

Nothing here is imported before ``mteb`` is known to be installed (extra ``eval``); its import takes seconds.
"""
