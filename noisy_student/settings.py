# SPDX-License-Identifier: Apache-2.0
"""Every knob of a run, once: default, unit, range, and where it comes from.

The defaults are the paper's ImageNet values, so a recipe in `flags/` lists
only what differs. `Config` joins the sections; the flags of the command line
are made from these fields (`command_line.py`).
"""

# No `from __future__ import annotations`: the flags need the real types.
import dataclasses

from noisy_student.knobs import MODEL
from noisy_student.knobs import PATH
from noisy_student.knobs import PATTERNS
from noisy_student.knobs import STUDENT
from noisy_student.knobs import knob

# Answers of `python main.py --help`, in this order.
MODES = {
    "iterate": "the whole loop: teach, then label and distill per student",
    "teach": "train the teacher on the labeled images",
    "label": "the teacher labels the unlabeled images; filter and balance",
    "select": "filter and balance again, from the stored labels",
    "distill": "train the student on labeled + pseudo-labeled images",
    "finetune": "FixRes: the newest model, briefly, at a larger --image_size",
    "evaluate": "top-1 and top-5 of the newest model on the evaluation images",
    "report": "report.html, of a run that is done or at work",
    "preview": "preview.png: what the noise does to images, before training",
    "predict": "the newest model's top-5 classes of the images at --input",
    "embed": "its features of the images at --input",
    "export": "the newest model as .keras, SavedModel, ONNX and TFLite",
    "plan": "estimate time, memory and disk space before a run",
}

# What models/efficientnet.py builds, known here without TensorFlow.
VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l0", "l1", "l2")

# What --mode=export writes; outputs/formats.py knows how.
EXPORT_FORMATS = ("keras", "savedmodel", "onnx", "tflite")

# What can disturb an image or the network that sees it. `crop` is the random
# crop and the mirroring; without it an image is prepared as for evaluation.
NOISE = ("crop", "randaugment", "dropout", "stochastic_depth")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What to do, where, and on which devices."""

    mode: str = knob("iterate", "What to do.", MODES, free=True)
    workdir: str = knob(
        "runs/default",
        "Folder of the run; a command on it continues the run.",
        kind=PATH,
    )
    seed: int = knob(0, "Seed of everything random.", low=0, high=2**31 - 1)
    iteration: int | None = knob(
        None,
        "Which student, 0: the teacher; auto: the next to make, or the newest.",
        low=0,
        free=True,
    )
    distribution: str = knob(
        "auto",
        "Devices that train.",
        ("auto", "cpu", "gpu", "mirrored", "tpu"),
        free=True,
    )
    cpu_devices: int = knob(
        1,
        "Split the CPU, to try mirrored without GPUs.",
        low=1,
        high=256,
        free=True,
    )
    checkpoint_minutes: float = knob(
        10.0, "At most this much work is lost by a stop.", low=0, free=True
    )
    force: bool = knob(
        False, "Let a guessing teacher label; replace --output.", free=True
    )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images."""

    dataset: str | None = knob(
        None, "digits, or a name of tensorflow-datasets."
    )
    labeled_split: str = knob("train", "tfds split with labels.")
    unlabeled_split: str | None = knob(None, "tfds split, labels ignored.")
    eval_split: str = knob("test", "tfds split to evaluate on.")
    data_dir: str | None = knob(
        None,
        "Folder of tfds, or of ImageNet; empty: its default.",
        free=True,
        kind=PATH,
    )
    download: bool = knob(
        False, "Let tfds download and prepare the data.", free=True
    )
    labeled_dir: str | None = knob(
        None, "Folder with one folder per class.", kind=PATH
    )
    unlabeled_dir: str | None = knob(None, "Any tree of images.", kind=PATH)
    eval_dir: str | None = knob(
        None, "Like labeled_dir, to evaluate on.", kind=PATH
    )
    labeled_tfrecords: str | None = knob(
        None, "Glob of TFRecord files.", kind=PATTERNS
    )
    unlabeled_tfrecords: str | None = knob(
        None, "Glob of TFRecord files.", kind=PATTERNS
    )
    eval_tfrecords: str | None = knob(
        None, "Glob of TFRecord files.", kind=PATTERNS
    )
    tfrecord_first_label: int = knob(
        0, "Label of the first class in TFRecords; 1 on ImageNet.", low=0
    )
    num_classes: int | None = knob(
        None, "Classes in TFRecords; auto: count them.", low=2
    )
    shuffle_buffer: int = knob(
        16384, "Images shuffled among each other; below it, all.", low=1
    )


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which networks, and where their weights come from."""

    init_from: str | None = knob(
        None,
        "Weights that the teacher starts from: an official checkpoint, a timm "
        ".safetensors, a .keras or .weights.h5.",
        kind=PATH,
    )
    train_teacher: bool = knob(True, "False: take --init_from as it is.")
    warm_start: bool = knob(False, "Students start at their teacher's weights.")
    student_init_from: str | None = knob(
        None,
        "Weights that every student starts from, as --init_from; empty: fresh "
        "ones.",
        kind=PATH,
    )
    variant: str = knob("b0", "EfficientNet of the teacher.", VARIANTS)
    students: str = knob(
        "b0", "Variants of the students, one per iteration: b0,b1."
    )
    image_size: int | None = knob(
        None, "Pixels; auto: the variant's own.", low=8, high=10_000
    )
    mean: str | None = knob(
        None, "Mean of the channels, 0 to 255: R,G,B; empty: ImageNet's."
    )
    std: str | None = knob(
        None, "Deviation of them, 0 to 255: R,G,B; empty: ImageNet's."
    )
    small_images: bool = knob(
        False, "Stages 2 and 3 at stride 1, for images of about 32 pixels."
    )
    width: float | None = knob(
        None, "Overrides the variant's width multiplier.", low=0.01, high=20
    )
    depth: float | None = knob(
        None, "Overrides the variant's depth multiplier.", low=0.01, high=20
    )
    dropout_rate: float | None = knob(
        None, "Before the last layer; auto: the variant's.", low=0, high=0.99
    )
    stochastic_depth_rate: float = knob(
        0.2, "Drop rate of the last block (section 3.1).", low=0, high=0.99
    )
    batch_norm_momentum: float = knob(
        0.99, "Of the moving statistics.", low=0, high=0.999999
    )
    dtype: str = knob(
        "float32",
        "Of the activations; weights and logits are float32 always.",
        ("float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class NoiseSettings:
    """What disturbs the images and the networks."""

    labeled_noise: str | None = knob(
        ",".join(NOISE), "On labeled images, a list of these; empty: none."
    )
    unlabeled_noise: str | None = knob(
        ",".join(NOISE), "On the student's pseudo-labeled images, likewise."
    )
    teacher_noise: str | None = knob(
        None, "While the teacher labels, likewise (section 4.1: none)."
    )
    finetune_noise: str | None = knob(
        "dropout,stochastic_depth", "While --mode=finetune, likewise."
    )
    crop: str = knob(
        "resized",
        "resized: random-resized crop; padded: pad and crop, small images.",
        ("resized", "padded"),
    )
    crop_padding: int = knob(
        4, "Pixels, for --crop=padded.", low=0, high=10_000
    )
    flip: bool = knob(True, "Mirror half of the images.")
    randaugment_num_ops: int = knob(
        2, "Per image, N (section 3.1).", low=0, high=100
    )
    randaugment_magnitude: float | str = knob(
        27.0,
        "Strength of each operation, M (section 3.1); a list such as 6,12 for "
        "the teacher and each student.",
        low=0,
        high=30,
        per=MODEL,
    )
    randaugment_ops: str = knob(
        "official",
        "official: 16 operations; paper: the 14 of its appendix, without "
        "SolarizeAdd and Cutout.",
        ("official", "paper"),
    )
    randaugment_contrast: str = knob(
        "official",
        "official: towards a grey that depends on the image's size alone; "
        "corrected: towards its mean.",
        ("official", "corrected"),
    )
    cutout_const: int | None = knob(
        None,
        "Half side of Cutout's hole at M=10, pixels; auto: 40 (less below 224 "
        "pixels), or image_size / 8 with --crop=padded.",
        low=0,
        high=10_000,
    )
    translate_const: int | None = knob(
        None,
        "Shift of TranslateX/Y at M=10, pixels; auto: 100 (less below 224 "
        "pixels), or image_size / 8 with --crop=padded.",
        low=0,
        high=10_000,
    )
    cutout_size: int = knob(
        0, "Side of a hole cut out of every image, pixels.", low=0, high=10_000
    )


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Batches, schedule, loss and average."""

    batch_size: int = knob(
        2048, "Labeled images in a batch, on all devices together.", low=1
    )
    accumulation_steps: int = knob(
        1,
        "Parts in which a step computes its batch, one after the other, to "
        "need less memory.",
        low=1,
    )
    rematerialize: bool = knob(
        False,
        "Compute what is in a block again for its gradients, to need less "
        "memory.",
        free=True,
    )
    unlabeled_ratio: str = knob(
        "3",
        "Pseudo-labeled images per labeled one in a batch; a list such as "
        "14,14,28 for one student each.",
    )
    unlabeled_weight: str = knob(
        "ratio",
        "Loss of a mixed batch. ratio: labeled mean + unlabeled_ratio x "
        "pseudo-labeled mean (official code); equal: both means (Algorithm 1); "
        "mean: over all images (the paper's text).",
        ("ratio", "equal", "mean"),
    )
    joint_training: bool = knob(
        True,
        "Students learn from both kinds in each batch; false: from "
        "pseudo-labeled ones alone, to be finetuned.",
    )
    epochs: float | str = knob(
        350.0,
        "Passes over the labeled images (section 3.1); a list such as 700,350 "
        "for the teacher and each student.",
        low=0.001,
        per=MODEL,
    )
    train_steps: int | None = knob(
        None, "Instead of --epochs, not beside it.", low=1
    )
    base_lr: float = knob(
        0.016, "Learning rate per 256 labeled images in a batch.", low=0
    )
    lr_decay_factor: float = knob(0.97, "Of each stair.", low=0.01, high=1)
    lr_decay_epochs: float = knob(2.4, "Length of a stair.", low=0.001)
    final_base_lr: float | None = knob(
        None, "At the run's end; it sets lr_decay_epochs.", low=1e-12
    )
    warmup_epochs: float = knob(5.0, "Linear warm-up.", low=0)
    weight_decay: float = knob(1e-5, "Strength of the L2 term.", low=0)
    label_smoothing: float = knob(
        0.1, "On labels and hard pseudo-labels.", low=0, high=0.99
    )
    ema_decay: float = knob(
        0.9999, "Of the average that predicts.", low=0, high=0.999999
    )
    finetune: bool = knob(False, "Let iterate finetune each student.")
    finetune_epochs: float = knob(
        1.5, "The last epochs of the schedule, for finetuning.", low=0.001
    )
    frozen_blocks: int | None = knob(
        None,
        "Blocks that finetuning leaves alone, with the stem; auto: half of "
        "them; -1: not even the stem.",
        low=-1,
    )


@dataclasses.dataclass(frozen=True)
class LabelSettings:
    """What the teacher says, and which of it counts."""

    pseudo_label_kind: str = knob(
        "soft", "The teacher's distribution or top class.", ("soft", "hard")
    )
    temperature: float = knob(
        1.0, "Softens (> 1) or sharpens soft labels.", low=0.01
    )
    label_top_k: int | None = knob(
        None,
        "Classes whose probability is stored with an image, the highest; auto: "
        "all.",
        low=1,
    )
    online_teacher: bool = knob(
        False, "The teacher labels in the student's step, without selection."
    )
    selection: str = knob(
        "exact",
        "exact: the K surest of a class; official_bins: whole bins of 0.01, "
        "thinned by chance.",
        ("exact", "official_bins"),
    )
    selection_from: str | None = knob(
        None,
        "Folder of other labels of the same images: what was selected there is "
        "labeled, nothing else, and that selection is taken.",
        kind=PATH,
    )
    confidence_threshold: float | str = knob(
        0.3,
        "Drop images of less confidence (section 3.1); a list such as 0.5,0.3 "
        "for each student.",
        low=0,
        high=1,
        per=STUDENT,
    )
    confidence_ceiling: float | None = knob(
        None, "Drop images above it; auto: none.", low=0, high=1
    )
    images_per_class: int | None = knob(
        130_000,
        "After balancing (section 3.1); auto: the average of what was kept.",
        low=1,
    )
    balance: bool = knob(True, "Give each class images_per_class.")
    duplicate: bool = knob(True, "Repeat images of a class that has fewer.")
    max_copies: int | None = knob(
        None,
        "Show no image more often in a pass (paper: no limit); auto: none.",
        low=1,
    )
    max_unlabeled: int | None = knob(
        None, "Keep a random part of the selected images; auto: all.", low=1
    )


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How the images are predicted."""

    eval_batch_size: int = knob(
        256, "Images in a batch that is only predicted.", low=1, free=True
    )
    input: str | None = knob(
        None,
        "Images to predict: a file, a folder, a quoted glob.",
        free=True,
        kind=PATH,
    )
    output: str | None = knob(
        None,
        ".csv, .parquet, .npy or folder; empty: in workdir.",
        free=True,
        kind=PATH,
    )
    export_formats: str = knob(
        "auto", "keras,savedmodel,onnx,tflite; auto: what it can.", free=True
    )


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What `--mode=plan` assumes."""

    num_unlabeled: int | None = knob(
        None, "Unlabeled images, if their number is unknown.", low=1, free=True
    )
    plan_device: str = knob(
        "auto", "Device to plan for.", ("auto", "cpu", "gpu", "tpu"), free=True
    )
    plan_devices: int | None = knob(
        None, "Number of devices; auto: as here.", low=1, free=True
    )
    plan_memory_gb: float | None = knob(
        None, "Memory of each device; auto: as here.", low=0.001, free=True
    )
