# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows of a training, in its own files.

    events.out.tfevents.<time>.selection   what became of the teacher's labels
    events.out.tfevents.<time>.images      what the network is shown
    events.out.tfevents.<time>.curves      the lines of metrics.jsonl
    events.out.tfevents.<time>.evaluation  accuracy at the end

There is one of a kind. The curves are written anew when a training goes on
after a kill: `metrics.jsonl` says what has happened, and the file of before may
say more, or end in the middle of something. TensorBoard reads the files of a
folder in the order of their names, and forgets what it knows of steps that a
later file begins with again. `tf.summary` would need TensorBoard to be
installed; its files need not.
"""

import contextlib
import os
import pathlib
import re
import time

import numpy as np
import tensorflow as tf

BUCKETS = 30  # of a histogram; TensorBoard shows as many
MATRIX_SIDE = 480  # pixels, about
FIRST_STEP = 1  # of a curve; at 0 stands what precedes a training


def scalar(tag, value):
    """A number, as part of an event."""
    return tf.compat.v1.Summary.Value(tag=tag, simple_value=value)


def image(tag, png):
    """A picture, as part of an event.

    Args:
        tag: Its title.
        png: The content of a PNG file.
    """
    height, width, channels = tf.io.decode_png(png).shape
    picture = tf.compat.v1.Summary.Image(
        height=height,
        width=width,
        colorspace=channels,
        encoded_image_string=png,
    )
    return tf.compat.v1.Summary.Value(tag=tag, image=picture)


def matrix(tag, counts):
    """Counts in rows and columns as a picture, as part of an event.

    Args:
        tag: Its title.
        counts: `(n, n)`; white is none of a row, black is all of it.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.rint(255 * (1 - shares)).astype(np.uint8)
    cell = max(1, MATRIX_SIDE // len(pixels))
    pixels = pixels.repeat(cell, axis=0).repeat(cell, axis=1)
    return image(tag, tf.io.encode_png(pixels[..., np.newaxis]).numpy())


def histogram(tag, counts, edges):
    """Counts of equal ranges, as part of an event.

    Args:
        tag: Its title.
        counts: `(n,)`, how many values fall into each range.
        edges: float `(n + 1,)`, as `np.histogram` gives them.
    """
    counts, edges = np.asarray(counts, float), np.asarray(edges, float)
    middles = (edges[:-1] + edges[1:]) / 2
    proto = tf.compat.v1.HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * middles).sum(),
        sum_squares=(counts * middles**2).sum(),
        # The first one has no lower end, so an empty one comes before it.
        bucket_limit=edges,
        bucket=[0, *counts],
    )
    return tf.compat.v1.Summary.Value(tag=tag, histo=proto)


def write(directory, kind, step, values):
    """Write what is known at once; it takes the place of its kind.

    Args:
        directory: Of a training.
        kind: `selection`, `images` or `evaluation`.
        step: Steps done.
        values: List of the parts above.
    """
    with _never_failing(directory):
        with _open(directory, kind) as writer:
            writer.write(_event(step, values))
        _drop_older(directory, kind)


class Curves:
    """Curves that grow while a network is trained.

    Args:
        directory: Of the training.
        rows: Lines of `metrics.jsonl` so far, as dicts.
    """

    def __init__(self, directory, rows):
        self.directory = directory
        self.writer = None
        with _never_failing(directory):
            times = _times(directory)
            self.writer = _open(directory, "curves")
            # To a TensorBoard that runs: what you know is not true any more.
            restart = tf.compat.v1.SessionLog(
                status=tf.compat.v1.SessionLog.START
            )
            self.writer.write(
                tf.compat.v1.Event(
                    wall_time=time.time(), step=FIRST_STEP, session_log=restart
                ).SerializeToString()
            )
            for row in rows:
                self._write(row, times.get(row["step"]))
            self.writer.flush()
            _drop_older(directory, "curves")

    def add(self, row):
        """Add a line, a dict of `step` and figures."""
        if self.writer is None:
            return
        written = False
        with _never_failing(self.directory):
            self._write(row)
            self.writer.flush()
            written = True
        if not written:
            self.writer = None

    def close(self):
        if self.writer is not None:
            with _never_failing(self.directory):
                self.writer.close()
            self.writer = None

    def _write(self, row, wall_time=None):
        values = [scalar(k, v) for k, v in row.items() if k != "step"]
        self.writer.write(_event(row["step"], values, wall_time))


def read(path):
    """The events of a file, as far as they are whole.

    Args:
        path: Of the file.

    Yields:
        `tf.compat.v1.Event`.
    """
    with contextlib.suppress(tf.errors.OpError):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield tf.compat.v1.Event.FromString(record)


def paths(directory, kind):
    """Files of a kind, the oldest first."""
    found = pathlib.Path(directory).glob(f"events.out.tfevents.*.{kind}")
    return sorted(path for path in found if re.search(r"\.\d+\.", path.name))


def _open(directory, kind):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"events.out.tfevents.{time.time_ns()}.{kind}"
    writer = tf.io.TFRecordWriter(str(path))
    # What TensorBoard expects first.
    writer.write(
        tf.compat.v1.Event(
            wall_time=time.time(), file_version="brain.Event:2"
        ).SerializeToString()
    )
    return writer


def _event(step, values, wall_time=None):
    return tf.compat.v1.Event(
        wall_time=wall_time or time.time(),
        step=step,
        summary=tf.compat.v1.Summary(value=values),
    ).SerializeToString()


def _times(directory):
    """When each step of the curves was first reported, as far as is known."""
    return {
        event.step: event.wall_time
        for path in paths(directory, "curves")
        for event in read(path)
        if event.HasField("summary")
    }


def _drop_older(directory, kind):
    """Leave the newest alone, beside the one before as an empty file.

    A TensorBoard that is at that one would wait for it for ever if it vanished
    (`--load_fast=false`, and wherever its data server does not run).
    """
    older = paths(directory, kind)[:-1]
    with contextlib.suppress(OSError):  # Windows: somebody reads it
        for path in older[:-1]:
            path.unlink()
        for path in older[-1:]:
            os.truncate(path, 0)


@contextlib.contextmanager
def _never_failing(directory):
    """A curve is not worth a run; what it needs fails by itself."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0][:200]
        print(
            f"  warning: TensorBoard's files in {directory} could not be "
            f"written ({type(error).__name__}: {reason})"
        )
