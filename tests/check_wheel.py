"""Install the built wheel with ``[cpu,langchain,llama-index]`` in a fresh environment and use it as an application does.

Run by ``make check-wheel``. The tiny retriever folder is made with the development environment; everything
after that happens in an environment without torch and transformers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-wheel"
ABSENT = ("torch", "transformers", "peft", "sentence_transformers")
NEEDS_TRAIN = (["run", "recipe.yaml"], ["demo"], ["export", "runs/demo/retriever", "--out", "elsewhere"])


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    """Run a command, show it, and stop where it ends otherwise than expected."""
    shown = " ".join(str(part) for part in command)
    print(f"$ {shown}", flush=True)
    # Outside of the checkout and without its paths: what is not in the wheel must not be found.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )
    output = done.stdout + done.stderr
    if done.returncode != expect:
        sys.exit(f"exit status {done.returncode}, expected {expect}:\n{output}")
    return output


def build_wheel(folder: Path) -> Path:
    """Build the wheel from this checkout."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


def install(wheel: Path, folder: Path) -> Path:
    """Make the environment; returns its folder of programs."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    run(sys.executable, "-m", "venv", ENVIRONMENT, cwd=folder)
    programs = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    constraints = ROOT / "constraints.txt"
    wanted = f"{wheel}[cpu,langchain,llama-index]"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--constraint", constraints, wanted, cwd=folder)
    return programs


def make_folders(folder: Path) -> None:
    """Put a tiny retriever and documents where the examples look for them."""
    code = (
        "from pathlib import Path; from tests.tiny_retriever import make_tiny_retriever; "
        f"make_tiny_retriever(Path({str(folder / 'runs' / 'demo' / 'retriever')!r}))"
    )
    (folder / "runs" / "demo").mkdir(parents=True)
    run(sys.executable, "-c", code, cwd=ROOT)
    documents = folder / "documents"
    documents.mkdir()
    (documents / "asthma.md").write_text(
        "# Asthma\nWheeze and cough at night suggest asthma.\n", encoding="utf-8"
    )
    (documents / "gout.txt").write_text("A swollen big toe suggests gout.\n", encoding="utf-8")
    (documents / "page.html").write_text("<h1>Migraine</h1><p>Pain on one side.</p>", encoding="utf-8")


def check(programs: Path, folder: Path) -> None:
    """Use every command and both examples."""
    python, stm_train = programs / "python", programs / "stm-train"
    for module in ABSENT:
        run(
            python, "-c", f"import importlib.util as u; exit(u.find_spec({module!r}) is not None)", cwd=folder
        )
    assert_in("doctor", run(stm_train, "--help", cwd=folder))
    for command in ("init", "run", "demo", "export", "evaluate", "index", "search", "doctor"):
        run(stm_train, command, "--help", cwd=folder)
    model, index = "runs/demo/retriever", "runs/demo/index"
    run(stm_train, "doctor", model, cwd=folder)
    run(stm_train, "index", "documents", "--model", model, "--out", index, cwd=folder)
    assert_in("asthma.md", run(stm_train, "search", index, "cough at night", "-k", "3", cwd=folder))
    run(stm_train, "doctor", index, cwd=folder)
    for example in ("langchain_rag.py", "llama_index_rag.py"):
        assert_in("dimensions", run(python, ROOT / "examples" / example, cwd=folder))
    run(stm_train, "init", "recipe.yaml", cwd=folder)
    for arguments in NEEDS_TRAIN:
        assert_in("stm-retriever[train", run(stm_train, *arguments, cwd=folder, expect=2))


def assert_in(wanted: str, output: str) -> None:
    """Stop where an output does not hold what it must."""
    if wanted not in output:
        sys.exit(f"{wanted!r} is not in:\n{output}")


def main() -> None:
    """Build, install, use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        programs = install(wheel, folder)
        make_folders(folder)
        check(programs, folder)
    shutil.rmtree(ENVIRONMENT)
    print(f"1 passed, 0 failed ({wheel.name} works without torch)")


if __name__ == "__main__":
    main()
