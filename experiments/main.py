"""The main job: trains a model. The same program as `ssm-jax train`; see `--help`.

python -m experiments.main --config=configs/scratch_r18.py
"""

from absl import app

from ssm_jax.cli.train import main, parse_flags

if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
