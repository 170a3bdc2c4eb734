# SPDX-License-Identifier: Apache-2.0
"""Recipes and documented commands are code: every one of them parses."""

import dataclasses
import re
import shlex

import pytest
from conftest import REPOSITORY

from noisy_student import command_line
from noisy_student.models import accounting
from noisy_student.models.efficientnet import VARIANTS

RECIPES = sorted((REPOSITORY / "flags").glob("*.flags"))
PAGES = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").rglob("*.md"),
    *RECIPES,
]
COMMANDS = [
    (page.name, command)
    for page in sorted(PAGES)
    for command in re.findall(
        r"python main\.py[^\n`#|]*(?:\\\n[^\n`#|]*)*", page.read_text()
    )
]
STUDIES = [command for page, command in COMMANDS if page == "recipes.md"]
IMAGENET, SVHN = "imagenet2012", "svhn_cropped"
IMAGES = {IMAGENET: (1_281_167, 1000), SVHN: (69_257, 10)}


@dataclasses.dataclass(frozen=True)
class Paper:
    """What the paper and the official scripts say of a recipe.

    Attributes:
        magnitude: M of RandAugment, 2 operations; None without RandAugment.
        ratios: Pseudo-labeled images per labeled one, for each student.
        schedule: Epochs and epochs in a stair, or the number of steps.
        pixels: Of each variant, the teacher's first, in training; then in
            finetuning, if the students are finetuned.
        variants: The teacher, then the students.
        top1: Figures of the models, in percent.
        dataset: What it is trained on.
    """

    magnitude: float | None
    ratios: tuple
    schedule: tuple
    variants: tuple
    pixels: tuple
    top1: tuple
    dataset: str = IMAGENET


LONG, SHORT = (700, 4.8), (350, 2.4)
PAPER = {
    "imagenet_b0": Paper(
        None, (1,), LONG, ("b0", "b0"), (224, 224), (77.3, 78.1)
    ),
    "imagenet_b1": Paper(
        None, (3,), LONG, ("b1", "b1"), (240, 240), (79.2, 80.2)
    ),
    "imagenet_b2": Paper(6, (3,), LONG, ("b2", "b2"), (260, 260), (80.0, 81.1)),
    "imagenet_b3": Paper(
        12, (3,), LONG, ("b3", "b3"), (300, 300), (81.7, 82.5)
    ),
    "imagenet_b4": Paper(
        15, (3,), LONG, ("b4", "b4"), (380, 380), (83.2, 84.4)
    ),
    "imagenet_b5": Paper(
        18, (3,), SHORT, ("b5", "b5"), (456, 456), (84.0, 85.0)
    ),
    "imagenet_b6": Paper(
        24, (3,), SHORT, ("b6", "b6"), (528, 528), (84.5, 85.6)
    ),
    "imagenet_b7": Paper(
        27, (3,), SHORT, ("b7", "b7"), (600, 600), (85.0, 85.9)
    ),
    "imagenet_l2": Paper(
        27,
        (14, 14, 28),
        SHORT,
        ("b7", "l2", "l2", "l2"),
        (600, 475, 475, 475, 800, 800, 800),
        (87.6, 88.1, 88.4),
    ),
    "imagenet_l2_v1": Paper(
        27,
        (3, 3, 3, 3),
        SHORT,
        ("b7", "l0", "l1", "l2", "l2"),
        (600, 380, 380, 475, 475, 600, 600, 800, 800),
        (87.4,),
    ),
    "svhn_b0": Paper(
        5, (5,), (109_474,), ("b0", "b0"), (32, 32), (97.9, 98.6), SVHN
    ),
    "svhn_b0_online": Paper(
        5, (5,), (109_474,), ("b0", "b0"), (32, 32), (97.9, 98.6), SVHN
    ),
}


@pytest.fixture
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_parse_and_say_how_to_run_them(path, in_repository, tmp_path):
    config = command_line.parse(
        ["main.py", f"--flagfile={path}", f"--workdir={tmp_path}"]
    )
    assert config.student_variants()
    comment = comment_of(path)
    for part in ("# Run: python main.py", "Expect:", "Cost:"):
        assert part in comment, f"{path.name} lacks {part!r}"
    # A recipe that repeats a default says nothing.
    default = command_line.Config()
    for name, value in command_line.read_flagfile(path).items():
        repeats = value == getattr(default, name)
        assert not repeats or name in KEPT_FOR_CLARITY, f"{name}={value}"


def comment_of(path):
    return "\n".join(
        line for line in path.read_text().splitlines() if line.startswith("#")
    )


# The figures that a reader compares with the paper's tables stay visible.
KEPT_FOR_CLARITY = {
    "variant",
    "students",
    "unlabeled_ratio",
    "randaugment_num_ops",
    "randaugment_magnitude",
    "labeled_split",
    "eval_split",
    "epochs",
    "lr_decay_epochs",
    "crop_padding",
    "base_lr",
}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_are_what_the_paper_says(name):
    paper = PAPER[name]
    path = REPOSITORY / "flags" / f"{name}.flags"
    config = command_line.Config(**command_line.read_flagfile(path))
    iterations = range(len(config.student_variants()) + 1)
    variants = [config.variant_of(k) for k in iterations]
    used = [VARIANTS[variant] for variant in variants]
    pixels = [
        config.image_size or v.train_image_size or v.image_size for v in used
    ]
    if config.finetune:
        pixels += [config.image_size or v.image_size for v in used[1:]]
    magnitude = config.randaugment_magnitude
    assert paper == Paper(
        magnitude=magnitude if config.randaugment_num_ops else None,
        ratios=tuple(config.unlabeled_ratio_of(k) for k in iterations[1:]),
        schedule=(config.train_steps,)
        if config.train_steps
        else (config.epochs, config.lr_decay_epochs),
        variants=tuple(variants),
        pixels=tuple(pixels),
        top1=paper.top1,
        dataset=config.dataset,
    )
    assert config.randaugment_num_ops in (0, 2)
    # The same for all: section 3.1, and the official flags.
    svhn = config.dataset == SVHN
    assert config.batch_size == (128 if svhn else 2048)
    assert config.base_lr == 0.016
    assert config.final_base_lr == (0.0002 if svhn else None)
    assert config.weight_decay == (1e-4 if svhn else 1e-5)
    assert config.images_per_class == (53_113 if name == "svhn_b0" else 130_000)
    assert config.num_unlabeled == (None if svhn else 300_000_000)
    assert config.pseudo_label_kind == "soft"
    assert config.workdir == f"runs/{name}"


@pytest.mark.parametrize("name", PAPER)
def test_headers_say_what_to_expect_and_what_it_costs(name):
    path = REPOSITORY / "flags" / f"{name}.flags"
    config = command_line.Config(**command_line.read_flagfile(path))
    comment = comment_of(path)
    expect, cost = comment.split("Expect:")[1].split("Cost:")
    figures = re.findall(r"\b\d\d\.\d\b", expect)
    assert tuple(float(figure) for figure in figures) == PAPER[name].top1
    total = multiply_adds(config)
    assert f"{total:.1e}".replace("e+", "e") in cost
    value, unit = re.search(r"([\d.]+) (\w+) at 1e13 a\s", cost).groups()
    seconds = {"minutes": 60, "days": 86400, "years": 365 * 86400}[unit]
    assert float(value) == pytest.approx(total / 1e13 / seconds, rel=0.02)


def multiply_adds(config):
    """Of a whole recipe: 3 x forward to train on an image, 1 x to label it.

    Finetuning is left out, less than 1 % of it.
    """
    num_labeled, num_classes = IMAGES[config.dataset]
    num_unlabeled = config.num_unlabeled or 531_131  # SVHN's extra

    def forward(iteration, labels):
        """Of one image, in training or as a teacher."""
        variant = VARIANTS[config.variant_of(iteration)]
        finetuned = labels and iteration and config.finetune
        trained_at = variant.train_image_size or variant.image_size
        return accounting.costs(
            config.variant_of(iteration),
            num_classes,
            image_size=config.image_size
            or (variant.image_size if finetuned else trained_at),
            small_images=config.small_images,
        ).multiply_adds

    shown = config.epochs * num_labeled  # labeled images, by each model
    if config.train_steps:
        shown = config.train_steps * config.batch_size
    total = 0
    if config.train_teacher:
        total += 3 * forward(0, labels=False) * shown
    for iteration in range(1, len(config.student_variants()) + 1):
        ratio = config.unlabeled_ratio_of(iteration)
        labeled = shown * ratio if config.online_teacher else num_unlabeled
        total += forward(iteration - 1, labels=True) * labeled
        total += 3 * forward(iteration, labels=False) * shown * (1 + ratio)
    return total


@pytest.mark.parametrize(
    ("page", "command"),
    COMMANDS,
    ids=[f"{page}-{number}" for number, (page, _) in enumerate(COMMANDS)],
)
def test_documented_commands_parse(page, command, in_repository):
    words = shlex.split(command.replace("\\\n", " "))[1:]
    # `&& ...` and prose after the command are not part of it.
    ends = [i for i, word in enumerate(words) if word in ("&&", "|", ">")]
    words = words[: ends[0]] if ends else words
    words = [word for word in words if word not in ("...", "[--flag=value")]
    if any(word in command_line.HELP_FLAGS for word in words):
        with pytest.raises(command_line.HelpRequested):
            command_line.parse(words)
    else:
        command_line.parse(words)


@pytest.fixture
def studies(in_repository):
    """The commands of docs/recipes.md, as pairs of words and `Config`."""
    words = [shlex.split(command) for command in STUDIES]
    return [(line, command_line.parse(line[1:])) for line in words]


def test_every_study_is_another_run(studies):
    seen = {}
    for words, config in studies:
        assert words[2].startswith("--flagfile=flags/"), words
        settings = dataclasses.replace(config, workdir="")
        assert settings not in seen, f"{words} repeats {seen[settings]}"
        seen[settings] = words
    for name in PAPER:
        assert any(f"flags/{name}.flags" in words[2] for words, _ in studies)


def test_every_study_has_a_row_and_every_row_a_study(studies):
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    rows = "\n".join(
        line for line in page.splitlines() if line.startswith("| ")
    )
    # `unl_aug` is a flag of the official code.
    named = set(re.findall(r"`([a-z][a-z0-9_]+)`", rows)) - {"unl_aug"}
    assert named == {config.workdir.split("/")[-1] for _, config in studies}


def test_teachers_of_the_studies_are_models_of_others(studies):
    runs = {config.workdir: config for _, config in studies}
    num_teachers = 0
    for words, config in studies:
        # A teacher from elsewhere is taken as it is.
        assert config.train_teacher == (config.init_from is None), words
        path = config.init_from or ""
        if not path.startswith("runs/"):
            continue
        workdir, iteration, kind = re.fullmatch(
            r"(runs/\w+)/iteration_(\d)/(model|finetuned)\.keras", path
        ).groups()
        made_by, iteration = runs[workdir], int(iteration)
        assert made_by.variant_of(iteration) == config.variant, words
        if kind == "finetuned":
            assert made_by.finetune and iteration
        num_teachers += 1
    assert num_teachers > 50


def test_the_readme_was_read():
    assert any(page == "README.md" for page, _ in COMMANDS)
    assert len(RECIPES) >= 14
    assert len(STUDIES) >= 80
