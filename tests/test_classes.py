"""Class sets: plain data both ways, the paper's, and what cannot be."""

import json

import pytest

from ssm_jax import classes
from ssm_jax.class_set import ClassSet, Code, ImageClass, LesionClass
from ssm_jax.classes import of_run, paper, unnamed
from ssm_jax.config import class_set, default_config, validate
from ssm_jax.data.class_files import with_classes

OWN = ClassSet(
    tuple(ImageClass(name, name.title(), k) for k, name in enumerate("abcde")),
    (
        LesionClass("cell", "Cell", (1,), (10, 20, 30), Code("SCT", "4421005", "Cell")),
        LesionClass("dirt", "Dirt", (2, 7)),
        LesionClass("scratch", "Scratch", (4,)),
    ),
    (("background", 0), ("glass", 3)),
)


def test_a_set_is_json_and_back():
    for whole in (OWN, classes.PAPER, paper(0, "ggo"), paper(2, "both")):
        assert ClassSet.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_titles_alone_are_enough():
    found = ClassSet.from_json(
        {"image": ["No finding", "Effusion"], "lesion": ["Nodule"], "background": {"lung": 3}}
    )
    assert found.names == ("No_finding", "Effusion")
    assert found.titles == ("No finding", "Effusion")
    assert found.numbers == (0, 1)
    assert found.lesion == (LesionClass("Nodule", "Nodule", (1,)),)
    assert found.values == {0, 1, 3}


def test_the_papers_set():
    assert classes.PAPER.names == ("normal", "cp", "covid")
    assert classes.PAPER.titles == ("Normal", "Common pneumonia", "COVID-19")
    assert classes.PAPER.lesion_titles == {1: "lesion"}
    assert paper(2).numbers == (0, 2)
    assert paper(mask_type="both").lesion_titles == {1: "ground glass", 2: "consolidation"}
    assert {paper(mask_type=kind).values for kind in classes.MASK_TYPES} == {frozenset(range(4))}
    numbered = classes.PAPER_DATA.numbered_values()
    assert numbered == "0 background, 1 lung, 2 ground glass, 3 consolidation"
    assert classes.PAPER.numbered_classes() == "0 (normal), 1 (common pneumonia), 2 (COVID-19)"


def test_models_without_names_get_the_papers_or_numbers():
    assert unnamed(3, 2) == paper(3, "both")
    assert unnamed(0, 1) == paper(0, "merge")
    assert unnamed(5, 3).names == tuple(f"class_{k}" for k in range(5))
    assert unnamed(5, 3).lesion_titles == {1: "lesion 1", 2: "lesion 2", 3: "lesion 3"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"lesion": []}, "no lesion class"),
        ({"lesion": ["x"], "image": ["one"]}, "one image class alone"),
        ({"lesion": ["x"], "image": ["a", "macro"]}, "f1_macro is of all classes"),
        ({"lesion": ["x", "x"]}, "two lesion classes are called 'x'"),
        ({"lesion": [{"name": "x", "values": []}]}, "without mask values"),
        ({"lesion": [{"name": "x", "values": [0]}]}, "from 1 to 255, not 0"),
        ({"lesion": [{"name": "x", "values": [1.5]}]}, "whole number, not 1.5"),
        ({"lesion": ["x"], "background": [["lung", 1]]}, "1 occurs twice in the mask values"),
        ({"lesion": ["x"], "background": [3]}, "pairs of a name and a mask value"),
        ({"lesion": [{"name": "a b"}]}, "'a b' cannot be the name of a lesion class"),
        ({"lesion": [{"values": [1]}]}, "has no name"),
        ({"lesion": [{"name": "x", "size": 1}]}, "no field 'size'; the fields are name, title"),
        ({"lesion": [{"name": "x", "color": [0, 0, 256]}]}, "go from 0 to 255"),
        ({"lesion": [{"name": "x", "code": ["SCT"]}]}, "scheme, value, meaning"),
        ({"lesion": "x"}, "have to be a list"),
        ({"lesions": ["x"]}, "no field 'lesions'; the fields are image, lesion, background"),
        ({"lesion": ["x"], "image": ["a", {"name": "b", "number": 0}]}, "0 occurs twice"),
    ],
)
def test_impossible_sets_are_refused(content, text):
    with pytest.raises(ValueError, match=text):
        ClassSet.from_json(content)


def test_a_configuration_names_its_classes():
    config = default_config()
    assert class_set(config) == classes.PAPER
    named = with_classes(config, OWN)
    assert not config.classes.image
    assert (named.model.image_classes, named.model.num_classes) == (5, 4)
    assert validate(named).image_classes == 5
    assert class_set(named) == OWN
    # What is stored with a run, and read again.
    assert of_run(json.loads(named.to_json_best_effort())) == OWN


def test_a_run_without_names_has_the_papers_classes():
    run = json.loads(default_config().to_json_best_effort())
    del run["classes"]
    assert of_run(run) == classes.PAPER
    run["data"]["mask_type"], run["model"]["image_classes"] = "ggo", 0
    assert of_run(run) == paper(0, "ggo")


@pytest.mark.parametrize(
    ("field", "count", "text"),
    [
        ("image_classes", 4, r"image_classes=4 and the image classes \(a, b, c, d, e\).*to 5"),
        ("num_classes", 3, r"lesion classes cell, dirt, scratch.*num_classes=3.*to 4"),
    ],
)
def test_counts_that_contradict_the_names_are_refused(field, count, text):
    config = default_config()
    config.model[field] = count
    with pytest.raises(ValueError, match=text):
        validate(with_classes(config, OWN))


def test_the_papers_mask_types_are_for_its_classes():
    config = default_config()
    config.data.mask_type = "both"
    assert validate(with_classes(config, class_set(config))).num_classes == 3
    with pytest.raises(ValueError, match=r"mask_type='both'.*named \(cell, dirt, scratch\)"):
        validate(with_classes(config, OWN))


def test_a_bad_class_is_told_with_its_section():
    config = default_config()
    config.classes.lesion = ({"name": "x", "values": (300,)},)
    with pytest.raises(ValueError, match=r"config\.classes: mask values.* not 300"):
        validate(config)
