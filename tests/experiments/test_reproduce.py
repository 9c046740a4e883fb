"""The table of all systems: what is run, what is not run again, and where every number is from."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import threading

import pytest

from configs import ssm2
from experiments import reproduce, systems
from ssm_jax.checkpoints import FOLDER, config_item, write_step
from ssm_jax.cli import configs, flags, train
from ssm_jax.config import ModelConfig, validate
from tests.helpers.programs import run_module
from tests.helpers.tiny import shrunk
from tests.models.test_models import PARAMETERS, STEPPED_IN_CLASSIFICATION

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 7


@pytest.fixture(autouse=True)
def small_budget(monkeypatch):
    tiny = {
        f"data.phantom.{part}_{split}": 3 for part in ("seg", "cls") for split in ("train", "test")
    }
    tiny |= {"data.phantom.size": 64, "model.image_size": 64, "train.max_steps": STEPS}
    tiny["train.classification_from"] = 3
    monkeypatch.setattr(systems, "BUDGET", systems.BUDGET | tiny)


class FakeRunner:
    """Writes the metrics of a run; every figure tells whose it is."""

    def __init__(self):
        self.commands, self.status, self.step = [], 0, STEPS

    def __call__(self, command):
        self.commands.append(command)
        (folder,) = [word.partition("=")[2] for word in command if word.startswith("--workdir=")]
        number = len(self.commands)
        metrics = {"step": self.step, "ap50": number / 100, "ap75": number / 200, "ap": None}
        if "pretrain" not in folder:
            metrics |= {f"sensitivity_{name}": number / 50 for name in ("normal", "cp", "covid")}
            metrics |= {"accuracy": number / 40, "f1_weighted": number / 30}
        with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as file:
            json.dump(metrics, file)
        documents = {
            "config": config_item(dataclasses.asdict(ModelConfig()), None),
            "time": {"seconds": 60.0 * number},
        }
        write_step(pathlib.Path(folder).absolute() / FOLDER, self.step, {}, documents)
        return self.status

    @property
    def keys(self):
        words = [word for command in self.commands for word in command]
        return [w.rpartition("/")[2] for w in words if w.startswith("--workdir=")]


@pytest.fixture
def plan(tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "phantoms"
    return systems.Plan(tmp_path_factory.mktemp("runs"), 5, str(cache))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{systems.BEGIN}\nFORMER\n{systems.END}\nafter\n", encoding="utf-8")
    return path


def rows_of(text):
    """Title -> cells, by column name."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    header, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_all_systems_and_their_pretraining():
    keys = [system.key for system in systems.selected([])]
    variants = ("r18_2", "r18_3", "r34_2", "r34_3")
    assert keys == [
        f"{name}_{v}" for name in ("pretrain", "ssm", "ssm2", "ssm_s") for v in variants
    ]
    keys = [system.key for system in systems.selected(["ssm_s_r34_2", "ssm2_r18_3"])]
    assert keys == ["pretrain_r18_3", "ssm2_r18_3", "ssm_s_r34_2"]
    with pytest.raises(systems.ReproduceError, match="no system is called 'ssm3'"):
        systems.selected(["ssm3"])


@pytest.mark.parametrize("system", systems.SYSTEMS, ids=lambda system: system.key)
def test_a_command_makes_the_configuration_that_the_table_tells_of(plan, system):
    command = plan.command(system)
    assert command[:3] == ["python", "-m", "experiments.main"]
    given = flags.parse(train.Flags, shlex.split(shlex.join(command))[3:])
    config = configs.changed(configs.load(given.config), given.changes)
    assert config.to_dict() == plan.config(system).to_dict()
    assert given.workdir == str(plan.folder(system))
    validate(config)
    assert (config.seed, config.train.max_steps) == (5, STEPS)
    starts = system.name in ("ssm", "ssm2")
    assert config.train.pretrained == bool(config.init_from) == starts
    if starts:
        assert config.init_from.endswith(f"pretrain_{system.variant}")


def test_every_number_comes_from_the_runs(plan, table):
    runner = FakeRunner()
    chosen = systems.selected([])
    systems.reproduce(plan, chosen, table, runner)
    assert runner.keys == [system.key for system in chosen]
    text = table.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{systems.BEGIN}\n\n| Model")
    assert text.endswith(f"{systems.END}\nafter\n")
    assert "FORMER" not in text
    rows = rows_of(text)
    assert len(rows) == 16
    titles = ["Stage I R18\\*", "Stage I R18\\*\\*", "Stage I R34\\*", "Stage I R34\\*\\*"]
    assert list(rows)[:5] == [*titles, "SSM R18\\*"]
    for number, (system, row) in enumerate(zip(chosen, rows.values(), strict=True), 1):
        assert row["AP@0.5"] == f"{number / 100:.3f}"
        assert row["AP@0.75"] == f"{number / 200:.3f}"
        assert row["AP"] == "–"
        model = validate(plan.config(system))
        architecture = (model.backbone, model.blocks, model.branches)
        if system.name == "pretrain":
            assert row["Accuracy"] == row["F1"] == row["COVID-19"] == "–"
            assert "/" not in row["Trained by L_SEG / L_CLS"]
            continue
        assert row["Accuracy"] == f"{number / 40:.1%}" + systems._interval(number / 40, 3)
        assert row["CP"] == f"{number / 50:.1%}"
        assert row["F1"] == f"{number / 30:.3f}"
        assert row["Parameters"] == f"{PARAMETERS[architecture]:,}"
        alone = rows[f"Stage I {row['Model'].split()[1]}"]["Parameters"]
        stepped = STEPPED_IN_CLASSIFICATION[architecture[:2]]
        assert row["Trained by L_SEG / L_CLS"] == f"{alone} / {stepped:,}"
    for system in chosen:
        assert shlex.join(plan.command(system)) in text
    sizes = (
        f"{systems.ALONE} iterations of segmentation alone",
        f"then {systems.BOTH} of both steps",
    )
    assert all(size in text for size in (*sizes, "seed 5"))
    assert "`python -m experiments.reproduce --seed=5`" in text


def test_the_interval_of_an_accuracy_is_wilsons():
    # Of 150 slices 60 are right; the formula written out.
    share, count, z = 0.4, 150, 1.959963984540054
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * 0.6 / count + z * z / (4 * count**2)) ** 0.5
    told = f" [{100 * (center - half):.1f}, {100 * (center + half):.1f}]"
    assert systems._interval(share, count) == told == " [32.5, 48.0]"


def test_what_is_finished_is_not_run_again(plan, table):
    chosen = systems.selected(["ssm2_r18_2"])
    runner = FakeRunner()
    systems.reproduce(plan, chosen, table, runner)
    first = table.read_text(encoding="utf-8")
    systems.reproduce(plan, chosen, table, runner)
    assert runner.keys == ["pretrain_r18_2", "ssm2_r18_2"]
    assert table.read_text(encoding="utf-8") == first
    other = systems.Plan(plan.workdir, 6, plan.data_dir)
    with pytest.raises(systems.ReproduceError, match=r"pretrain_r18_2 holds a run of another seed"):
        systems.reproduce(other, chosen, table, runner)
    with pytest.raises(systems.ReproduceError, match="no finished run of this seed"):
        systems.reproduce(other, chosen, table, None)
    assert table.read_text(encoding="utf-8") == first


def test_a_run_that_ended_early_goes_on(plan, table):
    chosen = systems.selected(["ssm_r18_2"])
    runner = FakeRunner()
    runner.step = 3
    with pytest.raises(systems.ReproduceError, match="ended before its last iteration"):
        systems.reproduce(plan, chosen, table, runner)
    with pytest.raises(systems.ReproduceError, match="no finished run"):
        systems.reproduce(plan, chosen, table, None)
    runner.step, runner.status = STEPS, 1
    with pytest.raises(systems.ReproduceError, match=r"exit status 1: python -m experiments\.main"):
        systems.reproduce(plan, chosen, table, runner)
    runner.status = 0
    systems.reproduce(plan, chosen[:1], table, runner)
    rows = rows_of(table.read_text(encoding="utf-8"))
    assert [row["Minutes"] for row in rows.values()] == ["3.0"]
    # What is not finished has a row without figures.
    systems.reproduce(plan, chosen, table, None)
    rows = rows_of(table.read_text(encoding="utf-8"))
    assert rows["SSM R18\\*"]["Minutes"] == rows["SSM R18\\*"]["AP@0.5"] == "–"
    systems.reproduce(plan, chosen, table, runner)
    rows = rows_of(table.read_text(encoding="utf-8"))
    assert [row["Minutes"] for row in rows.values()] == ["3.0", "4.0"]


def test_an_interrupted_run_goes_on(plan, table):
    def interrupted(command):
        raise systems.ReproduceError("stopped")

    chosen = systems.selected(["ssm_s_r18_2"])
    with pytest.raises(systems.ReproduceError, match="stopped"):
        systems.reproduce(plan, chosen, table, interrupted)
    assert plan.record(chosen[0])["status"] is None
    systems.reproduce(plan, chosen, table, FakeRunner())
    assert rows_of(table.read_text(encoding="utf-8"))["SSM<sup>S</sup> R18\\*"]["Minutes"] == "1.0"


def test_a_file_without_a_place_is_refused_before_anything_is_run(plan, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"{systems.END}\n{systems.BEGIN}\n", encoding="utf-8")
    runner = FakeRunner()
    with pytest.raises(systems.ReproduceError, match=re.escape(systems.BEGIN)):
        systems.reproduce(plan, systems.selected([]), path, runner)
    assert runner.commands == []
    fresh = tmp_path / "docs" / "table.md"
    systems.reproduce(plan, systems.selected(["ssm_s_r18_2"]), fresh, runner)
    assert fresh.read_text(encoding="utf-8").startswith(systems.BEGIN)


def test_programs_run_and_stop():
    assert systems.run_program(["python", "-c", "raise SystemExit(3)"]) == 3
    former = signal.getsignal(signal.SIGINT)
    waits = """
import os, signal, sys, time
def end(number, frame):
    open(sys.argv[1], "a").write("x")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(60)
"""
    read, write = os.pipe()
    command = ["python", "-c", waits, f"/proc/{os.getpid()}/fd/{write}"]
    guard = threading.Timer(50, os._exit, (1,))
    guard.start()
    with pytest.raises(systems.ReproduceError, match="the same command goes on"):
        systems.run_program(command)
    guard.cancel()
    os.close(write)
    assert os.read(read, 10) == b"x"  # the signal came once, and its end was waited for
    os.close(read)
    assert signal.getsignal(signal.SIGINT) is former


def test_the_program_reports_errors_without_a_traceback(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no place here", encoding="utf-8")
    for arguments, message in (
        (["--systems=ssm9"], "no system is called 'ssm9'"),
        ([f"--table={readme}"], "README.md: it has no place for the table"),
        ([f"--table={tmp_path / 'new.md'}", "--table_only"], "holds no finished run"),
    ):
        done = run_module(reproduce, f"--workdir={tmp_path}", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_system_trains_by_its_command(plan, table, monkeypatch):
    model = shrunk(ssm2.get_config("r18_2")).model
    small = {f"model.{name}": value for name, value in model.items()}
    kept = {n: v for n, v in small.items() if n not in ("model.branches", "model.image_classes")}
    changed = {"train.max_steps": 2, "eval.every_steps": 2, "eval.bn_slices": 0}
    monkeypatch.setattr(systems, "BUDGET", systems.BUDGET | kept | changed)
    systems.reproduce(plan, systems.selected(["ssm2_r18_2"]), table, systems.run_program)
    row = rows_of(table.read_text(encoding="utf-8"))["SSM<sup>2</sup> R18\\*"]
    assert re.fullmatch(r"[0-9.]+% \[[0-9.]+, [0-9.]+\]", row["Accuracy"])
    assert float(row["Minutes"]) > 0
