r"""Compares our training curves with the recorded ones of the reference implementation.

Writes one picture with both sets of curves (L_SEG and L_CLS, smoothed) and a Markdown table: the
mean losses of each run over a window of iterations, the range of the reference's runs, that range
widened by a quarter of its width on either side, and whether each of our runs is inside; then,
of runs long enough, the means over the windows that follow, which tell how far they wander. Pairs
of runs that start from the same weights and see the same slices in the same order, one ours and one
the reference's, are compared with each other: they differ in the sampling of anchors and RoIs, and
in rounding.

Ours: JSON lines with "step", "loss_seg" (null where the segmentation step was skipped) and
"loss_cls", one a step (`--config.log.every_steps=1`); other lines are passed over. The reference:
CSV with the columns iteration, seg_loss and cls_loss. Needs matplotlib (`pip install .[docs]`).
The exit code is 1 when a mean of ours lies outside the widened range.

Examples:

  python -m experiments.curves \
    --ours=runs/seed0/metrics.jsonl,runs/seed1/metrics.jsonl,runs/seed2/metrics.jsonl \
    --reference=curve_r18_3_seed0.csv,curve_r18_3_seed1.csv,curve_r18_3_seed2.csv \
    --paired_ours=runs/seed0/metrics.jsonl,runs/seed1/metrics.jsonl \
    --paired_reference=from_seed0.csv,from_seed1.csv \
    --output=docs/curves.png --table=docs/curves.md
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from ssm_jax.cli import common
from ssm_jax.report.tables import markdown_table

LOSSES = {"seg": "L_SEG", "cls": "L_CLS"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the program.

    Attributes:
      ours: Our metrics.jsonl files, one a seed, with commas.
      reference: The reference's CSV files, one a seed, with commas.
      paired_ours: Our runs that the reference repeated, with commas.
      paired_reference: The reference's, in that order.
      output: Picture to write.
      table: Markdown file for the table, which is always printed.
      first: First iteration of the window, counted from 0.
      last: Last iteration of the window (included).
      first_step: The `step` of the first iteration in our files; auto: the smallest in each file.
      smooth: Iterations that a plotted point averages.
    """

    ours: str
    reference: str
    paired_ours: str = ""
    paired_reference: str = ""
    output: str = "curves.png"
    table: pathlib.Path | None = None
    first: int = dataclasses.field(default=200, metadata={"least": 0})
    last: int = dataclasses.field(default=299, metadata={"least": 0})
    first_step: str = dataclasses.field(default="auto", metadata={"choices": ("auto", "0", "1")})
    smooth: int = dataclasses.field(default=25, metadata={"least": 1})

    def paths(self, name: str) -> list[str]:
        """The files of a flag."""
        return [path for path in getattr(self, name).split(",") if path]


@dataclasses.dataclass(frozen=True)
class Curve:
    """The losses of a run.

    Attributes:
      name: shown in the table and the legend.
      iteration: int [N], increasing, counted from 0.
      seg: float [N]; NaN where the segmentation step was skipped.
      cls: float [N].
    """

    name: str
    iteration: np.ndarray
    seg: np.ndarray
    cls: np.ndarray


def read_reference(path: str, name: str) -> Curve:
    """Reads a CSV of the reference. Raises ValueError where a column is missing."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"iteration", "seg_loss", "cls_loss"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: no column {sorted(missing)}")
        rows = {int(r["iteration"]): (float(r["seg_loss"]), float(r["cls_loss"])) for r in reader}
    return _curve(path, name, rows)


def read_ours(path: str, name: str, first_step: str = "auto") -> Curve:
    """Reads our JSON lines.

    Args:
      path: lines that lack one of the three keys are passed over; of lines of the same step
        (a run that was resumed) the last counts.
      name: of the curve.
      first_step: the step that is iteration 0: "0", "1", or "auto" (the smallest there is).

    Raises:
      ValueError: no such line, a line that is not JSON, or "auto" with a first step other than
        0 or 1.
    """
    rows = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if {"step", "loss_seg", "loss_cls"} <= entry.keys():
                losses = (entry["loss_seg"], entry["loss_cls"])
                rows[int(entry["step"])] = tuple(np.nan if v is None else float(v) for v in losses)
    if not rows:
        raise ValueError(f"{path}: no line with step, loss_seg and loss_cls")
    start = min(rows) if first_step == "auto" else int(first_step)
    if start not in (0, 1):
        raise ValueError(
            f"{path}: the first step is {start}; log every step or say --first_step=0 or 1"
        )
    return _curve(path, name, {step - start: losses for step, losses in rows.items()})


def _curve(path: str, name: str, rows: dict[int, tuple[float, float]]) -> Curve:
    if not rows:
        raise ValueError(f"{path}: no iterations")
    iterations = sorted(rows)
    seg, cls = np.array([rows[i] for i in iterations]).T
    return Curve(name, np.array(iterations), seg, cls)


def window_means(curve: Curve, first: int, last: int) -> dict[str, float]:
    """Mean of each loss over the iterations first..last, without the skipped ones.

    Raises:
      ValueError: the curve lacks an iteration of the window, or a loss has no value in it.
    """
    inside = (curve.iteration >= first) & (curve.iteration <= last)
    if inside.sum() != last - first + 1:
        raise ValueError(
            f"{curve.name} has {inside.sum()} of the {last - first + 1} iterations {first} to "
            f"{last}; every one is needed"
        )
    means = {}
    for key, label in LOSSES.items():
        values = getattr(curve, key)[inside]
        values = values[~np.isnan(values)]
        if not len(values):
            raise ValueError(f"{curve.name} has no {label} in iterations {first} to {last}")
        means[key] = float(values.mean())
    return means


def widened(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values, with a quarter of its width added on either side."""
    low, high = min(values), max(values)
    margin = (high - low) / 4
    return low - margin, high + margin


def make_table(
    ours: Sequence[Curve], reference: Sequence[Curve], first: int, last: int
) -> tuple[str, bool]:
    """Returns the comparison as Markdown, and whether all of ours are inside."""
    means = {c.name: window_means(c, first, last) for c in [*reference, *ours]}
    recorded = {key: [means[c.name][key] for c in reference] for key in LOSSES}
    bounds = {key: widened(values) for key, values in recorded.items()}
    rows = [[c.name, *_cells(means[c.name]), ""] for c in reference]
    ranges = {
        "reference: range": {key: (min(values), max(values)) for key, values in recorded.items()},
        "range widened by a quarter of its width": bounds,
    }
    for name, pairs in ranges.items():
        cells = [f"{low:.4f} to {high:.4f}" for low, high in pairs.values()]
        rows.append([f"**{name}**", *cells, ""])
    all_inside = True
    for curve in ours:
        outside = [
            label
            for key, label in LOSSES.items()
            if not bounds[key][0] <= means[curve.name][key] <= bounds[key][1]
        ]
        all_inside &= not outside
        verdict = f"**no**: {', '.join(outside)}" if outside else "yes"
        rows.append([curve.name, *_cells(means[curve.name]), verdict])
    title = f"Means over iterations {first}–{last} (L_SEG: those that were not skipped)."
    head = ["run", *(f"mean {label}" for label in LOSSES.values()), "inside"]
    return "\n".join([title, "", *markdown_table(head, rows), ""]), all_inside


def make_spread(curves: Sequence[Curve], first: int, last: int) -> str:
    """Returns, as Markdown, how far the means of one long run wander: every window it holds.

    Windows have the length of first..last, and the first starts at iteration `first`. Curves that
    hold no second window say nothing; without any other the text is empty.
    """
    width, rows = last - first + 1, []
    for curve in curves:
        starts = range(first, int(curve.iteration[-1]) + 2 - width, width)
        if len(starts) < 2:
            continue
        for start in starts:
            means = window_means(curve, start, start + width - 1)
            rows.append([curve.name, f"{start}–{start + width - 1}", *_cells(means)])
    if not rows:
        return ""
    title = "How far the means of one run wander:"
    head = ["run", "iterations", *(f"mean {label}" for label in LOSSES.values())]
    return "\n".join([title, "", *markdown_table(head, rows), ""])


def make_pairs(pairs: Sequence[tuple[Curve, Curve]], first: int, last: int) -> str:
    """Returns, as Markdown, the means of paired runs over first..last and over 0..last.

    Args:
      pairs: ours and the reference's, which share start, slices and their order.
      first: first iteration of the window.
      last: last iteration of the window.

    Returns:
      A table for each of the two stretches, with the mean of the differences and its standard error
      where there are several; empty without pairs.
    """
    if not pairs:
        return ""
    names = [f"{label}, {who}" for label in LOSSES.values() for who in ("ours", "reference")]
    lines = ["Pairs of runs from the same weights, on the same slices in the same order:"]
    for start in sorted({first, 0}, reverse=True):
        means = [[window_means(c, start, last) for c in pair] for pair in pairs]
        found = np.array([[m[key] for key in LOSSES for m in pair] for pair in means])  # [N, 4]
        rows = [
            [ours.name, *(f"{value:.4f}" for value in row)]
            for (ours, _), row in zip(pairs, found, strict=True)
        ]
        if len(pairs) > 1:
            differences = found[:, ::2] - found[:, 1::2]  # [N, 2]
            errors = differences.std(axis=0, ddof=1) / np.sqrt(len(pairs))
            rows.append(["**ours − reference ± standard error**"])
            for mean, error in zip(differences.mean(axis=0), errors, strict=True):
                rows[-1] += [f"{mean:+.4f} ± {error:.4f}", ""]
        lines += ["", *markdown_table([f"iterations {start}–{last}", *names], rows)]
    return "\n".join(lines) + "\n"


def _cells(means: dict[str, float]) -> list[str]:
    return [f"{means[key]:.4f}" for key in LOSSES]


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the values that are not NaN among the last `width`: [N] -> [N]."""
    known = ~np.isnan(values)

    def window_sums(array: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(array)])
        ends = np.arange(1, len(array) + 1)
        return total[ends] - total[np.maximum(ends - width, 0)]

    counts = window_sums(known.astype(float))
    sums = window_sums(np.where(known, values, 0.0))
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def plot(
    ours: Sequence[Curve],
    reference: Sequence[Curve],
    path: str,
    window: tuple[int, int],
    width: int,
) -> None:
    """Writes the picture: a panel for each loss, ours over the reference's.

    Args:
      ours: curves of this implementation.
      reference: curves of the reference.
      path: a file name whose ending matplotlib knows.
      window: first and last iteration of the shaded stretch.
      width: iterations that a point averages.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    end = max(window[1], *(curve.iteration[-1] for curve in ours))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (key, label) in zip(axes, LOSSES.items(), strict=True):
        axis.axvspan(*window, color="0.93", label=f"iterations {window[0]}–{window[1]}")
        groups = ((reference, "Greys", "--"), (ours, "plasma", "-"))
        for curves, colors, style in groups:
            shades = plt.get_cmap(colors)(np.linspace(0.75, 0.35, len(curves)))
            for curve, shade in zip(curves, shades, strict=True):
                shown = curve.iteration <= end  # a longer reference run would squeeze the rest
                values = smooth(getattr(curve, key), width)[shown]
                axis.plot(
                    curve.iteration[shown], values, style, color=shade, lw=1.4, label=curve.name
                )
        axis.set(title=f"{label}, mean of {width} iterations", xlabel="iteration", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(flags: Flags) -> None:
    """The program."""
    if flags.first > flags.last:
        raise ValueError("--first must not be above --last")
    ours = [
        read_ours(path, f"ours, run {k}", flags.first_step)
        for k, path in enumerate(flags.paths("ours"))
    ]
    reference = [
        read_reference(path, f"reference, run {k}")
        for k, path in enumerate(flags.paths("reference"))
    ]
    paired = flags.paths("paired_ours"), flags.paths("paired_reference")
    if len(paired[0]) != len(paired[1]):
        raise ValueError("--paired_ours and --paired_reference name the two runs of each pair")
    pairs = [
        (read_ours(own, f"pair {k}", flags.first_step), read_reference(other, f"pair {k}"))
        for k, (own, other) in enumerate(zip(*paired, strict=True))
    ]
    window = (flags.first, flags.last)
    means, all_inside = make_table(ours, reference, *window)
    parts = (means, make_pairs(pairs, *window), make_spread([*reference, *ours], *window))
    table = "\n".join(part for part in parts if part)
    plot(ours, reference, flags.output, window, flags.smooth)
    print(table)
    print(f"wrote {flags.output}")
    if flags.table:
        flags.table.write_text(table, encoding="utf-8")
        print(f"wrote {flags.table}")
    if not all_inside:
        sys.exit(1)


if __name__ == "__main__":
    common.run("python -m experiments.curves", __doc__, Flags, main, sys.argv[1:])
