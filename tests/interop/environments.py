"""Virtual environments of the programs that read our folders: `make interop`.

Each lies in `.venv-interop/<name>` and holds nothing of ours: what a program gives there, it gives to somebody
who never heard of stm-retriever. An environment whose requirements are unchanged is left as it is. One that
pip cannot make is remembered with pip's reason, which becomes the cell of the table.

    python -m tests.interop.environments             make all of them
    python -m tests.interop.environments fastembed   make one
    python -m tests.interop.environments --list      say what there is
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

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-interop"
# Before everything else: a program would otherwise bring the torch that it likes best, with its GPU libraries.
TORCH = "torch==2.13.0"
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "fastembed": ("fastembed==0.9.1",),
    "sentence-transformers-3": (TORCH, "sentence-transformers==3.4.1", "transformers<5"),
    # its extra brings optimum-onnx, whose releases end at transformers 4.57
    "sentence-transformers-5": (TORCH, "sentence-transformers[onnx]==5.7.0"),
    "sentence-transformers-6": (TORCH, "sentence-transformers==6.2.0", "mteb==2.26.24"),
    "sentence-transformers-6-onnx": (TORCH, "sentence-transformers[onnx]==6.2.0"),
    "langchain-huggingface": (TORCH, "langchain-huggingface==1.2.3", "sentence-transformers>=5"),
    "llama-index-huggingface": (TORCH, "llama-index-embeddings-huggingface==0.8.0"),
}
_STAMP = ".made-for"
_REASON = "reason.txt"


def python_of(name: str) -> Path:
    """The interpreter of an environment, whether it is there or not."""
    place = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return (FOLDER / name).joinpath(*place)


def is_made(name: str) -> bool:
    """Whether the environment is there and up to date."""
    stamp = FOLDER / name / _STAMP
    return stamp.is_file() and stamp.read_text("utf-8") == _key(name)


def reason(name: str) -> str | None:
    """Why pip could not make the environment the last time, in pip's words; None if it did or never tried."""
    path = FOLDER / name / _REASON
    return path.read_text("utf-8").strip() if path.is_file() else None


def make(name: str, *, fresh: bool = False) -> bool:
    """Make an environment.

    Args:
        name: A key of ``ENVIRONMENTS``.
        fresh: Make it again even if it is up to date.

    Returns:
        Whether it is there; if not, :func:`reason` has pip's words.
    """
    if is_made(name) and not fresh:
        return True
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    requirements = ENVIRONMENTS[name]
    # resolved without installing first: a conflict is told in seconds, not after gigabytes
    venv.create(folder, with_pip=True)
    for arguments in (("--dry-run", *requirements), requirements):
        done = subprocess.run(
            [str(python_of(name)), "-m", "pip", "install", "--quiet", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            (folder / _REASON).write_text(_shortened(done.stderr), encoding="utf-8")
            return False
    (folder / _STAMP).write_text(_key(name), encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environments that are named, or all; 0 also where pip says that one cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}")
    parser.add_argument("--list", action="store_true", help="show the environments and their state")
    parser.add_argument("--fresh", action="store_true", help="make again what is up to date")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f"unknown environment {', '.join(unknown)}; there are: {', '.join(ENVIRONMENTS)}")
    for name in arguments.names or ENVIRONMENTS:
        wanted = ", ".join(ENVIRONMENTS[name])
        if arguments.list:
            state = "made" if is_made(name) else reason(name) or "not made yet"
            print(f"{name}: {wanted} ({state})")
            continue
        print(f"{name}: {wanted} ...", flush=True)
        made = make(name, fresh=arguments.fresh)
        print(f"{name}: {'ready' if made else reason(name)}", flush=True)
    return 0


def _shortened(output: str) -> str:
    """The lines of pip's complaint that name the packages."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "conflict" in line.lower() or " depends on " in line]
    return "\n".join((telling or lines)[-12:]) or "pip failed without a word"


def _key(name: str) -> str:
    """What the environment was made from: requirements and interpreter."""
    return hashlib.sha256("\n".join((*ENVIRONMENTS[name], sys.version)).encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
