"""The environments of the peers in benchmarks/index_speed.py, on top of benchmarks/environments.py."""

from __future__ import annotations

import environments

PEERS: dict[str, tuple[str, ...]] = {
    "langchain-community": ("langchain-community>=0.4,<0.5", "faiss-cpu>=1.9"),
    "llama-index-vector-stores-faiss": (
        "llama-index-vector-stores-faiss>=0.5,<1",
        "llama-index-core>=0.14,<0.15",
        "faiss-cpu>=1.9",
    ),
    "qdrant-client": ("qdrant-client>=1.12,<2",),
}


def register() -> None:
    """Let environments.py know the peers of this benchmark; none of them needs torch."""
    environments.PEERS.update(PEERS)
    environments.WITHOUT_TORCH = environments.WITHOUT_TORCH | frozenset(PEERS)


def make() -> None:
    """Make the environments that are missing or out of date."""
    register()
    for peer in PEERS:
        print(f"{peer}: {'made' if environments.make(peer) else 'up to date'}", flush=True)
