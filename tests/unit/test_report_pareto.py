"""The charts of the merging as SVG inside a page."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from stm_training.merge.fusion import FusionCurve, FusionPoint
from stm_training.report.pareto import ChartPoint, lambda_svg, pareto_svg

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = 'a<script>alert("x")</script>'
POINTS = (
    ChartPoint("base", "base", 0.70, 0.60),
    ChartPoint("expert:questions", "expert", 0.73, 0.56, worst_guard_loss=4.0),
    ChartPoint("all_data", "all_data", 0.72, 0.598, worst_guard_loss=0.2),
    ChartPoint("m0", "merge", 0.74, 0.599, worst_guard_loss=0.1),
    ChartPoint("m1", "merge", 0.75, 0.59, worst_guard_loss=1.0),
)
CURVE = FusionCurve(
    points=tuple(
        FusionPoint(share=s, domain=0.7 + 0.1 * s, general=0.6 - 0.1 * s, worst_loss=12 * s, scores={})
        for s in (0.0, 0.35, 1.0)
    )
)


def draw(points: tuple[ChartPoint, ...] = POINTS, chosen: str | None = "m0") -> str:
    svg = pareto_svg(points, max_guard_loss=0.5, chosen=chosen, front=["m0", "m1"])
    assert svg is not None
    return svg


def texts(svg: str) -> set[str]:
    return {
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    }


def test_the_chart_names_base_experts_all_data_and_tells_what_the_guards_allow() -> None:
    shown = texts(draw())
    assert {"base", "questions", "all_data", "chosen", "Pareto set", "allowed by the guards"} <= shown
    assert {"merges", "merges, not allowed", "experts, not allowed"} <= shown
    assert "experts" not in shown  # the only one is not allowed
    assert "m1" not in shown  # merges are many, and stay nameless


def test_both_charts_are_one_svg_element_that_needs_nothing_from_elsewhere() -> None:
    for svg in (draw(), lambda_svg(CURVE, max_guard_loss=0.5)):
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert svg.startswith("<svg ")
        links = set(re.findall(r'https?://[^"<]*', svg))
        assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert not re.search(r"20\d\d-\d\d-\d\d", svg)
        assert "<image" not in svg and "<metadata" not in svg
        assert 'role="img"' in svg and 'aria-label="' in svg


def test_colours_are_the_pages_own_and_no_background_is_drawn() -> None:
    svg = draw()
    assert {"var(--accent,", "var(--ink,", "var(--soft,"} <= set(re.findall(r"var\(--\w+,", svg))
    assert not re.search(r"#(?:ffffff|000000)", svg)
    for colour in re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', svg):
        assert colour == ""  # attributes know no variables


def test_the_same_figures_give_the_same_bytes_in_another_process() -> None:
    code = (
        "import sys; from tests.unit.test_report_pareto import CURVE, draw, lambda_svg; "
        "sys.stdout.write(draw() + lambda_svg(CURVE))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout == draw() + lambda_svg(CURVE)


def test_two_charts_of_one_page_share_no_id_and_style_nothing_else() -> None:
    both = (draw(), lambda_svg(CURVE))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in both]
    assert not ids[0] & ids[1]
    for svg, own in zip(both, ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= own
        for rule in re.findall(r"<style[^>]*>(.*?)</style>", svg, flags=re.DOTALL):
            assert rule.startswith(".stm-")


def test_names_from_anywhere_are_text_and_nothing_else() -> None:
    hostile = (*POINTS, ChartPoint(HOSTILE, "expert", 0.71, 0.6), ChartPoint("$x_1$", "expert", 0.715, 0.6))
    svg = draw(hostile, chosen="m0")
    assert "<script" not in svg
    assert "$x_1$" in texts(svg)
    assert "<script" not in draw(hostile, chosen=HOSTILE)


def test_without_a_base_there_is_nothing_to_compare_with() -> None:
    assert pareto_svg(POINTS[1:], max_guard_loss=0.5) is None


def test_the_lambda_chart_shows_the_default_and_leaves_out_what_there_is_not() -> None:
    assert {"in the domain", "outside of it (mean)", "default (0.35)"} <= texts(lambda_svg(CURVE))
    assert "allowed by the guards" not in texts(lambda_svg(CURVE))
    alone = CURVE.model_copy(
        update={"points": tuple(point.model_copy(update={"general": None}) for point in CURVE.points)}
    )
    assert "outside of it (mean)" not in texts(lambda_svg(alone, max_guard_loss=0.5))
