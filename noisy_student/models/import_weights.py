# SPDX-License-Identifier: Apache-2.0
"""Weights of others into our EfficientNets, all of them or none.

Reads TensorFlow 1 checkpoints of the official code, timm's `.safetensors`,
and our own `.weights.h5` and `.keras`. The whole file is compared and read
before anything is assigned, so a load that fails leaves the model as it was.
What it does not do: fetch or convert files; docs/weights.md says how to.
"""

import collections
import contextlib
import dataclasses
import io
import pathlib
import re
import zipfile

import numpy as np

from noisy_student.errors import UserError
from noisy_student.files import is_damage
from noisy_student.models import efficientnet

EMA = "/ExponentialMovingAverage"
OPTIMIZER_SLOT = re.compile(r"/(RMSProp|RMSProp_1|Momentum)$")
HEAD = ("predictions/kernel", "predictions/bias")

# Layer: scope in the official code, prefix in timm. Both number the layers of
# a kind within a block, so without an expansion the numbers are one lower.
_BN = "tpu_batch_normalization"
_ENDS = {
    "stem_conv": ("stem/conv2d", "conv_stem"),
    "stem_bn": (f"stem/{_BN}", "bn1"),
    "top_conv": ("head/conv2d", "conv_head"),
    "top_bn": (f"head/{_BN}", "bn2"),
    "predictions": ("head/dense", "classifier"),
}
_EXPANDED_BLOCK = {
    "expand_conv": ("conv2d", "conv_pw"),
    "expand_bn": (_BN, "bn1"),
    "dwconv": ("depthwise_conv2d", "conv_dw"),
    "bn": (f"{_BN}_1", "bn2"),
    "se_reduce": ("se/conv2d", "se.conv_reduce"),
    "se_expand": ("se/conv2d_1", "se.conv_expand"),
    "project_conv": ("conv2d_1", "conv_pwl"),
    "project_bn": (f"{_BN}_2", "bn3"),
}
_PLAIN_BLOCK = _EXPANDED_BLOCK | {
    "bn": (_BN, "bn1"),
    "project_conv": ("conv2d", "conv_pw"),
    "project_bn": (f"{_BN}_1", "bn2"),
}
# Variable: name in timm; in the order in which Keras stores them.
_VARIABLES = {"kernel": "weight", "bias": "bias"}
_BN_VARIABLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class WeightsError(UserError, ValueError):
    """A file whose weights cannot be taken, told in one sentence."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load` did.

    Attributes:
        kind: What the file is, in words.
        num_tensors: Weights that were set.
        head_replaced: Whether `predictions` kept the model's own weights.
    """

    kind: str
    num_tensors: int
    head_replaced: bool


# An open file: shapes by the names in it, a function from such a name to its
# array, one from our `layer/variable` to such a name; axes in Keras's order.
_Source = collections.namedtuple("_Source", "kind shapes read name_of")


def load(model, path, *, replace_head=False):
    """Set every weight of a model from a file.

    Args:
        model: `keras.Model` of `efficientnet.build_model`, whatever variant,
            classes and image size, with or without its top.
        path: A TensorFlow 1 checkpoint (prefix, one of its files, or their
            folder), a timm `.safetensors`, a `.weights.h5` or a `.keras`.
        replace_head: Whether `predictions` may keep the model's own weights
            if the file has another number of classes, or none.

    Returns:
        `Loaded`; float16 and bfloat16 in the file are cast to float32.

    Raises:
        WeightsError: If the file is missing, damaged or of no known kind, or
            does not hold exactly the model's tensors.

    Reference: noisystudent/utils.py, `get_assignment_map_from_checkpoint`,
    takes averages only; we take raw weights where there is no average at all.
    """
    path = pathlib.Path(path).expanduser()
    weights = {f"{x.name}/{w.name}": w for x in model.layers for w in x.weights}
    with contextlib.ExitStack() as stack:
        source = _open(path, foreign_names({*weights, *HEAD}), stack)
        matches = _match(path, source, weights, replace_head)
        arrays = {n: np.asarray(source.read(n), "float32") for n in matches}
    for name, array in arrays.items():
        matches[name].assign(array)
    return Loaded(source.kind, len(arrays), len(arrays) < len(weights))


def check_there(path):
    """Refuse a path where there is nothing that `load` could read.

    Raises:
        WeightsError: As `load`.
    """
    path = pathlib.Path(path).expanduser()
    if not (_checkpoint_prefix(path) or path.exists()):
        raise _missing(path)


def _missing(path):
    # `Path` makes one slash of two.
    if re.match(r"[a-z0-9]+:/", str(path)):
        return WeightsError(
            f"{path} is on another machine: download it, and give the file "
            "(docs/weights.md)"
        )
    return WeightsError(
        f"{path} does not exist, nor does {path}.index of a checkpoint: give "
        "a file or checkpoint that does, see docs/weights.md"
    )


def foreign_names(keys):
    """What the tensors of a model are called elsewhere.

    Args:
        keys: All `layer/variable` of a model, in our names.

    Returns:
        Dict from each key to its name in the official code, without the scope
        of the network, and its name in timm.

    Reference: noisystudent/efficientnet_model.py; timm's EfficientNet files.
    """
    # The official index runs over all blocks: block1a, block2a, block2b, ...
    blocks = sorted({k.split("_")[0] for k in keys if k.startswith("block")})
    names = {}
    for key in keys:
        layer, variable = key.split("/")
        block, _, part = layer.partition("_")
        if block in blocks:
            expands = f"{block}_expand_conv/kernel" in keys
            parts = _EXPANDED_BLOCK if expands else _PLAIN_BLOCK
            official, timm = parts[part]
            official = f"blocks_{blocks.index(block)}/{official}"
            stage, repeat = int(block[5]) - 1, ord(block[6]) - ord("a")
            timm = f"blocks.{stage}.{repeat}.{timm}"
        else:
            official, timm = _ENDS[layer]
        timm = f"{timm}.{(_VARIABLES | _BN_VARIABLES)[variable]}"
        prefix = "depthwise_" if part == "dwconv" else ""
        names[key] = (f"{official}/{prefix}{variable}", timm)
    return names


def _open(path, names, stack):
    """Find out what a file is, and open it until the stack is left."""
    if prefix := _checkpoint_prefix(path):
        return _open_official(prefix, names, stack)
    name = path.name.lower()
    if not path.exists():
        raise _missing(path)
    if name.endswith(".safetensors"):
        return _open_timm(path, names, stack)
    elif name.endswith((".h5", ".keras")):
        return _open_keras(path, stack)
    elif name.endswith((".pth", ".pt", ".bin", ".pth.tar")):
        problem = "is a PyTorch file: save it as .safetensors (docs/weights.md)"
    elif re.search(r"\.(tar|tgz|txz|zip)(\.\w+)?$", name):
        problem = "is an archive: unpack it first, with tar -xf"
    else:
        problem = (
            "is no checkpoint, .safetensors, .weights.h5 or .keras: give one "
            "of these (docs/weights.md)"
        )
    raise WeightsError(f"{path} {problem}")


@contextlib.contextmanager
def _reading(path, what, *errors):
    """Say what a library's errors mean while a file is open."""
    try:
        yield
    except errors as error:
        if isinstance(error, UserError):
            raise
        detail = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, OSError) and not is_damage(error):
            raise WeightsError(
                f"{path} cannot be read ({detail}): make it readable, or give "
                "another file"
            ) from error
        raise WeightsError(
            f"{path} is not a whole {what} ({detail}): download or copy it "
            "again"
        ) from error


def _checkpoint_prefix(path):
    """What the files of a checkpoint begin with, or None if it is none."""
    if path.is_dir():
        found = {file.stem for file in path.glob("*.index")}
        chooser = path / "checkpoint"
        if len(found) > 1 and chooser.exists():
            # It may name the folder in which the checkpoint was written.
            line = r'^model_checkpoint_path: "(?:.*/)?(.*)"'
            found &= set(re.findall(line, chooser.read_text(), re.MULTILINE))
        if len(found) == 1:
            return path / found.pop()
        raise WeightsError(
            f"the folder {path} has no *.index, or several and no file named "
            "checkpoint that chooses: give the file of weights itself, such as "
            "a run's iteration_1/model.keras"
        )
    match = re.fullmatch(r"(.+)\.(index|meta|data-\d+-of-\d+)", path.name)
    if match and path.exists():
        return path.with_name(match[1])
    return path if path.with_name(f"{path.name}.index").exists() else None


def _open_official(prefix, names, stack):
    import tensorflow as tf

    # A data file that ends too early is an IndexError.
    errors = (tf.errors.OpError, IndexError)
    stack.enter_context(_reading(prefix, "TensorFlow checkpoint", *errors))
    reader = tf.train.load_checkpoint(str(prefix))
    shapes = reader.get_variable_to_shape_map()
    shapes = {name: tuple(shape) for name, shape in shapes.items()}
    # Slots, raw twins of averages, and the on-line teacher have no use here.
    for name in list(shapes):
        base = OPTIMIZER_SLOT.sub("", name)
        is_slot = base != name and base in shapes
        is_other = name.startswith("teacher_model/") or name == "global_step"
        if is_slot or is_other or base + EMA in shapes:
            del shapes[name]
    suffix = EMA if any(name.endswith(EMA) for name in shapes) else ""
    kind = "moving averages" if suffix else "raw weights"
    stem = f"stem/conv2d/kernel{suffix}"
    stems = (name for name in shapes if name.endswith(stem))
    scope = min(stems, default=stem).removesuffix(stem)
    # TensorFlow's own BatchNormalization has no prefix.
    bn = _BN if any(_BN in name for name in shapes) else _BN[len("tpu_") :]
    return _Source(
        f"TensorFlow 1 checkpoint, {kind}",
        shapes,
        reader.get_tensor,
        lambda key: scope + names[key][0].replace(_BN, bn) + suffix,
    )


def _open_timm(path, names, stack):
    import ml_dtypes  # noqa: F401, numpy learns bfloat16 from it
    import safetensors

    errors = (safetensors.SafetensorError, OSError)
    stack.enter_context(_reading(path, ".safetensors", *errors))
    file = stack.enter_context(safetensors.safe_open(path, framework="np"))
    axes, shapes = {}, {}
    for name in file.keys():
        shape = file.get_slice(name).get_shape()
        # To HWIO from OIHW; a depthwise kernel has its channels in O.
        kernel = (2, 3, 0, 1) if "conv_dw" in name else (2, 3, 1, 0)
        axes[name] = kernel if len(shape) == 4 else range(len(shape))[::-1]
        if not name.endswith("num_batches_tracked"):
            shapes[name] = tuple(shape[axis] for axis in axes[name])
    return _Source(
        "timm safetensors",
        shapes,
        lambda name: file.get_tensor(name).transpose(axes[name]),
        lambda key: names[key][1],
    )


def _open_keras(path, stack):
    import h5py

    # Keras 3.10 to 3.15 writes layers/<class>_<n>/vars/<i>, with the layer's
    # name as an attribute of vars; a .keras is a zip with such a file in it.
    # The state of noise is outside of vars, the optimizer outside of layers.
    zipped = path.name.lower().endswith(".keras")
    kind = "Keras model" if zipped else "Keras weights"
    errors = (OSError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile)
    errors += (AttributeError, TypeError, ValueError)  # of damaged links
    stack.enter_context(_reading(path, "Keras file", *errors))
    file = path
    if zipped:
        # Read at once, so that the zip's checksum is looked at.
        with zipfile.ZipFile(path) as archive:
            file = io.BytesIO(archive.read("model.weights.h5"))
    layers = stack.enter_context(h5py.File(file)).get("layers", {})
    tensors = {}
    # A layer that is a network of its own has none; its weights are missed.
    for variables in (layers[name].get("vars", {}) for name in layers):
        layer = variables.attrs.get("name", "?")
        names = list(_BN_VARIABLES if layer.endswith("bn") else _VARIABLES)
        names = dict(zip("0123", names, strict=False))
        for i, dataset in variables.items():
            tensors[f"{layer}/{names.get(i, i)}"] = dataset
    shapes = {name: dataset.shape for name, dataset in tensors.items()}
    return _Source(kind, shapes, lambda n: tensors[n][()], lambda key: key)


def _match(path, source, weights, replace_head):
    """Compare names and shapes; the weights to set, by name in the file."""
    shapes = source.shapes
    wanted = {source.name_of(key): weight for key, weight in weights.items()}
    head = [source.name_of(key) for key in HEAD]
    problems = []
    theirs = (shapes.get(head[0]) or (0,))[-1]
    if head[0] in wanted and wanted[head[0]].shape[-1] != theirs:
        if not replace_head:
            problems.append(
                f"it has {theirs} classes, not {wanted[head[0]].shape[-1]} "
                "(with replace_head=True, as when it is trained, the model "
                "keeps its own last layer)"
            )
        wanted = {name: wanted[name] for name in wanted if name not in head}
    differing = [
        f"{name}: {shapes[name]}, not {weight.shape}"
        for name, weight in wanted.items()
        if shapes.get(name, weight.shape) != weight.shape
    ]
    missing = [name for name in wanted if name not in shapes]
    left = sorted(shapes.keys() - wanted.keys() - set(head))
    whats = ("of another shape", "missing", "left over")
    for what, names in zip(whats, (differing, missing, left), strict=True):
        if names:
            shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
            problems.append(f"tensors {what}: {len(names)} ({shown})")
    if differing or missing or left:
        problems += _guess(source)
    if problems:
        raise WeightsError(
            f"{path} ({source.kind}) does not fit the model: "
            + "; ".join(problems)
        )
    return wanted


def _guess(source):
    """List of at most one remark: which variant the file may be."""
    pattern = r"blocks_\d+|blocks\.\d+\.\d+|block\d+[a-z]"
    depth = len(set(re.findall(pattern, " ".join(source.shapes))))
    top = source.shapes.get(source.name_of("top_conv/kernel"), ())
    for variant, scale in efficientnet.VARIANTS.items():
        stages = efficientnet.scaled_stages(scale.width, scale.depth)
        # b1 and b2 have the same blocks and stem, but not the same last stage.
        size = (sum(stage.repeats for stage in stages), stages[-1].filters)
        if size == (depth, *top[-2:-1]):
            return [f"the file looks like {variant}"]
    return []
