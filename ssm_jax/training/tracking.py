"""A run's metrics for MLflow, beside its own files; training needs neither it nor its server."""

from __future__ import annotations

import importlib
import logging
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from ssm_jax.training.workdir import flatten

_PARAMETERS, _LENGTH = 100, 500  # that MLflow takes at once, and signs of the value of one
RUN_FILE = "mlflow_run.txt"  # in the working directory: the run that is gone on with

logger = logging.getLogger(__name__)


class Tracker:
    """Sends metrics to MLflow; what goes wrong there is a warning, and the last thing sent.

    Server and experiment are MLflow's own settings (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).
    """

    def __init__(self, workdir: pathlib.Path, settings: Mapping[str, Any]):
        """Starts a run named after the working directory, or goes on with the one it had.

        Args:
          workdir: of the run.
          settings: the run's configuration as nested dicts; logged as parameters.

        Raises:
          ValueError: MLflow is not installed.
        """
        try:
            self._mlflow: types.ModuleType | None = importlib.import_module("mlflow")
        except ImportError as error:
            raise ValueError(
                "config.log.tracking='mlflow' needs MLflow: pip install 'ssm-jax[tracking]'"
            ) from error
        path = workdir / RUN_FILE
        known = path.read_text(encoding="utf-8").strip() if path.exists() else None
        started = self._send("start_run", run_id=known, run_name=None if known else workdir.name)
        if started is not None and known is None:
            path.write_text(f"{started.info.run_id}\n", encoding="utf-8")
            entries = [(name, str(value)[:_LENGTH]) for name, value in flatten(settings).items()]
            for start in range(0, len(entries), _PARAMETERS):
                self._send("log_params", dict(entries[start : start + _PARAMETERS]))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends finite numbers by name."""
        self._send("log_metrics", dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._send("end_run")

    def _send(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self._mlflow is None:
            return None
        try:
            return getattr(self._mlflow, name)(*args, **kwargs)
        # A server that is gone, a full disk there: none of it may end hours of training.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("MLflow is left out from here on: %s: %s", name, reason)
            self._mlflow = None
            return None
