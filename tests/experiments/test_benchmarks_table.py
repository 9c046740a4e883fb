"""The tables of the benchmarks, from metrics.json of runs and of evaluations."""

import json
import re

import pytest

from experiments.benchmarks_table import BEGIN, END, Flags, main
from tests.helpers.report_tools import sample


@pytest.fixture
def folders(tmp_path):
    """A run of segmentation alone, and an evaluation of both parts."""
    figures = {"infection_dice": 0.7123, "ap50": None, "score_threshold": 0.35, "seg_patients": 4}
    (tmp_path / "run_1").mkdir()
    run = {"step": 1200, "seg_slices": 205, **figures}
    (tmp_path / "run_1" / "metrics.json").write_text(json.dumps(run))
    (tmp_path / "evaluation").mkdir()
    result = sample()[0]
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(result))
    return tmp_path, result


def test_rows_of_a_run_and_an_evaluation(folders):
    root, result = folders
    table = root / "results.md"
    table.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(Flags(folders=(str(root / "run_1"), str(root / "evaluation")), table=table))
    text = table.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 + 3  # heads and rules, two rows of lesions and one of classes
    assert lines[2] == ("| run\\_1 | 0.712 | – | – | – | – | 4 | 205 | 0.35 | 1,200 | – |")
    low, high = result["intervals"]["figures"]["infection_dice"]
    assert f"| evaluation | {result['infection_dice']:.3f} [{low:.3f}, {high:.3f}] |" in lines[3]
    assert lines[3].endswith("| 0.75 | 150,000 | 342 |")
    assert f"| {result['auc_covid']:.3f} [" in lines[6]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}
    assert columns == {12}


def test_what_cannot_be_done(folders):
    root, _ = folders
    with pytest.raises(ValueError, match=r"nowhere/metrics\.json cannot be read"):
        main(Flags(folders=(str(root / "nowhere"),), table=root / "a.md"))
    (root / "a.md").write_text("no place")
    with pytest.raises(ValueError, match=r"a\.md: it has no place for the table"):
        main(Flags(folders=(str(root / "run_1"),), table=root / "a.md"))
    assert (root / "a.md").read_text() == "no place"
