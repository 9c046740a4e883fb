"""The wheel: what it puts into site-packages, and the command run from an empty folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.helpers.programs import ROOT

# Beside the package, folders of the checkout that are to stay out.
SOURCES = ("ssm_jax", "configs", "experiments", "benchmarks")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """The wheel, unpacked."""
    root = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / "checkout" / name, ignore=ignored)
    (root / "checkout" / "ssm_jax" / "box" / "model.npz").touch()  # there or not, it would go along
    for name in FILES:
        shutil.copy(ROOT / name, root / "checkout" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--no-index", f"--wheel-dir={root}", root / "checkout"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecat" not in (done.stdout + done.stderr).lower()
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "site")
    return root / "site"


def test_the_package_alone(site_packages):
    assert sorted(path.name for path in site_packages.iterdir()) == [
        "ssm_jax",
        "ssm_jax-0.1.0.dist-info",
    ]


def test_all_of_the_package(site_packages):
    for source, target in (("ssm_jax", "ssm_jax"), ("configs", "ssm_jax/configs")):
        files = (path for path in (ROOT / source).rglob("*") if path.is_file())
        there = [path for path in files if "__pycache__" not in path.parts]
        assert len(there) > 5
        for path in there:
            packed = site_packages / target / path.relative_to(ROOT / source)
            assert packed.read_bytes() == path.read_bytes()


def test_the_model_in_the_box(site_packages):
    assert (site_packages / "ssm_jax" / "box" / "model.npz").is_file()


def test_metadata(site_packages):
    folder = site_packages / "ssm_jax-0.1.0.dist-info"
    assert "\nLicense-Expression: Apache-2.0\n" in (folder / "METADATA").read_text()
    assert "ssm-jax = ssm_jax.__main__:main" in (folder / "entry_points.txt").read_text()


@pytest.fixture
def outside(site_packages, tmp_path):
    """Runs Python in an empty folder, which sees the wheel and nothing of the checkout."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site_packages)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_from_an_empty_folder(outside, site_packages):
    assert "\n  train  " in outside("-m", "ssm_jax", "--help").stdout
    # Loads the packaged configuration, and ends before a training run begins.
    done = outside("-m", "ssm_jax", "train", "--config=demo", "--config.train.copyrule=x")
    assert "no field 'train.copyrule'; did you mean train.copy_rule?" in done.stderr
    code = "import ssm_jax, ssm_jax.configs.demo as demo; print(ssm_jax.__file__, demo.__file__)"
    done = outside("-c", code)
    places = [pathlib.Path(text) for text in done.stdout.split()]
    assert [place.is_relative_to(site_packages) for place in places] == [True, True], done.stderr


# The demo with a small model on a few small phantoms, for two iterations.
SHORT = {
    "seed": 0,
    "model.image_size": 64,
    "model.max_size": 128,
    "model.roi_batch": 16,
    "model.roi_positives": 4,
    "data.data_dir": "data",
    "data.phantom.size": 64,
    "data.phantom.seg_train": 4,
    "data.phantom.seg_test": 2,
    "data.phantom.cls_train": 4,
    "data.phantom.cls_test": 3,
    "train.max_steps": 2,
    "train.classification_from": 1,
    "eval.every_steps": 2,
    "eval.bn_slices": 2,
    "eval.overlays": 1,
}
# In this order: a command takes what those before it have made.
COMMANDS = {
    "train": (
        ("--config=demo", "--workdir=run", *(f"--config.{k}={v}" for k, v in SHORT.items())),
        ("run/metrics.json", "run/checkpoints/2"),
    ),
    "predict": (  # with the model in the package
        ("--inputs=slice.png", "--output_dir=found", "--report=report.html", "--masks=png"),
        ("found/predictions.json", "found/report.html"),
    ),
    "evaluate": (
        ("--checkpoint=run", "--output_dir=figures", "--bootstrap_samples=20"),
        ("figures/metrics.json", "figures/report.html", "figures/image_probabilities.json"),
    ),
    "compare": (("figures", "--output_dir=compared"), ("compared/compare.html",)),
    "export": (("--checkpoint=run", "--output=model.zip"), ("model.zip",)),
    "export-reference": (("--checkpoint=run", "--output=model.pth"), ("model.pth",)),
    "import-reference": (("--weights=model.pth", "--output=imported"), ("imported",)),
}


@pytest.mark.slow
def test_commands_from_an_empty_folder(outside, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    gray = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    Image.fromarray(gray).save(tmp_path / "slice.png")
    for name, (arguments, made) in COMMANDS.items():
        done = outside("-m", "ssm_jax", name, *arguments)
        assert done.returncode == 0, (name, done.stderr)
        assert [path for path in made if not (tmp_path / path).exists()] == [], name
    (entry,) = json.loads((tmp_path / "found" / "predictions.json").read_text())["slices"]
    assert (entry["height"], entry["width"]) == gray.shape
    assert json.loads((tmp_path / "figures" / "metrics.json").read_text())["cls_slices"] == 3
