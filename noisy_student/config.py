# SPDX-License-Identifier: Apache-2.0
"""Every knob of a run, once: default, unit, range, and where it comes from.

The defaults are the paper's ImageNet values, so a recipe in `flags/` lists
only what differs. The flags of the command line are made from these fields
(`command_line.py`), and only `phases.py` and `assembly.py` read them: all
other modules take plain arguments.
"""

# No `from __future__ import annotations`: the flags need the real types.
import dataclasses

from noisy_student.errors import UserError

# Answers of `python main.py --help`, in this order.
MODES = {
    "iterate": "the whole loop: teach, then label and distill per student",
    "teach": "train the teacher on the labeled images",
    "label": "the teacher labels the unlabeled images; filter and balance",
    "select": "filter and balance again, from the stored labels",
    "distill": "train the student on labeled + pseudo-labeled images",
    "evaluate": "top-1 and top-5 of the newest model on the evaluation images",
}

# What models/efficientnet.py builds, known here without TensorFlow.
VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l0", "l1", "l2")


def _knob(default, help, choices=(), low=None, high=None, free=False):
    """A field with its documentation.

    `free` marks what may change between two commands on one workdir, because
    no weight, label or result depends on it.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "free": free,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    On the command line a `None` is spelled `auto`, or nothing for a text.
    """

    # Run
    mode: str = _knob("iterate", "What to do.", MODES, free=True)
    workdir: str = _knob(
        "runs/default", "Folder of the run; a command on it continues the run."
    )
    seed: int = _knob(0, "Seed of everything random.", low=0, high=2**31 - 1)
    iteration: int | None = _knob(
        None,
        "Which student (0: the teacher); auto: the next.",
        low=0,
        free=True,
    )
    distribution: str = _knob(
        "auto",
        "Devices that train.",
        ("auto", "cpu", "gpu", "mirrored", "tpu"),
        free=True,
    )
    cpu_devices: int = _knob(
        1, "Split the CPU, to try mirrored without GPUs.", low=1, free=True
    )
    checkpoint_minutes: float = _knob(
        10.0, "At most this much work is lost by a stop.", low=0, free=True
    )

    # Data
    dataset: str | None = _knob(
        None, "digits, or a name of tensorflow-datasets."
    )
    labeled_split: str = _knob("train", "tfds split with labels.")
    unlabeled_split: str | None = _knob(None, "tfds split, labels ignored.")
    eval_split: str = _knob("test", "tfds split to evaluate on.")
    data_dir: str | None = _knob(
        None, "Where tfds keeps prepared data; empty: its default.", free=True
    )
    download: bool = _knob(
        False, "Let tfds download and prepare the data.", free=True
    )
    labeled_dir: str | None = _knob(None, "Folder with one folder per class.")
    unlabeled_dir: str | None = _knob(None, "Any tree of images.")
    eval_dir: str | None = _knob(None, "Like labeled_dir, to evaluate on.")
    labeled_tfrecords: str | None = _knob(None, "Glob of TFRecord files.")
    unlabeled_tfrecords: str | None = _knob(None, "Glob of TFRecord files.")
    eval_tfrecords: str | None = _knob(None, "Glob of TFRecord files.")
    tfrecord_first_label: int = _knob(
        0, "Label of the first class in TFRecords; 1 on ImageNet.", low=0
    )
    num_classes: int | None = _knob(
        None, "Classes in TFRecords; auto: count them.", low=2
    )
    shuffle_buffer: int = _knob(
        16384, "Images shuffled among each other; below it, all.", low=1
    )

    # Model
    variant: str = _knob("b0", "EfficientNet of the teacher.", VARIANTS)
    students: str = _knob(
        "b0", "Variants of the students, one per iteration: b0,b1."
    )
    image_size: int | None = _knob(
        None, "Pixels; auto: the variant's own.", low=8
    )
    mean: str | None = _knob(
        None, "Of the channels, 0 to 255: R,G,B; empty: ImageNet's."
    )
    std: str | None = _knob(
        None, "Of the channels, 0 to 255: R,G,B; empty: ImageNet's."
    )
    small_images: bool = _knob(
        False, "Stages 2 and 3 at stride 1, for images of about 32 pixels."
    )
    width: float | None = _knob(
        None, "Overrides the variant's width multiplier.", low=0.01
    )
    depth: float | None = _knob(
        None, "Overrides the variant's depth multiplier.", low=0.01
    )
    dropout_rate: float | None = _knob(
        None, "Before the last layer; auto: the variant's.", low=0, high=0.99
    )
    stochastic_depth_rate: float = _knob(
        0.2, "Drop rate of the last block (section 3.1).", low=0, high=0.99
    )
    batch_norm_momentum: float = _knob(
        0.99, "Of the moving statistics.", low=0, high=1
    )

    # Noise of the input
    crop: str = _knob(
        "resized",
        "resized: random-resized crop; padded: pad and crop, small images.",
        ("resized", "padded"),
    )
    crop_padding: int = _knob(4, "Pixels, for --crop=padded.", low=0)
    flip: bool = _knob(True, "Mirror half of the images.")
    randaugment_num_ops: int = _knob(2, "N (section 3.1).", low=0)
    randaugment_magnitude: float = _knob(
        27.0, "M (section 3.1).", low=0, high=30
    )
    cutout_const: int | None = _knob(
        None,
        "Half side of Cutout's hole at M=10, pixels; auto: 40 (less below 224 "
        "pixels), or image_size / 8 with --crop=padded.",
        low=0,
    )
    translate_const: int | None = _knob(
        None,
        "Shift of TranslateX/Y at M=10, pixels; auto: 100 (less below 224 "
        "pixels), or image_size / 8 with --crop=padded.",
        low=0,
    )
    cutout_size: int = _knob(
        0, "Side of a hole cut out of every image, pixels.", low=0
    )

    # Training
    batch_size: int = _knob(
        2048, "Labeled images in a batch, on all devices together.", low=1
    )
    unlabeled_ratio: float = _knob(
        3.0, "Pseudo-labeled images per labeled one in a batch.", low=0.001
    )
    epochs: float = _knob(
        350.0, "Passes over the labeled images (section 3.1).", low=0
    )
    train_steps: int | None = _knob(
        None, "Overrides epochs; auto: from epochs.", low=1
    )
    base_lr: float = _knob(
        0.016, "Learning rate per 256 labeled images in a batch.", low=0
    )
    lr_decay_factor: float = _knob(0.97, "Of each stair.", low=0.01, high=1)
    lr_decay_epochs: float = _knob(2.4, "Length of a stair.", low=0.001)
    final_base_lr: float | None = _knob(
        None, "Sets lr_decay_epochs so that the run ends here.", low=1e-12
    )
    warmup_epochs: float = _knob(5.0, "Linear warm-up.", low=0)
    weight_decay: float = _knob(1e-5, "Strength of the L2 term.", low=0)
    label_smoothing: float = _knob(
        0.1, "On labels and hard pseudo-labels.", low=0, high=0.99
    )
    ema_decay: float = _knob(
        0.9999, "Of the average that predicts.", low=0, high=0.999999
    )

    # Pseudo-labels
    pseudo_label_kind: str = _knob(
        "soft", "The teacher's distribution or top class.", ("soft", "hard")
    )
    temperature: float = _knob(
        1.0, "Softens (> 1) or sharpens soft labels.", low=0.01
    )
    confidence_threshold: float = _knob(
        0.3, "Drop images below it (section 3.2).", low=0, high=1
    )
    images_per_class: int | None = _knob(
        130_000,
        "After balancing (section 3.2); auto: the average of what was kept.",
        low=1,
    )
    balance: bool = _knob(True, "Give each class images_per_class.")

    # Inference
    eval_batch_size: int = _knob(
        256, "Images in a batch of label and evaluate.", low=1, free=True
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        unknown = set(self.student_variants()) - set(VARIANTS)
        if unknown:
            raise UserError(
                f"--students holds {sorted(unknown)[0]!r}, which is none of "
                f"{', '.join(VARIANTS)}"
            )

        for name in ("mean", "std"):
            _numbers(name, getattr(self, name))

    def channel_statistics(self):
        """Dict of the `mean` and `std` that are set, as tuples of 3 floats."""
        values = {name: getattr(self, name) for name in ("mean", "std")}
        return {k: _numbers(k, v) for k, v in values.items() if v is not None}

    def student_variants(self):
        """The variants of the students, as a tuple."""
        names = (self.students or "").split(",")
        return tuple(name.strip() for name in names if name.strip())

    def variant_of(self, iteration):
        """The variant that is trained in an iteration; 0 is the teacher."""
        return (self.variant, *self.student_variants())[iteration]


def _numbers(name, text):
    """Three positive numbers, separated by commas."""
    try:
        numbers = tuple(float(part) for part in (text or "1,1,1").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) <= 0:
        raise UserError(
            f"--{name} must be three positive numbers such as 124,116,104, "
            f"not {text!r}"
        )
    return numbers


def _check(field, value):
    """Refuse what is out of range, naming the flag."""
    low, high = field.metadata["low"], field.metadata["high"]
    choices = field.metadata["choices"]
    if value is None:
        return
    if choices and value not in choices:
        raise UserError(
            f"--{field.name} must be one of {', '.join(choices)}, not {value!r}"
        )
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"--{field.name} must be {bounds}, not {value}")
