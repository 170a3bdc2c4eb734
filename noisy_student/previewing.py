# SPDX-License-Identifier: Apache-2.0
"""What the noise of a run does to its images, before or after any training."""

import functools

from noisy_student import batches
from noisy_student.data import randaugment
from noisy_student.errors import UserError
from noisy_student.files import write_atomically
from noisy_student.reporting import contact_sheet
from noisy_student.reporting import pictures
from noisy_student.run import ROLES
from noisy_student.run import Run
from noisy_student.run import check_settings
from noisy_student.run import open_source
from noisy_student.workdir import Workdir

ORIGINALS = 4
DRAWS = 8


def preview(config):
    """`--mode=preview`: `preview.png`, needs images and nothing else.

    Args:
        config: A `Config`.

    Raises:
        UserError: If there are no images, or none can be decoded.
    """
    check_settings(config)
    workdir = Workdir(config.workdir)
    source = _first_source(config)
    run = Run(config, workdir, None, source, None, None)
    shown = samples(run)
    if not shown:
        raise UserError(
            f"no image of {source.name} that was tried can be "
            "decoded: give others with --labeled_dir=DIR"
        )
    sheet = contact_sheet.draw(
        shown,
        operations(run),
        title=describe(run),
        magnitude=magnitude(run),
    )
    path = workdir.path / "preview.png"
    # No lock, for it depends on nothing that a run writes.
    write_atomically(path, lambda file: file.write(sheet))
    print(f"Preview: {path}")


def _first_source(config):
    """The first images of a run that are here."""
    errors = []
    for prefix in ROLES.values():
        try:
            source = open_source(config, prefix)
        except UserError as error:
            errors.append(error)
            continue
        if source:
            for error in errors:
                print(f"  warning: {error}; {source.name} is shown instead")
            return source
    why = "".join(f" ({error})" for error in errors[:1])
    raise UserError(
        f"there are no images to preview the noise on{why}: give "
        "--labeled_dir=DIR, --unlabeled_dir=DIR or --dataset=NAME"
    )


# A run makes its report many times, and the noise stays the same.
@functools.lru_cache(maxsize=1)
def samples(run):
    """A few images as they are evaluated, and as a student sees them.

    Args:
        run: The `Run`; of its sources the first that it has is shown.

    Returns:
        Tuple of pairs of uint8 `(S, S, 3)` and a list of such; empty without
        images.
    """
    source = run.labeled or run.unlabeled or run.evaluation
    if source is None:
        return ()
    image_size, noise = _student_view(run)
    see = batches.make_augment(run, image_size, noise=())
    augment = batches.make_augment(
        run, image_size, noise, int(run.last_iteration > 0)
    )
    # Some more than are shown, for there may be some that cannot be decoded.
    images = list(
        pictures.read(source, pictures.spread(source, 3 * ORIGINALS)).values()
    )
    shown = []
    for image in images[1::3] + images[::3] + images[2::3]:
        seed = run.seed("preview", len(shown))
        sample = pictures.noised(image, see, augment, DRAWS, seed)
        if sample is not None:
            shown.append(sample)
        if len(shown) == ORIGINALS:
            break
    return tuple(shown)


@functools.lru_cache(maxsize=1)
def operations(run):
    """Dict of RandAugment's operations -> the first sample after each.

    Args:
        run: The `Run`, with images.
    """
    image = samples(run)[0][0]
    return pictures.operations(
        image,
        magnitude(run),
        run.config.randaugment_ops,
        contrast=run.config.randaugment_contrast,
        **batches.noise_constants(run, image.shape[0]),
    )


def magnitude(run):
    """M of RandAugment, as the images that are shown meet it."""
    return run.config.randaugment_magnitude_of(int(run.last_iteration > 0))


def uses_randaugment(run):
    """Whether the images of a student meet RandAugment at all."""
    _, noise = _student_view(run)
    return "randaugment" in noise and run.config.randaugment_num_ops > 0


def describe(run):
    """The noise of a run in a sentence or two."""
    config = run.config
    image_size, noise = _student_view(run)
    who = "student 1" if run.last_iteration else "the teacher"
    crops = {"resized": "a random crop", "padded": "a random shift"}
    kinds = []
    if "crop" in noise:
        flip = ", mirroring" if config.flip else ""
        kinds.append(crops[config.crop] + flip)
    if uses_randaugment(run):
        number = config.randaugment_num_ops
        total = len(randaugment.OP_SETS[config.randaugment_ops])
        kinds.append(
            f"{number} of RandAugment's {total} operations at magnitude "
            f"{magnitude(run):g}"
        )
    if "randaugment" in noise and config.cutout_size:
        kinds.append(f"a hole of {config.cutout_size} pixels")
    text = f"Images at {image_size} pixels, as {who} sees them: "
    text += (", ".join(kinds) or "no noise at all") + "."
    hidden = [
        name.replace("_", " ")
        for name in ("dropout", "stochastic_depth")
        if name in noise
    ]
    if hidden:
        text += f" Inside the network come {' and '.join(hidden)}."
    return text


def _student_view(run):
    """(pixels, set of noises) of the first student, or of the teacher."""
    if run.last_iteration:
        return run.image_size(1), run.config.noise("unlabeled")
    return run.image_size(0), run.config.noise("labeled")
