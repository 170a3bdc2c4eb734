# SPDX-License-Identifier: Apache-2.0
"""The settings of a run, checked: what `settings.py` lists, in one object.

Only the files beside this one read it: all modules in folders take plain
arguments.
"""

import dataclasses

from noisy_student import settings
from noisy_student.errors import UserError
from noisy_student.knobs import MODEL
from noisy_student.knobs import check
from noisy_student.knobs import each
from noisy_student.knobs import numbers
from noisy_student.knobs import respelled


# A dataclass takes the fields of its last base first.
@dataclasses.dataclass(frozen=True)
class Config(
    settings.PlanSettings,
    settings.InferenceSettings,
    settings.LabelSettings,
    settings.TrainingSettings,
    settings.NoiseSettings,
    settings.ModelSettings,
    settings.DataSettings,
    settings.RunSettings,
):
    """The settings of a run.

    On the command line a `None` is spelled `auto`, or nothing for a text.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = respelled(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check(field, value)
            self._check_count(field)
        unknown = set(self.student_variants()) - set(settings.VARIANTS)
        if unknown:
            raise UserError(
                f"--students holds {sorted(unknown)[0]!r}, which is none of "
                f"{', '.join(settings.VARIANTS)}"
            )

        if "://" in self.workdir:
            raise UserError(
                f"--workdir={self.workdir} is not on this machine: give a "
                "local folder, and copy it there afterwards"
            )
        self.channel_statistics()
        for name in ("labeled", "unlabeled", "teacher", "finetune"):
            self.noise(name)
        self.formats()
        count, ratios = len(self.student_variants()), self._unlabeled_ratios()
        if len(ratios) not in (1, count):
            raise _wrong_count("unlabeled_ratio", self.unlabeled_ratio, count)
        self._check_schedule()
        ceiling = self.confidence_ceiling
        threshold = max(self.values_of("confidence_threshold"))
        if ceiling is not None and ceiling < threshold:
            raise UserError(
                f"--confidence_ceiling={ceiling} is below "
                f"--confidence_threshold={threshold}, so no image would be "
                "kept: give a higher one"
            )
        if self.student_init_from and self.warm_start:
            raise UserError(
                "--warm_start and --student_init_from both say where students "
                "start: give one of them"
            )
        variants = set(self.student_variants())
        if self.student_init_from and len(variants) > 1:
            raise UserError(
                "--student_init_from needs students of one variant, not "
                f"{', '.join(self.student_variants())}: leave it out, or "
                "change --students"
            )
        for name in ("selection_from", "max_copies", "max_unlabeled"):
            if self.online_teacher and getattr(self, name) is not None:
                raise UserError(
                    f"--{name} selects from stored labels, but "
                    "--online_teacher stores none: leave out one of them"
                )
        if not self.train_teacher and not self.init_from:
            raise UserError(
                "--notrain_teacher needs the teacher's weights: give "
                "--init_from=PATH"
            )

    def _check_schedule(self):
        """Refuse a last learning rate that no decay leads to."""
        if self.final_base_lr is None:
            return
        if self.final_base_lr >= self.base_lr:
            raise UserError(
                f"--final_base_lr={self.final_base_lr} must be below "
                f"--base_lr={self.base_lr}: give a smaller one, or auto"
            )
        if self.lr_decay_factor >= 1:
            raise UserError(
                f"--lr_decay_factor={self.lr_decay_factor} never leads to "
                f"--final_base_lr={self.final_base_lr}: give a factor below "
                "1, such as 0.97"
            )

    def channel_statistics(self):
        """Dict of the `mean` and `std` that are set, as tuples of 3 floats."""
        statistics = {}
        for name, low in (("mean", None), ("std", 0)):
            text = getattr(self, name)
            if text is None:
                continue
            values = numbers(name, text, "124,116,104", 3, low=low, high=256)
            # Images of 0 to 255 whose pixels are all below 2 are black.
            if 0 < max(values) <= 1:
                scaled = ",".join(f"{255 * value:g}" for value in values)
                raise UserError(
                    f"--{name}={text} is of pixels from 0 to 1, and here they "
                    f"go from 0 to 255: give --{name}={scaled}"
                )
            statistics[name] = values
        return statistics

    def noise(self, name):
        """The set of noises on `labeled`, `unlabeled`, ... images."""
        text = getattr(self, f"{name}_noise") or ""
        noise = {part.strip() for part in text.split(",") if part.strip()}
        for unknown in sorted(noise - set(settings.NOISE)):
            raise UserError(
                f"--{name}_noise holds {unknown!r}, which is none of "
                f"{', '.join(settings.NOISE)}; leave it empty for no noise"
            )
        return frozenset(noise)

    def formats(self):
        """The formats to export, in the order of the settings, or None."""
        parts = (self.export_formats or "").split(",")
        names = [name.strip() for name in parts if name.strip()]
        if names == ["auto"] or not names:
            return None
        for unknown in sorted(set(names) - set(settings.EXPORT_FORMATS)):
            raise UserError(
                f"--export_formats holds {unknown!r}, which is none of "
                f"{', '.join(settings.EXPORT_FORMATS)}; or give auto"
            )
        return [name for name in settings.EXPORT_FORMATS if name in names]

    def unlabeled_ratio_of(self, iteration):
        """Pseudo-labeled images per labeled one, for a student from 1 on."""
        ratios = self._unlabeled_ratios()
        return ratios[min(iteration, len(ratios)) - 1]

    def confidence_threshold_of(self, iteration):
        """Confidence that an image needs, for a student from 1 on."""
        values = self.values_of("confidence_threshold")
        return values[min(iteration, len(values)) - 1]

    def randaugment_magnitude_of(self, iteration):
        """M of RandAugment for a model; 0 is the teacher."""
        return self.values_of("randaugment_magnitude")[iteration]

    def epochs_of(self, iteration):
        """Passes over the labeled images for a model; 0 is the teacher."""
        return self.values_of("epochs")[iteration]

    def values_of(self, name):
        """What a setting that may be a list is, for each that it is for."""
        field = type(self).__dataclass_fields__[name]
        values = each(field, getattr(self, name))
        count = max(1, self._count(field))
        return values * count if len(values) == 1 else values

    def _count(self, field):
        """How many a setting is for: students, or all models."""
        is_teachers = field.metadata["per"] == MODEL
        return len(self.student_variants()) + is_teachers

    def _check_count(self, field):
        value = getattr(self, field.name)
        if not field.metadata["per"] or value is None:
            return
        values, count = each(field, value), self._count(field)
        if len(values) == 1:  # a number, however it was given
            object.__setattr__(self, field.name, values[0])
        elif len(values) != count:
            teacher = "the teacher and " * (field.metadata["per"] == MODEL)
            raise _wrong_count(field.name, value, count, teacher)

    def _unlabeled_ratios(self):
        text = str(self.unlabeled_ratio or "")
        return numbers("unlabeled_ratio", text, "3 or 14,14,28")

    def student_variants(self):
        """The variants of the students, as a tuple."""
        names = (self.students or "").split(",")
        return tuple(name.strip() for name in names if name.strip())

    def variant_of(self, iteration):
        """The variant that is trained in an iteration; 0 is the teacher."""
        return (self.variant, *self.student_variants())[iteration]


def _wrong_count(name, value, count, teacher=""):
    """A list that is as long as nothing that it could be for."""
    more = f", or {count}: one for {teacher}each student" if count > 1 else ""
    return UserError(f"--{name}={value} is a list: give one value{more}")
