"""Other programs, each in an environment of its own, read the folders that we write."""
