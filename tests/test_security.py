# SPDX-License-Identifier: Apache-2.0
"""Nothing that is read runs code; nothing is written or asked elsewhere."""

import ast
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import REPOSITORY

from noisy_student.errors import UserError
from noisy_student.models import import_weights
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.training.checkpointing import Checkpoints
from noisy_student.workdir import Workdir

FILES = [REPOSITORY / "main.py", *(REPOSITORY / "noisy_student").rglob("*.py")]
# What can turn bytes into code, or talk to another process or machine.
FORBIDDEN = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "cloudpickle",
    "socket",
    "urllib.request",
    "requests",
    "http",
    "ftplib",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_code_is_made_of_data(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = getattr(node, "module", None)
            names = [alias.name for alias in node.names]
            names = [f"{origin}.{name}" for name in names] if origin else names
            parts = [name.split(".") for name in names]
            modules = {
                ".".join(part[:n])
                for part in parts
                for n in range(1, len(part) + 1)
            }
            assert not modules & FORBIDDEN
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen")
        assert not name.endswith(("Lambda", "enable_unsafe_deserialization"))
        assert given.get("safe_mode", "True") == "True"
        assert given.get("shell", "False") == "False"
        if name in ("np.load", "np.save"):
            # NumPy's default for reading.
            unsaid = "False" if name == "np.load" else None
            assert given.get("allow_pickle", unsaid) == "False"


class Bomb:
    """Unpickling one makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bomb(tmp_path):
    """An array that runs code when it is unpickled, and the proof of it."""
    array = np.array([Bomb(tmp_path / "exploded")], object)
    np.save(tmp_path / "proof.npy", array, allow_pickle=True)
    np.load(tmp_path / "proof.npy", allow_pickle=True)
    (tmp_path / "exploded").rmdir()
    yield array
    assert not (tmp_path / "exploded").exists()


def test_pickled_labels_are_refused(tmp_path, bomb):
    store = LabelStore(tmp_path / "labels", [1], 2)
    store.write_probs(0, np.array([[0.5, 0.5]]))
    store.write_copies(np.array([1]), {})
    for path in (store.top_path(0), store.copies_path(0)):
        np.save(path, bomb, allow_pickle=True)
    for read in (store.confidences, store.num_selected):
        with pytest.raises(UserError, match="damaged"):
            read()


def test_pickled_checkpoints_are_refused(tmp_path, bomb, capsys):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    Checkpoints(tmp_path).save(model, 1)
    (path,) = tmp_path.glob("checkpoint-*.npz")
    np.savez(path, sha256=bomb, weights=bomb)
    with pytest.raises(UserError, match="no checkpoint .* is whole"):
        Checkpoints(tmp_path).restore(model)


def test_models_with_code_in_them_are_refused(tmp_path):
    inputs = keras.Input([4, 4, 3])
    exploded = tmp_path / "exploded"
    code = f"lambda x: (x, __import__('os').mkdir({str(exploded)!r}))[0]"
    layer = keras.layers.Lambda(eval(code), output_shape=(4, 4, 3))
    outputs = layer(inputs)
    workdir = Workdir(tmp_path / "run")
    workdir.trained_model(0).parent.mkdir(parents=True)
    network = keras.Model(inputs, outputs)
    network.save(workdir.trained_model(0))
    layer(np.zeros([1, 4, 4, 3], np.float32))
    exploded.rmdir()  # it does what it should not
    with pytest.raises(UserError, match="no model of this project"):
        workdir.load_model(0)
    with pytest.raises(UserError):
        import_weights.load(
            keras.Sequential(
                [keras.Input([2]), keras.layers.Dense(1, name="predictions")]
            ),
            workdir.trained_model(0),
        )
    assert not exploded.exists()


TEACH = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"a connection to {arguments}")
socket.socket.connect = socket.create_connection = refuse
socket.getaddrinfo = refuse
import main
# Whatever is imported is imported as a command does it; then a part will do.
assert main.main(["main.py", *sys.argv[1:], "--mode=plan"]) == 0
from noisy_student.models import efficientnet
efficientnet.STAGES = efficientnet.STAGES[:1]
sys.exit(main.main(["main.py", *sys.argv[1:], "--mode=teach"]))
"""


@pytest.mark.slow
def test_a_run_writes_into_its_workdir_alone_and_calls_nobody(
    tmp_path, tmp_path_factory
):
    for name in ("home", "tmp", "here", "run"):
        (tmp_path / name).mkdir()
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Keras imports matplotlib where it is installed, and that keeps a list
        # of the machine's fonts.
        "MPLCONFIGDIR": str(tmp_path_factory.mktemp("matplotlib")),
    }
    for name in ("KERAS_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            TEACH,
            f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}",
            f"--workdir={tmp_path / 'run'}",
            "--train_steps=2",
        ],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = {
        path.relative_to(tmp_path).parts[0]
        for path in pathlib.Path(tmp_path).rglob("*")
        if path.is_file()
    }
    assert written == {"run"}
