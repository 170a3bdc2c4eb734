# SPDX-License-Identifier: Apache-2.0
"""From a run to what it trains: networks, their noise and their schedule.

`phases.py` tells the story; this file hands it the pieces. A phase is `teach`,
`distill` or `finetune`: they differ in their batches, their noise and their
part of the schedule, and in nothing else.
"""

import dataclasses

import keras

from noisy_student.batches import batch_sizes
from noisy_student.data.sources import some
from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.models import import_weights
from noisy_student.models import rematerialization
from noisy_student.models import stochastic_depth
from noisy_student.training import distribution
from noisy_student.training import schedules
from noisy_student.training import trainer
from noisy_student.training.online_teacher import OnlineTeacher
from noisy_student.workdir import classes_of

NOISY_LAYERS = {
    "dropout": stochastic_depth.Dropout,
    "stochastic_depth": stochastic_depth.StochasticDepth,
}


def build_network(run, iteration, image_size=None):
    """The network of an iteration, with fresh weights."""
    config = run.config
    return efficientnet.build_model(
        config.variant_of(iteration),
        run.num_classes,
        image_size=image_size or run.image_size(iteration),
        dropout_rate=config.dropout_rate,
        stochastic_depth_rate=config.stochastic_depth_rate,
        small_images=config.small_images,
        width=config.width,
        depth=config.depth,
        batch_norm_momentum=config.batch_norm_momentum,
        dtype=config.dtype,
        **config.channel_statistics(),
    )


def first_network(run, phase, iteration):
    """The network of an iteration as its training begins.

    Args:
        run: The `Run`.
        phase: `teach`, `distill` or `finetune`.
        iteration: 0 for the teacher.

    Returns:
        Pair of the `keras.Model` and where its weights come from: a
        `import_weights.Loaded`, or None if they are fresh.
    """
    config, workdir = run.config, run.workdir
    if phase == "finetune":
        network = build_network(run, iteration, run.finetuning_size(iteration))
        path = workdir.trained_model(iteration)
        if not path.exists():
            path = config.init_from
    else:
        network = build_network(run, iteration)
        path = config.init_from
        if phase == "distill":
            path = config.student_init_from
        if phase == "distill" and config.warm_start:
            path = workdir.model(iteration - 1)
    if path is None:
        return network, None
    return network, load_weights(
        run,
        network,
        path,
        as_it_is=phase == "teach" and not config.train_teacher,
    )


def load_weights(run, network, path, *, as_it_is):
    """Set the weights of a network from a file.

    The last layer stays new if it would belong to other classes.

    Args:
        run: The `Run`.
        network: The `keras.Model`.
        path: As in `import_weights.load`.
        as_it_is: Whether nothing will train it: then other classes are refused.

    Returns:
        `import_weights.Loaded`.
    """
    theirs = classes_of(path)
    is_other = bool(theirs) and theirs != tuple(run.class_names)
    if is_other and as_it_is:
        raise UserError(
            f"{path} has the classes {some(theirs)}, and this run "
            f"{some(run.class_names)}: train it on these (without "
            "--notrain_teacher), or give weights with the same classes"
        )
    head = network.get_layer("predictions")
    fresh = head.get_weights()
    loaded = import_weights.load(network, path, replace_head=not as_it_is)
    if is_other and not loaded.head_replaced:
        head.set_weights(fresh)
        loaded = dataclasses.replace(
            loaded,
            num_tensors=loaded.num_tensors - len(fresh),
            head_replaced=True,
        )
    return loaded


def begin_network(run, phase, iteration):
    """`first_network` on the devices of the run, its fresh weights seeded.

    It can be made before any image is decoded, for weights may not fit.
    """
    keras.utils.set_random_seed(run.seed(f"network of {phase}", iteration))
    with run.strategy.scope():
        return first_network(run, phase, iteration)


def make_trainable(run, phase, iteration, *, num_labeled, begun=None):
    """The network of an iteration, compiled on the devices of the run.

    Args:
        run: The `Run`.
        phase: `teach`, `distill` or `finetune`.
        iteration: 0 for the teacher.
        num_labeled: Labeled images in the set, for the length of an epoch.
        begun: Of `begin_network`; made now if it is None.

    Returns:
        Pair of a compiled `AveragedModel` and, as `first_network`, where its
        weights come from.
    """
    config = run.config
    network, loaded = begun or begin_network(run, phase, iteration)
    # Of what one device computes at once.
    labeled, unlabeled = (
        size // run.num_replicas // config.accumulation_steps
        for size in batch_sizes(run, phase, iteration)
    )
    with run.strategy.scope():
        direct_noise(config, phase, network, labeled, unlabeled)
        if phase == "finetune":
            check_frozen_blocks(config, iteration)
            _freeze(network, config.frozen_blocks)
        forward = None
        if config.rematerialize:
            forward = rematerialization.rematerialized(network)
        online_teacher = None
        if phase == "distill" and config.online_teacher:
            online_teacher = OnlineTeacher(
                load_teacher(run, iteration - 1),
                num_labeled=labeled,
                kind=config.pseudo_label_kind,
                temperature=config.temperature,
                label_smoothing=config.label_smoothing,
            )
        model = trainer.make_trainable(
            network,
            learning_rate=make_schedule(config, phase, num_labeled, iteration),
            weight_decay=config.weight_decay,
            ema_decay=config.ema_decay,
            num_labeled=labeled,
            unlabeled_ratio=(
                config.unlabeled_ratio_of(iteration) if unlabeled else 0.0
            ),
            unlabeled_weight=config.unlabeled_weight,
            online_teacher=online_teacher,
            accumulation_steps=config.accumulation_steps,
            forward=forward,
            jit_compile=distribution.uses_xla(run.strategy),
        )
    return model, loaded


def load_teacher(run, iteration):
    """The saved model of an iteration, noised only if the settings say so.

    Call it under the strategy's scope.
    """
    network = run.workdir.load_model(iteration)
    noise = run.config.noise("teacher")
    for name, layer in NOISY_LAYERS.items():
        if name in noise:
            stochastic_depth.direct_noise(
                network, layer, slice(None), at_inference=True
            )
    return network


def check_frozen_blocks(config, iteration):
    """Refuse to freeze more blocks than the network of an iteration has."""
    scale = efficientnet.VARIANTS[config.variant_of(iteration)]
    stages = efficientnet.scaled_stages(
        config.width or scale.width, config.depth or scale.depth
    )
    blocks = sum(stage.repeats for stage in stages)
    if (config.frozen_blocks or 0) > blocks:
        raise UserError(
            f"--frozen_blocks={config.frozen_blocks}, but the network has "
            f"{blocks} blocks: give less"
        )


def _freeze(network, frozen_blocks):
    """Leave the stem and the first blocks as they are.

    Their BatchNormalization is in inference mode, as Keras has it for layers
    that are not trainable, and their stochastic depth is off (official code,
    `fix_layer_num`).
    """
    blocks = efficientnet.blocks_of(network)
    count = len(blocks) // 2 if frozen_blocks is None else frozen_blocks
    if count < 0:
        return
    for layers in (efficientnet.stem_of(network), *blocks[:count]):
        for layer in layers:
            layer.trainable = False
            if isinstance(layer, stochastic_depth.Dropout):
                layer.rows = stochastic_depth.NO_ROWS


def direct_noise(config, phase, network, labeled, unlabeled):
    """Let dropout and stochastic depth act on the images they are meant for.

    Args:
        config: A `Config`.
        phase: `teach`, `distill` or `finetune`.
        network: The `keras.Model`.
        labeled: Labeled rows of what a replica computes at once.
        unlabeled: Pseudo-labeled rows of it.
    """
    on_labeled = config.noise("finetune" if phase == "finetune" else "labeled")
    on_unlabeled = config.noise("unlabeled")
    for name, layer in NOISY_LAYERS.items():
        # Where there are no rows of a kind, the other decides alone.
        first = name in (on_labeled if labeled else on_unlabeled)
        second = name in (on_unlabeled if unlabeled else on_labeled)
        rows = {
            (True, True): slice(None),
            (True, False): slice(0, labeled),
            (False, True): slice(labeled, None),
            (False, False): stochastic_depth.NO_ROWS,
        }[first, second]
        stochastic_depth.direct_noise(network, layer, rows)


def make_schedule(config, phase, num_labeled, iteration=0):
    """The learning rate of a model in a phase."""
    scale = config.batch_size / 256
    steps_per_epoch = num_labeled / config.batch_size
    total_steps = _schedule_steps(config, num_labeled, iteration)
    return schedules.exponential_decay(
        config.base_lr * scale,
        steps_per_epoch,
        decay_factor=config.lr_decay_factor,
        decay_epochs=config.lr_decay_epochs,
        warmup_epochs=config.warmup_epochs,
        final_lr=config.final_base_lr and config.final_base_lr * scale,
        total_epochs=total_steps / steps_per_epoch,
        first_step=total_steps
        - num_steps(config, phase, num_labeled, iteration),
    )


def num_warmup_steps(config, phase, num_labeled, iteration=0):
    """Steps of a phase in which the learning rate still grows, or more."""
    schedule = make_schedule(config, phase, num_labeled, iteration)
    steps = int(schedule.warmup_epochs * schedule.steps_per_epoch)
    return max(0, steps - schedule.first_step)


def num_steps(config, phase, num_labeled, iteration=0):
    """Training steps of a model in a phase."""
    total = _schedule_steps(config, num_labeled, iteration)
    if phase == "teach" and not config.train_teacher:
        return 0
    if phase != "finetune":
        return total
    steps = max(
        1, round(config.finetune_epochs * num_labeled / config.batch_size)
    )
    if steps > total:
        length = "epochs" if config.train_steps is None else "train_steps"
        raise UserError(
            f"--finetune_epochs={config.finetune_epochs} is {steps} steps, but "
            f"the whole schedule has {total}: give less, or more --{length}"
        )
    return steps


def _schedule_steps(config, num_labeled, iteration):
    if config.train_steps is not None:
        return config.train_steps
    epochs = config.epochs_of(iteration)
    return max(1, round(epochs * num_labeled / config.batch_size))
