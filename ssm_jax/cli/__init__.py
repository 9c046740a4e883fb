"""The commands of `ssm-jax`, a module each."""
