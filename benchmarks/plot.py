"""A picture of a run: multiples of the reference, with their quartiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .harness import Section

__all__ = ["draw"]


def draw(sections: Sequence[Section], path: Path) -> None:
    """One panel for each section whose figures have references, on a logarithmic scale.

    :raises ImportError: where matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    # A reference is the line at 1 and no bar of its own.
    shown = [section for section in sections if any(name != known for name, known in section.references.items())]
    heights = [1.2 + 0.28 * len(section.references) for section in shown]
    picture, panels = pyplot.subplots(
        max(1, len(shown)), 1, figsize=(11, max(2.0, sum(heights))), squeeze=False,
        gridspec_kw={"height_ratios": heights or [1]}, layout="constrained",
    )  # fmt: skip
    for section, panel in zip(shown, panels[:, 0], strict=False):
        others = [f for f in section.figures.values() if section.references.get(f.name, f.name) != f.name]
        bars = [(f.name, times) for f in others if (times := section.times(f)) is not None]
        names, spreads = [name for name, _ in bars], [times for _, times in bars]
        middle = [times.median for times in spreads]
        around = [[t.median - t.low for t in spreads], [t.high - t.median for t in spreads]]
        panel.barh(names, middle, xerr=around, color="#4c78a8", ecolor="#222222", capsize=2)
        panel.axvline(1.0, color="#e45756", linewidth=1)
        panel.set_xscale("log")
        panel.set_title(f"{section.title}: times the reference", loc="left")
        panel.invert_yaxis()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
