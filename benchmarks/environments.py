"""Virtual environments for the peers that we are measured against: `make bench-env`.

Each peer lives in `.venv-bench/<peer>`, with this package beside it (without its extras), so that both sides
of a comparison run on the same libraries and the very same data, and no peer's dependencies reach the
project's own environment. An environment whose requirements are unchanged is left as it is.

    python benchmarks/environments.py                          make all of them
    python benchmarks/environments.py sentence-transformers    make one
    python benchmarks/environments.py --list                   say what there is
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-bench"
# Before everything else: a peer would otherwise bring the torch that it likes best, and times would differ.
TORCH = "torch==2.13.0"
PEERS: dict[str, tuple[str, ...]] = {
    # util.mine_hard_negatives takes and returns `datasets`, which it does not require itself.
    # Its trainer needs accelerate, and peft for the same LoRA as ours.
    "sentence-transformers": (
        "sentence-transformers==6.2.0",
        "datasets==5.2.0",
        "peft==0.21.2",
        "accelerate==1.15.0",
    ),
    "mergekit": ("mergekit==0.1.5",),
    "fastembed": ("fastembed>=0.7,<1",),
    "langchain-huggingface": ("langchain-huggingface>=1.2,<2", "sentence-transformers==6.2.0"),
    "llama-index-embeddings-huggingface": (
        "llama-index-embeddings-huggingface>=0.6,<1",
        "sentence-transformers==6.2.0",
    ),
}
# Peers that cap libraries below the project's own versions share those alone that speed depends on.
SHARED = frozenset({"numpy", "onnxruntime", "safetensors", "sentence-transformers", "torch", "transformers"})
CAPPING = frozenset({"fastembed", "langchain-huggingface", "llama-index-embeddings-huggingface"})
WITHOUT_TORCH = frozenset({"fastembed"})
_STAMP = ".made-for"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, whether it is there or not."""
    place = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return (FOLDER / peer).joinpath(*place)


def is_made(peer: str) -> bool:
    """Whether a peer's environment was made to the end."""
    return (FOLDER / peer / _STAMP).is_file()


def make(peer: str, *, fresh: bool = False) -> bool:
    """Make a peer's environment.

    Args:
        peer: A key of ``PEERS``.
        fresh: Make it again even if it is up to date.

    Returns:
        Whether anything was done.

    Raises:
        subprocess.CalledProcessError: If pip fails; the environment then has no stamp and is made again.
    """
    folder = FOLDER / peer
    stamp = folder / _STAMP
    if not fresh and stamp.is_file() and stamp.read_text("utf-8") == _key(peer):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    torch = () if peer in WITHOUT_TORCH else (TORCH,)
    if torch:
        _install(peer, *torch)
    # The project's own versions for what both sides share, so that they differ in their own code alone.
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(_constraints(peer)), encoding="utf-8")
    _install(peer, "--constraint", str(constraints), *torch, *PEERS[peer], "--editable", str(ROOT))
    stamp.write_text(_key(peer), encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environments that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--list", action="store_true", help="show the peers, their packages and their state")
    parser.add_argument("--fresh", action="store_true", help="make again what is up to date")
    arguments = parser.parse_args(argv)
    unknown = [peer for peer in arguments.peers if peer not in PEERS]
    if unknown:
        parser.error(f"unknown peer {', '.join(unknown)}; there are: {', '.join(PEERS)}")
    for peer in arguments.peers or PEERS:
        if arguments.list:
            state = python_of(peer) if python_of(peer).exists() else "not made yet"
            print(f"{peer}: {TORCH}, {', '.join(PEERS[peer])} ({state})")
            continue
        print(f"{peer}: working in {FOLDER / peer} ...", flush=True)
        print(f"{peer}: {'made' if make(peer, fresh=arguments.fresh) else 'up to date'}", flush=True)
    return 0


def _install(peer: str, *requirements: str) -> None:
    command = [str(python_of(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *requirements], check=True, cwd=ROOT)


def _constraints(peer: str) -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if peer not in CAPPING:
        return lines
    return [line for line in lines if line.partition("==")[0].lower() in SHARED]


def _key(peer: str) -> str:
    """What the environment was made from: requirements, the shared versions, our own, the interpreter."""
    digest = hashlib.sha256("\n".join((TORCH, *PEERS[peer], sys.version)).encode())
    if peer in CAPPING:
        digest.update(" ".join(sorted(SHARED)).encode())
    for file in ("constraints.txt", "pyproject.toml"):
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
