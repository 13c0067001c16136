"""One module per command of ``stm-train``: ``add_parser(subparsers)`` and ``run(arguments) -> int``."""
