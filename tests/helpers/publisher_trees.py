"""Small data sets in their publishers' layouts, made up by the tests of prepare_data."""

import pathlib

import numpy as np

from ssm_jax.data.published.prepare import Options, prepare
from tests.helpers.data_tools import lesion_mask, noise, save

SIZE = 48
LESION = ((8, 8, 20, 24),)  # 192 pixels


def write_list(path: pathlib.Path, *lines: str) -> pathlib.Path:
    """A text file of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def cncb_seg(root: pathlib.Path, flat: bool = False) -> dict:
    """Scans 7 and 12 for training (5 slices), 110 for the test (2); flags of prepare_data."""
    names = ["7_4", "7_5", "12_30", "12_31", "12_32", "110_104", "110_26"]
    for k, name in enumerate(names):
        scan, number = name.split("_")
        pixels = noise(k, SIZE, SIZE)
        mask = lesion_mask(SIZE, SIZE, LESION, value=2 + k % 2)
        if flat:
            save(root / "imgs" / f"{name}.jpg", pixels)
            save(root / "masks" / f"{name}.png", mask)
        else:
            save(root / "image" / scan / f"{number}.jpg", pixels)
            save(root / "mask" / scan / f"{number}.png", mask)
    listed = [f"{name}.jpg" for name in names]
    return {
        "dataset": "cncb_seg",
        "source": root,
        "train_list": write_list(root / "train_split.txt", *listed[:5]),
        "test_list": write_list(root / "test_split.txt", *listed[5:]),
    }


COVIDX = {
    "train": {
        "Normal_1739_1042_0000.png": 0,
        "CP_1253_3471_0065.png": 1,
        "NCP_341_1834_0022.png": 2,
        "NCP_341_1834_0023.png": 2,
        "137covid_patient76_SR_2_IM00014.png": 2,
        "COVIDCTMD-cap004-IM0068.png": 1,
    },
    "val": {"LIDC-IDRI-0273-1.3.6.1-0032.png": 0, "volume-covid19-A-0383_1_ct-0018.png": 2},
    "test": {
        "Normal_1988_711_0084.png": 0,
        "CP_1766_3133_0010.png": 1,
        "coronacases_010-0075.png": 2,
    },
}


def covidx_ct(root: pathlib.Path, order=(0, 1, 2)) -> dict:
    """COVIDx-CT: images in one folder, three lists; `order[c]` is the list's number of class c."""
    for split, files in COVIDX.items():
        for k, name in enumerate(files):
            save(root / "2A_images" / name, noise(100 * len(split) + k, SIZE, SIZE))
        lines = [f"{name} {order[label]} 0 10 40 45" for name, label in files.items()]
        write_list(root / f"{split}_COVIDx_CT-2A.txt", *lines)
    return {"dataset": "covidx_ct", "source": root}


FLAT = {
    "train": ["0_1728_1013_0023", "1_1068_2982_0031", "2_96_1328_0032"],
    "test": ["0_3905_5437_0094", "1_1070_3134_0011", "2_100_1354_0040"],
}


def ct_classes(root: pathlib.Path, layout: str = "flat") -> dict:
    """Slices of flat lists: files with the flat names, COVIDx-CT's, or in CNCB's folders."""
    for names in FLAT.values():
        for name in names:
            label, *parts = name.split("_")
            folder = ("Normal", "CP", "NCP")[int(label)]
            path = {
                "flat": f"{name}.png",
                "covidx": f"images/{folder}_{'_'.join(parts)}.png",
                "cncb": f"{folder}/{'/'.join(parts)}.jpg",
            }[layout]
            save(root / path, noise(int(parts[0]), SIZE, SIZE))
    lists = {
        f"{split}_list": write_list(root / f"{split}.txt", *(f"{name}.png" for name in names))
        for split, names in FLAT.items()
    }
    return {"dataset": "ct_classes", "source": root} | lists


def ictcf(root: pathlib.Path, renamed: bool = False) -> dict:
    """iCTCF: nCT and pCT slices, with their published names or those of the lists."""
    names = {"train": ["0_nCT12", "2_pCT1088", "2_pCT7"], "test": ["0_nCT500", "2_pCT603"]}
    for split, listed in names.items():
        for k, name in enumerate(listed):
            published = name.partition("_")[2]
            path = f"{name}.jpg" if renamed else f"{published[:3]}/{published}.jpg"
            gray = noise(7 * len(split) + k, SIZE, SIZE)
            save(root / path, np.repeat(gray[..., None], 3, 2))
    lists = {
        f"{split}_list": write_list(root / f"{split}_ictcf.txt", *(f"{n}.jpg" for n in listed))
        for split, listed in names.items()
    }
    return {"dataset": "ictcf", "source": root} | lists


def add_line(path: pathlib.Path, line: str) -> None:
    """Appends a line to a list."""
    with path.open("a") as file:
        file.write(f"{line}\n")


def run(tmp_path, dataset, source, **flags):
    """Prepares in this process into tmp_path/data; the flags are those of the program."""
    lists = {
        split: flags.pop(f"{split}_list")
        for split in ("train", "val", "test")
        if f"{split}_list" in flags
    }
    options = {"link": "copy", "min_area": 2300} | flags
    return prepare(Options(dataset, source, tmp_path / "data", lists=lists, **options))


def files_of(tree):
    """Relative path -> path of all files in the splits of a prepared folder."""
    return {p.relative_to(tree).as_posix(): p for p in tree.glob("*/**/*") if p.is_file()}


def items(report, kind):
    """Items of a kind of finding, be it an error or a warning."""
    found = (report["errors"] | report["warnings"]).get(kind, {"items": [], "count": 0})
    assert found["count"] == len(found["items"])
    return found["items"]


def copy(source, target):
    """Copies the content of a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
