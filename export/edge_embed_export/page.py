"""The report of an export: one page of HTML that needs no network, readable on a phone.

Names come from strangers' files: whatever goes into the page is escaped, and the page runs no script and fetches
nothing, which its content security policy says, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from edge_embed.errors import RequestError
from edge_embed.memory import format_size
from edge_embed.named_files import open_named
from edge_embed.version import __version__
from edge_embed_export.evaluation import Evaluation
from edge_embed_export.plots import Series, check_plots, lines, points
from edge_embed_export.pricing import Price
from edge_embed_export.quality import QUANTILES, Quality

_DOCTYPE = b"<!doctype html>"
# Below what float32 tells apart.
_NO_ERROR = 1e-7
_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:52rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:#1e293b;background:#f8fafc}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .4rem}
.lead{color:#475569;overflow-wrap:anywhere}
section{background:#fff;border:1px solid #e2e8f0;border-radius:.7rem;padding:1rem;margin:1rem 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8rem,1fr));gap:.6rem;padding:0;margin:1rem 0}
.figures div{background:#fff;border:1px solid #e2e8f0;border-radius:.7rem;padding:.6rem .8rem}
.figures dt{font-size:.8rem;color:#64748b}
.figures dd{margin:0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:#64748b;padding-bottom:.4rem}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #e2e8f0;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
tr.taken{background:#eff6ff;font-weight:600}
.no{background:#fef2f2;border-color:#fecaca;color:#991b1b}
figure{margin:0}
figure svg{display:block;width:100%;max-width:36rem;height:auto;margin:0 auto}
figcaption,small{color:#64748b;font-size:.85rem}
"""


@dataclass(frozen=True)
class Page:
    """What a report tells: the prices of all tried codecs, and which of them was taken, if any."""

    name: str
    source: str
    prices: tuple[Price, ...]
    taken: str | None
    refused: str = ""

    @property
    def shown(self) -> Price:
        """The price that the tables detail: the taken one's, else that of the smallest loss."""
        taken = [price for price in self.prices if price.codec == self.taken]
        return taken[0] if taken else min(self.prices, key=lambda price: price.worst[1])


def check_page(path: Path, bundle: Path) -> None:
    """Refuse a place that no page can be written to, before the work begins.

    Raises:
        RequestError: the folder is absent, or the place is a folder or inside the bundle.
        MissingExtraError: matplotlib is not installed.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise RequestError(f"{path}: expected a file in a folder that is there, found a folder or none")
    if path.exists() and not _is_page(path):
        raise RequestError(f"{path}: expected a new file or a report to replace, found something else; not touched")
    if path.resolve().is_relative_to(bundle.resolve()):
        raise RequestError(f"{path}: expected a file outside the bundle {bundle}, which is immutable")
    check_plots()


def _is_page(path: Path) -> bool:
    """Whether a report may take the place of what is there: a report, or an empty file."""
    if not path.is_file():
        return False
    with open_named(path, "a report") as file:
        head = file.read(len(_DOCTYPE))
    return head in (b"", _DOCTYPE)


def write_page(path: Path, page: Page) -> None:
    """Write the page.

    Raises:
        RequestError: the file cannot be written.
    """
    try:
        path.write_text(render(page), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        beside = "" if page.taken is None else "; the bundle itself is written"
        raise RequestError(
            f"{path}: expected a file to write the report into, found: {error.strerror}{beside}"
        ) from error


def render(page: Page) -> str:
    """Return the page as HTML."""
    shown = page.shown
    title = f"What {shown.codec} costs {page.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(page.source)}</p>',
        f'<section class="no"><h2>No bundle was written</h2><p>{escape(page.refused)}</p></section>'
        if page.refused
        else "",
        _figures(shown),
        _evaluations(shown),
        _graphs(shown),
        _tried(page),
        _sizes(page),
        _errors(page),
        _bands(page),
        f"<p><small>edge-embed {escape(__version__)}. Loss is float32 less packed; intervals are the bootstrap's 95 %. "
        "Neighbour overlap@10: of a row's ten nearest by the source's vectors, the share that are among the ten "
        "nearest by the packed ones.</small></p>",
    ]
    return (
        f'{_DOCTYPE.decode()}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _figures(price: Price) -> str:
    before = sum(quality.bytes_before for quality in price.quality.values())
    after = sum(quality.bytes_after for quality in price.quality.values())
    facts = {
        "bundle": format_size(price.size_bytes),
        "vectors before": format_size(before),
        "vectors after": format_size(after),
        "neighbour overlap@10": f"{price.neighbour_overlap_at_10:.4f}",
        "mean cosine": f"{min(quality.mean_cosine for quality in price.quality.values()):.6f}",
        "worst cosine": f"{min(quality.worst_cosine for quality in price.quality.values()):.6f}",
    }
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="figures">{cells}</dl>'


def _evaluations(price: Price) -> str:
    rows = [
        [
            each.name if blob is None else f"{each.name} by {blob}",
            score.measure,
            f"{score.float32:.4f} ({score.float32_interval})",
            f"{score.packed:.4f} ({score.packed_interval})",
            f"{score.loss:.4f} ({score.loss_interval})",
            f"{each.known} of {each.asked}",
        ]
        for blob, each in _asked(price)
        for score in each.scores
    ]
    if not rows:
        return (
            "<section><h2>Evaluations</h2><p>None: pass files with known answers by <code>--eval</code>.</p></section>"
        )
    head = ["file", "measure", "float32", price.codec, "loss", "questions known"]
    told = "Score (95 % interval); a question with an unknown word is left out."
    return f"<section><h2>Evaluations</h2>{_table(head, rows, told)}</section>"


def _graphs(price: Price) -> str:
    if not price.graphs:
        return ""
    rows = [
        [
            each.blob,
            f"{each.quality.mean_cosine:.6f}",
            f"{each.quality.worst_cosine:.6f}",
            f"{each.quality.neighbour_overlap_at_10:.4f}",
        ]
        for each in price.graphs
    ]
    head = ["graph", "mean cosine", "worst cosine", "neighbour overlap@10"]
    told = "Each graph beside the original; a board is served by the first one whose engine it has."
    return f"<section><h2>Graphs</h2>{_table(head, rows, told)}</section>"


def _asked(price: Price) -> list[tuple[str | None, Evaluation]]:
    """Return all evaluations, those of an encoder's graphs each with the graph's file."""
    if price.graphs:
        return [(graph.blob, each) for graph in price.graphs for each in graph.evaluations]
    return [(None, each) for each in price.evaluations]


def _tried(page: Page) -> str:
    rows = []
    for price in page.prices:
        what, loss = price.worst
        overlap = f"{price.neighbour_overlap_at_10:.4f}"
        rows.append([price.codec, format_size(price.size_bytes), overlap, f"{loss:.4f}", what])
    taken = next((i for i, price in enumerate(page.prices) if price.codec == page.taken), -1)
    head = ["codec", "bundle", "overlap@10", "worst loss", "of"]
    told = _table(head, rows, "One row a codec; the taken one is marked.", taken)
    return f"<section><h2>Codecs tried</h2>{told}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, taken: int = -1) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f"<tr{' class=taken' if place == taken else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for place, row in enumerate(rows)
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _sizes(page: Page) -> str:
    series = [
        Series(
            price.codec,
            [price.size_bytes / 2**20],
            [price.neighbour_overlap_at_10],
            price.codec == page.taken,
            place,
        )
        for place, price in enumerate(page.prices)
    ]
    plot = points(series, "bundle, MiB", "neighbour overlap@10", "sizes")
    told = "; ".join(f"{one.name}: {one.x[0]:.2f} MiB, overlap {one.y[0]:.4f}" for one in series)
    return _plot("Size against quality", plot, told, "Up and to the left is better.")


def _errors(page: Page) -> str:
    shares = [100 * share for share in QUANTILES]
    series = []
    for place, price in enumerate(page.prices):
        errors = [max(1 - cosine, _NO_ERROR) for cosine in reversed(_first(price).cosine_quantiles)]
        if errors and errors[-1] > _NO_ERROR:
            series.append(Series(price.codec, shares, errors, price.codec == page.taken, place))
    if not series:
        return "<section><h2>Error distribution</h2><p>Every row is decoded as it was packed.</p></section>"
    plot = lines(series, "rows, % (from the best)", "1 - cosine with the source", "errors", log=True)
    told = "; ".join(f"{one.name}: half within {one.y[50]:.2g}, all within {one.y[-1]:.2g}" for one in series)
    return _plot(
        "Error distribution",
        plot,
        told,
        "How far decoded rows of the first table are from what went into the codec, sorted.",
    )


def _bands(page: Page) -> str:
    bands = _first(page.shown).bands
    if not bands:
        return ""
    series = [
        Series(
            price.codec,
            range(len(bands)),
            [band.neighbour_overlap_at_10 for band in _first(price).bands],
            price.codec == page.taken,
            place,
        )
        for place, price in enumerate(page.prices)
    ]
    ticks = [f"{band.start:,} to\n{max(band.start, band.stop - 1):,}" for band in bands]
    plot = lines(series, "rows of the first table", "neighbour overlap@10", "bands", ticks=ticks)
    told = "; ".join(f"{one.name}: " + ", ".join(f"{value:.4f}" for value in one.y) for one in series)
    note = "By fifths of the rows: the most frequent come first where the trainer or the exporter sorted them."
    return _plot("Neighbour overlap by frequency", plot, told, note)


def _first(price: Price) -> Quality:
    """Return the quality of the first table."""
    return next(iter(price.quality.values()))


def _plot(title: str, svg: str, told: str, note: str) -> str:
    label = escape(f"{title}. {told}", quote=True)
    drawn = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<section><h2>{escape(title)}</h2><figure>{drawn}<figcaption>{escape(note)}</figcaption></figure></section>"
