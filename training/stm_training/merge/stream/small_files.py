"""The files of a merged folder beside its weights: copied, never made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from stm_retriever.folder import MANIFEST_NAME
from stm_training.merge.stream.folders import LAYOUT, PROMPTS_FILE, ModelFolder
from stm_training.merge.stream.record import RECORD

_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
# Facts about other weights than the merged ones, or about how those were trained.
_LEFT_OUT = {MANIFEST_NAME, RECORD, "trainer_state.json", "all_results.json", "train_results.json"}
_LAYOUT_FILES = (LAYOUT, PROMPTS_FILE, "sentence_bert_config.json")


def copy_small_files(base: ModelFolder, settings: ModelFolder, out: Path) -> Path:
    """Copy configuration and tokenizer from the base, modules and prompts from the folder chosen for them.

    Model cards, manifests and ONNX files describe other weights and stay behind.

    Args:
        base: The base.
        settings: Whose ``modules.json``, pooling and prompts are taken.
        out: An empty folder.

    Returns:
        Where the weights go: ``out``, or the folder inside of it that ``modules.json`` names.
    """
    model = out / settings.settings.model_path
    model.mkdir(parents=True, exist_ok=True)
    _copy_flat(base.path, out, leave_out=_LAYOUT_FILES if settings is not base else ())
    if base.model != base.path or model != out:
        _copy_flat(base.model, model, leave_out=_LAYOUT_FILES)
    _copy_layout(settings, out)
    return model


def _copy_flat(source: Path, target: Path, *, leave_out: tuple[str, ...]) -> None:
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _SUFFIXES and not path.name.endswith(".index.json")
        legal = path.name.upper().startswith(_LEGAL)
        if path.is_file() and (wanted or legal) and path.name not in _LEFT_OUT and path.name not in leave_out:
            _copy(path, target / path.name)


def _copy_layout(settings: ModelFolder, out: Path) -> None:
    if not (settings.path / LAYOUT).is_file():
        return
    for name in _LAYOUT_FILES:
        if (settings.path / name).is_file():
            _copy(settings.path / name, out / name)
    lengths = settings.model / "sentence_bert_config.json"
    if settings.model != settings.path and lengths.is_file():
        _copy(lengths, out / settings.settings.model_path / lengths.name)
    for entry in json.loads((settings.path / LAYOUT).read_text(encoding="utf-8")):
        module = str(entry.get("path", ""))
        if module in ("", settings.settings.model_path):
            continue
        (out / module).mkdir(parents=True, exist_ok=True)
        if (settings.path / module).is_dir():  # git drops the empty folder of a normalising module
            _copy_flat(settings.path / module, out / module, leave_out=())


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)  # of a hub cache's links: what they lead to
