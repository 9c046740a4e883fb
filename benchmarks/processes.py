"""Whole commands in processes of their own: time to the first prediction, and peak memory."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

from PIL import Image

from benchmarks import models
from ssm_jax.checkpoints import save_model


def process_rows() -> list[dict]:
    """Prediction with an empty and with a filled compilation cache, and three iterations.

    Returns:
      A dict a command: name, seconds (wall), peak_mb (resident set of the process).
    """
    with tempfile.TemporaryDirectory(prefix="ssm_jax_benchmark_") as name:
        folder = pathlib.Path(name)
        config = models.model_config()
        save_model(folder / "model", config, models.variables(config))
        Image.fromarray(models.slices(1)[0][..., 0]).save(folder / "slice.png")
        predict = [
            *("ssm_jax", "predict", f"--checkpoint={folder / 'model'}"),
            *(f"--inputs={folder / 'slice.png'}", f"--output_dir={folder / 'out'}"),
            "--score_threshold=0.5",
        ]
        phantoms = {"seg_train": 6, "seg_test": 1, "cls_train": 6, "cls_test": 3}
        train = [
            *("experiments.main", "--config=configs/scratch_r18.py"),
            *(f"--workdir={folder / 'run'}", f"--config.data.data_dir={folder / 'data'}"),
            *(f"--config.data.phantom.{key}={value}" for key, value in phantoms.items()),
            *("--config.train.max_steps=3", "--config.eval.every_steps=3"),
            "--config.eval.overlays=0",
        ]
        commands = {
            "predict one slice, nothing compiled before": predict,
            "predict one slice, compiled before": predict,
            "train three iterations and evaluate, nothing compiled before": train,
        }
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        return [{"name": name, **_run(command, environment)} for name, command in commands.items()]


# A process counts the memory of the one that started it as its own peak, so a small one starts it.
STARTER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _run(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    arguments = [sys.executable, "-c", STARTER, sys.executable, "-m", *command]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    seconds, peak = map(float, done.stdout.split())
    scale = 1 if sys.platform == "darwin" else 1024  # units of ru_maxrss, bytes
    return {"seconds": seconds, "peak_mb": peak * scale / 1e6}
