"""The report is one page that fetches nothing, says in words what its plots show, and escapes what strangers named."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edge_embed.errors import RequestError
from edge_embed_export.evaluation import Evaluation, Interval, Score
from edge_embed_export.page import Page, check_page, render, write_page
from edge_embed_export.pricing import Price
from edge_embed_export.quality import QUANTILES, Band, Quality

pytest.importorskip("matplotlib")

HOSTILE = "<script>alert('$x$ & \"you\"')</script>"


def _price(codec: str, size_bytes: int, overlap: float, *, name: str = "pairs.txt") -> Price:
    bands = tuple(Band(i * 10, i * 10 + 10, 5, overlap) for i in range(5))
    cosines = tuple(1 - (1 - overlap) * (1 - share) for share in QUANTILES)
    quality = Quality(1000, 250, 0.99, 0.9, overlap, 50, bands, cosines)
    interval = Interval(0.1, 0.3)
    score = Score("spearman", 0.5, 0.49, interval, interval, Interval(0.005, 0.02))
    evaluation = Evaluation(name, "similarity", "0" * 64, 20, 18, (score,), reproducible=True)
    return Price(codec, size_bytes, {"table": quality}, (evaluation,))


def _page(name: str = "words") -> Page:
    prices = _price("float32", 4_000_000, 1.0, name=name), _price("int8", 1_000_000, 0.99, name=name)
    return Page(name, name, prices, "int8")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "path", "use", "rect", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def _tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(text)
    assert parser.open == []
    return parser.seen


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    text = render(_page())
    for tag, attributes in _tags(text):
        assert tag not in {"script", "link", "img", "iframe", "object", "image"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"href", "src", "xlink:href"}:
                assert (value or "").startswith("#")
    assert not re.findall(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_the_page_shows_scores_intervals_sizes_and_three_plots() -> None:
    text = render(_page())
    assert "0.4900 (0.1000 to 0.3000)" in text
    assert "0.0100 (0.0050 to 0.0200)" in text
    assert "18 of 20" in text
    plots = [attributes for tag, attributes in _tags(text) if tag == "svg"]
    assert len(plots) == 3
    for plot in plots:
        assert plot["role"] == "img"
        assert "int8" in (plot["aria-label"] or "")


def test_names_of_strangers_are_text() -> None:
    text = render(_page(HOSTILE))
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text
    assert "<script" not in render(Page("n", "s", _page().prices, None, HOSTILE))


def test_a_codec_named_by_a_stranger_is_text_in_the_plots_too() -> None:
    assert "<script" not in render(Page("n", "s", (_price(HOSTILE, 1000, 0.9),), HOSTILE))


def test_no_two_parts_of_the_page_have_one_id() -> None:
    ids = [attributes["id"] for _, attributes in _tags(render(_page())) if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_the_same_figures_give_the_same_page() -> None:
    assert render(_page()) == render(_page())


def test_a_page_is_written_where_it_can_stand(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", _page())
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(RequestError, match="expected a file in a folder that is there"):
        check_page(tmp_path / "absent" / "report.html", tmp_path / "bundle")
    with pytest.raises(RequestError, match="expected a file outside the bundle"):
        check_page(tmp_path / "report.html", tmp_path)
    check_page(tmp_path / "report.html", tmp_path / "bundle")
