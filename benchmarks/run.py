"""Times the model on this machine.

The unit is the time of the backbone + FPN forward of the three-block R18 at 512x512, batch 1,
jitted, in the same run, so that figures of different machines compare. Weights are random and
slices are phantoms. GFLOP are those of matrix products and convolutions.

Examples:

    python -m benchmarks.run
    python -m benchmarks.run --suite=inference --json=inference.json
    python -m benchmarks.run --suite=peers --page=docs/export.md
    python -m benchmarks.run --suite=accelerator --table=accelerators --page=docs/performance.md
    python -m benchmarks.run --json=benchmarks/results/cpu.json --page=docs/performance.md
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import sys

from ssm_jax import memory
from ssm_jax.cli import common
from ssm_jax.report.tables import escaped, markdown_table

SUITES = ("inference", "training", "scaling", "peers", "processes", "accelerator")
MARKS = "<!-- table of {}: begin -->", "<!-- table of {}: end -->"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the program.

    Attributes:
      suite: Rows to time; may be repeated.
      repeats: Timed runs of each row.
      json: File that takes all figures.
      page: Markdown file that takes the tables, between the lines "<!-- table of NAME: begin -->"
        and "<!-- table of NAME: end -->".
      table: NAME of the tables in the page.
      small: Small models and slices, to try a suite out: its figures mean nothing.
      minutes: Of the suite "accelerator"; what would take longer is left out.
      profile: Folder that takes a trace of one run of the last case of the suite "accelerator".
    """

    suite: tuple[str, ...] = dataclasses.field(
        default=("inference", "training", "processes"), metadata={"choices": SUITES}
    )
    repeats: int = dataclasses.field(default=7, metadata={"least": 2})
    json: pathlib.Path | None = None
    page: pathlib.Path | None = None
    table: str = "benchmarks"
    small: bool = False
    minutes: float = dataclasses.field(default=4.0, metadata={"least": 0})
    profile: pathlib.Path | None = None


def run_suite(suite: str, flags: Flags) -> list[dict]:
    """The rows of a suite; see `timing.measure` and `processes.process_rows`."""
    from tqdm import tqdm

    from benchmarks import accelerator, inference, models, processes, scaling, timing, training

    repeats = flags.repeats
    if flags.small:
        models.make_small()
    if suite == "accelerator":
        return accelerator.measured(repeats, flags.minutes, flags.small, flags.profile)
    if suite == "processes":
        return processes.process_rows()
    if suite == "inference":
        cases = [*inference.stage_cases(), *inference.path_cases()]
    elif suite == "training":
        cases = training.step_cases()
    elif suite == "scaling":
        cases = scaling.scaling_cases()
    else:
        from benchmarks import peers  # needs the extra ssm-jax[onnx]

        cases = peers.peer_cases()
    with tqdm(total=len(cases) * (repeats + 1), desc=suite, disable=None) as progress:
        return timing.measure(cases, repeats, progress.update)


def machine() -> dict[str, str | int]:
    """The machine that the figures were taken on."""
    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else platform.machine(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def markdown(results: dict) -> str:
    """The tables of a run."""
    facts = results["machine"]
    lines = [
        f"{facts['platform']} ({facts['device']}, {facts['cores']} cores), jax {facts['jax']}; "
        f"medians of {results['repeats']} interleaved runs. Written by `python -m benchmarks.run`.",
    ]
    for suite, rows in results["suites"].items():
        if suite == "processes":
            head = ["command", "seconds", "peak memory (MB)"]
            cells = [[r["name"], f"{r['seconds']:.1f}", f"{r['peak_mb']:.0f}"] for r in rows]
            lines += ["", *markdown_table(head, cells)]
            continue
        head = [suite, "ms", "±", "units", "units a slice", "GFLOP/s", "of a matrix product"]
        table = []
        for row in rows:
            name = escaped(row["name"])
            name += f" ({row['note']})" if row["note"] else ""
            share = row["of_gemm"]
            table.append(
                [
                    name,
                    f"{row['ms']:.1f}",
                    f"{row['spread_ms']:.1f}",
                    f"{row['units']:.2f}",
                    f"{row['per_image']:.2f}",
                    _cell(row["gflop_per_s"], ".0f"),
                    "–" if share is None else f"{share:.0%}",
                    _cell(row["compile_s"], ".1f"),
                ]
            )
        lines += ["", *markdown_table([*head, "compile (s)"], table)]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main(flags: Flags) -> None:
    """The program."""
    memory.keep_freed()  # as the commands do
    page = flags.page
    marks = [mark.format(flags.table) for mark in MARKS]
    if page:  # before minutes of work, not after
        common.with_marked(page.read_text(encoding="utf-8"), *marks, "")
    suites = {suite: run_suite(suite, flags) for suite in flags.suite}
    results = {"machine": machine(), "repeats": flags.repeats, "suites": suites}
    table = markdown(results)
    print(table)
    if flags.json:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if page:
        text = page.read_text(encoding="utf-8")
        page.write_text(common.with_marked(text, *marks, table), encoding="utf-8")


if __name__ == "__main__":
    memory.with_huge_pages()  # as `ssm-jax train` does
    common.run("python -m benchmarks.run", __doc__, Flags, main, sys.argv[1:])
