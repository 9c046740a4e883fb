"""Serves a page on this machine: drop a slice, a series or a volume, and look at the result.

Opens http://127.0.0.1:8000. Files are dropped or chosen (DICOM, a zip of DICOM, NIfTI, PNG, JPEG,
TIFF), wait in a line for the one model, and give the report that `predict` writes, with the masks
to download. Uploads are deleted as soon as they were worked on, results when the server ends.
Needs the extra ssm-jax[serve], and ssm-jax[medical] for DICOM and NIfTI. Not a medical device.

Examples:

    ssm-jax serve
    ssm-jax serve --checkpoint=runs/demo
    ssm-jax serve --checkpoint=runs/demo --port=9000 --score_threshold=0.5
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging

import numpy as np

from ssm_jax.cli import common
from ssm_jax.cli.model import Loaded, ModelFlags, SummaryFlags
from ssm_jax.serve.limits import Limits

LOG = logging.getLogger("ssm_jax.serve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SummaryFlags):
    """Flags of `serve`.

    Attributes:
      host: Address to listen on. Any other than a loopback address lets the network in: there is no
        password and no encryption.
      port: Port; 0 takes a free one.
      max_upload_mib: Bytes of one upload, all its files together, MiB.
      identity: Whether results name the patient, dates, descriptions and UIDs.
      model: Which model.
      limits: Of the server.
    """

    host: str = "127.0.0.1"
    port: int = dataclasses.field(default=8000, metadata={"least": 0, "most": 65535})
    max_upload_mib: int = dataclasses.field(
        default=Limits.upload_bytes >> 20, metadata={"least": 1}
    )
    identity: bool = False
    model: ModelFlags
    limits: Limits = dataclasses.field(
        metadata={
            "names": {"files": "max_files", "waiting": "max_waiting", "keep": "keep_results"},
            "omit": ("upload_bytes",),
        }
    )


def make_model(flags: Flags, readers):
    """The functions of a server around the model, which is compiled before this returns."""
    import jax

    from ssm_jax.scans.output import to_json
    from ssm_jax.scans.predict import predict_scan
    from ssm_jax.serve.work import Model

    batch_size = 1 if jax.default_backend() == "cpu" else 8
    model = Loaded(flags.model)
    model.tell()
    predictor = model.predictor(batch_size=batch_size)
    size = predictor.model_config.image_size
    predictor(np.zeros((size, size), np.uint8))

    def predicted(scan, progress):
        return predict_scan(predictor, scan, rule=flags.rule, progress=progress)

    return Model(readers.reading, predicted, to_json, model.facts(), predictor.score_threshold)


def main(flags: Flags) -> None:
    """The program."""
    with common.needs_extra("serve"):
        for name in ("starlette", "uvicorn", "python_multipart"):
            importlib.import_module(name)
    from ssm_jax.serve.app import make_app
    from ssm_jax.serve.guards import is_loopback
    from ssm_jax.serve.reading import Readers
    from ssm_jax.serve.run import run

    common.start_jax()
    LOG.info("loading and compiling the model")
    limits = dataclasses.replace(flags.limits, upload_bytes=flags.max_upload_mib << 20)
    with contextlib.closing(Readers(limits, flags.identity)) as readers:
        served = make_model(flags, readers)
        if not is_loopback(flags.host):
            LOG.warning("%s lets the network in: no password, no encryption", flags.host)
        run(make_app(served, limits, flags.host), flags.host, flags.port)
