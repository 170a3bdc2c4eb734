# SPDX-License-Identifier: Apache-2.0
"""The data that tests share, and the tests that need two devices.

Nothing here changes what TensorFlow does for a user, but for `--two_devices`.
"""

import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Those of the golden files that are small and show no photographs, so that
# their tests never skip. Verbatim, but for filter/filter.npz: it holds the
# highest probability of each row instead of all twenty.
BUNDLED = REPOSITORY / "tests" / "golden"


def pytest_addoption(parser):
    parser.addoption(
        "--two_devices",
        action="store_true",
        help="Split the CPU in two, and run the tests that need two devices, "
        "and no others; test_two_devices.py does so in a process of its own.",
    )


def pytest_configure(config):
    if config.getoption("--two_devices"):
        import tensorflow as tf

        # Before anything else touches TensorFlow: MirroredStrategy over two
        # logical CPUs runs the code of several GPUs, on any machine.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )


def pytest_collection_modifyitems(config, items):
    """Choose, as a process has one CPU or two from its start to its end."""
    chosen, others = [], []
    for item in items:
        needs_two = (
            item.get_closest_marker("two_devices") is not None
            or "two_replicas" in item.fixturenames
        )
        fits = needs_two == config.getoption("--two_devices")
        (chosen if fits else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


@pytest.fixture
def golden():
    """The folder of numbers computed with the official code, or skip."""
    folder = REPOSITORY.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the golden files are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def two_replicas():
    """The strategy over the two logical CPUs."""
    from noisy_student.training import distribution

    strategy = distribution.make_strategy("mirrored")
    if strategy.num_replicas_in_sync != 2:
        pytest.skip("this machine has another number of GPUs")
    return strategy


@pytest.fixture(scope="module")
def one_block():
    """Networks of one block, for tests of what is around them.

    Most of a command's time on tiny images is the tracing of the network.
    """
    from noisy_student.models import efficientnet

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(efficientnet, "STAGES", efficientnet.STAGES[:1])
        yield


@pytest.fixture(scope="module")
def no_report():
    """Runs without a page that shows them, for what nobody looks at it.

    After the networks, the noise of its pictures takes most of the time.
    """
    from noisy_student import phases

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(phases.showing, "refresh", lambda run: None)
        yield


def clean_view(image_size, crop="padded"):
    """How evaluation sees an image: no noise at all."""
    from noisy_student.data import augmentation

    return augmentation.make_augment(
        image_size=image_size,
        crop=crop,
        random_crop=False,
        randaugment_num_ops=0,
    )


def make_finished_run(path, class_names, **settings):
    """A run as training leaves it, but for training; its images are gone."""
    import numpy as np

    from noisy_student import command_line
    from noisy_student.config import Config
    from noisy_student.models import efficientnet
    from noisy_student.workdir import Workdir

    config = Config(
        workdir=str(path),
        **{
            "labeled_dir": "gone/labeled",
            "unlabeled_dir": "gone/unlabeled",
            "eval_dir": "gone/eval",
            "students": "",
            "width": 0.1,
            "depth": 0.1,
            "image_size": 16,
            "small_images": True,
            "crop": "padded",
            **settings,
        },
    )
    workdir = Workdir(path)
    network = efficientnet.build_model(
        config.variant,
        len(class_names),
        image_size=config.image_size,
        width=config.width,
        depth=config.depth,
        small_images=config.small_images,
        dtype=config.dtype,
    )
    # Fresh weights answer nearly the same to everything.
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.path.startswith("predictions"):
            variable.assign(rng.normal(0, 0.5, variable.shape))
    workdir.save_model(network, workdir.trained_model(0))
    workdir.write_flags(command_line.write_run_flags(config, "run.flags"))
    known = {"name": "/home/someone/labeled", "num_images": 30}
    workdir.write_data(
        {
            "classes": list(class_names),
            "labeled": {**known, "fingerprint": "0" * 64},
            "unlabeled": None,
            "evaluation": None,
        }
    )
    return workdir
