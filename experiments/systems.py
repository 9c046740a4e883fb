"""The paper's systems under one small budget: their runs, and the table of them."""

import dataclasses
import importlib
import json
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssm_jax.cli import common
from ssm_jax.config import VARIANTS
from ssm_jax.files import write_json
from ssm_jax.report.tables import markdown_table

RECORD_FILE = "reproduce.json"
BEGIN, END = "<!-- table of all systems: begin -->", "<!-- table of all systems: end -->"

# One budget for all: fields of the configuration that differ from the paper's recipe.
BUDGET = {
    "model.image_size": 192,
    "model.bn_momentum": 0.02,
    "model.roi_batch": 64,
    "model.roi_positives": 16,
    "model.rpn_pre_nms": 1000,
    "model.rpn_post_nms": 300,
    "data.phantom.size": 192,
    "data.phantom.seg_train": 400,
    "data.phantom.seg_test": 60,
    "data.phantom.cls_train": 600,
    "data.phantom.cls_test": 150,
    "train.batch_size": 2,
    "train.schedule": "cosine",
    "train.end_learning_rate": 1e-5,
    "train.warmup_steps": 30,
    "train.ema_decay": 0.98,
    "eval.bn_slices": 64,
    "eval.score_threshold": 0.3,
    "checkpoint.every_steps": 100,
}
# Iterations of segmentation alone, and of both steps: stage I and II, or the parts of one run.
ALONE, BOTH = 700, 300
STAGE_1 = {"train.max_steps": ALONE, "train.learning_rate": 1e-3}
STAGE_2 = {"train.max_steps": BOTH, "train.learning_rate": 3e-4}
SCRATCH = {
    "train.max_steps": ALONE + BOTH,
    "train.classification_from": ALONE,
    "train.learning_rate": 1e-3,
}
WITH_MODULE_S = {"train.module_s_learning_rate": 3e-3, "train.module_s_output_scale": 0.1}
# At these rates a lucky slice sets a best loss that no later step beats.
TWO_BRANCHES = {"train.copy_rule": "every_step"}
RECIPES = {
    "pretrain": STAGE_1,
    "ssm": STAGE_2 | WITH_MODULE_S,
    "ssm2": STAGE_2 | WITH_MODULE_S | TWO_BRANCHES,
    "ssm_s": SCRATCH | WITH_MODULE_S | TWO_BRANCHES,
}

TITLES = {
    "pretrain": "Stage I",
    "ssm": "SSM",
    "ssm2": "SSM<sup>2</sup>",
    "ssm_s": "SSM<sup>S</sup>",
}
STARS = {2: "\\*", 3: "\\*\\*"}
# Column -> name in metrics.json and number format.
FIGURES = {
    "AP@0.5": ("ap50", ".3f"),
    "AP@0.75": ("ap75", ".3f"),
    "AP": ("ap", ".3f"),
    "COVID-19": ("sensitivity_covid", ".1%"),
    "CP": ("sensitivity_cp", ".1%"),
    "Normal": ("sensitivity_normal", ".1%"),
    "Accuracy": ("accuracy", ".1%"),
    "F1": ("f1_weighted", ".3f"),
}


class ReproduceError(ValueError):
    """A run that failed or was stopped, or a table that has no place."""


@dataclasses.dataclass(frozen=True)
class System:
    """A system of the paper, or the pretraining of one backbone.

    Attributes:
      name: of its file in configs/.
      variant: a key of `ssm_jax.config.VARIANTS`.
    """

    name: str
    variant: str

    @property
    def key(self) -> str:
        """Its name in flags and folders, such as "ssm2_r18_2"."""
        return f"{self.name}_{self.variant}"

    @property
    def title(self) -> str:
        """Its name in the paper, as Markdown."""
        depth, blocks = VARIANTS[self.variant]
        return f"{TITLES[self.name]} R{depth.removeprefix('resnet')}{STARS[blocks]}"

    @property
    def pretraining(self) -> "System | None":
        """The system that it starts from."""
        return System("pretrain", self.variant) if self.name in ("ssm", "ssm2") else None


SYSTEMS = tuple(System(name, variant) for name in TITLES for variant in VARIANTS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs, and their folders.

    Attributes:
      workdir: folder with one run a system.
      seed: of every run.
      data_dir: where phantoms are kept; "": the configurations' own.
    """

    workdir: pathlib.Path
    seed: int = 0
    data_dir: str = ""

    def folder(self, system: System) -> pathlib.Path:
        """Working directory of a system."""
        return self.workdir / system.key

    def overrides(self, system: System) -> dict[str, Any]:
        """Fields of the configuration that are set on the command line."""
        fields = {"seed": self.seed}
        if self.data_dir:
            fields["data.data_dir"] = self.data_dir
        if system.pretraining:
            fields["init_from"] = str(self.folder(system.pretraining))
        fields |= RECIPES[system.name] | BUDGET
        return fields | {"eval.every_steps": fields["train.max_steps"]}

    def command(self, system: System) -> list[str]:
        """The command line of a system's run."""
        changed = [f"--config.{name}={value}" for name, value in self.overrides(system).items()]
        return [
            *("python", "-m", "experiments.main"),
            f"--config=configs/{system.name}.py:{system.variant}",
            f"--workdir={self.folder(system)}",
            *changed,
        ]

    def config(self, system: System):
        """The configuration that this command line makes."""
        config = importlib.import_module(f"configs.{system.name}").get_config(system.variant)
        config.update_from_flattened_dict(self.overrides(system))
        return config

    def record(self, system: System) -> dict[str, Any]:
        """The record of a run: command, status, machine; empty if there was none."""
        return _read_json(self.folder(system) / RECORD_FILE)

    def metrics(self, system: System) -> dict[str, Any]:
        """The final evaluation; empty if the run of this plan is not finished."""
        metrics = _read_json(self.folder(system) / "metrics.json")
        record = self.record(system)
        ended = record.get("command") == self.command(system) and record.get("status") == 0
        # A run that is stopped by a signal ends well too, at an earlier step.
        whole = metrics.get("step") == self.config(system).train.max_steps
        return metrics if ended and whole else {}


def selected(names: Sequence[str]) -> list[System]:
    """The systems of these names (all, if there are none), after the pretraining they need.

    Raises:
      ReproduceError: a name that is none.
    """
    known = {system.key: system for system in SYSTEMS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ReproduceError(f"no system is called {unknown[0]!r}; there are {', '.join(known)}")
    wanted = {known[name] for name in names} or set(SYSTEMS)
    wanted |= {system.pretraining for system in wanted if system.pretraining}
    return [system for system in SYSTEMS if system in wanted]


def run_program(command: Sequence[str]) -> int:
    """Runs a command line of this project to its end, and hands it Ctrl-C and SIGTERM once.

    Returns:
      Its exit status.

    Raises:
      ReproduceError: it was stopped by such a signal, after it has ended.
    """
    stopped = []
    # A session of its own: the terminal's Ctrl-C would reach it beside the one handed on.
    with subprocess.Popen([sys.executable, *command[1:]], start_new_session=True) as process:

        def hand_on(number, frame):
            stopped.append(number)
            process.send_signal(number)

        former = {n: signal.signal(n, hand_on) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
    if stopped:
        raise ReproduceError("stopped; the same command goes on from here")
    return status


def run_system(plan: Plan, system: System, runner: Callable[[Sequence[str]], int]) -> None:
    """Runs a system to its end, unless it is finished.

    Args:
      plan: says where and how.
      system: what to run.
      runner: runs a command line and returns its exit status.

    Raises:
      ReproduceError: the folder holds another run, or the run failed or was stopped.
    """
    if plan.metrics(system):
        return
    folder, command, record = plan.folder(system), plan.command(system), plan.record(system)
    if record.get("command", command) != command:
        raise ReproduceError(
            f"{folder} holds a run of another seed or budget; choose another --workdir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores ({platform.machine()})"
    write_json(folder / RECORD_FILE, {"command": command, "status": None, "machine": machine})
    status = runner(command)
    write_json(folder / RECORD_FILE, {"command": command, "status": status, "machine": machine})
    if status != 0:
        raise ReproduceError(f"exit status {status}: {shlex.join(command)}")
    if not plan.metrics(system):
        raise ReproduceError(f"{folder} ended before its last iteration; start again to go on")


def parameter_counts(config: Any) -> tuple[int, int, int | None]:
    """All parameters of a model, and how many either step trains.

    Args:
      config: of a run.

    Returns:
      All; trained by the segmentation step; by the classification step, None without module S.
    """
    import jax

    from ssm_jax.config import validate
    from ssm_jax.models.ssm import init_variables
    from ssm_jax.training import optimizer

    model = validate(config)
    params = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))["params"]
    every = sum(array.size for array in jax.tree.leaves(params))
    segmentation = optimizer.stepped_count(params, optimizer.SEGMENTATION_STEP)
    if not model.image_classes:
        return every, segmentation, None
    groups = optimizer.CLASSIFICATION_STEP[config.train.update_rule]
    return every, segmentation, optimizer.stepped_count(params, groups)


def make_table(plan: Plan, systems: Sequence[System]) -> str:
    """The table of the finished systems as Markdown, with the commands below.

    Args:
      plan: the runs.
      systems: rows; a system that is not finished has no figures.

    Raises:
      ReproduceError: none is finished.
    """
    finished = [system for system in systems if plan.metrics(system)]
    if not finished:
        raise ReproduceError(f"{plan.workdir} holds no finished run of this seed and budget")
    columns = ["Model", "Parameters", "Trained by L_SEG / L_CLS", *FIGURES, "Minutes"]
    lines = markdown_table(columns, [_row(plan, system) for system in systems])
    config = plan.config(finished[0])
    phantom, train = config.data.phantom, config.train
    machines = sorted({plan.record(system)["machine"] for system in finished})
    program = "python -m experiments.reproduce" + (f" --seed={plan.seed}" if plan.seed else "")
    commands = "\n".join(shlex.join(plan.command(system)) for system in systems)
    lines += [
        "",
        f"Phantoms of {phantom.size}×{phantom.size} pixels: {phantom.seg_train} + "
        f"{phantom.cls_train} to train, {phantom.seg_test} + {phantom.cls_test} to test. "
        f"{ALONE} iterations of segmentation alone (stage I, or the first part of "
        f"SSM<sup>S</sup>), then {BOTH} of both steps; {train.batch_size} pairs of slices an "
        f"iteration; seed {plan.seed}, score threshold {config.eval.score_threshold}; per-image "
        "AP; accuracy with its 95% interval (Wilson; chance is 33.3%); F1 weighted by the classes' "
        "shares. Minutes include evaluation, and stage I where a "
        f"system starts from it; on {', '.join(machines)}. Written by `{program}`, which runs:",
        "",
        "<details><summary>commands</summary>",
        "",
        f"```bash\n{commands}\n```",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def _row(plan: Plan, system: System) -> list[str]:
    metrics = plan.metrics(system)
    every, segmentation, classification = parameter_counts(plan.config(system))
    trained = f"{segmentation:,}" + (f" / {classification:,}" if classification else "")
    figures = {col: _number(metrics.get(name), form) for col, (name, form) in FIGURES.items()}
    if (accuracy := metrics.get("accuracy")) is not None:
        figures["Accuracy"] += _interval(accuracy, plan.config(system).data.phantom.cls_test)
    seconds = _training_seconds(plan.folder(system)) if metrics else None
    minutes = _number(None if seconds is None else seconds / 60, ".1f")
    return [system.title, f"{every:,}", trained, *figures.values(), minutes]


def _interval(share: float, count: int) -> str:
    """The 95% interval of a share of so many slices, each of another patient (Wilson 1927)."""
    from scipy import stats  # takes half a second to import

    low, high = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f" [{100 * low:.1f}, {100 * high:.1f}]"


def _training_seconds(folder: pathlib.Path) -> float | None:
    """With those of the pretraining that the run started from."""
    from ssm_jax.checkpoints import FOLDER, read_info, step_folders

    return read_info(step_folders(folder / FOLDER)[-1]).seconds


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _text_of(path: pathlib.Path) -> str:
    """The file that takes the table; one that is not there yet has nothing else in it."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    try:
        common.with_marked(text, BEGIN, END, "")
    except ValueError as error:
        raise ReproduceError(f"{path}: {error}") from error
    return text


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _prepare_data(plan: Plan, systems: Sequence[System]) -> None:
    """Makes the phantoms, so that no system's time includes that."""
    from ssm_jax.data import open_datasets

    for system in {system.name == "pretrain": system for system in systems}.values():
        open_datasets(plan.config(system))


def reproduce(
    plan: Plan,
    systems: Sequence[System],
    table: pathlib.Path,
    runner: Callable[[Sequence[str]], int] | None,
) -> None:
    """Runs the systems that are not finished, then writes the table.

    Args:
      plan: says where and how.
      systems: pretraining before the systems that start from it.
      table: the file that takes the table.
      runner: runs a command line and returns its exit status; None: nothing is run.

    Raises:
      ReproduceError: a run failed or was stopped, or the file has no place for a table.
    """
    _text_of(table)  # before hours of work, not after
    if runner is not None:
        _prepare_data(plan, systems)
        for number, system in enumerate(systems, 1):
            state = "finished before" if plan.metrics(system) else "running"
            print(f"[{number}/{len(systems)}] {system.key}: {state}", file=sys.stderr)
            run_system(plan, system, runner)
    text = common.with_marked(_text_of(table), BEGIN, END, make_table(plan, systems))
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(text, encoding="utf-8")
    print(f"wrote {table}")
