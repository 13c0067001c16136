"""Learning curves: one self-contained drawing that repeats byte for byte and disturbs nothing around it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from stm_training.finetune.history import Curves
from stm_training.report.curves import learning_curves, write_curves

HOSTILE = "<script>$\\alert('x')</script>&"
FULL = Curves(
    steps=tuple(range(1, 101)),
    losses=tuple(3.0 / step for step in range(1, 101)),
    dev=((0, 0.5), (50, 0.625), (100, 0.6)),
    guards={"general": ((0, 0.4), (50, 0.41), (100, 0.39)), HOSTILE: ((0, 0.4), (50, 0.4), (100, 0.4))},
    best_step=50,
)


def drawn(curves: Curves, name: str = "expert", max_guard_loss: float | None = 0.5) -> str:
    drawing = learning_curves(curves, name=name, max_guard_loss=max_guard_loss)
    assert drawing is not None
    return drawing


def words(drawing: str) -> str:
    return " ".join(ElementTree.fromstring(drawing).itertext())


def test_the_same_figures_give_the_same_bytes() -> None:
    assert drawn(FULL) == drawn(FULL)


def test_it_is_one_well_formed_element_without_style_sheet_metadata_or_date() -> None:
    drawing = drawn(FULL)
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    for unwanted in ("<style", "<metadata", "<?xml", "<!DOCTYPE", "Matplotlib", "<script"):
        assert unwanted not in drawing
    assert not re.search(r"\b20\d\d-\d\d-\d\d", drawing)


def test_it_loads_nothing_and_embeds_no_font() -> None:
    drawing = drawn(FULL)
    addresses = set(re.findall(r"https?://[^\"' ]+", drawing))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "<text" in drawing
    assert "font-face" not in drawing
    assert "DejaVu" not in drawing
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', drawing))


def test_it_takes_the_pages_text_colour_and_leaves_its_background() -> None:
    drawing = drawn(FULL)
    assert "currentColor" in drawing
    assert "#010203" not in drawing
    assert "fill: #ffffff" not in drawing
    # Black would vanish on a dark page.
    assert "#000000" not in drawing


def test_every_id_is_referred_to_and_found() -> None:
    drawing = drawn(FULL)
    ids = set(re.findall(r' id="([^"]*)"', drawing))
    assert ids
    assert ids == set(re.findall(r"""(?:href="|url\()#([\w.-]+)""", drawing))


def test_ids_of_two_trainings_do_not_meet_on_one_page() -> None:
    one, other = (set(re.findall(r' id="([^"]*)"', drawn(FULL, name))) for name in ("a", "b"))
    assert one.isdisjoint(other)


def test_hostile_names_are_shown_as_they_are() -> None:
    drawing = drawn(FULL, name=f'"{HOSTILE}')
    assert f"guard {HOSTILE}" in words(drawing)
    assert f'"{HOSTILE}' in ElementTree.fromstring(drawing).attrib["aria-label"]


def test_each_kind_of_figure_has_a_panel_and_the_kept_weights_are_marked() -> None:
    shown = words(drawn(FULL))
    for label in ("loss", "dev nDCG@10", "kept: 0.6250", "guards, points", "guard general"):
        assert label in shown
    only_loss = words(drawn(Curves(steps=(1, 2), losses=(1.0, 0.5))))
    assert "loss" in only_loss
    assert "nDCG" not in only_loss
    assert "guard" not in only_loss


def test_the_guards_limit_is_drawn_only_where_there_is_one() -> None:
    assert drawn(FULL, max_guard_loss=0.5) != drawn(FULL, max_guard_loss=None)


def test_no_figures_are_no_drawing() -> None:
    assert learning_curves(Curves(), name="nothing") is None


def test_a_long_training_is_no_larger_a_drawing_than_it_needs() -> None:
    steps = tuple(range(1, 100_001))
    long = Curves(steps=steps, losses=tuple(1.0 / step for step in steps))
    assert len(drawn(long)) < 100_000


def test_a_persons_own_matplotlib_settings_change_nothing() -> None:
    import matplotlib

    before = drawn(FULL)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert drawn(FULL) == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("curves", [FULL, Curves()])
def test_the_page_stands_alone(tmp_path: Path, curves: Curves) -> None:
    path = write_curves(tmp_path / "deep" / "curves.html", curves, name=HOSTILE)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert ("<svg" in page) == bool(curves.steps)
