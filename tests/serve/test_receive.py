"""Forms as they arrive: in any pieces, with any names, whole or not."""

import random

import anyio
import pytest

pytest.importorskip("starlette", reason="the extra ssm-jax[serve] is not installed")
pytest.importorskip("python_multipart", reason="the extra ssm-jax[serve] is not installed")

from starlette.exceptions import HTTPException

from ssm_jax.serve import receive as receiving
from ssm_jax.serve.limits import Limits

KIND = "multipart/form-data; boundary=xxBOUNDARYxx"


def form(*files, field="file"):
    head = '--xxBOUNDARYxx\r\nContent-Disposition: form-data; name="{}"; filename="{}"\r\n\r\n'
    parts = [head.format(field, name).encode() + content + b"\r\n" for name, content in files]
    return b"".join(parts) + b"--xxBOUNDARYxx--\r\n"


def received(folder, chunks, kind=KIND, limits=None):
    async def stream():
        for chunk in chunks:
            yield chunk

    async def whole():
        return await receiving.receive(kind, stream(), folder, limits or Limits())

    return anyio.run(whole)


def refused(folder, chunks, kind=KIND, limits=None):
    with pytest.raises(HTTPException) as caught:
        received(folder, chunks, kind, limits)
    return caught.value.status_code, caught.value.detail


def test_forms_come_in_any_pieces(tmp_path):
    rng = random.Random(0)
    files = [
        ("a.dcm", rng.randbytes(3000)),
        ("b.ZIP", b"\r\n--xxBOUNDARYx\r\n" * 20),
        ("empty", b""),
        ("c.nii.gz", b"--xxBOUNDARYxx-"),
    ]
    body = form(*files)
    for number in range(20):
        cuts = sorted(rng.sample(range(1, len(body)), rng.choice([0, 1, 5, 200])))
        chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        found = received(tmp_path / str(number), chunks)
        shown = {name: path.read_bytes() for path, name in found.names.items()}
        assert shown == dict(files)
        stored = [str(path.relative_to(tmp_path / str(number))) for path in found.names]
        assert stored == [
            *("files/upload-00000.dcm", "upload-00001.zip"),
            *("files/upload-00002", "files/upload-00003.nii.gz"),
        ]


def test_what_is_no_image_is_left_out_and_said(tmp_path):
    names = [
        *("a/README.TXT", "a/.DS_Store", "a/DICOMDIR", "__MACOSX/a/x.dcm", "a/._x.dcm"),
        *("a/x.dcm", "viewer.exe"),
    ]
    found = received(tmp_path, [form(*((name, b"x") for name in names))])
    assert list(found.names.values()) == ["a/x.dcm"]
    assert found.left_out == ["README.TXT", "viewer.exe"]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["upload-00005.dcm"]
    status, text = refused(tmp_path / "other", [form(("README.TXT", b"x"))])
    assert status == 415
    assert text.startswith("README.TXT: files of this kind are not read; they are .nii.gz, .nii")


def test_names_differ():
    names = receiving.names_for_people
    assert names(["a.png", "a.png", "b.png", "a.png"]) == [
        "a.png",
        "a.png (2)",
        "b.png",
        "a.png (3)",
    ]
    assert names(["p/1/IM1", "p/2/IM1", "p/2/IM2"]) == ["p/1/IM1", "p/2/IM1", "IM2"]
    assert names(["../../etc/a.png", "C:\\x\\b.png"]) == ["a.png", "b.png"]
    assert names(["../x/a.png", "/x/a.png"]) == ["x/a.png", "x/a.png (2)"]
    assert names(["", "..", "a\0\n\u202eb.png", "x" * 500]) == (
        ["unnamed", "unnamed (2)", "ab.png", "x" * 120]
    )


@pytest.mark.parametrize("cut", [4, 10, 60, 200])
def test_forms_that_end_early(tmp_path, cut):
    body = form(("a.png", b"x" * 150), ("b.png", b"y" * 150))
    assert refused(tmp_path, [body[:-cut]])[0] == 400


def test_forms_that_are_none(tmp_path):
    body = form(("a.png", b"x"))
    for number, (chunks, kind) in enumerate(
        (
            ([body], "text/plain"),
            ([body], "multipart/form-data"),
            ([body], f"multipart/form-data; boundary={'b' * 7000}"),
            ([body], "multipart/form-data; boundary=other"),
            ([b"\0" * 1000], KIND),
            ([], KIND),
            ([form(("a.png", b"x"), field="other")], KIND),
            ([body.replace(b'; filename="a.png"', b"")], KIND),
            ([body.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 1)], KIND),
            ([body.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 5000 + b"\r\n", 1)], KIND),
        )
    ):
        assert refused(tmp_path / str(number), chunks, kind)[0] == 400, number


def test_bounds(tmp_path):
    files = [(f"{k}.png", b"x" * 10) for k in range(4)]
    limits = Limits(files=4, upload_bytes=40)
    assert len(received(tmp_path / "a", [form(*files)], limits=limits).names) == 4
    status, text = refused(tmp_path / "b", [form(*files)], limits=Limits(files=3))
    assert (status, text) == (400, "an upload may have 3 files at most")
    status, text = refused(tmp_path / "c", [form(*files)], limits=Limits(upload_bytes=39))
    assert (status, text) == (413, "an upload may have 39 bytes at most")
