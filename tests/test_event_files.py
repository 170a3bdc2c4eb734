# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's files say what metrics.jsonl says, after a kill too."""

import numpy as np
import tensorflow as tf

from noisy_student.reporting import event_files
from noisy_student.training import curves


def points(directory):
    """All events of a folder in TensorBoard's order: dict tag -> points."""
    found = {}
    for path in sorted(directory.glob("*tfevents*")):
        for event in event_files.read(path):
            for value in event.summary.value:
                kept = getattr(value, value.WhichOneof("value"))
                found.setdefault(value.tag, []).append((event.step, kept))
    return found


def test_curves_after_a_kill_are_those_of_the_metrics(tmp_path):
    rows = [{"step": step, "loss": step / 4, "lr": 0.5} for step in range(1, 7)]
    written = event_files.Curves(tmp_path, [])
    for row in rows:
        written.add(row)
    # Killed: the file is not closed. Training goes on at step 4.
    times = event_files._times(tmp_path)
    again = event_files.Curves(tmp_path, rows[:4])
    again.add({"step": 5, "loss": 50.0, "lr": 0.5})
    found = points(tmp_path)
    assert found["loss"] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1), (5, 50)]
    assert [step for step, _ in found["lr"]] == [1, 2, 3, 4, 5]
    # What happened keeps its time.
    now = event_files._times(tmp_path)
    assert {k: now[k] for k in range(1, 5)} == {
        k: times[k] for k in range(1, 5)
    }
    # A third time: one file with something in it, as ever.
    event_files.Curves(tmp_path, rows[:2])
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert len(sizes) == 2 and sizes[0] == 0
    assert points(tmp_path)["loss"] == [(1, 0.25), (2, 0.5)]


def test_a_running_tensorboard_is_told_to_forget(tmp_path):
    # Its loader in Python drops what it knows from that step on when it meets
    # such an event a second time; the other one, in Rust, goes by the steps.
    event_files.Curves(tmp_path, [])
    (path,) = event_files.paths(tmp_path, "curves")
    first, second = event_files.read(path)
    assert first.file_version == "brain.Event:2"
    assert second.session_log.status == tf.compat.v1.SessionLog.START
    # Images and labels stand at step 0 and stay.
    assert second.step == 1
    later = event_files.Curves(tmp_path, [])
    assert str(path) < str(event_files.paths(tmp_path, "curves")[-1])
    later.close()


def test_a_damaged_file_is_written_anew(tmp_path):
    written = event_files.Curves(tmp_path, [])
    written.add({"step": 1, "loss": 2.0})
    written.close()
    (path,) = event_files.paths(tmp_path, "curves")
    path.write_bytes(path.read_bytes()[:-7])
    event_files.Curves(tmp_path, [{"step": 1, "loss": 2.0}]).close()
    assert points(tmp_path)["loss"] == [(1, 2.0)]


def test_files_that_cannot_be_written_cost_a_line_and_nothing_else(
    tmp_path, capsys
):
    (tmp_path / "tensorboard").write_text("in the way")
    written = event_files.Curves(tmp_path / "tensorboard", [])
    written.add({"step": 1, "loss": 2.0})
    written.close()
    assert capsys.readouterr().out.count("warning: ") == 1

    class Full:
        def write(self, record):
            raise tf.errors.ResourceExhaustedError(None, None, "disk is full")

    written = event_files.Curves(tmp_path / "other", [])
    written.writer = Full()
    for step in (1, 2):
        written.add({"step": step, "loss": 2.0})
    assert capsys.readouterr().out.count("disk is full") == 1


def test_a_matrix_is_black_where_all_of_a_row_went(tmp_path):
    counts = np.array([[0, 4], [1, 1]])
    value = event_files.matrix("confusion", counts)
    event_files.write(tmp_path, "evaluation", 7, [value])
    ((step, picture),) = points(tmp_path)["confusion"]
    pixels = tf.io.decode_png(picture.encoded_image_string).numpy()
    assert step == 7 and pixels.shape == (480, 480, 1)
    cells = pixels[::240, ::240, 0]
    assert cells.tolist() == [[255, 0], [128, 128]]
    assert (pixels[:240, 240:] == 0).all()


def test_a_histogram_has_the_counts_between_its_edges(tmp_path):
    counts, edges = np.histogram([0.1, 0.1, 0.9], 4, (0, 1))
    part = event_files.histogram("confidence", counts, edges).histo
    assert list(part.bucket_limit) == [0, 0.25, 0.5, 0.75, 1]
    assert list(part.bucket) == [0, 2, 0, 0, 1] and part.num == 3


def test_there_are_as_many_lines_as_promised(tmp_path):
    class Seen(curves.Watcher):
        steps = []

        def row(self, row):
            self.steps.append(row["step"])

    path = tmp_path / "metrics.jsonl"
    callback = curves.Curves(0, 500, path, Seen())
    assert callback.interval * curves.LINES == 500
    assert curves.begin_curves(path, 0) == [] and path.read_text() == ""
