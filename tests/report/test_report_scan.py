"""The page of scans: complete, escaped, self-contained, and of bounded size."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ssm_jax.ops import rle
from ssm_jax.report import charts, pictures, scan
from ssm_jax.report.page import NOTICE
from ssm_jax.visualize import PREDICTED_COLORS
from tests.helpers.report_tools import HOSTILE
from tests.helpers.scan_tools import SCORES, lesions, picture
from tests.helpers.scan_tools import scan as made_up
from tests.report.test_evaluation import Page, assert_self_contained

FACTS = {"Checkpoint": f"runs/{HOSTILE}", "Parameters": "8,267,759"}


@pytest.fixture(scope="module")
def whole():
    return scan.scan_report([made_up()], FACTS, 0.5)


def test_what_is_said_of_a_scan(whole):
    page = assert_self_contained(whole)
    assert [a["id"] for a in page.all("section")] == ["scan-1", "model"]
    result = made_up()
    for text in (NOTICE, "12.3 ml", "6.8%", "1 gap of 5.0 mm", "0.7 × 0.7 × 2.5 mm", "8,267,759"):
        assert text in page.text
    assert "1 of 30 slices could not be read" in page.text
    assert f"slice_7.dcm: damaged: {HOSTILE}" in page.text
    share = result.summary.class_probabilities[result.summary.predicted_class]
    assert f"{share:.1%}" in page.text
    own = [s.prediction.predicted_class for s in result.slices if s.prediction]
    assert " / ".join(str(own.count(k)) for k in range(3)) in page.text
    found = [len(s.prediction.scores) for s in result.slices if s.prediction]
    assert f"{sum(n > 0 for n in found)} of 29{sum(found)} lesions in all" in page.text
    jumps = [a["data-slice"] for a in page.all("button") if a.get("title", "").startswith("show")]
    assert jumps == ["12", "3", "4", "7"]
    assert HOSTILE not in whole
    assert page.text.count(HOSTILE) >= 5
    # All labels belong to something on the page.
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["for"] for _, a in page.tags if "for" in a} <= set(ids)


def test_the_data_of_the_viewer(whole):
    (data,) = Page(whole).data
    result = made_up()
    assert data["classes"] == ["Normal", "Common pneumonia", "COVID-19"]
    assert [tuple(color) for color in data["colors"]] == list(PREDICTED_COLORS[:2])
    assert data["by_class"] and data["lesions"] == ["ground glass", "consolidation"]
    assert data["first"] == 12
    assert len(data["slices"]) == 30
    for index, (shown, given) in enumerate(zip(data["slices"], result.slices, strict=True)):
        assert shown["name"] == given.name
        if index == 7:
            assert shown["error"] == given.error
            assert shown["image"] is None
            continue
        assert shown["error"] is None
        assert shown["position"] == 2.5 * index
        truth = given.prediction
        np.testing.assert_allclose(shown["probabilities"], truth.class_probabilities, atol=1e-6)
        assert shown["predicted"] == truth.predicted_class
        scores = [d["score"] for d in shown["detections"]]
        assert scores == [float(s) for s in truth.scores]
        masks = [{"size": shown["size"], "counts": d["counts"]} for d in shown["detections"]]
        if masks:
            expected = lesions(index)
            assert all((rle.decode(m) == e).all() for m, e in zip(masks, expected, strict=True))
        header, _, encoded = shown["image"].partition(",")
        assert header == "data:image/jpeg;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        assert np.abs(pixels.astype(int) - picture(index)).mean() < 3


def test_many_scans_and_odd_ones():
    odd = [
        made_up(1, unread=(), name="single"),
        made_up(2, unread=(0, 1), name="all unread"),
        made_up(3, unread=(), classes=0, name="segmentation alone"),
        made_up(4, unread=(), classes=2, masks=False, name="boxes alone"),
        made_up(0, name="empty"),
    ]
    page = assert_self_contained(scan.scan_report(odd, {}, 0.05))
    names = [f"scan-{k}" for k in range(1, 6)]
    assert [a["id"] for a in page.all("section")] == [*names, "model"]
    assert len(page.data) == 4
    assert [len(data["classes"]) for data in page.data] == [3, 0, 0, 2]
    assert page.text.count("No slice of this scan could be read.") == 2
    charts_drawn = [a for a in page.all("svg") if "data-step" in a]
    assert len(charts_drawn) == 2
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(d["counts"] is None for s in page.data[3]["slices"] for d in s["detections"])
    assert "There was no scan." in Page(scan.scan_report([], {}, 0.5)).text


def test_folders_of_this_machine_are_not_told():
    def named(result, name, *slices):
        changed = [
            dataclasses.replace(s, name=n) for s, n in zip(result.slices, slices, strict=True)
        ]
        return dataclasses.replace(result, name=name, slices=changed)

    home = "/home/somebody/scans"
    series = named(made_up(2, unread=()), f"{home}/p1", f"{home}/p1/IM1", f"{home}/p1/in/IM2")
    series = dataclasses.replace(series, warnings=[f"1 file is damaged ({home}/p1/IM3)"])
    zipped = named(made_up(1, unread=()), f"{home}/a.zip (scan 1 of 2)", f"{home}/a.zip/x.dcm")
    pictures = named(made_up(2, unread=()), "2 pictures", f"{home}/a.png", "/other/place/b.png")
    relative = named(made_up(1, unread=()), "series/p2", "series/p2/IM1")
    text = scan.scan_report([series, zipped, pictures, relative], {}, 0.5)
    assert "somebody" not in text
    assert "/other" not in text
    shown = [s["name"] for data in Page(text).data for s in data["slices"]]
    assert shown == [
        *("p1/IM1", "p1/in/IM2", "a.zip/x.dcm", "a.png", "b.png"),
        "series/p2/IM1",
    ]
    assert "1 file is damaged (p1/IM3)" in text


def test_downloads_come_first():
    text = scan.scan_report([made_up(1)], {}, 0.5, {"Predictions": "predictions.json"})
    page = Page(text)
    assert page.all("section")[0]["id"] == "downloads"
    assert "predictions.json" in [a["href"] for a in page.all("a")]


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
@pytest.mark.parametrize("shape", [(512, 512), (700, 300, 3)])
def test_pictures_are_bounded_whatever_they_show(shape, limit):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = pictures.bounded_jpeg(Image.fromarray(noise), limit)
    assert len(data) <= limit
    made = Image.open(io.BytesIO(data))
    assert max(made.size) <= pictures.SIDE
    assert made.width / made.height == pytest.approx(shape[1] / shape[0], rel=0.05)
    assert made.mode == ("L" if len(shape) == 2 else "RGB")


def test_small_slices_keep_their_pixels():
    tiny = Image.fromarray(np.full((3, 5), 77, np.uint8))
    assert Image.open(io.BytesIO(pictures.bounded_jpeg(tiny, 10))).size == (5, 3)


def test_a_large_scan_makes_a_page_of_bounded_size(monkeypatch):
    monkeypatch.setattr(scan, "IMAGE_BYTES", 300_000)
    noise = np.random.default_rng(0).integers(0, 256, (60, 128, 128), np.uint8)
    result = made_up(60, unread=())
    for index, slice_ in enumerate(result.slices):
        object.__setattr__(slice_, "image", noise[index])
    text = scan.scan_report([result], {}, 0.5)
    pictures = [s["image"] for s in Page(text).data[0]["slices"]]
    assert 150_000 < sum(map(len, pictures)) <= 300_000 * 4 / 3 + 60 * 40


def test_lines_along_a_scan():
    values = np.array([[1, 0], [0.5, 0.5], [np.nan, np.nan], [0, 1]])
    drawn = charts.along(values, ("one", "two"), "t")
    assert 'points="158.5,12 383.5,97"' in drawn  # steps of 225 from 46 on; 170 high
    assert 'points="158.5,182 383.5,97"' in drawn
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 2
    assert 'cx="833.5" cy="182.0"' in drawn
    assert 'x="496.0" y="12.0" width="225.0" height="170.0" class="gap"' in drawn
    assert 'data-left="46" data-step="225.000000"' in drawn


def test_scores_start_where_the_detections_do(whole):
    (slider,) = [a for a in Page(whole).all("input") if a.get("class") == "threshold"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0.5", "1", "0.5")
    assert min(SCORES) > 0.5
