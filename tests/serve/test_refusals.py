"""What the server refuses, and that nothing of it is left."""

import pytest

pytest.importorskip("starlette", reason="the extra ssm-jax[serve] is not installed")
pytest.importorskip("python_multipart", reason="the extra ssm-jax[serve] is not installed")

from starlette.testclient import TestClient

from ssm_jax.serve import app as serving
from ssm_jax.serve import guards
from tests.helpers.serve_tools import Fake


@pytest.mark.parametrize("name", ["a.exe", "a.png.sh", "a.html", "a.tar.gz", ".png"])
def test_other_kinds_are_refused(server, name):
    answer = server.send((name, b"pixels"))
    assert answer.status_code == 415
    assert name in answer.json()["error"]
    assert ".nii.gz" in answer.json()["error"]
    assert server.stored() == []


def test_large_uploads_are_refused(server):
    for size in (10_001, 20_000):  # by the sum of the files, by what the request says
        answer = server.send(("a.png", b"x" * size))
        assert answer.status_code == 413
        assert "bytes at most" in answer.json()["error"]
        assert server.stored() == []
    assert server.send(("a.png", b"x" * 6000), ("b.png", b"x" * 6000)).status_code == 413
    assert server.send(("a.png", b"x" * 10_000)).status_code == 202


def test_large_uploads_that_do_not_say_so_are_refused(server):
    taken = []

    def body():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(1000):
            taken.append(1)
            yield b"x" * 1000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = server.client.post("/scans", content=body(), headers=headers)
    assert answer.status_code == 413
    assert server.stored() == []
    lying = {**headers, "content-length": "a lot"}
    assert server.client.post("/scans", content=b"", headers=lying).status_code == 413


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"{}", "application/json", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
        ),
        (b"rubbish", "multipart/form-data", 400),
    ],
)
def test_forms_without_a_file_are_refused(server, content, kind, status):
    answer = server.client.post("/scans", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]
    assert server.stored() == []


def test_too_many_files_are_refused(server):
    files = [(f"{k}.dcm", b"x") for k in range(4)]
    assert server.send(*files).status_code == 400
    assert server.stored() == []
    sent = server.send(*files[:3])
    assert server.finished(sent)["label"] == "0.dcm and 2 more"
    (([path], found),) = server.fake.opened
    assert list(found) == [f"upload-{k:05d}.dcm" for k in range(3)]
    report = server.client.get(f"/scans/{sent.json()['id']}/report.html").text
    assert path not in report
    assert "0.dcm and 2 more" in report


def test_only_files_on_offer_are_given(server):
    sent = server.send(("a.png", b"x"))
    base = f"/scans/{sent.json()['id']}/"
    early = server.client.get(base + "report.html", follow_redirects=False)
    assert early.status_code == 303
    assert early.headers["location"] == f"/#{sent.json()['id']}"
    server.finished(sent)
    for name in (
        "..%2f..%2fetc%2fpasswd",
        "../../app.py",
        "uploads",
        "mask.nifti",
        "%00",
        "outputs",
    ):
        assert server.client.get(base + name).status_code == 404, name
    for path in ("/scans/unknown", "/static/x", "/scans/unknown/report.html"):
        assert server.client.get(path).status_code == 404, path


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.9", ""]
)
def test_other_host_names_are_refused(server, host):
    answer = server.client.get("/", headers={"host": host})
    assert answer.status_code == 400
    assert "localhost only" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_answered(server, host):
    assert server.client.get("/", headers={"host": host}).status_code == 200


def test_uploads_from_other_pages_are_refused(server):
    other = server.send(("a.png", b"x"), headers={"origin": "http://evil.example"})
    assert other.status_code == 403
    assert server.send(("a.png", b"x"), headers={"origin": "null"}).status_code == 403
    assert server.stored() == []
    own = server.send(("a.png", b"x"), headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 202


def test_a_server_for_the_network_answers_to_any_name():
    fake = Fake()
    with TestClient(
        serving.make_app(fake.model(), host="0.0.0.0"), base_url="http://box"
    ) as client:
        assert client.get("/").status_code == 200
    assert not guards.is_loopback("0.0.0.0")
    assert not guards.is_loopback("192.168.1.2")
    assert all(guards.is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost"))
