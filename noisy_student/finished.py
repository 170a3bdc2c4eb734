# SPDX-License-Identifier: Apache-2.0
"""A model that is finished, to be used: only its workdir is needed.

The images that it was trained on may be gone, and the folder may be a copy on
another machine. Weights of others can be used likewise, without a workdir.
"""

import dataclasses
import os
import pathlib

import keras

from noisy_student import assembly
from noisy_student import prerequisites
from noisy_student.command_line import RUN_FLAGS
from noisy_student.data.sources import printable
from noisy_student.errors import UserError
from noisy_student.models import import_weights
from noisy_student.reporting import console
from noisy_student.run import Run
from noisy_student.run import check_settings
from noisy_student.training import distribution
from noisy_student.workdir import Workdir
from noisy_student.workdir import classes_of

# ImageNet's, which the weights that are released have.
RELEASED_CLASSES = 1000

# What a model is missed for.
PURPOSES = {"predict": "predict with", "embed": "embed with"}


def open_finished(config):
    """Find the model that the settings mean.

    Args:
        config: A `Config`; `iteration` chooses the model, the newest by
            default.

    Returns:
        Pair of a `Run` without any source of images and the model's iteration,
        None for the weights at `init_from`, which are used where there is no
        run.

    Raises:
        UserError: If there is no model.
    """
    check_settings(config)
    strategy = distribution.make_strategy(
        config.distribution, config.cpu_devices
    )
    distribution.check_divisible(
        strategy.num_replicas_in_sync, evaluation=config.eval_batch_size
    )
    workdir = Workdir(config.workdir)
    classes = tuple(workdir.data().get("classes", ()))
    run = Run(config, workdir, strategy, None, None, None, classes)
    has_flags = (workdir.path / RUN_FLAGS).exists()
    if config.init_from and not has_flags:
        import_weights.check_there(config.init_from)
        names = classes_of(config.init_from)
        if names:
            return dataclasses.replace(run, known_classes=names), None
        return _without_names(run, config.num_classes or RELEASED_CLASSES), None
    iteration = prerequisites.choose_model(
        run, None, PURPOSES.get(config.mode, config.mode)
    )
    if not has_flags:
        raise UserError(
            f"{workdir} has no {RUN_FLAGS}, which says how its models see "
            "images: copy the whole folder of the run"
        )
    return run, iteration


def load_finished(run, iteration):
    """The network, and its run with the names of its classes.

    Args:
        run: Of `open_finished`.
        iteration: Likewise.

    Returns:
        Pair of a `keras.Model` from pixels to logits, without noise, and the
        `Run`.

    Raises:
        UserError: If the file is damaged, or has other classes than the run.
    """
    keras.backend.clear_session()
    with run.strategy.scope():
        if iteration is None:
            network = assembly.build_network(run, 0, run.finetuning_size(0))
            loaded = import_weights.load(network, run.config.init_from)
            console.print_loaded(loaded)
        else:
            network = run.workdir.load_model(iteration)
    num_classes = network.output_shape[-1]
    if not run.known_classes:
        print(
            f"  {run.workdir} has no data.json, so classes are named by their "
            "numbers"
        )
        run = _without_names(run, num_classes)
    return network, run


def title(run, iteration, network):
    """The model in words: "student 2 of runs/digits (b0 at 24 pixels)"."""
    if iteration is None:
        name = f"the weights of {printable(run.config.init_from)}"
    else:
        name = console.role(iteration) if iteration else "the teacher"
        if run.workdir.finetuned_model(iteration).exists():
            name += ", finetuned,"
        name += f" of {run.workdir}"
    variant = run.config.variant_of(iteration or 0)
    return f"{name} ({variant} at {network.input_shape[1]} pixels)"


def check_output(config, default, endings=()):
    """Where the result shall stand, and that it may.

    Args:
        config: A `Config`.
        default: Path in the workdir, which may be made anew.
        endings: Those that the result may have; any by default.

    Returns:
        Path.

    Raises:
        UserError: If it has another ending, or something is there already
            that `force` does not allow to replace.
    """
    if config.output is None:
        # Weights without a run have no workdir either.
        if not default.parent.exists():
            raise UserError("give --output=PATH, for there is no workdir")
        return default
    path = pathlib.Path(os.path.expanduser(config.output))
    shown = printable(config.output)
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"--output={shown} must end in {' or '.join(endings)}")
    if endings and path.is_dir():
        raise UserError(f"--output={shown} is a folder: give a file in it")
    if path.exists() and not config.force:
        raise UserError(
            f"{shown} exists: give another --output, or --force to replace it"
        )
    return path


def _without_names(run, num_classes):
    names = tuple(str(number) for number in range(num_classes))
    return dataclasses.replace(run, known_classes=names)
