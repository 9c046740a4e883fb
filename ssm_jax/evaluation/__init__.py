"""Evaluation: per-image AP, COCO AP and classification metrics. NumPy and pycocotools only."""

from ssm_jax.evaluation.evaluator import Evaluator

__all__ = ["Evaluator"]
