# SPDX-License-Identifier: Apache-2.0
"""The devices asked for are the devices used, or a sentence says why not."""

import importlib.util
import os
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from noisy_student.errors import UserError
from noisy_student.training import distribution

GPUS = tf.config.list_physical_devices("GPU")
without_gpu = pytest.mark.skipif(bool(GPUS), reason="this machine has a GPU")
without_tpu = pytest.mark.skipif(
    os.path.exists("/dev/accel0"), reason="this machine has a TPU"
)


@pytest.fixture(autouse=True)
def no_tpu_name(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)


def sentence_of(error):
    """The message of a UserError, checked to be one line."""
    message = str(error.value)
    assert "\n" not in message, repr(message)
    return message


@without_gpu
@without_tpu
@pytest.mark.parametrize("name", ("auto", "cpu"))
def test_one_device_needs_no_strategy(name):
    strategy = distribution.make_strategy(name)
    assert strategy is tf.distribute.get_strategy()
    assert strategy.num_replicas_in_sync == 1


@without_gpu
@pytest.mark.two_devices
def test_mirrored_takes_every_cpu():
    strategy = distribution.make_strategy("mirrored", cpu_devices=2)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == 2


@without_gpu
@pytest.mark.two_devices
def test_a_process_has_one_mirrored_strategy():
    # Two would give their all-reduces the same numbers, and TensorFlow takes
    # them for one: "Shape mismatch in the collective instance 100".
    strategy = distribution.make_strategy("mirrored")
    assert distribution.make_strategy("mirrored") is strategy


@without_gpu
def test_cpu_devices_split_the_cpu_of_a_fresh_process():
    program = (
        "from noisy_student.training import distribution\n"
        "strategy = distribution.make_strategy('mirrored', cpu_devices=3)\n"
        "print('replicas:', strategy.num_replicas_in_sync)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    assert "replicas: 3" in output, output


def test_cpu_devices_cannot_come_too_late():
    tf.config.list_logical_devices()  # TensorFlow runs from here on
    with pytest.raises(UserError) as error:
        distribution.make_strategy("cpu", cpu_devices=3)
    assert "--cpu_devices=3" in sentence_of(error)


@without_gpu
def test_missing_gpu_is_a_sentence():
    with pytest.raises(UserError) as error:
        distribution.make_strategy("gpu")
    assert "--distribution=cpu" in sentence_of(error)


@without_tpu
def test_missing_tpu_is_a_sentence():
    with pytest.raises(UserError) as error:
        distribution.make_strategy("tpu")
    assert "docs/tpu.md" in sentence_of(error)


def test_unknown_name_is_a_sentence():
    with pytest.raises(UserError) as error:
        distribution.make_strategy("gpus")
    message = sentence_of(error)
    assert "'gpus'" in message
    for choice in distribution.CHOICES:
        assert choice in message, message


@without_gpu
@pytest.mark.two_devices
@pytest.mark.parametrize("name", ("cpu", "mirrored"))
def test_cpus_do_not_compile_with_xla(name):
    strategy = distribution.make_strategy(name)
    assert distribution.uses_xla(strategy) is False
    with strategy.scope():
        assert distribution.uses_xla(strategy) is False


@pytest.mark.parametrize(
    ("num_replicas", "size", "advice"),
    [
        (2, 7, "make it 6 or 8"),
        (8, 5, "make it 8"),
        (3, 100, "make it 99 or 102"),
    ],
)
def test_indivisible_batch_gets_advice(num_replicas, size, advice):
    with pytest.raises(UserError) as error:
        distribution.check_divisible(num_replicas, labeled=24, unlabeled=size)
    message = sentence_of(error)
    assert f"unlabeled batch of {size} images" in message, message
    assert f"{num_replicas} devices" in message, message
    assert message.rstrip(".").endswith(advice), message


def test_divisible_batches_and_absent_ones_pass():
    distribution.check_divisible(4, labeled=8, unlabeled=0, evaluation=100)
    distribution.check_divisible(1, labeled=7)
    with pytest.raises(UserError):
        distribution.check_divisible(4, labeled=8, unlabeled=0, evaluation=99)


@without_gpu
@pytest.mark.two_devices
@pytest.mark.skipif(
    not os.path.exists("/proc/meminfo"), reason="needs Linux's /proc"
)
def test_memory_of_the_cpu_is_shared_by_its_replicas():
    with open("/proc/meminfo") as file:
        lines = [line.split() for line in file]
    (total,) = [
        int(words[1]) * 1024 for words in lines if "MemTotal" in words[0]
    ]
    one = distribution.device_memory(distribution.make_strategy("cpu"))
    assert one == total
    strategy = distribution.make_strategy("mirrored")
    each = distribution.device_memory(strategy)
    assert each == total // strategy.num_replicas_in_sync


def answering(text):
    return lambda command, **_: subprocess.CompletedProcess(command, 0, text)


def refusing(error):
    def run(*_, **__):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (answering("81559\n"), 81559 * 2**20),
        (answering("81559\n24576\n"), 24576 * 2**20),
        (answering("[N/A]\n"), None),
        (answering(""), None),
        (refusing(FileNotFoundError("nvidia-smi")), None),
        (refusing(subprocess.CalledProcessError(9, "nvidia-smi")), None),
        (refusing(subprocess.TimeoutExpired("nvidia-smi", 60)), None),
    ],
)
def test_memory_of_a_gpu_is_what_the_driver_says(monkeypatch, run, expected):
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU"])
    strategy = tf.distribute.get_strategy()
    assert distribution.device_memory(strategy) == expected


def test_gpus_that_a_notebook_has_used_are_left_alone(monkeypatch):
    def too_late(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being")

    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    for name in ("get_visible_devices", "list_physical_devices"):
        of = getattr(tf.config, name)
        monkeypatch.setattr(
            tf.config,
            name,
            lambda kind, of=of: gpus if kind == "GPU" else of(kind),
        )
    monkeypatch.setattr(tf.config, "set_visible_devices", too_late)
    strategy = distribution.make_strategy("cpu")
    assert strategy.num_replicas_in_sync == 1
    assert distribution.describe(strategy).startswith("CPU")
    assert not distribution.uses_xla(strategy)
    with strategy.scope():
        assert "CPU:0" in keras.Variable(1.0).value.device
    assert distribution.make_strategy("gpu") is tf.distribute.get_strategy()


def test_memory_of_a_tpu_is_unknown(monkeypatch):
    class Fake:
        pass

    monkeypatch.setattr(tf.distribute, "TPUStrategy", Fake)
    assert distribution.device_memory(Fake()) is None


V5E = ("dev/vfio/vfio", "dev/vfio/0")


@pytest.mark.parametrize(
    ("files", "variables", "is_there"),
    [
        ((), {}, False),
        ((), {"TPU_NAME": "local"}, True),
        ((), {"TPU_WORKER_ID": "0"}, False),  # left behind by something
        (("dev/accel0",), {}, True),  # up to v4, Colab's v2-8
        (("dev/accel2",), {}, True),  # a container with some of the chips
        (("dev/accel/accel0",), {}, False),  # an Intel NPU
        (V5E, {}, False),  # a PC with a device for its virtual machines
        (("dev/vfio/vfio",), {"TPU_WORKER_ID": "0"}, False),
        (V5E, {"TPU_ACCELERATOR_TYPE": "v5litepod-1"}, True),
        (V5E, {"TPU_WORKER_ID": "0"}, True),
        ((*V5E, "sys/bus/pci/devices/0000:00:04.0/vendor=0x1ae0"), {}, True),
        ((*V5E, "sys/bus/pci/devices/0000:00:04.0/vendor=0x10de"), {}, False),
    ],
)
def test_tpus_of_every_generation_are_found(
    tmp_path, monkeypatch, files, variables, is_there
):
    for name in list(os.environ):
        if name.startswith("TPU_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for file in files:
        name, _, content = file.partition("=")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert distribution._has_tpu(f"{tmp_path}/") is is_there


def test_the_library_of_tpus_speaks_of_one(tmp_path, monkeypatch):
    for name in V5E:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert distribution._has_tpu(f"{tmp_path}/")
