"""Serves a page on this machine: drop a slice, a series or a volume, and look at the result.

Opens http://127.0.0.1:8000. Files are dropped or chosen (DICOM, a zip of DICOM, NIfTI, PNG, JPEG,
TIFF), wait in a line for the one model, and give the report that `predict` writes, with the masks
to download. Uploads are deleted as soon as they were worked on, results when the server ends.
Needs the extra ssm-jax[serve], and ssm-jax[medical] for DICOM and NIfTI. Not a medical device.

Examples:

    ssm-jax serve --checkpoint=runs/demo
    ssm-jax serve --checkpoint=runs/demo --port=9000 --score_threshold=0.5
"""

import contextlib
import functools
import importlib
import logging

import numpy as np
from absl import flags

from ssm_jax.cli import common, model_flags
from ssm_jax.scans.summary import RULES, RULES_HELP

LOG = logging.getLogger("ssm_jax.serve")

flags.adopt_module_key_flags(model_flags)
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Address to listen on. Any other than a loopback address lets the network in: there is no "
    "password and no encryption.",
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_RULE = flags.DEFINE_enum("rule", "mean", RULES, RULES_HELP)
_MAX_UPLOAD_MIB = flags.DEFINE_integer(
    "max_upload_mib", 2048, "Bytes of one upload, all its files together, MiB.", lower_bound=1
)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", 8, "Uploads that may wait; more are refused.", lower_bound=1
)


def make_model(rule: str):
    """The functions of a server around the model, which is compiled before this returns."""
    import jax

    from ssm_jax.scans.masks import write_masks
    from ssm_jax.scans.open import open_scans
    from ssm_jax.scans.options import ScanError
    from ssm_jax.scans.output import to_json
    from ssm_jax.scans.predict import predict_scan
    from ssm_jax.serve.work import Model

    batch_size = 1 if jax.default_backend() == "cpu" else 8
    predictor, facts = model_flags.load_predictor(batch_size=batch_size)
    size = predictor.model_config.image_size
    predictor(np.zeros((size, size), np.uint8))

    def opened(paths):
        scans = open_scans(paths)
        usable = [scan for scan in scans if not scan.error]
        if scans and not usable:
            raise ScanError(f"{scans[0].name}: {scans[0].error}")
        for scan in scans:
            if scan.error:
                usable[0].warnings.append(f"{scan.name}: {scan.error}")
        return usable

    def predicted(scan, progress):
        return predict_scan(predictor, scan, rule=rule, progress=progress)

    return Model(opened, predicted, write_masks, to_json, facts, predictor.score_threshold)


def main(argv: list[str]) -> None:
    """The program."""
    common.start(argv)
    with common.one_line_errors(ValueError, OSError):
        for name in ("starlette", "uvicorn", "python_multipart"):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise ValueError(
                    f"{name} is not installed; the server needs: pip install 'ssm-jax[serve]'"
                ) from error
        common.use_compilation_cache()
        LOG.info("loading and compiling the model")
        model = make_model(_RULE.value)
        _serve(model)


def _serve(model) -> None:
    """Runs until it is interrupted."""
    import socket

    import uvicorn

    from ssm_jax.serve.app import Limits, is_loopback, make_app

    host = _HOST.value
    if not is_loopback(host):
        LOG.warning("%s lets the network in: there is no password and no encryption", host)
    limits = Limits(upload_bytes=_MAX_UPLOAD_MIB.value << 20, waiting=_MAX_WAITING.value)
    config = uvicorn.Config(make_app(model, limits, host), log_level="warning")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host.strip("[]"), _PORT.value))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{_PORT.value}: {error.strerror}") from error
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"open {address} (Ctrl+C ends)", flush=True)
        run = functools.partial(uvicorn.Server(config).run, sockets=[listening])
        with contextlib.suppress(KeyboardInterrupt):
            run()
