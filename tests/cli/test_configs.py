"""Configurations as the command line names and changes them."""

import re

import pytest

from ssm_jax.cli import configs
from ssm_jax.cli.flags import UsageError
from ssm_jax.config import VARIANTS
from tests.helpers.programs import ROOT


def test_packaged_ones_go_by_name():
    names = [
        "covid19_ct_seg",
        "covid_ct",
        "demo",
        "pretrain",
        "scratch_r18",
        "ssm",
        "ssm2",
        "ssm_s",
    ]
    assert list(configs.packaged()) == names
    for text in ("demo", "demo.py", str(ROOT / "configs" / "demo.py")):
        assert configs.find(text) == (ROOT / "configs" / "demo.py", "")
        assert configs.load(text).train.max_steps == 700
        assert configs.name_of(text) == "demo"
    config = configs.load("ssm2:r34_2")
    assert (config.model.backbone, config.model.blocks) == VARIANTS["r34_2"]
    assert configs.name_of("ssm2:r34_2") == configs.name_of("x/ssm2.py:r34_2") == "ssm2_r34_2"


def test_a_file_goes_by_its_path(tmp_path, monkeypatch):
    own = tmp_path / "demo.py"
    own.write_text("from ssm_jax.config import default_config as get_config\n")
    monkeypatch.chdir(tmp_path)
    assert configs.load("demo.py").train.max_steps == 0  # the nearer one
    assert configs.load("demo").train.max_steps == 700


BAD = {
    "dmeo": "no configuration 'dmeo' (the path of a file, or one of covid19_ct_seg, covid_ct, "
    "demo, pretrain, scratch_r18, ssm, ssm2, ssm_s); did you mean demo?",
    "configs/absent.py": "no configuration 'configs/absent.py' (",
    "": "no configuration '' (",
    "ssm2:r50_2": "ssm2.py: there is no variant 'r50_2'; choose from r18_2, r18_3, r34_2, r34_3",
    "demo:r18_2": "demo.py has no variants; leave out :r18_2",
    "{0}/empty.py": "empty.py defines no get_config()",
    "{0}/wrong.py": "wrong.py: SyntaxError: invalid syntax",
    "{0}/raises.py": "raises.py: ZeroDivisionError: division by zero",
    "{0}/dict.py": "dict.py: get_config() has to return an ml_collections.ConfigDict",
    "{0}/text.txt": "text.txt is no Python file: its name has to end in .py",
}


@pytest.mark.parametrize("text", BAD)
def test_one_that_cannot_be_used(text, tmp_path):
    for name, content in {
        "empty.py": "",
        "wrong.py": "def get_config(:",
        "raises.py": "def get_config(): 1 / 0",
        "dict.py": "get_config = dict",
        "text.txt": "",
    }.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(BAD[text])):
        configs.load(text.format(tmp_path))


def test_fields_are_changed():
    given = ["--config.train.learning_rate=1e-2", "--config.seed", "3"]
    given += ["--noconfig.train.pretrained", "--config.model.anchor_sizes=(8, 16)"]
    config = configs.changed(configs.load("scratch_r18"), given)
    assert (config.train.learning_rate, config.seed) == (0.01, 3)
    assert config.model.anchor_sizes == (8, 16)
    assert config.train.pretrained is False
    assert configs.changed(configs.load("ssm"), ["--config.train.pretrained"]).train.pretrained
    unchanged = configs.changed(configs.load("demo"), [])
    assert unchanged.to_dict() == configs.load("demo").to_dict()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.train.lerning_rate=1",
            "'train.lerning_rate'; did you mean train.learning_rate?",
        ),
        ("--config.lr=1", "'lr'; there are backbone, checkpoint, classes, data"),
        (
            "--config.train.qqqqq=1",
            "'train.qqqqq'; there are train.batch_size, train.cl",
        ),
        ("--config.train.learning_rate=abc", "--config.train.learning_rate=abc"),
        ("--config.seed=1.5", "--config.seed=1.5"),
        ("--config.train.pretrained=perhaps", "--config.train.pretrained=perhaps"),
        ("--config.seed", "Missing value for flag --config.seed"),
    ],
)
def test_fields_that_cannot_be(argument, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        configs.changed(configs.load("demo"), [argument])
    assert "\n" not in str(caught.value) and "\\" not in str(caught.value)
