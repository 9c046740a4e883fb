"""State dicts from files, and the model that they belong to."""

import itertools
import zipfile

import numpy as np
import pytest

from ssm_jax.config import ModelConfig
from ssm_jax.interop import reference_names, torch_writer, weight_files
from ssm_jax.interop.reference_config import infer_config
from ssm_jax.interop.torch_pickle import Dict
from ssm_jax.interop.weight_files import Weights
from ssm_jax.ops.anchors import cell_anchors
from tests.helpers.shared import REFERENCE, needs_reference
from tests.helpers.torch_files import Call, Name, pickled, storage, tensor, write_zip

SIZES, RATIOS = (2, 4, 8, 16, 32), (0.1, 0.25, 0.5, 1, 1.5, 2)


def generator(sizes=(SIZES,), ratios=(RATIOS,), **others):
    """A record of anchors as the reference's script pickles it."""
    state = {"sizes": sizes, "aspect_ratios": ratios, **others}
    return Call(Name("models.ssm.rpn", "AnchorGenerator"), (), state)


def checkpoint(folder, anchor_generator, weights=None):
    """A file with one weight and a record of anchors."""
    weights = {"w": tensor(storage("s", 2), (2,), (1,))} if weights is None else weights
    value = {"model_weights": weights, "anchor_generator": anchor_generator, "epoch": "1"}
    numbers = np.array([1, 2], "<f4").tobytes()
    return write_zip(folder / "a.pth", pickled(value), [("s", numbers)])


@needs_reference
@pytest.mark.parametrize("name", ["legacy", "small_zip"])
def test_the_recorded_files(name):
    weights = weight_files.read_weights(REFERENCE / f"model_r18_2_{name}.pth")
    assert weights.anchor_sizes == SIZES
    assert weights.anchor_ratios == RATIOS
    np.testing.assert_array_equal(
        weights.cell_anchors, np.load(REFERENCE / "ops.npz")["cell_anchors"]
    )
    assert infer_config(weights) == ModelConfig(blocks=2)


@needs_reference
def test_weights_of_the_legacy_file_to_ours_and_back_are_the_same_bits(tmp_path):
    arrays = weight_files.read_weights(REFERENCE / "model_r18_2_legacy.pth").arrays
    config = ModelConfig(blocks=2)
    back = reference_names.from_variables(reference_names.to_variables(arrays, config), config)
    torch_writer.write(tmp_path / "a.pth", Dict(back))
    np.savez(tmp_path / "a.npz", **back)
    for state_dict in (
        back,
        *(weight_files.read_weights(tmp_path / f"a.{s}").arrays for s in ("pth", "npz")),
    ):
        assert list(state_dict) != [] and set(state_dict) == set(arrays)
        for name, array in arrays.items():
            assert state_dict[name].dtype == array.dtype
            assert state_dict[name].tobytes() == array.tobytes()


def test_bare_state_dicts_and_checkpoints(tmp_path):
    bare = {"a": tensor(storage("s", 2), (2,), (1,))}
    numbers = np.array([1, 2], "<f4").tobytes()
    for path in (tmp_path / "a.pth", tmp_path / "a.PT"):
        write_zip(path, pickled(bare), [("s", numbers)])
        weights = weight_files.read_weights(path)
        assert {name: array.tolist() for name, array in weights.arrays.items()} == {"a": [1, 2]}
        assert weights.anchor_sizes is weights.anchor_ratios is None
    weights = weight_files.read_weights(checkpoint(tmp_path, generator(((4,),), ((1, 2),))))
    assert (weights.anchor_sizes, weights.anchor_ratios) == ((4,), (1, 2))
    assert weight_files.read_weights(checkpoint(tmp_path, None)).anchor_sizes is None


@pytest.mark.parametrize(
    "anchors",
    [
        generator(((2,), (4,))),
        generator(()),
        generator((("2",),)),
        generator(((2, -4),)),
        generator(((0,),)),
        generator(((float("nan"),),)),
        generator(((float("inf"),),)),
        generator(((True,),)),
        generator(((),)),
        generator((2, 4)),
        generator(7),
        generator(ratios=((1,), (2,))),
        Call(Name("models.ssm.rpn", "AnchorGenerator"), (), {"sizes": (SIZES,)}),
        Call(Name("models.ssm.rpn", "AnchorGenerator"), ()),
        Call(Name("os", "system"), ("true",)),
        "anchors",
        {"sizes": (SIZES,), "aspect_ratios": (RATIOS,)},
    ],
)
def test_records_that_tell_no_anchors(tmp_path, anchors):
    with pytest.raises(
        ValueError, match=r"a\.pth is no checkpoint with model weights: .*(anchor|aspect)"
    ):
        weight_files.read_weights(checkpoint(tmp_path, anchors))


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {},
        {"a": 1},
        {1: tensor(storage("s", 2), (2,), (1,))},
        {"a": tensor(storage("s", 2), (2,), (1,)), "epoch": 3},
        {"model_weights": {}},
        {"line\n": tensor(storage("s", 2), (2,), (1,))},
        {"escape\x1b[2J": tensor(storage("s", 2), (2,), (1,))},
        {"long" * 100: tensor(storage("s", 2), (2,), (1,))},
        {"model_weights": [1]},
        {"model_weights": Call(Name("os", "system"), ("true",))},
        {"model_weights": {"a": Call(Name("os", "system"), ("true",))}},
    ],
)
def test_files_without_a_state_dict(tmp_path, value):
    numbers = np.array([1, 2], "<f4").tobytes()
    path = write_zip(tmp_path / "a.pth", pickled(value), [("s", numbers)])
    with pytest.raises(ValueError, match=r"a\.pth is no checkpoint with model weights") as error:
        weight_files.read_weights(path)
    assert "\n" not in str(error.value)


def test_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(2**20))
    assert weight_files.read_weights(path).arrays["a"].shape == (2**20,)
    with pytest.raises(ValueError, match=r"a\.npz .*the limit is"):
        weight_files.read_weights(path, max_bytes=2**22)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.npz cannot be read as an \.npz file of arrays"):
            weight_files.read_weights(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        weight_files.read_weights(path)
    # A header that promises more numbers than any machine holds.
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846,)}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header.encode())
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        weight_files.read_weights(path)


def test_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match=r"a\.safetensors: only \.npz, \.pth, \.pt files"):
        weight_files.read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("backbone", "blocks", "branches"),
    list(itertools.product(("resnet18", "resnet34"), (2, 3), (1, 2))),
)
def test_the_model_is_told_by_names(backbone, blocks, branches):
    config = ModelConfig(backbone=backbone, blocks=blocks, branches=branches)
    arrays = dict.fromkeys(reference_names.name_map(config), np.zeros(()))
    assert infer_config(Weights(arrays)) == config
    given = {"backbone": backbone, "blocks": blocks}
    assert infer_config(Weights(arrays), given) == config
    other = "resnet34" if backbone == "resnet18" else "resnet18"
    with pytest.raises(ValueError, match=f"backbone is {backbone} in the file, not {other}"):
        infer_config(Weights(arrays), {"backbone": other})
    with pytest.raises(ValueError, match=f"blocks is {blocks} in the file, not {5 - blocks}"):
        infer_config(Weights(arrays), {"blocks": 5 - blocks})


def test_segmentation_alone_is_told_by_names():
    config = ModelConfig(branches=1, image_classes=0)
    arrays = dict.fromkeys(reference_names.name_map(config), np.zeros(()))
    assert infer_config(Weights(arrays)) == config
    # Two branches make no sense without module S: this is a part of a model.
    config = ModelConfig(branches=2)
    names = [name for name in reference_names.name_map(config) if not name.startswith("s2new.")]
    assert infer_config(Weights(dict.fromkeys(names, np.zeros(())))) == config


def test_class_counts_are_told_by_shapes():
    names = ("roi_heads.box_predictor.cls_score.weight", "s2new.fc_scores_img.weight")
    config = infer_config(Weights({names[0]: np.zeros((3, 128)), names[1]: np.zeros((2, 512))}))
    assert (config.num_classes, config.image_classes) == (3, 2)
    # Shapes that tell nothing are left to the check of all shapes.
    config = infer_config(Weights({names[0]: np.zeros(3), names[1]: np.zeros((1, 512))}))
    assert (config.num_classes, config.image_classes) == (2, 3)


def test_the_length_of_the_roi_batch_is_told_by_a_shape():
    name = "s2new.fc_scores.weight"
    assert infer_config(Weights({name: np.zeros((512, 320))})).selection_size == 64
    for shape in ((512, 639), (512, 0), (640,)):
        assert infer_config(Weights({name: np.zeros(shape)})).selection_size == 128


def test_anchors_come_from_the_file_or_from_flags():
    assert infer_config(Weights({})).anchor_sizes == SIZES
    told = Weights({}, (4, 8), (1, 2), cell_anchors((4, 8), (1, 2)))
    for given in ({}, {"anchor_sizes": (4.0, 8.0)}, {"anchor_ratios": (1.0, 2.0)}):
        config = infer_config(told, given)
        assert (config.anchor_sizes, config.anchor_ratios) == ((4, 8), (1, 2))
    config = infer_config(Weights({}), {"anchor_sizes": (4, 8), "anchor_ratios": (1,)})
    assert (config.anchor_sizes, config.anchor_ratios) == ((4, 8), (1,))
    with pytest.raises(
        ValueError, match="anchor_sizes is 4,8 in the file, not 4,16: leave the flag"
    ):
        infer_config(told, {"anchor_sizes": (4, 16)})


def test_anchors_have_to_fit_the_model():
    name = "rpn.head.cls_logits.weight"
    assert infer_config(Weights({name: np.zeros((30, 256, 1, 1))}))
    with pytest.raises(ValueError, match=r"make 30 anchors a cell, but rpn.*scores 15: give"):
        infer_config(Weights({name: np.zeros((15, 256, 1, 1))}))
    told = Weights({name: np.zeros((30, 256, 1, 1))}, (4, 8), (1, 2))
    with pytest.raises(ValueError, match="sizes 4,8 and ratios 1,2 make 4 anchors a cell, but"):
        infer_config(told)


@pytest.mark.parametrize("wrong", [0, 0.5, np.nan])
def test_anchors_of_another_generator_are_refused(wrong):
    cells = cell_anchors((4, 8), (1, 2))
    cells[2, 1] = wrong
    with pytest.raises(ValueError, match="do not make the cell_anchors that the file holds"):
        infer_config(Weights({}, (4, 8), (1, 2), cells))
    with pytest.raises(ValueError, match="do not make the cell_anchors that the file holds"):
        infer_config(Weights({}, (4, 8), (1, 2), cells[:3]))


def test_a_wrong_count_of_updates_is_refused():
    config = ModelConfig(blocks=2)
    shapes = reference_names.reference_shapes(config)
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    reference_names.to_variables(arrays, config)
    name = "backbone.body.bn1.num_batches_tracked"
    with pytest.raises(
        ValueError, match=rf"branches\): shape: {name} is \(3,\), the model has \(\)$"
    ):
        reference_names.to_variables(arrays | {name: np.ones(3, np.int64)}, config)
    with pytest.raises(ValueError, match=f"not finite: {name}$"):
        reference_names.to_variables(arrays | {name: np.float32(np.nan)}, config)
