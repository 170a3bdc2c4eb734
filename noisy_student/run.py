# SPDX-License-Identifier: Apache-2.0
"""What a run is about to work with: settings, folder, devices, images.

Here `Config` meets the sources of images and the devices. `assembly.py` makes
networks and batches of them.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from fractions import Fraction

import keras
import tensorflow as tf

from noisy_student import prerequisites
from noisy_student.command_line import RUN_FLAGS
from noisy_student.command_line import recorded_settings
from noisy_student.command_line import write_run_flags
from noisy_student.config import Config
from noisy_student.contradictions import check_same
from noisy_student.contradictions import check_same_images
from noisy_student.contradictions import check_selection
from noisy_student.contradictions import made_anything
from noisy_student.data import folder_sources
from noisy_student.data import imagenet_folders
from noisy_student.data import imagenet_source
from noisy_student.data import sources
from noisy_student.data import tfds_source
from noisy_student.data import tfrecord_source
from noisy_student.data.sources import Source
from noisy_student.data.tfrecord_source import FileIndex
from noisy_student.errors import UserError
from noisy_student.models import import_weights
from noisy_student.models.efficientnet import VARIANTS
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.pseudo_labels.store import recorded_sizes
from noisy_student.training import distribution
from noisy_student.workdir import Workdir
from noisy_student.workdir import classes_of

ROLES = {"labeled": "labeled", "unlabeled": "unlabeled", "evaluation": "eval"}

# Which images a mode reads. Without those that it needs it cannot begin.
# Evaluation images that training has recorded before may be gone by now: it
# goes on without them. What is not listed is not opened. `iterate` reads what
# the phases read that are left to do.
NEEDED, WANTED = "needed", "wanted"
READS = {
    "iterate": {"labeled": WANTED, "unlabeled": WANTED, "evaluation": WANTED},
    "teach": {"labeled": NEEDED, "evaluation": WANTED},
    # Evaluation images that are among the unlabeled ones are left out.
    "label": {"unlabeled": NEEDED, "evaluation": WANTED},
    "select": {},
    "distill": {
        "labeled": NEEDED,
        "unlabeled": NEEDED,
        "evaluation": WANTED,
    },
    "finetune": {"labeled": NEEDED, "evaluation": WANTED},
    "evaluate": {"evaluation": NEEDED},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is about to do something: settings, devices, data.

    Attributes:
        config: The `Config`.
        workdir: The `Workdir`.
        strategy: The `tf.distribute.Strategy`.
        labeled: `Source` of labeled images; None if there are none, or the
            mode does not read them.
        unlabeled: `Source` of unlabeled images, likewise.
        evaluation: `Source` of the evaluation images, likewise.
        known_classes: Names of the classes that the models of the run have;
            empty before anything was made.
        index: `FileIndex` of the record files that were opened.
    """

    config: Config
    workdir: Workdir
    strategy: tf.distribute.Strategy
    labeled: Source | None
    unlabeled: Source | None
    evaluation: Source | None
    known_classes: tuple[str, ...] = ()
    index: FileIndex | None = None

    @property
    def class_names(self):
        if self.known_classes:
            return self.known_classes
        source = self.labeled or self.evaluation
        return source.class_names if source else ()

    @property
    def sources(self):
        """Dict of each role in `data.json` to its `Source`, or None."""
        return {role: getattr(self, role) for role in ROLES}

    def reads(self, role):
        """Whether the mode that the run was opened with reads its images."""
        return role in READS[self.config.mode]

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def num_replicas(self):
        return self.strategy.num_replicas_in_sync

    def unlabeled_batch_size(self, iteration):
        """U of a student, from 1 on; the teacher, 0, has none."""
        if not iteration:
            return 0
        # Rounded up, as the official code does; the loss keeps the exact
        # ratio whatever the rounding. In decimals, for 10 times the float 1.1
        # is more than 11.
        ratio = Fraction(str(self.config.unlabeled_ratio_of(iteration)))
        return math.ceil(self.config.batch_size * ratio)

    @property
    def last_iteration(self):
        return len(self.config.student_variants())

    def phases(self):
        """Pairs (phase, iteration) of the whole loop, in order."""
        config = self.config
        phases = [("teach", 0)]
        for k in range(1, self.last_iteration + 1):
            phases += [("label", k)] if not config.online_teacher else []
            phases += [("distill", k)]
            phases += [("finetune", k)] if config.finetune else []
        return phases

    def phases_left(self):
        """Those of them that this command has still to do."""
        mode, done = self.config.mode, self.workdir.is_done
        if mode == "iterate":
            phases = self.phases()
        elif mode == "teach":
            phases = [("teach", 0)]
        elif mode in ("label", "distill"):
            k = prerequisites.choose_iteration(self, None, mode)
            phases = [(mode, k)]
        elif mode == "finetune":
            k = prerequisites.choose_model(self, None, mode)
            phases = [(mode, k)]
        else:
            return [(mode, None)]
        return [
            (phase, k)
            for phase, k in phases
            # Nobody needs the labels of a student that has learned from them.
            if not (done(phase, k) or (phase == "label" and done("distill", k)))
        ]

    def image_size(self, iteration):
        """Pixels that the model of an iteration is trained at."""
        config, variant = self.config, self.config.variant_of(iteration)
        if not iteration and not config.train_teacher:
            # Taken as it is, so as it is evaluated.
            return config.image_size or VARIANTS[variant].image_size
        return training_image_size(config, variant)

    def finetuning_size(self, iteration):
        """Pixels of finetuning: asked for, or those of evaluation."""
        variant = self.config.variant_of(iteration)
        return self.config.image_size or VARIANTS[variant].image_size

    def label_store(self, iteration):
        directory = self.workdir.labels(iteration)
        source = self.unlabeled
        return LabelStore(
            directory,
            # What is labeled can be selected from without the images.
            source.shard_sizes if source else recorded_sizes(directory),
            self.num_classes,
            self.config.label_top_k,
        )

    def begin(self):
        """Record the settings, when a phase has all that it needs."""
        path = self.workdir.path / RUN_FLAGS
        recorded = recorded_settings(self.workdir.path)
        if recorded is not None:
            check_selection(self.workdir.path, Config(**recorded), self.config)
        self.check_same_images()
        self.workdir.path.mkdir(parents=True, exist_ok=True)
        self.workdir.write_data(self._data())
        if self.index:
            self.index.save()
        # The pixels of a finetuning are not those that the run trains at, nor
        # are the images of an evaluation those that training is measured on.
        alone = self.config.mode in ("finetune", "evaluate")
        if not (alone and path.exists()):
            self.workdir.write_flags(write_run_flags(self.config, path))

    def check_same_images(self):
        """Refuse to go on with a run on other images than it began with."""
        known = self.workdir.data()
        if not made_anything(self.workdir.path):
            return
        for role in ("labeled", "evaluation"):
            before, source = known.get(role), getattr(self, role)
            if not (before and source):
                continue
            if before["fingerprint"] == source.fingerprint:
                continue
            changed = (
                f"the {role} images in {source.name} are not those that "
                f"{self.workdir} was made with ({before['num_images']} then, "
                f"{source.num_examples} now)"
            )
            if role == "labeled":
                raise UserError(
                    f"{changed}: bring those back, or use another --workdir"
                )
            print(f"  warning: {changed}, so accuracies do not compare")

    def _data(self):
        """What `Workdir.write_data` records."""
        known = self.workdir.data()
        return {
            "classes": list(self.class_names),
            **{
                role: {
                    "name": source.name,
                    "num_images": source.num_examples,
                    "fingerprint": source.fingerprint,
                }
                if source
                else known.get(role)  # not needed now, and so not opened
                for role, source in self.sources.items()
            },
        }

    def seed(self, purpose, *numbers):
        """A seed of 31 bits, another one for each purpose.

        Args:
            purpose: A name. Numbers alone would meet: the noise of shard 3 and
                the selection of iteration 3.
            *numbers: Integers: of an iteration, of a shard.
        """
        of = json.dumps([self.config.seed, purpose, *map(int, numbers)])
        digest = hashlib.sha256(of.encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


def open_run(config):
    """Find the devices and the data, and check that they fit together.

    Args:
        config: A `Config`; `mode` decides which images are opened (`READS`):
            one of the phases, or `iterate` for all of them.

    Returns:
        A `Run`. Nothing has been written yet.

    Raises:
        UserError: For whatever is missing or does not fit.
    """
    check_settings(config)
    if config.mode not in READS:
        raise UserError(
            f"mode={config.mode!r} opens no run: call "
            "noisy_student.phases.run_mode(config) for it"
        )
    workdir = Workdir(config.workdir)
    recorded = recorded_settings(workdir.path)
    old = None if recorded is None else Config(**recorded)
    if old:
        check_same(workdir.path, old, config)
    strategy = distribution.make_strategy(
        config.distribution, config.cpu_devices
    )
    workdir = Workdir(config.workdir)
    run = Run(
        config=config,
        workdir=workdir,
        strategy=strategy,
        labeled=None,
        unlabeled=None,
        evaluation=None,
        known_classes=workdir.class_names(),
        index=file_index(config),
    )
    for iteration in range(run.last_iteration + 1):
        distribution.check_divisible(
            run.num_replicas,
            config.accumulation_steps,
            given=f"--batch_size={config.batch_size}, --unlabeled_ratio="
            f"{config.unlabeled_ratio}",
            labeled=config.batch_size,
            unlabeled=run.unlabeled_batch_size(iteration),
        )
    distribution.check_divisible(
        run.num_replicas, evaluation=config.eval_batch_size
    )
    run = _open_sources(run)
    if old:
        check_same_images(
            workdir.path, old, config, workdir.data(), run.sources
        )
    prerequisites.check_ahead(run, run.phases_left())
    return run


def _open_sources(run):
    """The run with the images that its mode reads.

    Raises:
        UserError: If those that it needs are not there, or have other classes
            than the models of the run.
    """
    config, known = run.config, run.known_classes
    if config.mode == "evaluate" and config.init_from and not known:
        # Weights of another run have its classes.
        import_weights.check_there(config.init_from)
        known = classes_of(config.init_from)
        run = dataclasses.replace(run, known_classes=known)
    left = run.phases_left()
    # What was done before needs nothing again.
    reads = dict.fromkeys(READS[config.mode], WANTED)
    for phase, _ in left:
        for role, need in READS[phase].items():
            if need == NEEDED:
                reads[role] = NEEDED
    if not known and left:
        # Then they say which classes there are.
        reads["labeled"] = WANTED if config.mode == "evaluate" else NEEDED
    for role, prefix in ROLES.items():
        if role in reads:
            source = _open(run, prefix, role, reads[role])
            run = dataclasses.replace(run, **{role: source})
    if reads.get("labeled") == NEEDED and run.labeled is None:
        raise UserError(
            "there are no labeled images: give --labeled_dir=DIR, "
            "--dataset=NAME or --labeled_tfrecords=GLOB"
        )
    return run


def _open(run, prefix, role, need):
    """A source of a run, its labels numbered as the models number them."""
    try:
        source = _open_source(run.config, prefix, run.class_names, run.index)
        run.index.save()
    except UserError as error:
        # Weights of others need the labeled images for no more than the names
        # of the classes, which the evaluation images have too.
        known = run.workdir.data().get(role) or run.config.mode == "evaluate"
        if need == NEEDED or not known:
            raise
        print(f"  warning: going on without {role} images: {error}")
        return None
    if role == "evaluation" and run.config.mode == "label":
        # Looked for among the unlabeled: no label is read, and no class is
        # wrong. Known ones make it the source that the other phases open.
        with contextlib.suppress(UserError):
            return _fit_classes(source, run.config, prefix, run.class_names)
        return source
    return _fit_classes(source, run.config, prefix, run.class_names)


def check_settings(config):
    """Refuse settings that contradict each other, or that we cannot serve.

    Args:
        config: A `Config`.

    Raises:
        UserError: Naming the flags and the way out.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"the training step is not ready for KERAS_BACKEND="
            f"{keras.backend.backend()} yet: unset it, or use tensorflow"
        )
    for name in ("labeled_dir", "labeled_tfrecords"):
        if config.dataset and getattr(config, name):
            raise UserError(
                f"both --dataset={config.dataset} and --{name} name the "
                "labeled images: leave out one, or take the recipe's away "
                "with --dataset="
            )
    if config.mode not in ("evaluate", "predict", "embed", "export"):
        _check_apart(config)
    for role in ("labeled", "unlabeled", "eval"):
        names = [f"{role}_{kind}" for kind in ("dir", "tfrecords")]
        if all(getattr(config, name) for name in names):
            raise UserError(
                f"both --{names[0]} and --{names[1]} name the {role} images: "
                "leave out one"
            )
    variants = (config.variant, *config.student_variants())
    for variant in variants:
        _check_padding(config, training_image_size(config, variant))
    if config.crop == "padded" and "crop" in config.noise("finetune"):
        for variant in variants:
            size = config.image_size or VARIANTS[variant].image_size
            _check_padding(config, size)
    if config.warm_start and len(set(variants)) > 1:
        raise UserError(
            f"--warm_start needs teacher and students of one variant, not "
            f"{', '.join(variants)}: leave it out, or change --students"
        )


def _check_apart(config):
    """Refuse folders that lie in each other: their images would be in both."""
    for one, other in (
        ("unlabeled_dir", "labeled_dir"),
        ("unlabeled_dir", "eval_dir"),
        ("labeled_dir", "eval_dir"),
    ):
        paths = getattr(config, one), getattr(config, other)
        if not all(paths):
            continue
        real = [os.path.realpath(os.path.expanduser(path)) for path in paths]
        shared = os.path.commonpath(real)
        # Who evaluates on the very images that are learned from is told where
        # images are compared.
        if shared not in real or (one == "labeled_dir" and real[0] == real[1]):
            continue
        how = "is" if real[0] == real[1] else "lies in"
        if how == "lies in" and shared == real[0]:
            one, other, paths = other, one, paths[::-1]
        raise UserError(
            f"--{one}={paths[0]} {how} --{other}={paths[1]}, so its images "
            "would be in both: give folders of which none lies in another"
        )


def _check_padding(config, size):
    if config.crop == "padded" and config.crop_padding >= size:
        raise UserError(
            f"--crop_padding={config.crop_padding} must be smaller than the "
            f"images of {size} pixels"
        )


def training_image_size(config, variant):
    """Pixels that a variant is trained at."""
    defaults = VARIANTS[variant]
    return config.image_size or defaults.train_image_size or defaults.image_size


def file_index(config):
    """What earlier commands have found out about the record files of a run."""
    return FileIndex(Workdir(config.workdir).path / "data_index.json")


def open_source(config, role, class_names=None, index=None):
    """The source of a role: folder, TFRecords, digits or tfds, or None.

    Args:
        config: A `Config`.
        role: `labeled`, `unlabeled` or `eval`.
        class_names: Those of the models that there are. The labels are then
            numbered as they number their classes; evaluation images may lack
            some of these.
        index: Of `file_index`, where several sources are opened.

    Raises:
        UserError: If it is not there or not as it should be, or has a class
            that is none of `class_names`.
    """
    index = index or file_index(config)
    source = _open_source(config, role, class_names, index)
    index.save()
    return _fit_classes(source, config, role, class_names)


def _fit_classes(source, config, role, class_names):
    """A source with the classes of the models that there are, if any.

    Raises:
        UserError: If the labeled images have others, or another number of
            them than `--num_classes`.
    """
    if source is None or role == "unlabeled":
        return source
    count = len(source.class_names)
    if role == "labeled" and config.num_classes not in (None, count):
        raise UserError(
            f"--num_classes={config.num_classes}, but {source.name} has "
            f"{count} classes: leave out the flag, which is for TFRecords"
        )
    if not class_names:
        return source
    if role == "labeled":
        sources.check_all_classes(source, class_names)
    return sources.with_classes(source, class_names)


def _open_source(config, role, class_names, index):
    directory = getattr(config, f"{role}_dir")
    pattern = getattr(config, f"{role}_tfrecords")
    has_labels = role != "unlabeled"
    if directory and has_labels:
        return imagenet_folders.labeled_folder(
            directory, evaluation=role == "eval"
        )
    if directory:
        return folder_sources.image_folder(directory)
    if pattern:
        return tfrecord_source.tfrecords(
            pattern,
            labeled=has_labels,
            num_classes=config.num_classes,
            # The evaluation files need not be scanned for their classes.
            class_names=class_names if role == "eval" else None,
            first_label=config.tfrecord_first_label,
            index=index,
        )
    if config.dataset == "digits":
        split = config.eval_split if role == "eval" else role
        return sources.digits(split, seed=config.seed) if split else None
    split = getattr(config, f"{role}_split")
    if not config.dataset or not split:
        return None
    options = {
        "labeled": has_labels,
        "data_dir": config.data_dir,
        "download": config.download,
    }
    if config.dataset == imagenet_folders.NAME:
        return imagenet_source.imagenet_split(split, index=index, **options)
    return tfds_source.tfds_split(config.dataset, split, **options)
