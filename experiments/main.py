"""The main job: trains a model. The same program as `ssm-jax train`; see `--help`.

python -m experiments.main --config=configs/scratch_r18.py
"""

import sys

from ssm_jax import memory
from ssm_jax.__main__ import run

if __name__ == "__main__":
    memory.with_huge_pages()
    run(["train", *sys.argv[1:]])
