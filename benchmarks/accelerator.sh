#!/usr/bin/env bash
# Tests and measures the project on an accelerator, in about 8 minutes with the package and its extra
# "test" installed. The figures go into benchmarks/results/DEVICE.json and docs/performance.md.
#
#   benchmarks/accelerator.sh           on a machine with an accelerator
#   benchmarks/accelerator.sh --small   tries the script out on small models, without a table
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_COMPILATION_CACHE_DIR="$folder/compiled"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || echo "nvidia-smi: not there"
device=$(python -c 'import jax, re; print(re.sub(r"\W+", "_", jax.devices()[0].device_kind.lower()))')
# JAX_PLATFORMS knows "cuda" where the backend calls itself "gpu".
platform=$(python -c 'import jax; here = jax.default_backend(); print({"gpu": "cuda"}.get(here, here))')
echo "device: $device, platform: $platform"

if [[ ${1:-} == --small ]]; then
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1  # compiles quickly
  test_seconds=300 minutes=20 train_seconds=60
  outputs=(--small --repeats=2 --json="$folder/results.json")
  tests=(tests/ops/test_nms.py)
  small=(--config.model.image_size=64 --config.model.max_size=128 --config.data.phantom.size=64)
elif [[ $platform == cpu ]]; then
  echo "JAX finds no accelerator here; --small tries the script out" >&2
  exit 1
else
  test_seconds=100 minutes=3.5 train_seconds=120
  outputs=(--table=accelerators --json="benchmarks/results/$device.json" --page=docs/performance.md)
  tests=(tests/ops tests/models tests/training/test_mask_losses.py)
  small=()
fi

# Products of full precision, which the tests' bounds are made for.
failed=0
JAX_PLATFORMS=$platform,cpu JAX_DEFAULT_MATMUL_PRECISION=highest \
  timeout "$test_seconds" python -m pytest -n 0 -q "${tests[@]}" || failed=$?
((failed == 124)) && echo "tests: stopped after $test_seconds seconds"

python -m benchmarks.run --suite=accelerator --minutes="$minutes" --profile="$folder/profile" \
  "${outputs[@]}"
mkdir -p runs && cp -r "$folder/profile" "runs/profile_$device"
echo "profile: runs/profile_$device"

timeout --signal=TERM "$train_seconds" python -m experiments.main --config=configs/scratch_r18.py \
  --workdir="$folder/run" --config.data.data_dir="$folder/data" "${small[@]}" \
  --config.data.phantom.seg_train=24 --config.data.phantom.cls_train=24 \
  --config.data.phantom.seg_test=3 --config.data.phantom.cls_test=3 \
  --config.log.every_steps=5 || echo "training: ended with status $?"
tail -n 2 "$folder/run/metrics.jsonl" || echo "training: no figures"
exit "$failed"
