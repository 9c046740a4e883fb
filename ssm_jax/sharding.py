"""Data parallelism: every device holds the whole model and a part of each batch.

Parameters, statistics and optimizer state are copied to all devices, and the images of a batch are
split over them. The compiler distributes most of a step by itself, but not loops over images or
their boxes: functions with such loops run under `per_device`, on each device for its own images.
"""

import functools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
REPLICATED = PartitionSpec()
SPLIT = PartitionSpec(AXIS)  # by the leading axis, which counts images, or boxes image by image
T = TypeVar("T")


def training_mesh(batch_size: int) -> Mesh | None:
    """The devices of a run: as many of every process as its share of a batch can be split over.

    Args:
      batch_size: slices a batch, of all processes together.

    Returns:
      A mesh with the axis `AXIS`, the devices of a process next to each other; None for one device.

    Raises:
      ValueError: the processes cannot share a batch evenly.
    """
    processes = jax.process_count()
    if batch_size % processes:
        raise ValueError(
            f"config.train.batch_size={batch_size} cannot be shared by {processes} processes; "
            f"choose a multiple of {processes}"
        )
    of_process: dict[int, list] = {}
    for device in jax.devices():
        of_process.setdefault(device.process_index, []).append(device)
    share = batch_size // processes
    count = _most(min(map(len, of_process.values())), share)
    return _mesh([d for index in sorted(of_process) for d in of_process[index][:count]])


def local_mesh(batch_size: int) -> Mesh | None:
    """The devices of this process, as many as a batch can be split over; None for one device."""
    devices = jax.local_devices()
    return _mesh(devices[: _most(len(devices), batch_size)])


def _most(devices: int, batch_size: int) -> int:
    return max(count for count in range(1, devices + 1) if batch_size % count == 0)


def _mesh(devices: list) -> Mesh | None:
    if len(devices) == 1:
        return None
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def jit_step(step: Callable, mesh: Mesh | None) -> Callable:
    """Jits `step(state, batch) -> (state, metrics)`, donating the state.

    Args:
      step: a pure function of a replicated state and a batch that `split_batch` split.
      mesh: the devices; None: one device.
    """
    if mesh is None:
        return jax.jit(step, donate_argnums=0)

    @functools.wraps(step)
    def partitioned(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    return jax.jit(
        partitioned,
        donate_argnums=0,
        in_shardings=(replicated(mesh), NamedSharding(mesh, SPLIT)),
        out_shardings=replicated(mesh),
    )


def jit_inference(function: Callable, mesh: Mesh | None) -> Callable:
    """Spreads `function(variables, images, image_sizes, *scalars)` over the devices of a process.

    Args:
      function: jitted; every output has one entry an image, which no other image changes.
      mesh: the devices, a divisor of the number of images; None: one device.
    """
    if mesh is None:
        return function

    @jax.jit
    def partitioned(variables, images, image_sizes, *scalars):
        specs = (REPLICATED, SPLIT, SPLIT, *(REPLICATED for _ in scalars))
        spread = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False
        )
        return spread(variables, images, image_sizes, *scalars)

    return partitioned


def per_device(function: Callable, in_specs: Any = SPLIT, out_specs: Any = SPLIT) -> Callable:
    """A function that every device runs on its own part of a batch.

    Args:
      function: of arrays and pytrees of them; it sums over all devices by `total`.
      in_specs: REPLICATED or SPLIT for each argument, or one of them for all.
      out_specs: REPLICATED or SPLIT for each result, or one of them for all.

    Returns:
      The function of whole batches; `function` itself where there is one device.
    """
    if not _of_whole_batches():
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def summed(function: Callable) -> Callable:
    """A function of whole batches that gives the sum of what each device finds of its part; in a
    function of `per_device`, what this device finds of its part.

    Args:
      function: of arrays that are split, returns an array.
    """
    if not _of_whole_batches():
        return function
    return per_device(lambda *parts: lax.psum(function(*parts), AXIS), out_specs=REPLICATED)


def _of_whole_batches() -> bool:
    """Whether there are several devices and this is no function of `per_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.axis_types == (AxisType.Auto,)


def total(tree: T) -> T:
    """The sum over all devices, in a function of `per_device`."""
    return tree if jax.sharding.get_abstract_mesh().empty else lax.psum(tree, AXIS)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole of an array on every device."""
    return NamedSharding(mesh, REPLICATED)


def replicate(tree: T, mesh: Mesh | None) -> T:
    """Puts a pytree of arrays, the same in all processes, on every device."""
    if mesh is None:
        return tree

    def put(array):
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, replicated(mesh), lambda index: host[index])

    return jax.tree.map(put, tree)


def split_batch(batch: T, mesh: Mesh | None) -> T:
    """Puts this process's rows of a batch, a pytree of arrays, on its devices."""
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, SPLIT)
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), batch)


def local_copy(tree: T, mesh: Mesh | None) -> T:
    """A replicated pytree for computations of this process alone."""
    return tree if mesh is None else jax.device_get(tree)


def any_process(value: bool) -> bool:
    """Whether a value is true in any process; all processes have to ask."""
    return any(gather(value))


def gather(value: T) -> list[T]:
    """The values of all processes, in their order; all processes have to ask."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([data.size])))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    # The bytes come from processes of the same job, which run this code.
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
