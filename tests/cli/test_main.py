"""The command `ssm-jax`: its help, its flags, and mistakes in a command line."""

import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

import ssm_jax
from ssm_jax.__main__ import COMMANDS
from ssm_jax.cli import common, flags
from tests.helpers.programs import ROOT, command, run


def python(*arguments):
    """Runs Python in a process of its own, in the checkout."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_overview_fits_a_screen():
    text = run("--help").stdout
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 80
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert run("help").stdout == run("-h").stdout == text
    assert run("--version").stdout == f"ssm-jax {ssm_jax.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name):
    """All in one process: no command's flags are in another's way."""
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"ssm-jax {name}: ")
    examples = done.stdout.partition("\n\nExamples:\n\n")[2].partition("\n\nFlags:\n\n")[0]
    assert f"    ssm-jax {name} --" in examples
    kind = importlib.import_module(f"ssm_jax.cli.{name.replace('-', '_')}").Flags
    for group in flags.groups_of(kind):
        shown = done.stdout.partition(f"\n{group.title}:\n\n")[2].partition("\n\n")[0]
        for flag in group.flags.values():
            (line,) = [line for line in shown.splitlines() if line.startswith(f"  {_start(flag)}")]
            assert len(line) <= 80
    # Of absl's own flags the two that work are shown, where all is asked for.
    assert "flagfile" not in done.stdout
    assert "--flagfile=PATH" in run(name, "--helpfull").stdout


def _start(flag):
    if "shown" in flag.field.metadata:
        return flag.shown
    return f"--[no]{flag.name}" if flag.kind is bool else f"--{flag.name}="


def test_help_and_import_do_without_jax():
    code = (
        "import sys, ssm_jax; assert not {'jax', 'numpy', 'absl'} & set(sys.modules)\n"
        "from ssm_jax.__main__ import COMMANDS, run\n"
        "run(['--help']); assert not {'jax', 'numpy', 'absl'} & set(sys.modules)\n"
        "for name in COMMANDS: run([name, '--help'])\n"
        "assert not {'jax', 'tensorflow_datasets', 'starlette'} & set(sys.modules)"
    )
    assert "ssm-jax export-reference: " in python("-c", code)


def test_the_main_job_is_the_same_program():
    assert python("-m", "experiments.main", "--help") == run("train", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["xyz"], "there is no command 'xyz'; ssm-jax --help lists them"),
        (["predict", "--chekpoint=x"], "there is no flag --chekpoint; did you mean --checkpoint?"),
        (["predict", "--nooverlay"], "there is no flag --nooverlay; did you mean --overlays?"),
        (["train", "--work_dir=x"], "there is no flag --work_dir; did you mean --workdir?"),
        (["export", "--qqq"], "there is no flag --qqq ("),
        (["serve", "checkpoint"], "unexpected argument 'checkpoint'; flags start with --"),
        (["train", "demo"], "unexpected argument 'demo'; flags start with --"),
        (["serve", "--checkpoint"], "Missing value for flag --checkpoint"),
        (["serve", "--port=80x"], "--port=80x: give a whole number"),
        (["serve", "--port=65536"], "it has to be finite and at least 0 and at most 65535"),
        (["serve", "--overlays=maybe"], "there is no flag --overlays"),
        (["export", "--masks=maybe"], "--masks=maybe"),
        (["evaluate", "--part=both"], "give --output_dir"),
        (["export-reference"], "give --checkpoint and --output"),
        (["evaluate", "--bootstrap_unit=patient"], "did you mean patients?"),
    ],
)
def test_mistakes_take_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not done.stdout


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inner flags.

    Attributes:
      few: A number.
      left_out: Is no flag.
    """

    few: int = dataclasses.field(default=3, metadata={"least": 1})
    left_out: str = "as ever"

    def __post_init__(self):
        if self.few == 13:
            raise ValueError("13 is refused")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer flags.

    Attributes:
      place, other: Paths, which share
        a description.
      words: Several.
      pair: Two numbers.
      numbers: Any number of them.
      yes: Or no.
      rest: Arguments.
      inner: A group.
    """

    place: pathlib.Path
    other: pathlib.Path | None = None
    words: tuple[str, ...] = ("a",)
    pair: tuple[float, float] = (0.5, 2.0)
    numbers: tuple[int, ...] | None = None
    yes: bool = False
    rest: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"positional": True, "shown": "REST ..."}
    )
    inner: Inner = dataclasses.field(metadata={"names": {"few": "many"}, "omit": ("left_out",)})


def test_flags_are_those_of_a_dataclass():
    assert flags.parse(Outer, ["--place=x"]) == Outer(place=pathlib.Path("x"), inner=Inner())
    line = "one --place x --words=b --words=c,d --pair=1,-2e3 --numbers=4 --yes --many=7 two"
    given = flags.parse(Outer, [*line.split(), "--", "--three"])
    assert given == Outer(
        place=pathlib.Path("x"),
        words=("b", "c,d"),
        pair=(1.0, -2000.0),
        numbers=(4,),
        yes=True,
        rest=("one", "two", "--three"),
        inner=Inner(few=7),
    )
    assert not flags.parse(Outer, ["--place=x", "--yes", "--noyes"]).yes
    text = flags.describe("it", "Does.\n\nMore.\n\nExamples:\n\n    it --place=x", Outer)
    assert text == HELP


HELP = """\
it: Does.

Examples:

    it --place=x

Flags:

  --place=PATH
      Paths, which share a description. Has to be given.
  --other=PATH
      Paths, which share a description.
  --words=TEXT
      Several. (default: a)
  --pair=X,X
      Two numbers. (default: 0.5,2)
  --numbers=N,...
      Any number of them.
  --[no]yes
      Or no. (default: no)
  REST ...
      Arguments.

Inner flags:

  --many=N
      A number. (default: 3)

More."""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--pair=1", "give 2 numbers with a comma between"),
        ("--pair=1,x", "give a number, with commas"),
        ("--pair=nan,1", "it has to be finite"),
        ("--many=0", "it has to be finite and at least 1"),
        ("--few=1", "there is no flag --few"),
        ("--left_out=x", "there is no flag --left_out"),
        ("--rest=x", "there is no flag --rest"),
    ],
)
def test_values_that_cannot_be(argument, message):
    with pytest.raises(flags.UsageError, match=message):
        flags.parse(Outer, ["--place=x", argument])


def test_what_the_dataclass_refuses_is_its_own_error():
    with pytest.raises(ValueError, match="13 is refused"):
        flags.parse(Outer, ["--place=x", "--many=13"])


def test_a_field_without_help_is_a_fault():
    @dataclasses.dataclass
    class Bare:
        """Attributes are not described."""

        field: int = 0

    with pytest.raises(TypeError, match="Bare does not describe field"):
        flags.groups_of(Bare)


def test_flags_from_a_file(tmp_path):
    (tmp_path / "flags").write_text("--place=from_file\n--many=5\n")
    given = flags.parse(Outer, [f"--flagfile={tmp_path / 'flags'}", "--many=6"])
    assert (given.place, given.inner.few) == (pathlib.Path("from_file"), 6)


def test_interrupts_and_lack_of_memory_end_without_a_traceback(monkeypatch):
    from ssm_jax.cli import compare

    for error, code, message in (
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError("4 GiB"), 1, "error: not enough memory: 4 GiB\n"),
        (OSError(), 1, "error: OSError\n"),
    ):

        def fail(flags, error=error):
            raise error

        monkeypatch.setattr(compare, "main", fail)
        done = run("compare", "--output_dir=x", "y")
        assert (done.returncode, done.stderr) == (code, message)


def test_devices_that_are_not_there(tmp_path):
    """In a process of its own: JAX takes its platforms once."""
    done = subprocess.run(
        command("predict", "--checkpoint=x", "--inputs=x", f"--output_dir={tmp_path}"),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX_PLATFORMS=cuda asks for devices that cannot be used")
    assert done.stderr.count("\n") == 1


def test_lack_of_device_memory_is_told_as_such(monkeypatch):
    from ssm_jax.cli import compare

    def fail(flags):
        raise RuntimeError(text)

    monkeypatch.setattr(compare, "main", fail)
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
    done = run("compare", "--output_dir=x", "y")
    assert done.stderr == f"error: not enough memory: {text.splitlines()[0]}\n"
    text = "a fault of ours"
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run("compare", "--output_dir=x", "y")


def test_a_file_of_weights_in_place_of_a_checkpoint(tmp_path):
    path = tmp_path / "ssm.pth"
    path.write_bytes(b"")
    for arguments in (
        ["predict", f"--checkpoint={path}", "--inputs=x"],
        ["evaluate", f"--checkpoint={path}"],
        ["compare", path],
    ):
        done = run(*arguments, f"--output_dir={tmp_path}")
        assert done.returncode == 1
        assert f"ssm-jax import-reference --weights={path} --output=FOLDER makes one" in done.stderr
        assert done.stderr.count("\n") == 1


def test_progress_in_a_file_is_a_line_a_minute(capsys):
    now = 0.0
    with common.slices_bar(200, hidden=False) as bar:
        bar._time, bar.start_t, bar.last_print_t = lambda: now, now, now
        for _ in range(200):
            now += 1.0
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "30% 60/200 slices, 02:20 left",
        "60% 120/200 slices, 01:20 left",
        "90% 180/200 slices, 00:20 left",
        "100% 200/200 slices, 00:00 left",
    ]
    with common.slices_bar(5, hidden=False) as bar:
        bar.update(5)
    with common.slices_bar(5, hidden=True) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
