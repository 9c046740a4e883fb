"""The programs `import_reference` and `export_reference`, as a user runs them."""

import json
import zipfile

import numpy as np
import pytest

from ssm_jax.checkpoints import load_model, save_model
from ssm_jax.cli import import_reference
from ssm_jax.config import ModelConfig
from ssm_jax.interop import torch_file, torch_writer, weight_files
from ssm_jax.interop.reference_names import from_variables, name_map
from ssm_jax.interop.torch_pickle import Dict
from tests.helpers.programs import run
from tests.helpers.shared import REFERENCE, needs_reference
from tests.helpers.tiny import get_config, random_variables
from tests.helpers.torch_files import Call, Name, pickled, storage, tensor, write_zip
from tests.test_classes import OWN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def failed_in_one_line(done, *parts):
    """Asserts that a program ended with one line that holds all parts."""
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert not done.stdout


@pytest.fixture(scope="module")
def state_dict():
    """Weights of a whole model, two blocks and two branches, with anchors of its own."""
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    return from_variables(random_variables(config), config)


def import_file(path):
    """Runs the program on a file of the model above; it must leave nothing where it fails."""
    output = path.with_name("model")
    flags = (f"--weights={path}", f"--output={output}")
    anchors = ("--anchor_sizes=8,16", "--anchor_ratios=0.5,1")
    done = run("import_reference", *flags, *anchors)
    assert output.exists() == (done.returncode == 0)
    return done


def as_in(path, marker):
    """Writes a file that would run a command, as whole model."""
    command = Call(Name("os", "system"), (f"touch {marker}",))
    write_zip(path, pickled({"model_weights": command, "epoch": "1"}))


def bomb(path, _):
    """Writes a file of kilobytes that unpacks to 3 GiB."""
    data = pickled({"w": tensor(storage("s", 3 * 2**28), (1,), (1,))})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model/data.pkl", data)
        with archive.open("model/data/s", "w", force_zip64=True) as entry:
            block = bytes(2**20)
            for _ in range(16):
                entry.write(block)
    # The directory claims what writing would take too long to make true.
    content = path.read_bytes()
    real, claimed = (2**24).to_bytes(4, "little"), (3 * 2**30).to_bytes(4, "little")
    start = content.index(b"PK\x01\x02")
    path.write_bytes(content[:start] + content[start:].replace(real, claimed))


UNREADABLE = {
    "command": (as_in, "its weights are a 'os.system'"),
    "bomb": (bomb, "it unpacks to 3 GiB, and the limit is 2 GiB"),
    "text": (lambda path, _: path.write_text("weights"), "not written by torch.save"),
    "empty": (lambda path, _: path.write_bytes(b""), "it is empty"),
    "absent": (lambda path, _: None, "No such file"),
    "stride": (
        lambda path, _: write_zip(
            path,
            pickled({"w": tensor(storage("s", 2), (2**50,), (0,))}),
            [("s", bytes(8))],
        ),
        "hold more numbers",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_hostile_and_broken_files(tmp_path, name):
    make, message = UNREADABLE[name]
    path, marker = tmp_path / "ssm.pth", tmp_path / "ran"
    make(path, marker)
    failed_in_one_line(import_file(path), str(path), message)
    assert not marker.exists()


def test_a_command_beside_good_weights_is_not_run(tmp_path, state_dict):
    """Weights are weights; what else the file holds stays a record."""
    path, marker = tmp_path / "ssm.pth", tmp_path / "ran"
    torch_writer.write(path, {"model_weights": Dict(state_dict), "extra": "here"})
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    data = contents["archive/data.pkl"]
    text = b"X\x04\x00\x00\x00here"
    assert data.count(text) == 1
    command = f"touch {marker}".encode()
    call = b"cos\nsystem\n(X" + len(command).to_bytes(4, "little") + command + b"tR"
    contents["archive/data.pkl"] = data.replace(text, call)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    assert torch_file.read(path)["extra"].name == "os.system"
    done = import_file(path)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_a_file_cut_off(tmp_path, state_dict):
    path = tmp_path / "ssm.pth"
    torch_writer.write(path, Dict(state_dict))
    path.write_bytes(path.read_bytes()[:-100_000])
    failed_in_one_line(import_file(path), str(path), "damaged or cut off", "download it again")


def test_wrong_weights(tmp_path, state_dict):
    path = tmp_path / "ssm.pth"
    name = "backbone.body.layer1.0.conv1.weight"
    wrong = state_dict[name].copy()
    wrong[3, 1, 2, 0] = np.nan
    torch_writer.write(path, Dict({**state_dict, name: wrong}))
    failed_in_one_line(import_file(path), str(path), f"not finite: {name}")
    torch_writer.write(path, Dict({**state_dict, name: wrong[:, :, :2]}))
    failed_in_one_line(
        import_file(path), str(path), f"shape: {name} is (64, 64, 2, 3)", "the model has"
    )


@needs_reference
def test_a_part_of_a_model_is_refused_with_a_list(tmp_path):
    path = REFERENCE / "model_r18_2_small_zip.pth"
    output = tmp_path / "model"
    done = run("import_reference", f"--weights={path}", f"--output={output}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith(
        f"error: {path}: these are not weights of this model (resnet18, 2 blocks"
    )
    sizes = json.loads((REFERENCE / "weights_r18_2_summary.json").read_text())
    missing = [name for name in sizes if np.prod(sizes[name]["shape"]) >= 100_000]
    assert len(missing) == 10
    assert others == [f"  missing: {name}" for name in sorted(missing)]
    assert not output.exists()


@needs_reference
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--blocks=3",), "blocks is 2 in the file, not 3"),
        (("--backbone=resnet34",), "backbone is resnet18 in the file, not resnet34"),
        (("--anchor_sizes=2,4",), "anchor_sizes is 2,4,8,16,32 in the file, not 2,4"),
    ],
)
def test_flags_that_contradict_the_file(tmp_path, flags, message):
    path, output = REFERENCE / "model_r18_2_legacy.pth", tmp_path / "model"
    done = run("import_reference", f"--weights={path}", f"--output={output}", *flags)
    failed_in_one_line(done, str(path), message)
    assert not output.exists()


def test_bad_flags(tmp_path):
    flags = (f"--weights={tmp_path / 'a.pth'}", f"--output={tmp_path / 'model'}")
    for sizes, message in {
        "2,x": "give a number, with commas",
        "0": "give positive numbers",
        "-1": "give positive numbers",
        "nan": "it has to be finite",
        "": "give a number, with commas",
    }.items():
        done = run("import_reference", *flags, f"--anchor_sizes={sizes}")
        failed_in_one_line(done, f"--anchor_sizes={sizes}: {message}")


def test_classes_of_imported_weights(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(OWN.to_json()))
    flags = import_reference.Flags(weights="a.pth", output="out", classes=path)
    assert flags.class_set(5, 3) == OWN
    with pytest.raises(ValueError, match=r"names 5 image and 3 lesion .* has 3 and 1"):
        flags.class_set(3, 1)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"--classes=.*classes\.json: Expecting"):
        flags.class_set(5, 3)
    assert import_reference.Flags(weights="a.pth", output="out").class_set(5, 3) is None


def test_ours_to_torch_and_back_is_the_same_bits(tmp_path):
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    variables = random_variables(config, seed=1)
    save_model(tmp_path / "ours", config, variables)
    expected = from_variables(variables, config)
    for name, *layout in (("a.pth",), ("a.npz",), ("c.pt", "--layout=checkpoint")):
        path = tmp_path / "deeper" / name
        flags = (f"--checkpoint={tmp_path / 'ours'}", f"--output={path}", *layout)
        done = run("export_reference", *flags)
        assert done.returncode == 0, done.stderr
        assert "cannot tell that the model was trained with image_size=64, max_size" in done.stdout
        assert ("anchor_sizes=(8, 16), anchor_ratios=(0.5, 1.0)" in done.stdout) == (not layout)
        assert "selection_size" not in done.stdout
        weights = weight_files.read_weights(path)
        assert set(weights.arrays) == set(name_map(config))
        for key, array in weights.arrays.items():
            assert array.dtype == expected[key].dtype
            assert array.shape == expected[key].shape
            assert array.tobytes() == expected[key].tobytes()
        assert list(path.parent.glob("*.tmp")) == []
    # An existing file is not replaced.
    failed_in_one_line(run("export_reference", *flags), str(path), "exists")
    weights = weight_files.read_weights(path)
    assert (weights.anchor_sizes, weights.anchor_ratios) == ((8, 16), (0.5, 1.0))
    torch_layout = torch_file.read(path)
    assert torch_layout.keys() == {"epoch", "model_weights", "anchor_generator"}
    flags = (f"--weights={path}", f"--output={tmp_path / 'back'}")
    done = run("import_reference", *flags)
    assert done.returncode == 0, done.stderr
    back_config, back, _ = load_model(tmp_path / "back")
    assert (back_config.backbone, back_config.blocks, back_config.branches) == ("resnet18", 2, 2)
    assert back_config.selection_size == config.selection_size == 8
    assert back_config.anchor_sizes == config.anchor_sizes
    assert back_config.anchor_ratios == config.anchor_ratios
    for key, array in from_variables(back, config).items():
        assert array.tobytes() == expected[key].tobytes(), key


def test_exports_that_cannot_be(tmp_path):
    checkpoint = f"--checkpoint={tmp_path / 'nowhere'}"
    done = run("export_reference", checkpoint, f"--output={tmp_path / 'a.bin'}")
    failed_in_one_line(done, "a.bin must end in .npz, .pth, .pt")
    done = run(
        "export_reference", checkpoint, f"--output={tmp_path / 'a.npz'}", "--layout=checkpoint"
    )
    failed_in_one_line(done, "--layout=checkpoint needs an --output that ends in .pth or .pt")
    done = run("export_reference", checkpoint, f"--output={tmp_path / 'a.pth'}")
    failed_in_one_line(done, "no checkpoint at")
    assert not list(tmp_path.iterdir())


@needs_reference
def test_torch_loads_an_export(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = weight_files.read_weights(REFERENCE / "model_r18_2_legacy.pth").arrays
    path = REFERENCE / "model_r18_2_legacy.pth"
    assert run("import_reference", f"--weights={path}", f"--output={tmp_path}").returncode == 0
    for layout in ("state_dict", "checkpoint"):
        output = tmp_path / f"{layout}.pth"
        flags = (f"--checkpoint={tmp_path}", f"--output={output}", f"--layout={layout}")
        assert run("export_reference", *flags).returncode == 0
        loaded = torch.load(output, weights_only=True)
        if layout == "checkpoint":
            assert loaded["anchor_generator"].sizes == ((2, 4, 8, 16, 32),)
            assert loaded["anchor_generator"].aspect_ratios == ((0.1, 0.25, 0.5, 1, 1.5, 2),)
            loaded = loaded["model_weights"]
        assert list(loaded) == list(name_map(ModelConfig(blocks=2)))
        assert set(loaded) == set(arrays)
        for name, array in arrays.items():
            assert loaded[name].numpy().dtype == array.dtype
            assert loaded[name].numpy().tobytes() == array.tobytes()
