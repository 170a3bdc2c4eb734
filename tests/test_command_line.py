# SPDX-License-Identifier: Apache-2.0
"""A command line becomes the Config that it says, or one readable sentence."""

import dataclasses
import subprocess
import sys
import time
import typing

import pytest
from conftest import REPOSITORY

from noisy_student import command_line
from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.run import Run
from noisy_student.settings import VARIANTS


def parse(*arguments):
    return command_line.parse(["main.py", *arguments])


def make_model(workdir):
    """Leave what makes a workdir one that keeps its settings."""
    path = workdir / "iteration_0" / "model.keras"
    path.parent.mkdir()
    path.touch()


def test_no_flag_means_the_digits():
    config = parse()
    assert (config.dataset, config.workdir) == ("digits", "runs/digits")


def test_own_images_start_from_their_own_recipe(tmp_path):
    config = parse("--labeled_dir=x", f"--workdir={tmp_path}")
    recipe = command_line.read_flagfile(
        command_line.RECIPES / "own_images.flags"
    )
    for name, value in recipe.items():
        if name != "workdir":
            assert getattr(config, name) == value, name
    assert config.dataset is None


def test_flags_override_their_flagfile_and_comments_are_skipped(tmp_path):
    recipe = tmp_path / "a.flags"
    recipe.write_text("# about\n--seed=3\n--noflip\n--width=auto\n")
    config = parse(f"--flagfile={recipe}", "--seed=4")
    assert (config.seed, config.flip, config.width) == (4, False, None)
    # What the recipe does not say is the paper's.
    assert config.batch_size == Config().batch_size == 2048


def test_run_flags_read_back_what_was_written(tmp_path):
    config = Config(
        workdir=str(tmp_path),
        labeled_dir="a b/'c'",
        images_per_class=None,
        width=0.35,
        flip=False,
        students="b0,b1",
        weight_decay=1e-5,
    )
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, tmp_path / "run.flags")
    )
    again = parse(f"--flagfile={tmp_path / 'run.flags'}")
    assert again == config


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        ((), "digits"),
        (("--dataset=digits",), "digits"),
        (("--dataset", "digits", "--mode=teach"), "digits"),
        (("--seed=1", "--dataset=digits", "--eval_split="), "digits"),
        (("--dataset=",), "digits"),
        (("--dataset=imagenet2012",), "imagenet_b0"),
        (("--dataset=svhn_cropped", "--download"), "svhn_b0"),
        (("--dataset=cifar10",), "own_images"),
        (("--labeled_dir=x",), "own_images"),
    ],
)
def test_the_data_choose_the_recipe_and_a_line_says_so(
    tmp_path, arguments, recipe
):
    said = []
    config = command_line.parse(
        ["main.py", *arguments, f"--workdir={tmp_path}"], say=said.append
    )
    read = command_line.read_flagfile(command_line.RECIPES / f"{recipe}.flags")
    assert config.batch_size == read.get("batch_size", Config.batch_size)
    assert config.ema_decay == read.get("ema_decay", Config.ema_decay)
    assert len(said) == 1 and f"{recipe}.flags and the command line" in said[0]


def test_the_origin_of_settings_is_said(made):
    said = []

    def origin(*arguments):
        command_line.parse(["main.py", *arguments], say=said.append)
        return said[-1]

    digits = command_line.RECIPES / "digits.flags"
    assert origin(f"--workdir={made}") == (
        f"Settings: {made / 'run.flags'} and the command line"
    )
    assert "the paper's and the command line" in origin(
        "--mode=evaluate", "--init_from=x", "--eval_dir=y", "--workdir=no/such"
    )
    for given in ([f"--flagfile={digits}"], ["--flagfile", str(digits)]):
        assert origin(*given).endswith("digits.flags")


@pytest.mark.parametrize(
    ("setting", "override"),
    [
        ("--epochs=2", "--train_steps=7"),
        ("--lr_decay_epochs=2", "--final_base_lr=1e-3"),
    ],
)
def test_two_settings_of_the_same_thing(tmp_path, setting, override):
    new = f"--workdir={tmp_path / 'new'}"
    for both in ([setting, override], [override, setting]):
        with pytest.raises(UserError, match="same thing: give one"):
            parse(*both, new)
    # The command line wins over a recipe, wherever the recipe is named.
    name = override.split("=")[0].strip("-")
    recipe = tmp_path / "a.flags"
    recipe.write_text(override)
    for order in (
        [f"--flagfile={recipe}", setting],
        [setting, f"--flagfile={recipe}"],
    ):
        assert getattr(parse(*order, new), name) is None
    recipe.write_text(setting)
    for order in (
        [f"--flagfile={recipe}", override],
        [override, f"--flagfile={recipe}"],
    ):
        assert getattr(parse(*order, new), name) is not None
    assert parse(setting, override.split("=")[0] + "=auto", new)


def test_flags_override_a_flagfile_named_after_them(tmp_path):
    recipe = tmp_path / "a.flags"
    recipe.write_text("--seed=3")
    assert parse("--seed=4", "--flagfile", str(recipe)).seed == 4


def test_the_later_of_epochs_and_steps_counts(tmp_path):
    # The recipe of the digits sets steps, which would hide the epochs.
    new = f"--workdir={tmp_path / 'new'}"
    assert parse(new).train_steps == 150
    epochs = parse("--epochs=2", new)
    assert (epochs.epochs, epochs.train_steps) == (2, None)
    digits = f"--flagfile={command_line.RECIPES / 'digits.flags'}"
    assert parse(digits, "--epochs=2", new).train_steps is None
    # What was recorded reads back, whichever it was.
    for config in (epochs, parse("--train_steps=7", new)):
        (tmp_path / "run.flags").write_text(
            command_line.write_run_flags(config, "run.flags")
        )
        again = parse(f"--workdir={tmp_path}")
        assert again.train_steps == config.train_steps


def test_ones_own_unlabeled_images_do_not_meet_the_digits(tmp_path):
    workdir = f"--workdir={tmp_path / 'new'}"
    with pytest.raises(UserError, match="give --labeled_dir"):
        parse("--unlabeled_dir=x", workdir)
    assert parse("--unlabeled_dir=x", "--mode=preview", workdir)
    assert parse("--unlabeled_dir=x", "--labeled_dir=y", workdir)


def test_a_workdir_is_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file is a file: give a folder"):
            parse(f"--workdir={workdir}")
    assert parse(f"--workdir={tmp_path / 'a' / 'b'}")


@pytest.fixture
def made(tmp_path):
    """A workdir that was made with seed 3."""
    config = Config(workdir=str(tmp_path), dataset="digits", seed=3)
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    make_model(tmp_path)
    return tmp_path


def test_a_workdir_brings_its_settings(made):
    assert parse(f"--workdir={made}", "--mode=label").seed == 3


def test_a_flag_that_contradicts_the_workdir_is_named(made):
    with pytest.raises(UserError, match="--seed=3, not --seed=4"):
        parse(f"--workdir={made}", "--seed=4")
    # A folder that was not given has no name.
    with pytest.raises(UserError, match="with no --labeled_dir, not --lab"):
        parse(f"--workdir={made}", "--labeled_dir=x")
    # The precision of a model is part of it.
    with pytest.raises(UserError, match="--dtype=float32, not --dtype=bf"):
        parse(f"--workdir={made}", "--dtype=bfloat16")


@pytest.mark.parametrize(
    ("flag", "way_out"),
    [
        ("--train_steps=999", "--init_from={}/iteration_0/model.keras"),
        ("--epochs=9", "--init_from={}/iteration_0/model.keras"),
        ("--students=b1", "--students=b0,b0"),
    ],
)
def test_more_of_a_finished_run_has_its_way(made, flag, way_out):
    with pytest.raises(UserError) as caught:
        parse(f"--workdir={made}", flag)
    assert way_out.format(made) in str(caught.value)


def test_what_changes_no_result_may_change(made):
    config = parse(
        f"--workdir={made}",
        "--distribution=cpu",
        "--eval_batch_size=7",
        "--students=b0,b1",
    )
    assert (config.eval_batch_size, config.students) == (7, "b0,b1")
    with pytest.raises(UserError, match="students"):
        parse(f"--workdir={made}", "--students=b1")


def test_another_evaluation_set_may_be_evaluated_on(made):
    parse(f"--workdir={made}", "--mode=evaluate", "--eval_dir=x")
    with pytest.raises(UserError, match="eval_dir"):
        parse(f"--workdir={made}", "--eval_dir=x")


def test_a_first_command_that_failed_may_be_mended(made):
    (made / "iteration_0" / "model.keras").unlink()
    assert parse(f"--workdir={made}", "--seed=4").seed == 4


def test_images_may_come_after_the_teacher(tmp_path):
    make_model(tmp_path)
    config = Config(workdir=str(tmp_path), labeled_dir="photos")
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    later = parse(
        f"--workdir={tmp_path}", "--unlabeled_dir=more", "--eval_dir=eval"
    )
    assert (later.unlabeled_dir, later.eval_dir) == ("more", "eval")
    config = Config(**{**vars(config), "unlabeled_dir": "more"})
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    with pytest.raises(UserError, match="--unlabeled_dir=more, not"):
        parse(f"--workdir={tmp_path}", "--unlabeled_dir=others")


def test_a_selection_may_be_made_anew_with_other_settings(made):
    config = parse(
        f"--workdir={made}",
        "--mode=select",
        "--confidence_threshold=0.5",
        "--selection=official_bins",
        "--nobalance",
    )
    assert (config.confidence_threshold, config.balance) == (0.5, False)
    with pytest.raises(UserError, match="--seed"):
        parse(f"--workdir={made}", "--mode=select", "--seed=9")
    # Nothing was selected yet, so nothing depends on it.
    label = [f"--workdir={made}", "--mode=label", "--confidence_threshold=0.5"]
    assert parse(*label).confidence_threshold == 0.5
    (made / "iteration_1" / "labels").mkdir(parents=True)
    (made / "iteration_1" / "labels" / "selection.json").write_text("{}")
    with pytest.raises(UserError, match="threshold=0.5: .*--mode=select it"):
        parse(*label)


def test_another_data_set_may_be_evaluated_on(made):
    other = [f"--workdir={made}", "--dataset=mnist"]
    assert parse(*other, "--mode=evaluate").dataset == "mnist"
    with pytest.raises(UserError, match="--dataset=digits, not"):
        parse(*other, "--mode=distill")


def test_ratios_continue_with_the_students(tmp_path):
    make_model(tmp_path)
    config = Config(
        workdir=str(tmp_path), students="l2,l2", unlabeled_ratio="14,14"
    )
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    more = [f"--workdir={tmp_path}", "--students=l2,l2,l2"]
    assert (
        parse(*more, "--unlabeled_ratio=14,14,28").unlabeled_ratio_of(3) == 28
    )
    with pytest.raises(UserError, match="unlabeled_ratio"):
        parse(*more, "--unlabeled_ratio=14,28,28")


@pytest.mark.parametrize(
    ("name", "values", "count"),
    [
        ("epochs", "3,2,1", 3),
        ("randaugment_magnitude", "0,5,7.5", 3),
        ("confidence_threshold", "0.5,0", 2),
    ],
)
def test_a_value_for_each_model(tmp_path, name, values, count):
    config = parse("--students=b0,b0", f"--{name}={values}")
    expected = tuple(float(value) for value in values.split(","))
    assert config.values_of(name) == expected
    assert getattr(config, f"{name}_of")(2) == expected[-1]
    # Read back, and as many as there are models.
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    again = command_line.read_flagfile(tmp_path / "run.flags")
    assert Config(**again) == config
    with pytest.raises(UserError, match=f"--{name}=.* or {count}: one"):
        parse("--students=b0,b0", f"--{name}={values},1")
    with pytest.raises(UserError, match=f"--{name} must be .*not -1"):
        parse("--students=b0,b0", f"--{name}=-1{values[1:]}")
    with pytest.raises(UserError, match=f"--{name}"):
        parse("--students=b0,b0", f"--{name}=1,,1")
    # One value is a number, for all of them.
    assert parse("--students=b0,b0", f"--{name}=1").values_of(name) == (
        (1.0,) * count
    )


def test_more_students_get_values_of_their_own(tmp_path):
    config = Config(students="b0", epochs="2,1", confidence_threshold=0.5)
    (tmp_path / "iteration_0").mkdir()
    (tmp_path / "iteration_0" / "model.keras").touch()
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    more = (f"--workdir={tmp_path}", "--students=b0,b0")
    assert parse(*more, "--epochs=2,1,3").epochs_of(2) == 3
    with pytest.raises(UserError, match="--epochs=2,1, not --epochs=2,2,3"):
        parse(*more, "--epochs=2,2,3")
    two = parse(*more, "--epochs=2,1,1", "--confidence_threshold=0.5,0.3")
    assert two.confidence_threshold_of(2) == 0.3


def test_weights_are_evaluated_with_the_papers_settings():
    config = parse("--mode=evaluate", "--init_from=x", "--eval_dir=val")
    assert config.image_size is None and config.dataset is None
    assert parse("--eval_dir=val").image_size == 128  # own_images.flags


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--no_such_flag=1", "no_such_flag"),
        ("--epoch=3", "Did you mean: epochs;"),
        ("stray", "stray"),
        ("--seed=many", "seed"),
        ("--seed=-1", "seed"),
        ("--randaugment_magnitude=31", "from 0 to 30"),
        ("--mode=tech", "teach"),
        ("--crop=round", "padded"),
        ("--variant=b9", "b7"),
        ("--students=b0,b9", "b9"),
        ("--flagfile=no/such/file", "no/such/file"),
        ("--flagfile=svhn_b0.flags", "flags/*.flags"),
        ("--image_size=big", "image_size"),
        ("--flip=perhaps", "flip"),
    ],
)
def test_mistakes_are_one_sentence_that_names_them(argument, named):
    with pytest.raises(UserError) as error:
        parse(argument)
    message = str(error.value)
    assert named in message, message
    assert "\n" not in message and len(message) < 400, message


NUMBERS = [
    field
    for field in dataclasses.fields(Config)
    if {int, float} & {field.type, *typing.get_args(field.type)}
]
assert len(NUMBERS) > 40


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_every_number_works_up_to_its_edges_and_not_beyond(tmp_path, field):
    low, high = field.metadata["low"], field.metadata["high"]
    is_float = float in {field.type, *typing.get_args(field.type)}
    new = [f"--workdir={tmp_path}"]
    # Of the same thing, or bound to each other.
    new += [] if field.name == "final_base_lr" else ["--final_base_lr=auto"]
    if field.name == "confidence_ceiling":
        new += ["--confidence_threshold=0"]
    elif field.name == "confidence_threshold":
        new += ["--confidence_ceiling=auto"]
    if field.name in ("final_base_lr", "lr_decay_epochs"):
        new = new[:1]
    for edge in (low, high):
        lies_above = field.name == "final_base_lr" and edge == high
        if edge is not None and not lies_above:
            given = parse(*new, f"--{field.name}={edge}")
            assert getattr(given, field.name) == edge
    wrong = [low - (1e-4 if is_float else 1), 10 * (high or 2**31), "", "x"]
    wrong += ["nan", "inf", "-inf", "1e400"] if is_float else ["1.5", "1e3"]
    for value in wrong:
        with pytest.raises(UserError, match=f"{field.name}.*") as error:
            parse(*new, f"--{field.name}={value}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--confidence_threshold=30"], "such as 0.3 for 30 %, not 30"),
        (["--label_smoothing=10"], "0.99, such as 0.1 for 10 %, not 10"),
        (["--batch_norm_momentum=1"], "must be from 0 to 0.999999, not 1"),
        (["--ema_decay=1"], "--ema_decay must be from 0 to 0.999999, not 1"),
        (["--epochs=0"], "--epochs must be at least 0.001, not 0"),
        (["--batch_size=0"], "--batch_size must be at least 1, not 0"),
        (["--images_per_class=0"], "--images_per_class must be at least 1"),
        (["--unlabeled_ratio=14,14,"], "--unlabeled_ratio must be some numb"),
        (["--unlabeled_ratio=0"], "--unlabeled_ratio .* above 0 .*, not '0'"),
        (["--unlabeled_ratio=inf"], "--unlabeled_ratio .*, not 'inf'"),
        (["--unlabeled_ratio=nan"], "--unlabeled_ratio .*, not 'nan'"),
        (["--mean=0.485,0.456,0.406"], "give --mean=123.675,116.28,103.53"),
        (["--std=0.229,0.224,0.225"], "give --std=58.395,57.12,57.375"),
        (["--mean=0,0,0", "--std=1,1,1"], "give --std=255,255,255"),
        (["--mean=-1,0,0"], "--mean must be 3 numbers from 0 and up to 256"),
        (["--mean=1,2,300"], "--mean must be 3 numbers"),
        (["--std=0,50,50"], "--std must be 3 numbers above 0"),
        (["--std=50,50"], "--std must be 3 numbers"),
        (
            ["--base_lr=0.01", "--final_base_lr=0.5"],
            "--final_base_lr=0.5 must be below --base_lr=0.01",
        ),
        (
            ["--final_base_lr=0.001", "--lr_decay_factor=1"],
            "--lr_decay_factor=1.0 never leads to --final_base_lr=0.001",
        ),
        (
            ["--confidence_threshold=0.5", "--confidence_ceiling=0.3"],
            "--confidence_ceiling=0.3 is below --confidence_threshold=0.5",
        ),
    ],
)
def test_numbers_at_their_edge_are_refused_in_a_sentence(
    tmp_path, arguments, sentence
):
    with pytest.raises(UserError, match=sentence):
        parse(f"--workdir={tmp_path}", *arguments)


def test_numbers_that_look_odd_are_taken(tmp_path):
    config = parse(
        f"--workdir={tmp_path}",
        "--mean=0,0,0",
        "--std=255,255,255",
        "--students=b0,b0,",
        "--export_formats=keras,",
        "--labeled_noise=crop,",
    )
    assert config.channel_statistics() == {
        "mean": (0, 0, 0),
        "std": (255, 255, 255),
    }
    assert config.student_variants() == ("b0", "b0")
    assert config.formats() == ["keras"] and config.noise("labeled") == {"crop"}


@pytest.mark.parametrize(
    ("batch_size", "ratio", "expected"),
    [
        (10, "1.1", 11),
        (100, "0.07", 7),
        (50, "0.58", 29),
        (3, "1.1", 4),
        (2048, "14", 28672),
        (8, "1e-9", 1),
    ],
)
def test_the_ratio_is_of_decimals(tmp_path, batch_size, ratio, expected):
    config = Config(
        workdir=str(tmp_path),
        dataset="digits",
        students="b0",
        batch_size=batch_size,
        unlabeled_ratio=ratio,
    )
    run = Run(config, None, None, None, None, None)
    assert run.unlabeled_batch_size(1) == expected


def test_every_knob_says_what_it_is():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"].endswith("."), field.name


def test_the_variants_are_those_of_the_models():
    assert VARIANTS == tuple(efficientnet.VARIANTS)


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("argument", "code"), [("--help", 0), ("--no_such_flag", 2), ("stray", 2)]
)
def test_help_and_mistakes_do_not_wait_for_tensorflow(argument, code):
    started = time.monotonic()
    result = run_main(argument)
    seconds = time.monotonic() - started
    assert result.returncode == code
    imports = [
        line.split("|")[-1].strip()
        for line in result.stderr.splitlines()
        if line.startswith("import time:")
    ]
    assert imports
    heavy = {"tensorflow", "keras", "numpy", "sklearn"} & set(imports)
    assert not heavy, f"{heavy} imported, {seconds:.1f} s"
    assert "Traceback" not in result.stderr


def test_help_names_every_flag():
    text = run_main("--help").stdout
    for field in dataclasses.fields(Config):
        assert text.count(f"  --{field.name}=") == 1, field.name
