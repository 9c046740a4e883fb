"""The server: what is taken, in which order, and what it leaves."""

import io
import json
import re
import time
import zipfile

import pytest

pytest.importorskip("starlette", reason="the extra ssm-jax[serve] is not installed")
pytest.importorskip("python_multipart", reason="the extra ssm-jax[serve] is not installed")

from tests.helpers.report_tools import HOSTILE
from tests.helpers.serve_tools import Server, zipped
from tests.report.test_evaluation import Page


def zipped_bytes(*names):
    """A zip of small files."""
    stream = io.BytesIO()
    zipped(stream, names)
    return stream.getvalue()


def test_from_upload_to_report(server, tmp_path):
    content = zipped(tmp_path / "a.zip").read_bytes()
    sent = server.send(("Patient 12.ZIP", content))
    assert sent.status_code == 202
    status = server.finished(sent)
    assert status["state"] == "done"
    assert status["label"] == "Patient 12.ZIP"
    assert (status["scan"], status["scans"], status["done"], status["total"]) == (2, 2, 6, 6)
    assert status["files"] == ["masks-nifti.zip", "predictions.json", "report.html"]
    ((_, files),) = server.fake.opened
    assert files == {"upload-00000.zip": content}
    base = f"/scans/{status['id']}/"
    report = server.client.get(base + "report.html")
    assert report.headers["content-type"].startswith("text/html")
    assert "content-disposition" not in report.headers
    page = Page(report.text)
    assert "Patient 12.ZIP/one.dcm" in page.text
    assert str(server.root) not in report.text
    assert "upload-0" not in report.text
    links = [a["href"] for a in page.all("a")]
    assert {"masks-nifti.zip", "predictions.json"} < set(links)
    predictions = server.client.get(base + "predictions.json")
    names = [entry["name"] for entry in predictions.json()]
    assert names == ["Patient 12.ZIP/one.dcm", "Patient 12.ZIP/two.dcm"]
    assert "attachment" in predictions.headers["content-disposition"]
    masks = zipfile.ZipFile(io.BytesIO(server.client.get(base + "masks-nifti.zip").content))
    assert masks.namelist() == ["scan_1/mask.nifti", "scan_2/mask.nifti"]
    assert masks.read("scan_2/mask.nifti") == b"nifti of 6 slices"
    assert server.fake.threads == {"predict"}


def test_uploads_are_deleted_afterwards(server):
    sent = server.send(("a.png", b"pixels"))
    server.fake.wait()
    assert [p.name for p in server.stored()] == ["upload-00000.png"]
    assert server.stored()[0].parent.stat().st_mode & 0o077 == 0  # nobody else may look
    assert server.finished(sent)["state"] == "done"
    assert not [p for p in server.stored() if "upload" in str(p.relative_to(server.root))]
    failed = server.send(("b.png", b"bad pixels"))
    assert server.finished(failed)["state"] == "failed"
    assert not [p for p in server.stored() if "upload" in str(p.relative_to(server.root))]
    assert server.client.delete(f"/scans/{sent.json()['id']}").status_code == 204
    assert server.stored() == []
    assert server.client.get(f"/scans/{sent.json()['id']}").status_code == 404


def test_nothing_is_left_when_the_server_ends():
    with Server() as server:
        server.finished(server.send(("a.png", b"pixels")))
        server.send(("b.png", b"pixels"))
        root = server.root
        assert root.is_dir()
    assert not root.exists()


@pytest.mark.parametrize(
    ("name", "stored", "shown"),
    [
        ("../../../etc/cron.d/evil.png", "upload-00000.png", "evil.png"),
        ("..\\..\\windows\\evil.ZIP", "upload-00000.zip", "evil.ZIP"),
        ("/tmp/evil.nii.gz", "upload-00000.nii.gz", "evil.nii.gz"),
        ("a.zip/../../b.nii", "upload-00000.nii", "b.nii"),
        ("IM0001", "upload-00000", "IM0001"),
        ("1.2.840.113", "upload-00000", "1.2.840.113"),
        ("a.", "upload-00000", "a."),
        ("new\nline\u202e.jpg", "upload-00000.jpg", "newline.jpg"),
        ("x" * 1000 + ".png", "upload-00000.png", "x" * 116 + ".png"),
        (HOSTILE, "upload-00000.png", HOSTILE.rpartition("/")[2]),
    ],
)
def test_names_of_clients_are_never_paths(server, tmp_path, name, stored, shown):
    outside = sorted(tmp_path.iterdir())
    quoted = json.dumps(name)[1:-1] if "\n" in name else name.replace('"', "%22")
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="'
        + (quoted if "\n" not in name else name.replace("\n", "\t")).replace("\\", "\\\\").encode()
        + b'"\r\n\r\npixels\r\n--b--\r\n'
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    sent = server.client.post("/scans", content=body, headers=headers)
    assert sent.status_code == 202, sent.text
    server.fake.wait()
    (file,) = server.stored()
    assert file.name == stored
    assert file.relative_to(server.root).parts[0] == sent.json()["id"]
    status = server.finished(sent)
    assert status["state"] == "done"
    assert status["label"].replace("%22", '"') == shown
    assert sorted(tmp_path.iterdir()) == outside


def test_positions_in_the_line(server):
    first = server.send(("1.png", b"x"))
    server.fake.wait()  # it runs
    second, third = (server.send((f"{k}.png", b"x")) for k in (2, 3))
    sent = (first, second, third)
    assert [server.status(s)["state"] for s in sent] == ["running", "waiting", "waiting"]
    assert [server.status(s)["position"] for s in sent] == [0, 1, 2]
    full = server.send(("4.png", b"x"))
    assert full.status_code == 503
    assert "2 uploads are waiting" in full.json()["error"]
    assert len(server.stored()) == 3
    # Who leaves the line lets the others move up.
    assert server.client.delete(f"/scans/{second.json()['id']}").status_code == 204
    assert server.status(third)["position"] == 1
    assert len(server.stored()) == 2
    assert server.finished(third)["state"] == "done"
    assert server.status(first)["state"] == "done"
    assert len(server.fake.opened) == 2


def test_a_running_job_can_be_stopped(server):
    sent = server.send(("1.png", b"x"))
    server.fake.wait()
    assert server.client.delete(f"/scans/{sent.json()['id']}").status_code == 204
    server.fake.gate.set()
    server.finished(server.send(("2.png", b"x")))
    assert server.client.get(f"/scans/{sent.json()['id']}").status_code == 404
    assert not (server.root / sent.json()["id"]).exists()


def test_the_oldest_results_are_forgotten(server):
    sent = []
    for k in range(4):
        sent.append(server.send((f"{k}.png", b"x")))
        server.finished(sent[-1])
    codes = [server.client.get(f"/scans/{s.json()['id']}").status_code for s in sent[:3]]
    assert codes[0] == 404
    assert codes[2] == 200
    for _ in range(500):  # the last removal follows the end of the last job
        if len(list(server.root.iterdir())) == 2:
            break
        time.sleep(0.01)
    assert {p.name for p in server.root.iterdir()} == {s.json()["id"] for s in sent[2:]}


def test_errors_name_the_users_file(server, caplog):
    status = server.finished(server.send(("mine.nii", b"bad")))
    assert status["state"] == "failed"
    assert status["error"] == "mine.nii: not a scan; export it again (mine.nii)"
    status = server.finished(server.send(("mine.nii", b"bug")))
    assert "log of the server" in status["error"]
    assert "RuntimeError in serve_tools.py, line" in caplog.text
    assert "surprise" not in caplog.text  # a message may quote a header
    # It goes on.
    assert server.finished(server.send(("mine.nii", b"ok")))["state"] == "done"


def test_masks_that_cannot_be_written_are_a_warning(server):
    server.fake.kind = "dicom"
    status = server.finished(server.send(("a.dcm", b"x")))
    assert status["files"] == ["masks-nifti.zip", "predictions.json", "report.html"]
    report = server.client.get(f"/scans/{status['id']}/report.html").text
    assert "pip install ssm-jax[medical]" in Page(report).text


def test_the_page_of_uploads(server):
    answer = server.client.get("/")
    for path in ("/", "/nowhere", "/scans/x"):
        headers = server.client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
    page = Page(answer.text)
    assert "not a medical device" in page.text
    assert "made up" in page.text
    assert "at most 9.766 KiB" in page.text
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert not re.search(r"https?://", answer.text)
    files, folder = page.all("input")
    assert ".nii.gz" in files["accept"].split(",")
    assert "webkitdirectory" in folder
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")


def test_whatever_is_stored_is_private(server):
    sent = server.send(("a.png", b"x"), ("b.zip", b"x"))
    server.fake.wait()
    stored = server.stored()
    assert len(stored) == 2
    modes = {path: path.stat().st_mode & 0o777 for path in (server.root, *server.root.rglob("*"))}
    server.finished(sent)
    modes |= {path: path.stat().st_mode & 0o777 for path in server.root.rglob("*")}
    assert {modes.pop(path) for path in (*stored, *server.stored())} == {0o600}
    assert set(modes.values()) == {0o700}


def test_two_uploads_of_one_name_and_of_our_names(server):
    """Each keeps a name of its own, even where it is one that we store another under."""
    names = ("upload-00001.zip", "a.zip", "a.zip")
    sent = server.send(*((name, zipped_bytes(f"{k}.dcm")) for k, name in enumerate(names)))
    status = server.finished(sent)
    found = server.client.get(f"/scans/{status['id']}/predictions.json").json()
    assert [entry["name"] for entry in found] == (
        ["upload-00001.zip/0.dcm", "a.zip/1.dcm", "a.zip (2)/2.dcm"]
    )


def test_what_is_not_read_is_said(server):
    """A scan that is damaged, a file that is none: the others are predicted."""
    sent = server.send(("a.zip", b"bad"), ("b.zip", zipped_bytes("x.dcm")), ("R.TXT", b"text"))
    status = server.finished(sent)
    assert (status["state"], status["scans"]) == ("done", 1)
    report = Page(server.client.get(f"/scans/{status['id']}/report.html").text).text
    assert "a.zip: not a scan; export it again (a.zip)" in report
    assert "left out: files of kinds that are not read (R.TXT)" in report
    found = server.client.get(f"/scans/{status['id']}/predictions.json").json()
    assert found[1] == {"name": "a.zip", "error": "not a scan; export it again (a.zip)"}
