"""The picture of a comparison: a panel for each scenario, a bar for each server, on a logarithmic scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import report
from scenarios import Scenario

COLUMNS = 3
OURS, OTHERS, REFERENCE = "#c1440e", "#8aa1b4", "#333333"


def draw(results: report.Results, target: Path, caption: str) -> None:
    """Write ratios.svg and ratios.png.

    Args:
        results: what was measured.
        target: the directory.
        caption: what it holds for.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    scenarios = [
        one for one in results.scenarios
        if one.name not in report.SEPARATE and results.median(report.BASE, one, "rate")]
    servers = [one for one in results.servers if one != report.BASE]
    if not scenarios or not servers:
        return
    lines = math.ceil(len(scenarios) / COLUMNS)
    height = 0.6 + 0.24 * len(servers)
    figure, axes = pyplot.subplots(
        lines, COLUMNS, figsize=(12, height * lines + 1), sharex=True, sharey=True, squeeze=False, layout="constrained")
    for axis, scenario in zip(axes.flat, scenarios):
        _draw_panel(axis, results, scenario, servers)
    for axis in axes.flat[len(scenarios):]:
        axis.set_visible(False)
    figure.suptitle(f"Rate as a share of {report.BASE}, longer is better (logarithmic scale)", fontsize=12)
    figure.supxlabel(caption, fontsize=7)
    for suffix in ("svg", "png"):
        figure.savefig(target / f"ratios.{suffix}", dpi=120)
    pyplot.close(figure)


def _draw_panel(axis: Any, results: report.Results, scenario: Scenario, servers: list[str]) -> None:
    low, high = 0.001, 4
    for place, server in enumerate(servers):
        ratio = report.ratio(results, server, scenario)
        if ratio is None:
            axis.text(low * 1.15, place, "failed", va="center", fontsize=7, color=REFERENCE)
            continue
        axis.barh(place, max(ratio, low) - low, left=low, color=OURS if server.startswith("wsthread") else OTHERS)
        text, inside = report.figure(ratio), ratio > 0.05
        axis.text(
            ratio * (0.88 if inside else 1.15) if ratio > low else low * 1.15, place, text, va="center",
            ha="right" if inside else "left", fontsize=7, color="white" if inside else REFERENCE)
    base = results.median(report.BASE, scenario, "rate")
    axis.axvline(1, color=REFERENCE, linewidth=0.8, linestyle=":", zorder=0)
    axis.set_title(f"{scenario.title}\n1 = {report.figure(base)} {scenario.unit}", fontsize=8)
    axis.set(xscale="log", xlim=(low, high))
    axis.set_yticks(range(len(servers)), servers, fontsize=7)
    axis.tick_params(axis="x", labelsize=7, labelbottom=True)
    axis.set_ylim(len(servers) - 0.4, -0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
