"""The wheel: what it puts into site-packages, and the command run from an empty folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

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


def test_from_an_empty_folder(site_packages, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ssm_jax", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site_packages)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "\n  train  " in run("--help").stdout
    # Loads the packaged configuration, and ends before a training run begins.
    done = run("train", "--config=demo", "--config.train.copyrule=x")
    assert "no field 'train.copyrule'; did you mean train.copy_rule?" in done.stderr
    code = "import ssm_jax, ssm_jax.configs.demo as demo; print(ssm_jax.__file__, demo.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site_packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    places = [pathlib.Path(text) for text in done.stdout.split()]
    assert [place.is_relative_to(site_packages) for place in places] == [True, True], done.stderr
