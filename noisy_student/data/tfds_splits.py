# SPDX-License-Identifier: Apache-2.0
"""What a split's text means: "train[:10%]", "train[10%:]+test".

The language is that of tensorflow-datasets, which reads it here too, also for
data that it has not prepared.
"""

import os

from noisy_student.errors import UserError


def part(name, splits, split):
    """The part of a data set that a text means.

    Args:
        name: of the data set, for messages.
        splits: the `tfds.core.SplitDict` of its splits.
        split: as for `tfds.load`.

    Returns:
        What tensorflow-datasets knows of the part: `num_examples`,
        `file_instructions`.

    Raises:
        UserError: if there is no such split.
    """
    try:
        return splits[split]
    except Exception as error:
        raise UserError(
            f"{name} has no split {split!r}: choose from "
            f"{', '.join(splits)}, or parts and sums of these such as "
            "'train[:10%]+test'"
        ) from error


def instructions(name, splits, split):
    """Which files to read for a part, and which of their records.

    Args:
        name: as in `part`.
        splits: as in `part`.
        split: as in `part`.

    Returns:
        List of objects with `filename`, `skip` and `take`.

    Raises:
        UserError: if there is no such split, or it is empty.
    """
    found = part(name, splits, split).file_instructions
    if not found:
        raise UserError(
            f"the split {split!r} of {name} is empty: choose a larger part"
        )
    return found


def of_sizes(name, shard_sizes):
    """Splits of data that tensorflow-datasets has not prepared.

    Args:
        name: as in `part`.
        shard_sizes: dict from a split's name to the examples in its shards.

    Returns:
        A `tfds.core.SplitDict`.
    """
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir="", dataset_name=name, filetype_suffix="tfrecord"
    )
    return tfds.core.SplitDict(
        tfds.core.SplitInfo(
            name=key,
            shard_lengths=list(sizes),
            num_bytes=0,
            filename_template=template,
        )
        for key, sizes in shard_sizes.items()
    )


def cut(name, shard_sizes, split):
    """Which examples a text means, of data that tfds has not prepared.

    Args:
        name: as in `part`.
        shard_sizes: as in `of_sizes`.
        split: as in `part`.

    Returns:
        List of (name of a split, its shard, examples to skip, to take).

    Raises:
        UserError: if there is no such split, or it is empty.
    """
    splits = of_sizes(name, shard_sizes)
    shards = {
        os.fspath(path): (key, shard)
        for key, info in splits.items()
        for shard, path in enumerate(info.filepaths)
    }
    found = instructions(name, splits, split)
    return [(*shards[i.filename], i.skip, i.take) for i in found]
