# SPDX-License-Identifier: Apache-2.0
"""A path is what it leads to, however it is spelled and wherever it went."""

import os
import pathlib
import re
import shutil
import unicodedata

import pytest
from test_assembly import SMALL
from test_assembly import write_tfrecord
from test_end_to_end import save_images

from noisy_student import command_line
from noisy_student import files
from noisy_student.config import Config
from noisy_student.data import folder_sources
from noisy_student.data import tfrecord_source
from noisy_student.errors import UserError
from noisy_student.run import open_run


def parse(*arguments):
    return command_line.parse(["main.py", *arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder and home, with images in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number, name in enumerate(("cats", "dogs")):
        for part in ("labeled", "unlabeled", "eval"):
            folder = tmp_path / "photos" / part / name
            save_images(folder, (200 * number,) * 3, 3, number)
    return tmp_path


def open_at(workdir, labeled="photos/labeled", **settings):
    """A run as Python opens it."""
    config = {
        **SMALL,
        "workdir": str(workdir),
        "labeled_dir": labeled,
        "unlabeled_dir": "photos/unlabeled",
        "eval_dir": "photos/eval",
    }
    return open_run(Config(**{**config, **settings}))


def begin(workdir, **settings):
    run = open_at(workdir, **settings)
    run.begin()
    checkpoint = run.workdir.iteration(0) / "checkpoints" / "checkpoint-1.npz"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    return run


SPELLINGS = (
    "runs/a",
    "runs/a/",
    "./runs/a",
    "runs//a",
    "runs/../runs/a",
    "{here}/runs/a",
    "//{here}/runs/a",
    "link",
    "~/../runs/a",
    "file://{here}/runs/a",
    "runs/./a/.",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_workdir_is_found_however_it_is_spelled(here, spelling):
    (here / "home").mkdir()
    begin("runs/a", seed=3)
    (here / "link").symlink_to("runs/a")
    given = spelling.format(here=str(here))
    assert parse(f"--workdir={given}").seed == 3
    assert open_at(given, seed=3).workdir.path.samefile("runs/a")


def test_a_workdir_is_found_from_inside_and_from_a_home(here, monkeypatch):
    begin("~/runs/x", seed=3)
    assert not pathlib.Path("~").exists()
    monkeypatch.chdir(here / "home" / "runs" / "x")
    config = parse("--workdir=.")
    assert (config.seed, pathlib.Path(config.workdir).name) == (3, "x")
    # Paths were recorded so that they hold from everywhere.
    assert files.absolute(config.labeled_dir) == str(here / "photos/labeled")
    assert open_run(config).labeled.num_examples == 6
    monkeypatch.chdir("iteration_0")
    assert parse("--workdir=..").seed == 3


def test_a_workdir_that_is_not_local_is_refused():
    with pytest.raises(UserError, match="--workdir=gs://b/x is not on this"):
        parse("--workdir=gs://b/x")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("role", ["labeled", "unlabeled", "eval"])
def test_the_same_images_are_taken_however_they_are_spelled(
    here, role, spelling
):
    (here / "home").mkdir()
    (here / "runs").symlink_to("photos")
    begin("w")
    (here / "link").symlink_to(f"photos/{role}")
    given = re.sub("/a(?=/|$)", f"/{role}", spelling).format(here=str(here))
    config = parse("--workdir=w", f"--{role}_dir={given}")
    assert open_run(config).sources


@pytest.mark.parametrize("role", ["labeled", "unlabeled", "eval"])
def test_images_may_move_but_not_become_others(here, role):
    begin("w")
    old, new = here / "photos" / role, here / "a [1], b"
    shutil.copytree(old, new)
    moved = [f"--workdir={here / 'w'}", f"--{role}_dir={new}"]
    open_run(parse(*moved)).begin()
    # From now on they are found there.
    shutil.rmtree(old)
    config = open_run(parse(moved[0])).config
    assert getattr(config, f"{role}_dir") == "a [1], b"
    os.replace(new / "cats" / "a picture 00.jpg", new / "cats" / "another.jpg")
    shutil.copytree(new, here / "elsewhere")
    with pytest.raises(UserError, match=f"with --{role}_dir=.*, not --{role}"):
        open_run(parse(moved[0], f"--{role}_dir=elsewhere"))
    with pytest.raises(UserError, match="photos/none: use another --workdir"):
        parse(moved[0], f"--{role}_dir=photos/none")


# Below the folder that it lay in before, too.
@pytest.mark.parametrize("current", ["home", ".", "moved", "moved/w"])
def test_a_run_that_moved_with_its_images_finds_them(
    here, monkeypatch, current
):
    os.rename("photos", "all, my photos")
    folders = {
        f"{role}_dir": f"all, my photos/{name}"
        for role, name in (("unlabeled", "unlabeled"), ("eval", "eval"))
    }
    begin("w", labeled="all, my photos/labeled", **folders)
    (here / "moved").mkdir()
    for name in ("all, my photos", "w"):
        shutil.move(here / name, here / "moved" / name)
    (here / "home").mkdir()
    monkeypatch.chdir(here / current)
    workdir = os.path.relpath(here / "moved" / "w")
    run = open_run(parse(f"--workdir={workdir}"))
    assert run.labeled.num_examples == run.unlabeled.num_examples == 6
    run.begin()
    flags = (here / "moved" / "w" / "run.flags").read_text()
    assert f"--labeled_dir={here}/moved/all, my photos/labeled\n" in flags


@pytest.mark.parametrize("current", [".", "b, [1]"])
def test_records_that_moved_with_their_run_are_found(
    here, monkeypatch, current
):
    """Commas and brackets in the old name of the folder, and in the new."""
    old, new = here / "a,b [1]", here / "b, [1]"
    old.mkdir()
    for part in ("train-0", "train-1"):
        write_tfrecord(old / part, (0, 200), 0)
    patterns = f"{old}/train-0,{old}/train-[1]"
    workdir = str(old / "w")
    run = open_run(Config(**SMALL, workdir=workdir, labeled_tfrecords=patterns))
    run.begin()
    os.rename(old, new)
    monkeypatch.chdir(here / current)
    moved = open_run(parse(f"--workdir={new}/w"))
    assert moved.labeled.fingerprint == run.labeled.fingerprint
    moved.begin()
    text = (new / "w" / "run.flags").read_text()
    assert f"={new}/train-0,{new}/train-[1]\n" in text


NAMES = (
    "shards [1]",
    "a, b",
    " spaces ",
    "what?",
    "all*",
    "{x}",
    "ü",
    "$HOME",
    "#1",
    "~x",
    "file:",
    "'\"",
)


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_hold_records(here, name):
    folder = here / name
    folder.mkdir()
    for part in ("train-0", "train-1", "val[0]", "more,0"):
        write_tfrecord(folder / part, (0, 200), 0)
    (here / "sha").mkdir()
    write_tfrecord(here / "sha" / "train-9", (0, 200), 0)

    def count(pattern):
        source = tfrecord_source.tfrecords(pattern, labeled=True)
        return source.num_examples

    for where in (f"./{name}", str(folder)):
        assert count(f"{where}/train-*") == 4
        assert count(f"{where}/train-0,{where}/train-1") == 4
        assert count(f"{where}/val[0]") == 2
        assert count(f"{where}/more,0, sha/train-?") == 4
        with pytest.raises(UserError, match="no file matches"):
            count(f"{where}/train-*,{where}/nothing-*")
    # And so they are recorded and read back.
    patterns = f"./{name}/train-*, ./{name}/more,0"
    run = open_run(Config(**SMALL, workdir="w", labeled_tfrecords=patterns))
    run.begin()
    again = open_run(parse("--workdir=w"))
    assert again.labeled.fingerprint == run.labeled.fingerprint
    assert again.labeled.num_examples == 6


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_hold_images(here, name):
    folder = here / name
    shutil.copytree(here / "photos" / "labeled", folder)
    for given in (f"./{name}/", str(folder)):
        run = open_at("w", labeled=given)
        assert run.labeled.num_examples == 6
        run.begin()
        assert open_run(parse("--workdir=w")).labeled.num_examples == 6
        found = folder_sources.images_at(f"{given}/*/*0.jpg")
        assert found.num_examples == 2
    workdir = here / "runs" / name
    begin(workdir, seed=3)
    assert parse(f"--workdir={workdir}/").seed == 3


def test_names_in_either_unicode_form_are_one(here):
    nfc = "Hülsenfrüchte"
    nfd = unicodedata.normalize("NFD", nfc)
    shutil.copytree(here / "photos" / "labeled", here / nfd / "labeled")
    write_tfrecord(here / nfd / "train-0", (0, 200), 0)
    begin(f"runs/{nfd}", labeled=f"{nfc}/labeled", seed=3)
    assert parse(f"--workdir=runs/{nfc}").seed == 3
    assert len(os.listdir("runs")) == 1
    assert files.matching_files(f"{nfc}/train-*")
    assert files.absolute("new/ü") == str(here / "new" / "ü")


@pytest.mark.parametrize("path", ["gs://bucket//x", "s3://a/../b/", "hdfs://~"])
def test_remote_paths_stay_as_they_are(path):
    for name in ("data_dir", "init_from", "unlabeled_tfrecords"):
        config = Config(**{name: path})
        assert getattr(config, name) == path
        text = command_line.write_run_flags(config, "run.flags")
        assert f"--{name}={path}\n" in text


@pytest.mark.parametrize(
    "name",
    ["labeled_dir", "init_from", "selection_from", "data_dir", "input"]
    + ["output", "eval_tfrecords", "workdir"],
)
def test_a_home_is_meant_by_its_sign_in_every_flag(here, name):
    config = Config(**{name: "~/x/"})
    assert getattr(config, name) == str(here / "home" / "x")
    assert getattr(parse(f"--{name}=~/x"), name) == str(here / "home" / "x")


@pytest.mark.parametrize("role", ["labeled", "unlabeled", "eval"])
def test_images_are_named_once(here, role):
    with pytest.raises(UserError, match=f"--{role}_tfrecords name the {role}"):
        open_at("w", **{"labeled": "photos/labeled", f"{role}_tfrecords": "x"})


def test_a_flagfile_may_lie_at_home(here):
    (here / "home").mkdir()
    (here / "home" / "my recipe.flags").write_text("--seed=7\n")
    assert parse("--flagfile=~/my recipe.flags").seed == 7


def test_weights_are_known_by_what_they_are(here):
    (here / "a.keras").write_bytes(b"weights")
    begin("w", init_from="a.keras")
    shutil.copy("a.keras", "b.keras")
    for path in ("./a.keras", "b.keras"):
        parse("--workdir=w", f"--init_from={path}")
    (here / "b.keras").write_bytes(b"others!")
    with pytest.raises(UserError, match="--init_from=a.keras, not --init_from"):
        parse("--workdir=w", "--init_from=b.keras")


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"caf\xe9")])
def test_a_path_that_no_file_of_settings_can_hold(name):
    with pytest.raises(UserError, match="--labeled_dir=.*: rename it") as found:
        Config(labeled_dir=name)
    str(found.value).encode()
