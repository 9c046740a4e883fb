"""What the programs share."""

from ssm_jax.cli import common


def test_compiled_programs_that_were_left_empty_go(tmp_path):
    """JAX takes an empty file for a program that is there, and compiles anew at every start."""
    (tmp_path / "jit_step-1-cache").write_bytes(b"")
    (tmp_path / "jit_step-2-cache").write_bytes(b"compiled")
    (tmp_path / "notes").write_bytes(b"")
    common.drop_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jit_step-2-cache", "notes"]
    common.drop_unfinished(tmp_path / "nowhere")
