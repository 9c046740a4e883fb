"""`classes.json` of data folders: read, agreed on, and compared with a model's classes."""

import json

import pytest

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER, PAPER_DATA, paper
from ssm_jax.config import class_set, default_config, validate
from ssm_jax.data import DataError
from ssm_jax.data.class_files import (
    CLASSES_FILE,
    folder_classes,
    named_classes,
    read_classes,
)
from ssm_jax.files import write_json
from tests.test_classes import OWN


def config_of(**data):
    config = default_config()
    config.data.update(data)
    return config


def folder(root, name, content):
    (root / name).mkdir(exist_ok=True)
    if isinstance(content, ClassSet):
        write_json(root / name / CLASSES_FILE, content.to_json())
    elif content is not None:
        (root / name / CLASSES_FILE).write_text(content)
    return str(root / name)


def test_classes_of_the_data_become_those_of_the_run(tmp_path):
    place = folder(tmp_path, "own", OWN)
    named = named_classes(config_of(seg_dir=place, cls_dir=place))
    assert class_set(named) == OWN
    assert validate(named).num_classes == 4
    assert named_classes(named) == named


def test_without_a_file_they_are_the_papers(tmp_path):
    place = folder(tmp_path, "plain", None)
    assert class_set(named_classes(config_of(seg_dir=place, cls_dir=place))) == PAPER
    assert read_classes(place) == {}


def test_each_part_comes_from_where_it_is_told(tmp_path):
    seg = folder(tmp_path, "seg", json.dumps({"lesion": ["x", "y"]}))
    cls = folder(tmp_path, "cls", json.dumps({"image": ["p", "q"]}))
    found = class_set(named_classes(config_of(seg_dir=seg, cls_dir=cls)))
    assert (found.names, found.lesion_names) == (("p", "q"), {1: "x", 2: "y"})
    named = class_set(named_classes(config_of(seg_dir=seg)))
    assert named.names == ()  # lesions alone


def test_the_configuration_goes_first(tmp_path):
    place = folder(tmp_path, "own", OWN)
    config = config_of(seg_dir=place, cls_dir=place)
    config.classes.image = ("u", "v")
    found = class_set(named_classes(config))
    assert (found.names, found.lesion) == (("u", "v"), OWN.lesion)
    config.model.image_classes, config.model.branches = 0, 1
    assert class_set(named_classes(config)).image == ()


def test_folders_that_differ_are_refused(tmp_path):
    one = folder(tmp_path, "one", OWN)
    other = folder(tmp_path, "other", json.dumps({"lesion": ["x"]}))
    with pytest.raises(DataError, match=r"one/classes.json and .*other/classes.json .* lesion"):
        named_classes(config_of(seg_dir=f"{one},{other}"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "classes.json: .*correct it"),
        ("[]", "has to hold an object"),
        ("{}", "neither image nor lesion"),
        ('{"lesion": ["x", "x"]}', "two lesion classes"),
        ('{"image": ["x"]}', "one image class alone"),
        ('{"image": ["x", "y"], "other": 1}', "no field 'other'"),
    ],
)
def test_bad_files_are_told(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read_classes(folder(tmp_path, "bad", text))


def test_what_a_folder_can_hold(tmp_path):
    plain, own = folder(tmp_path, "plain", None), folder(tmp_path, "own", OWN)
    for part in ("seg", "cls"):
        assert folder_classes(None, paper(2, "ggo"), part) == PAPER_DATA
        assert folder_classes(plain, paper(2, "ggo"), part) == PAPER_DATA
        assert folder_classes(plain, OWN, part) == OWN
        assert folder_classes(own, OWN, part) == OWN


def test_other_classes_than_the_models_are_refused(tmp_path):
    own = folder(tmp_path, "own", OWN)
    with pytest.raises(DataError, match=r"own/classes.json.*number 0 is a there and normal here"):
        folder_classes(own, PAPER, "cls")
    with pytest.raises(DataError, match="mask value 3 is lesion here and no lesion there"):
        folder_classes(own, PAPER, "seg")
    with pytest.raises(DataError, match=r"the phantom .*number 0 is normal there and a here"):
        folder_classes(None, OWN, "cls")
    same = ClassSet.from_json({"lesion": [{"name": "spot", "values": [2, 7]}]})
    with pytest.raises(DataError, match="spot here has the mask values of dirt there"):
        folder_classes(own, same, "seg")
    together = ClassSet.from_json({"lesion": [{"name": "all", "values": [1, 2, 7]}]})
    assert folder_classes(own, together, "seg") == OWN
