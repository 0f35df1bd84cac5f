"""The demo's chart: mean sentiment by product, and how the scores of all reviews are distributed.

Imports matplotlib when a chart is drawn, never before: it is an extra (`headrace[examples]`), and slow to
load.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Blue and vermilion of the Okabe-Ito palette, which people with any kind of colour blindness tell apart. Each
# bar also points to its own side and carries its figure, so the colour is never the only sign.
GOOD, BAD, PLAIN = "#0072B2", "#D55E00", "#8A8A8A"
INK, GRID = "#262626", "#D9D9D9"
PRODUCTS_MAX = 24
NAME_CHARS_MAX = 32


def draw_chart(result: Mapping[str, Any], path: Path, *, source: str) -> None:
    """Write the chart of a reviews job's result, as what the suffix of `path` says (.png, .svg, .pdf).

    Beyond 24 products, the 12 best and the 12 worst are shown.

    Args:
        source: the name of the file that was analysed, for the caption.

    Raises: ImportError without matplotlib; ValueError for a suffix it cannot write; OSError.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown, left_out = _shown(result)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04)
    figure = Figure(figsize=(13, max(4.6, 1.9 + 0.36 * len(shown))), layout=layout, facecolor="white")
    bars, spread = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(
        f"Sentiment of {result['reviews']:,} reviews of {len(result['products']):,} "
        f"{'product' if len(result['products']) == 1 else 'products'}",
        x=0.012, ha="left", fontsize=16, fontweight="bold", color=INK,
    )  # fmt: skip
    figure.supxlabel(_caption(result, source, left_out), x=0.012, ha="left", fontsize=9, color="#595959")
    _draw_means(bars, shown)
    _draw_distribution(spread, result)
    figure.savefig(path, dpi=150)


def ranked(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Products with at least one review, the best mean first; equals by name."""
    products = [(name, found) for name, found in result["products"].items() if found["reviews"]]
    return sorted(products, key=lambda item: (-item[1]["mean_compound"], item[0]))


def _shown(result: Mapping[str, Any]) -> tuple[list[tuple[str, Mapping[str, Any]]], int]:
    products = ranked(result)
    left_out = max(0, len(products) - PRODUCTS_MAX)
    if left_out:
        products = products[: PRODUCTS_MAX // 2] + products[-PRODUCTS_MAX // 2 :]
    return products, left_out


def _caption(result: Mapping[str, Any], source: str, left_out: int) -> str:
    parts = [f"{_plain(source)}, scored with VADER"]
    if result["correlation"] is not None:
        parts.append(
            f"correlation with {result['rated']:,} human ratings: {result['correlation']:.3f} (Pearson)"
        )
    if left_out:
        parts.append(f"{left_out:,} products in the middle are not shown")
    return "   ·   ".join(parts)


def _draw_means(axes: Any, shown: list[tuple[str, Mapping[str, Any]]]) -> None:
    names = [_plain(name) for name, _ in shown]
    means = [found["mean_compound"] for _, found in shown]
    rows = list(range(len(shown)))
    axes.barh(rows, means, height=0.68, color=[GOOD if mean >= 0 else BAD for mean in means], zorder=2)
    for row, mean in zip(rows, means, strict=True):
        axes.annotate(
            _signed(mean, ".2f"), (mean, row), xytext=(5 if mean >= 0 else -5, 0), textcoords="offset points",
            ha="left" if mean >= 0 else "right", va="center", fontsize=9.5, color=INK,
        )  # fmt: skip
    reach = min(1.0, max([0.2, *map(abs, means)]) * 1.22)
    low = min([0.0, *means])
    axes.set_xlim(-reach if low < -0.02 else -0.02, reach)
    axes.set_yticks(rows, [f"{name}  " for name in names], fontsize=10.5)
    axes.set_ylim(max(len(rows), 5) - 0.4, -0.6)  # few products make no thicker bars
    axes.axvline(0, color=INK, linewidth=1, zorder=3)
    _finish(
        axes,
        title="Mean score by product",
        x_label="mean compound score from -1, negative, to +1, positive",
        grid="x",
    )


def _draw_distribution(axes: Any, result: Mapping[str, Any]) -> None:
    counts = result["histogram"]["counts"]
    low, high = result["histogram"]["from"], result["histogram"]["to"]
    width = (high - low) / len(counts)
    middles = [low + (i + 0.5) * width for i in range(len(counts))]
    colors = [PLAIN if abs(x) < width / 2 else GOOD if x > 0 else BAD for x in middles]
    axes.bar(middles, counts, width=width * 0.9, color=colors, zorder=2)
    top = max([1, *counts])
    axes.set_ylim(0, top * 1.22)
    axes.set_xlim(low - width / 4, high + width / 4)
    axes.set_xticks([low, (low + high) / 2, high], [_signed(low, "g"), "0", _signed(high, "g")])
    every = max(1, result["reviews"])
    for x, kind, color in ((-0.62, "negative", BAD), (0.0, "neutral", "#595959"), (0.62, "positive", GOOD)):
        axes.text(
            x,
            top * 1.12,
            f"{result[kind] / every:.0%}\n{kind}",
            ha="center",
            va="center",
            color=color,
            fontsize=11,
        )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    _finish(axes, title="How the scores are spread", x_label="compound score of one review", grid="y")
    axes.set_ylabel("reviews", color=INK)


def _finish(axes: Any, *, title: str, x_label: str, grid: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel(x_label, color=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _signed(value: float, form: str) -> str:
    return format(value, f"+{form}").replace("-", "\N{MINUS SIGN}")


def _plain(name: str) -> str:
    """One line of text as matplotlib shall show it; a `$` would begin a formula."""
    line = " ".join(name.split())
    short = line if len(line) <= NAME_CHARS_MAX else line[: NAME_CHARS_MAX - 1] + "…"
    return short.replace("$", r"\$")
