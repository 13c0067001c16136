"""Text, Markdown and HTML files as passages."""

from __future__ import annotations

from stm_training.data.sentences import units_of
from stm_training.data.text_files import html_to_text


def test_scripts_and_styles_never_reach_the_text() -> None:
    html = "<style>p{c:d}</style><p>One</p><script>if (a<b) {x('</p>')}</script><noscript>no</noscript><p>Two"
    assert html_to_text(html) == ("", "One\n\nTwo")


def test_headings_become_lines_that_splitting_recognises() -> None:
    title, text = html_to_text("<h1>Asthma</h1><p>It is.</p><h2>Causes &amp; <em>risks</em></h2><p>Dust.</p>")
    assert title == "Asthma"
    assert text == "# Asthma\n\nIt is.\n\n## Causes & risks\n\nDust."
    assert [text[u.start : u.end] for u in units_of(text) if u.heading] == ["# Asthma", "## Causes & risks"]


def test_the_title_element_wins_over_the_first_heading() -> None:
    assert html_to_text("<title> A\n title </title><h1>Other</h1>x")[0] == "A title"


def test_words_keep_their_spaces_across_inline_tags_and_lines() -> None:
    assert html_to_text("<p>one\n   <b>two</b> three<i>four</i>,\nfive</p>")[1] == "one two threefour, five"


def test_list_items_table_rows_and_line_breaks_are_lines() -> None:
    html = "<ul><li>a<li>b</ul><table><tr><th>k</th><td>v</td></tr><tr><td>w</td></tr></table>x<br>y"
    assert html_to_text(html)[1].split() == ["-", "a", "-", "b", "k", "v", "w", "x", "y"]
    assert "x\ny" in html_to_text(html)[1]


def test_an_unclosed_page_still_gives_its_text() -> None:
    assert html_to_text("<div><p>open <b>text")[1] == "open text"
