# SPDX-License-Identifier: Apache-2.0
"""Which devices train: one CPU, one GPU, several, or a TPU.

TensorFlow's distribution API; on Keras's JAX backend `keras.distribution` would
take its place.
"""

import functools
import glob
import importlib.util
import os
import subprocess

import tensorflow as tf

from noisy_student.errors import UserError

GOOGLE = "0x1ae0"  # as a vendor of PCI devices
CHOICES = ("auto", "cpu", "gpu", "mirrored", "tpu")


def make_strategy(name="auto", cpu_devices=1):
    """Find the devices that a run shall use.

    Args:
        name: One of `CHOICES`. `auto` takes a TPU if the machine has one, all
            GPUs if it has several, its GPU, or the CPU.
        cpu_devices: How many devices the CPU is split into; more than one
            is for trying `mirrored` without GPUs.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        UserError: If the machine lacks what `name` asks for.
    """
    _configure_cpu(cpu_devices)
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto":
        if _has_tpu():
            name = "tpu"
        elif gpus:
            name = "gpu" if len(gpus) == 1 else "mirrored"
        else:
            name = "cpu"
    if name == "cpu":
        if _show_gpus([]):
            return tf.distribute.get_strategy()
        return tf.distribute.OneDeviceStrategy("/CPU:0")
    if name == "gpu":
        if not gpus:
            raise UserError(
                "--distribution=gpu, but TensorFlow sees no GPU: install "
                "tensorflow[and-cuda] and a driver, or use --distribution=cpu"
            )
        _show_gpus(gpus[:1])
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if gpus else "CPU"
        devices = tf.config.list_logical_devices(kind)
        return _mirrored(tuple(device.name for device in devices))
    if name == "tpu":
        return _tpu_strategy()
    raise UserError(
        f"--distribution must be one of {', '.join(CHOICES)}, not {name!r}"
    )


def describe(strategy):
    """What trains, in a few words.

    Args:
        strategy: A `tf.distribute.Strategy`, of `make_strategy`.

    Returns:
        Text such as "1 GPU (NVIDIA H100)"; where a driver knows of a GPU that
        TensorFlow does not find, with what to do.
    """
    count = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return f"TPU with {count} cores"
    gpus = tf.config.get_visible_devices("GPU")
    if gpus and not _is_cpu(strategy):
        details = tf.config.experimental.get_device_details(gpus[0])
        name = details.get("device_name", "of unknown kind")
        return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({name})"
    text = f"CPU with {os.cpu_count()} cores"
    if count > 1:
        text += f", split into {count} devices"
    if tf.config.list_physical_devices("GPU"):
        return f"{text}, by --distribution; a GPU is there"
    # Whoever hides the GPUs knows that they are there.
    if "CUDA_VISIBLE_DEVICES" not in os.environ and _gpu_memory():
        return (
            f"{text}; warning: the machine has a GPU that TensorFlow does not "
            "find: pip install 'tensorflow[and-cuda]'"
        )
    return f"{text}, no GPU found"


def uses_xla(strategy):
    """Whether Keras shall compile the step with XLA on these devices.

    On CPU it makes EfficientNet-B0 six times slower, and Keras cannot compile
    a step for several GPUs; TPUs always compile, by themselves.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        True on a single GPU.
    """
    return strategy is tf.distribute.get_strategy() and bool(
        tf.config.list_logical_devices("GPU")
    )


def device_memory(strategy):
    """How much memory each of the devices has.

    Args:
        strategy: A `tf.distribute.Strategy`, of `make_strategy`.

    Returns:
        Bytes, or None where nobody says: on a TPU, or without `nvidia-smi`.
        On the CPU it is the machine's memory divided by the replicas.
        Whatever other programs hold is not subtracted.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return None
    if tf.config.get_visible_devices("GPU") and not _is_cpu(strategy):
        return _gpu_memory()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
    return memory // strategy.num_replicas_in_sync


def check_divisible(
    num_replicas, accumulation_steps=1, *, given="", **batch_sizes
):
    """Refuse global batches that cannot be shared evenly.

    Args:
        num_replicas: R.
        accumulation_steps: N, the parts in which each replica computes its
            share.
        given: What the sizes follow from, to be shown.
        **batch_sizes: Global batch sizes by the name to show; zeros pass.

    Raises:
        UserError: Naming the batch and the nearest sizes that work.
    """
    divisor = num_replicas * accumulation_steps
    where = [f"among {num_replicas} devices"] if num_replicas > 1 else []
    other = ""
    if accumulation_steps > 1:
        where.append(f"into {accumulation_steps} parts")
        other = f", or change --accumulation_steps={accumulation_steps}"
    for name, size in batch_sizes.items():
        if size % divisor:
            lower = size // divisor * divisor
            nearest = [n for n in (lower, lower + divisor) if n]
            raise UserError(
                f"the {name} batch of {size} images does not divide "
                f"{' and '.join(where)}: make it "
                f"{' or '.join(map(str, nearest))}{other}"
                f"{given and f' ({given})'}"
            )


def _gpu_memory():
    """Bytes of the machine's smallest GPU, or None."""
    # TensorFlow would tell only after it has taken the memory. The driver
    # counts in another order than CUDA, so which GPU is which is not asked.
    command = ["nvidia-smi", "--query-gpu=memory.total"]
    try:
        lines = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
            timeout=60,
        ).stdout.splitlines()
        return min(int(line) for line in lines) * 2**20  # it counts in MiB
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _configure_cpu(num_devices):
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or [None]
    if num_devices <= 1 or len(configured) == num_devices:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
        )
    except RuntimeError as error:
        raise UserError(
            f"--cpu_devices={num_devices} comes too late: TensorFlow already "
            f"runs with {len(configured)} in this process"
        ) from error


@functools.cache
def _mirrored(devices):
    # Two strategies in one process would number their all-reduces alike, and
    # the second training would fail.
    return tf.distribute.MirroredStrategy(devices)


def _show_gpus(gpus):
    """Hide the other GPUs, so that TensorFlow neither uses nor fills them.

    Returns:
        Whether they are hidden: a notebook may have used them already.
    """
    if tf.config.get_visible_devices("GPU") != gpus:
        try:
            tf.config.set_visible_devices(gpus, "GPU")
        except RuntimeError:
            return False
    return True


def _is_cpu(strategy):
    """Whether a strategy computes on the CPU beside GPUs that are visible."""
    return isinstance(strategy, tf.distribute.OneDeviceStrategy)


def _has_tpu(root="/"):
    """Whether the machine has a TPU, as far as its files and variables say.

    Up to v4 a TPU is `/dev/accel0`, from v5e on a numbered file of vfio. That
    may be any device which was passed through, as on a PC, so something else
    has to speak of a TPU: its variables, its library, or Google as the vendor
    of a device.
    """
    if os.environ.get("TPU_NAME") or glob.glob(f"{root}dev/accel[0-9]*"):
        return True
    if not glob.glob(f"{root}dev/vfio/[0-9]*"):
        return False
    vendors = glob.glob(f"{root}sys/bus/pci/devices/*/vendor")
    return (
        any(name.startswith("TPU_") for name in os.environ)
        or importlib.util.find_spec("libtpu") is not None
        or any(_first_line(path) == GOOGLE for path in vendors)
    )


def _first_line(path):
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return ""


def _tpu_strategy():
    # "local" is the TPU of the machine itself (a TPU VM, Colab's TPU runtime).
    address = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # TensorFlow raises many kinds here
        raise UserError(
            f"--distribution=tpu, but no TPU answers at {address!r} "
            f"({str(error).splitlines()[0][:120]}): on a TPU VM install "
            "tensorflow-tpu instead of tensorflow, see docs/tpu.md; "
            "--distribution=cpu or gpu trains without it"
        ) from error
