"""The program `evaluate`: what it writes, from a checkpoint to the comparison."""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import ssm_jax
from ssm_jax.checkpoints import CheckpointInfo, save_model
from ssm_jax.classes import PAPER
from ssm_jax.cli.model import Loaded, ModelFlags
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.data import open_datasets
from ssm_jax.data.patients import classification_patient
from ssm_jax.evaluation import coco, per_image_ap
from ssm_jax.ops import rle
from ssm_jax.predictor import Predictor
from ssm_jax.report import comparison
from ssm_jax.report.evaluate import FORMAT, Options, config_of, evaluate_checkpoint
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState
from tests.helpers import programs
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder
from tests.helpers.fake_predictions import box_of
from tests.helpers.tiny import get_config, random_variables
from tests.report.test_evaluation import SECTIONS, assert_self_contained

pytestmark = pytest.mark.usefixtures("quickly_compiled")

evaluate_program = functools.partial(programs.run, "evaluate")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data in folders: five test slices with names of three patients, one without lesions."""
    root = tmp_path_factory.mktemp("folders")
    seg, cls = seg_folder(root / "seg"), cls_folder(root / "cls")
    for k, boxes in enumerate([((4, 4, 20, 18), (30, 30, 50, 44)), (), ((10, 30, 40, 50),)]):
        name = f"{'ccd'[k]}_{k}.png"
        save(seg / "test" / "imgs" / name, noise(70 + k, 64, 64))
        save(seg / "test" / "masks" / name, lesion_mask(64, 64, boxes))
    return seg, cls


@pytest.fixture(scope="module")
def run(tmp_path_factory, folders):
    """The working directory of a run of 7 iterations on these folders, with random weights."""
    workdir = tmp_path_factory.mktemp("run") / "first"
    config = get_config(str(tmp_path_factory.mktemp("prepared")))
    config.data.seg_dir, config.data.cls_dir = map(str, folders)
    config.eval.nms_threshold = 0.4
    model = ModelConfig.from_mapping(config.model.to_dict())
    variables = random_variables(model)
    zero = np.float32(0)
    state = TrainState(
        np.int32(7), **variables, opt_state={"m": zero}, best_seg_loss=zero, key=zero
    )
    with RunCheckpoints(workdir) as checkpoints:
        checkpoints.save(state, config.to_dict(), {}, seconds=90.0)
    (workdir / "metrics.json").write_text('{"step": 7}')  # as training leaves one
    return workdir, config, variables


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "deep" / "er"
    result = evaluate_checkpoint(str(run[0]), output, Options(samples=50, overlays=1), "command")
    return output, result


def content(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_what_is_written(evaluated, run, folders):
    output, result = evaluated
    assert sorted(path.name for path in output.iterdir()) == [
        *("image_probabilities.json", "metrics.json", "predictions.json", "predictions_bbox.json"),
        *("report.html", "truth.json"),
    ]
    assert content(output, "metrics.json") == result
    assert (result["seg_slices"], result["objects"], result["cls_slices"]) == (5, 5, 3)
    assert (result["score_threshold"], result["nms_threshold"]) == (0.05, 0.4)  # of the run
    model = result["model"]
    assert model["name"] == "SSMˢ (ResNet18+FPN)*"
    assert (model["step"], model["training_minutes"]) == (7, 1.5)
    sizes = [np.size(leaf) for leaf in leaves(run[2]["params"])]
    assert model["parameters"] == sum(sizes)
    assert 0 < model["trainable_classification"] < model["trainable_segmentation"] < sum(sizes)
    seg = result["data"]["seg"]
    assert seg["source"] == str(folders[0])
    assert (seg["slices"], seg["patients"], seg["slices_without_objects"]) == (5, 3, 1)
    assert seg["training_slices"] == 3
    assert result["data"]["cls"]["classes"] == [1, 1, 1]
    units = result["intervals"]["units"]
    assert units["seg"] == {"kind": "patients", "count": 3}
    page = assert_self_contained((output / "report.html").read_text(encoding="utf-8"))
    assert tuple(a["id"] for a in page.all("section")) == SECTIONS
    # One slice a group and part, 4 panels of a segmentation slice and 3 of the other kind.
    assert len(page.all("img")) == 3 * 4 + 3 * 3
    assert "RoI batch: 8 ranked rows" in page.text


def leaves(tree):
    return [x for v in tree.values() for x in (leaves(v) if isinstance(v, dict) else [v])]


def test_coco_figures_equal_pycocotools_on_the_written_files(evaluated):
    output, result = evaluated
    truth = COCO(str(output / "truth.json"))
    for kind, name in (("segm", "predictions.json"), ("bbox", "predictions_bbox.json")):
        direct = COCOeval(truth, truth.loadRes(str(output / name)), kind)
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
        for figure, value in zip(coco.FIGURES, direct.stats, strict=True):
            found = result[f"coco_{kind}_{figure}"]
            assert found == (value if value >= 0 else None), figure
        curve = direct.eval["precision"][0, :, 0, 0, 2]
        np.testing.assert_allclose(result["curves"][kind]["0.50"], curve, atol=1e-5)
    assert len(content(output, "predictions.json")) == result["detections"] > 10
    assert len(content(output, "truth.json")["annotations"]) == result["objects"]


def test_figures_equal_those_of_single_predictions(evaluated, run):
    output, result = evaluated
    _, config, variables = run
    model = ModelConfig.from_mapping(config.model.to_dict())
    predictor = Predictor(model, variables, 0.05, 0.4, roi_batch=True)
    datasets = open_datasets(config)
    rows = []
    for example in datasets.seg_test:
        prediction = predictor(example.image[..., 0])
        truths = [rle.encode(example.instances == k + 1) for k in range(len(example.boxes))]
        iou = rle.pairwise_iou(prediction.masks, truths)
        ones = [np.ones(n) for n in iou.shape]
        rows.append(per_image_ap.average_precisions(iou, prediction.scores, *ones))
    for name, value in per_image_ap.summarize(rows).items():
        assert result[name] == pytest.approx(value, abs=1e-6)
    classes = content(output, "image_probabilities.json")
    for example, entry in zip(datasets.cls_test, classes, strict=True):
        prediction = predictor(example.image[..., 0])
        assert entry["file"] == example.file
        assert (
            entry["patient"]
            == classification_patient(example.file)
            == f"{example.label}_q" + (str(example.label))
        )
        names = ["normal", "cp", "covid"]
        assert entry["class"] == names[example.label]
        assert entry["predicted"] == names[prediction.predicted_class]
        shares = [entry["probabilities"][name] for name in names]
        np.testing.assert_allclose(shares, prediction.class_probabilities, atol=1e-4)
    right = np.mean([entry["class"] == entry["predicted"] for entry in classes])
    assert result["accuracy"] == pytest.approx(right)


def test_one_part_removes_the_files_of_the_other(evaluated, run, tmp_path):
    options = Options(parts=("cls",), samples=0, overlays=0, max_slices=2, batch_size=100_000)
    (tmp_path / "truth.json").write_text("old")
    result = evaluate_checkpoint(str(run[0]), tmp_path, options)
    assert result["cls_slices"] == 2
    assert "ap" not in result
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("image_probabilities.json", "metrics.json", "report.html"),
    ]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No intervals were computed." in text
    assert "2 of 3, evenly spread" in text


def test_imported_weights_and_a_folder_with_nothing_but_the_split(run, folders, tmp_path):
    _, config, variables = run
    save_model(tmp_path / "imported", ModelConfig.from_mapping(config.model.to_dict()), variables)
    save(tmp_path / "seg" / "held" / "imgs" / "plain.png", noise(1, 64, 64))
    mask = lesion_mask(64, 64)
    save(tmp_path / "seg" / "held" / "masks" / "plain.png", mask)
    options = Options(
        split="held",
        parts=("seg",),
        seg_dir=str(tmp_path / "seg"),
        cls_dir=str(tmp_path / "cls"),
        data_dir=config.data.data_dir,
        score_threshold=0.05,
    )
    save(tmp_path / "cls" / "held" / "0_p_1_1.png", noise(2, 64, 64))
    result = evaluate_checkpoint(str(tmp_path / "imported"), tmp_path / "out", options)
    assert result["model"]["name"] == "SSM, two branches (ResNet18+FPN)*"
    assert result["model"]["training_minutes"] is None
    assert result["data"]["seg"]["split"] == "held"
    assert result["data"]["seg"]["patients"] is None
    assert result["data"]["seg"]["training_slices"] is None
    (annotation,) = content(tmp_path / "out", "truth.json")["annotations"]
    x1, y1, x2, y2 = box_of(mask == 2)
    assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    with pytest.raises(ValueError, match="the phantom has no split 'validation'"):
        evaluate_checkpoint(
            str(tmp_path / "imported"), tmp_path, Options(split="validation", parts=("seg",))
        )


def test_phantoms_that_nobody_reads_are_not_drawn():
    """An evaluation of imported weights opens the phantom, whose training split is the larger."""
    imported = CheckpointInfo(pathlib.Path(), 0, None, None, PAPER)
    drawn = {
        name: config_of(ModelConfig(), info, options).data.phantom.seg_train
        for name, info, options in (
            ("imported", imported, Options()),
            ("all", imported, Options(split="train")),
            ("chosen", imported, Options(choose_threshold="ap50")),
            ("run", dataclasses.replace(imported, config=get_config().to_dict()), Options()),
        )
    }
    whole = default_config().data.phantom.seg_train
    few = drawn.pop("imported")
    assert drawn == {"all": whole, "chosen": whole, "run": 6}
    assert 0 < few < whole / 10


def test_a_comparison(run, evaluated, tmp_path):
    """Of an evaluation, and of a checkpoint that has none yet."""
    options = Options(parts=("cls",), samples=20, overlays=1)
    comparison.compare([str(evaluated[0]), str(run[0])], tmp_path, options, "command")
    text = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "SSMˢ (ResNet18+FPN)\\*, er " in text
    assert "SSMˢ (ResNet18+FPN)\\*, first " in text
    assert text.count("| *paper* | *0.5095* | *0.3927* | *0.3923* |") == 2
    assert "| 3/3 | – | 5/3 | 1.67/1.00 | 1.5 |" in text
    assert content(tmp_path / "first", "metrics.json")["intervals"]["samples"] == 20
    page = assert_self_contained((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "command" in page.text


def test_evaluations_that_can_not_be_read(tmp_path):
    path = tmp_path / "metrics.json"
    assert comparison.read_evaluation(tmp_path) is None
    path.write_text('{"step": 3}')
    assert comparison.read_evaluation(tmp_path) is None
    path.write_text(json.dumps({"format": FORMAT, "version": 99}))
    with pytest.raises(ValueError, match="version 99; this program reads version 1"):
        comparison.read_evaluation(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        comparison.read_evaluation(tmp_path)
    with pytest.raises(ValueError, match="lists a folder twice"):
        comparison.compare([str(tmp_path), f"{tmp_path}/."], tmp_path / "out", Options())


def test_names_tell_folders_apart():
    assert comparison.names_of(["/a/one/x", "/b/one/x", "/c/y"]) == ["a/one/x", "b/one/x", "y"]
    assert comparison.names_of(["/a/x", "/x"]) == ["a/x", "x"]
    here = pathlib.Path.cwd()
    assert comparison.names_of([".", str(here / "x")]) == [here.name, "x"]


def test_the_command_line(run, evaluated, tmp_path):
    output = tmp_path / "one"
    flags = ("--part=classification", "--bootstrap_samples=20", "--overlays=0", "--seed=3")
    done = evaluate_program(f"--checkpoint={run[0]}", f"--output_dir={output}", *flags)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert str(output / "report.html") in done.stdout
    result = content(output, "metrics.json")
    assert (result["intervals"]["samples"], result["intervals"]["seed"]) == (20, 3)
    command = f"ssm-jax evaluate --checkpoint={run[0]} --output_dir={output}"
    assert result["run"]["command"].startswith(command)
    done = programs.run("compare", f"--output_dir={tmp_path / 'all'}", evaluated[0], output)
    assert done.returncode == 0, done.stderr
    assert "2 models" in done.stdout
    assert (tmp_path / "all" / "compare.md").is_file()


def test_thresholds_are_those_of_the_run(run):
    """Where none is given, a model detects as its evaluation did."""
    predictor = ssm_jax.load(run[0])
    assert (predictor.score_threshold, predictor.nms_threshold) == (0.05, 0.4)
    predictor = ssm_jax.load(run[0], score_threshold=0.0)
    assert (predictor.score_threshold, predictor.nms_threshold) == (0.0, 0.4)
    assert Loaded(ModelFlags(checkpoint=str(run[0]))).facts()["Score threshold"] == "0.05"
    given = ModelFlags(checkpoint=str(run[0]), nms_threshold=0.0)
    info = Loaded(given).info
    assert given.thresholds(info) == {"score_threshold": 0.05, "nms_threshold": 0.0}
    chosen = dataclasses.replace(info, metrics={"score_threshold": 0.31})  # on training slices
    assert given.thresholds(chosen) == {"score_threshold": 0.31, "nms_threshold": 0.0}
    imported = dataclasses.replace(info, config=None)
    assert given.thresholds(imported) == {"score_threshold": 0.75, "nms_threshold": 0.0}


def test_a_threshold_chosen_on_training_slices(run, folders, tmp_path):
    """It is used, told, and gives the figures of an evaluation at that threshold."""
    flags = {"parts": ("seg",), "samples": 0, "overlays": 0}
    options = Options(choose_threshold="ap50", **flags)
    result = evaluate_checkpoint(str(run[0]), tmp_path, options)
    choice = result["threshold_choice"]
    assert (choice["criterion"], choice["slices"]) == ("ap50", 3)
    assert result["score_threshold"] == choice["score_threshold"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "chosen on 3 training slices: AP@0.5 is largest there" in text
    given = Options(split="train", score_threshold=choice["score_threshold"], **flags)
    again = evaluate_checkpoint(str(run[0]), tmp_path / "again", given)
    assert again["ap50"] == pytest.approx(choice["value"])
    assert again["threshold_choice"] is None
    for seg in ((), ("seg",)):
        with pytest.raises(ValueError, match="--choose_threshold"):
            evaluate_checkpoint(
                str(run[0]),
                tmp_path,
                Options(
                    split="held",
                    choose_threshold="ap50",
                    parts=seg or ("cls",),
                    seg_dir=str(tmp_path / "none"),
                ),
            )


def test_mistakes_are_one_line(tmp_path):
    done = programs.run(
        "evaluate", f"--checkpoint={tmp_path / 'nowhere'}", f"--output_dir={tmp_path / 'out'}"
    )
    assert done.returncode == 1
    assert "no checkpoint at" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = evaluate_program(f"--output_dir={tmp_path / 'out'}")
    (*_, error) = done.stderr.splitlines()
    assert error.startswith("error: without --checkpoint the model that comes with the package")
    done = programs.run("compare", f"--output_dir={tmp_path / 'out'}")
    assert done.stderr == "error: give DIR DIR ... (ssm-jax compare --help lists the flags)\n"
