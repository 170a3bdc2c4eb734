# SPDX-License-Identifier: Apache-2.0
"""Weights of others arrive whole and in place, or not at all."""

import collections
import contextlib
import functools
import json
import shutil
import tarfile
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.models import import_weights

EMA = "/ExponentialMovingAverage"
BN = "tpu_batch_normalization"
WEIGHT = {"kernel": "weight"}
WEIGHT_BIAS = {"kernel": "weight", "bias": "bias"}
STATISTICS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Of a kind of layers: its official name, its timm names in the order of their
# creation in a block, and what its variables are called here and in timm.
KINDS = {
    "conv": ("conv2d", ("conv_pw", "conv_pwl"), WEIGHT),
    "dwconv": ("depthwise_conv2d", ("conv_dw",), WEIGHT),
    "se": ("se/conv2d", ("se.conv_reduce", "se.conv_expand"), WEIGHT_BIAS),
    "bn": (BN, ("bn1", "bn2", "bn3"), STATISTICS),
}
EXPANSION = {"expand_conv": "conv", "expand_bn": "bn"}
BLOCK = {
    "dwconv": "dwconv",
    "bn": "bn",
    "se_reduce": "se",
    "se_expand": "se",
    "project_conv": "conv",
    "project_bn": "bn",
}
# Tensors of the network for ImageNet, by arithmetic: 5 in the stem and the
# top each, 2 in the head; 14 in a block without expansion and 19 with it.
TENSORS = {
    "b0": 5 + 14 + 15 * 19 + 5 + 2,
    "b1": 5 + 2 * 14 + 21 * 19 + 5 + 2,
    "b2": 5 + 2 * 14 + 21 * 19 + 5 + 2,
    "b3": 5 + 2 * 14 + 24 * 19 + 5 + 2,
    "b4": 5 + 2 * 14 + 30 * 19 + 5 + 2,
    "b5": 5 + 3 * 14 + 36 * 19 + 5 + 2,
    "b6": 5 + 3 * 14 + 42 * 19 + 5 + 2,
    "b7": 5 + 4 * 14 + 51 * 19 + 5 + 2,
    "l0": 5 + 4 * 14 + 59 * 19 + 5 + 2,
    "l1": 5 + 4 * 14 + 59 * 19 + 5 + 2,
    "l2": 5 + 6 * 14 + 82 * 19 + 5 + 2,
}
TF1_MODELS = ("b0_w025_d05_64", "b0_svhn_w035_d05_32", "b0_full_224")
TIMM_MODELS = {
    "timm_b0_w025_d05_c10": {"width": 0.25, "depth": 0.5},
    "timm_b1_w035_d11_c7": {"width": 0.35, "depth": 1.1},
}
# Of the largest difference to the largest logit or feature. Measured: 1.5e-5;
# the official code itself differs by 1.1e-5 between TensorFlow 1 and 2.
TOLERANCE = 5e-5
# 10 blocks, the first without expansion, three stages with two of them.
DEPTH = 0.4
NUM_TENSORS = 5 + 14 + 9 * 19 + 5 + 2
# 13 blocks.
DEEPER = 0.6


@functools.cache
def names_of(depth):
    """Our tensors -> (official name, timm name), by counting layers.

    TensorFlow 1 numbers the layers of a kind in each scope: none, _1, _2.
    """
    names = {}

    def add(layer, official, timm, variables):
        for variable, timm_variable in variables.items():
            prefix = "depthwise_" if layer.endswith("dwconv") else ""
            names[f"{layer}/{variable}"] = (
                f"{official}/{prefix}{variable}",
                f"{timm}.{timm_variable}",
            )

    add("stem_conv", "stem/conv2d", "conv_stem", WEIGHT)
    add("stem_bn", f"stem/{BN}", "bn1", STATISTICS)
    index = 0
    for number, stage in enumerate(efficientnet.scaled_stages(1, depth)):
        for repeat in range(stage.repeats):
            parts = BLOCK if stage.expand_ratio == 1 else EXPANSION | BLOCK
            count = collections.Counter()
            for part, kind in parts.items():
                official, timm, variables = KINDS[kind]
                place = count[kind]
                count[kind] += 1
                add(
                    f"block{number + 1}{chr(ord('a') + repeat)}_{part}",
                    f"blocks_{index}/{official}{f'_{place}' if place else ''}",
                    f"blocks.{number}.{repeat}.{timm[place]}",
                    variables,
                )
            index += 1
    add("top_conv", "head/conv2d", "conv_head", WEIGHT)
    add("top_bn", f"head/{BN}", "bn2", STATISTICS)
    add("predictions", "head/dense", "classifier", WEIGHT_BIAS)
    return names


def build(num_classes=4, *, width=0.1, depth=DEPTH, image_size=16, **settings):
    return efficientnet.build_model(
        "b0",
        num_classes,
        width=width,
        depth=depth,
        image_size=image_size,
        **settings,
    )


def weights_of(model):
    return {f"{x.name}/{w.name}": w for x in model.layers for w in x.weights}


def arrays_of(model):
    return {key: w.value.numpy() for key, w in weights_of(model).items()}


def randomize(model, seed):
    """Random values that keep activations sane; returns them."""
    rng = np.random.default_rng(seed)
    for key, weight in weights_of(model).items():
        values = rng.normal(0, 0.1, weight.shape)
        if len(weight.shape) > 1:
            channels_in = 1 if "dwconv" in key else weight.shape[-2]
            fan_in = channels_in * np.prod(weight.shape[:-2])
            values = rng.normal(0, (2 / fan_in) ** 0.5, weight.shape)
        elif key.endswith(("gamma", "variance")):
            values = rng.uniform(0.5, 1.5, weight.shape)
        weight.assign(values)
    return arrays_of(model)


def logits_of(model, pixels=None):
    if pixels is None:
        shape = (2, *model.input_shape[1:])
        pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    return model(pixels, training=False).numpy()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


# Files as others write them.


def write_checkpoint(prefix, tensors):
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    return prefix


def names_for(arrays):
    """`names_of` for what was taken from one of the models here."""
    for depth in (DEPTH, DEEPER, 1.2, 5.3):
        if arrays.keys() <= names_of(depth).keys():
            return names_of(depth)
    raise AssertionError("no such depth")


def official(arrays, suffix="", scope="efficientnet-b0/"):
    names = names_for(arrays)
    return {scope + names[key][0] + suffix: arrays[key] for key in arrays}


def to_pytorch(name, array):
    if "conv_dw" in name:
        return array.transpose(2, 3, 0, 1)
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])


def timm(arrays):
    names = {key: names_for(arrays)[key][1] for key in arrays}
    tensors = {n: to_pytorch(n, arrays[key]) for key, n in names.items()}
    for name in names.values():
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            tensors[counter] = np.array(7, "int64")
    return tensors


def write_safetensors(path, tensors):
    # By hand: the format is a length, a header in JSON, and the bytes.
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    header, data = {}, b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": kinds.get(array.dtype.name, "I64"),
            "shape": array.shape,
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def write_official(folder, model):
    return write_checkpoint(folder / "model.ckpt", official(arrays_of(model)))


def write_timm(folder, model):
    path = folder / "model.safetensors"
    return write_safetensors(path, timm(arrays_of(model)))


def write_h5(folder, model):
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5"


def write_keras(folder, model):
    model.save(folder / "model.keras")
    return folder / "model.keras"


WRITERS = {
    "official": write_official,
    "timm": write_timm,
    "h5": write_h5,
    "keras": write_keras,
}
every_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture(scope="module")
def model():
    """The model that is loaded into; tests leave it as they like."""
    return build()


@pytest.fixture(scope="module")
def untouched():
    """The same, but nothing is ever loaded into it with success."""
    return build()


@pytest.fixture(scope="module")
def source():
    """A model of the same shape, whose random weights are written."""
    source = build()
    randomize(source, 1)
    return source


@pytest.fixture(scope="module")
def arrays(source):
    return arrays_of(source)


@pytest.fixture(scope="module")
def source_logits(source):
    logits = logits_of(source)
    assert logits.std() > 1e-2, f"the logits hardly vary: {logits.std()}"
    return logits


@pytest.fixture(scope="module")
def others():
    """Models that differ in one way."""
    return {
        "deeper": build(depth=DEEPER),
        "wider": build(width=0.5),
        "7 classes": build(7),
        "no top": build(include_top=False),
    }


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Writes a model once in each format, for tests that only read it."""
    return functools.cache(
        lambda write, model: write(tmp_path_factory.mktemp("file"), model)
    )


@contextlib.contextmanager
def refused(model, path, *matches):
    """Loading raises one sentence, and nothing has changed."""
    before = arrays_of(model)
    with pytest.raises(import_weights.WeightsError) as caught:
        yield
    message = str(caught.value)
    print(message)
    assert isinstance(caught.value, UserError)
    assert message.startswith(f"{path} ") or f" {path} " in message, message
    assert "\n" not in message and not message.endswith(".")
    for match in matches:
        assert match in message, f"{match!r} not in {message!r}"
    assert_same(arrays_of(model), before)


# Names.


@pytest.mark.parametrize("variant", TENSORS)
def test_names_of_every_variant(variant):
    expected = names_of(efficientnet.VARIANTS[variant].depth)
    found = import_weights.foreign_names(expected.keys())
    assert found == expected
    assert len(found) == TENSORS[variant]
    for side in zip(*found.values(), strict=True):
        assert len(set(side)) == TENSORS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", TENSORS)
def test_names_cover_the_weights_of_every_variant(variant):
    depth = efficientnet.VARIANTS[variant].depth
    weights = weights_of(build(depth=depth, image_size=8))
    assert weights.keys() == names_of(depth).keys()


@pytest.mark.parametrize("name", TF1_MODELS)
def test_names_are_those_of_the_official_code(golden, name):
    folder = golden / "efficientnet" / name
    listed = json.loads((folder / "variables.json").read_text())
    shapes = {
        variable["name"]: tuple(variable["shape"])
        for variable in listed["variables"]
    }
    model, _ = golden_model(folder)
    names = import_weights.foreign_names(weights_of(model))
    found = {
        f"efficientnet-b0/{names[key][0]}": weight.shape
        for key, weight in weights_of(model).items()
    }
    assert found == {k: v for k, v in shapes.items() if k != "global_step"}


# Numbers of the official code and of timm.


@functools.cache
def golden_model(folder):
    config = json.loads((folder / "config.json").read_text())
    model = build(
        config["num_classes"],
        width=config["width_coefficient"],
        depth=config["depth_coefficient"],
        image_size=config["resolution"],
        small_images=config["small_image_model"],
        mean=config["normalisation_mean"],
        std=config["normalisation_std"],
    )
    return model, np.load(folder / "golden.npz")


def golden_checkpoint(folder, tmp_path):
    if (folder / "ckpt").exists():
        return folder / "ckpt"
    with tarfile.open(folder / "ckpt.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def read_checkpoint(path):
    reader = tf.train.load_checkpoint(str(path))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names}


def assert_close(found, expected, record_property, what):
    largest = np.abs(found - expected).max()
    record_property(what, float(largest))
    print(f"{what}: largest deviation {largest:.2e}, std {expected.std():.2f}")
    assert expected.std() > 0.2
    assert largest < TOLERANCE * np.abs(expected).max(), f"{what}: {largest}"


@pytest.mark.parametrize("name", TF1_MODELS)
def test_logits_of_the_official_code(golden, tmp_path, record_property, name):
    folder = golden / "efficientnet" / name
    model, numbers = golden_model(folder)
    path = golden_checkpoint(folder, tmp_path)
    loaded = import_weights.load(model, path)
    assert loaded == import_weights.Loaded(
        "TensorFlow 1 checkpoint, moving averages", len(model.weights), False
    )
    features = keras.Model(
        model.input, [model.get_layer("avg_pool").output, model.output]
    )
    pool, logits = features(numbers["images"], training=False)
    assert_close(logits, numbers["logits_ema"], record_property, "averages")
    assert_close(pool, numbers["global_pool_ema"], record_property, "features")

    # Without their averages the same variables are others.
    raw = {k: v for k, v in read_checkpoint(path).items() if EMA not in k}
    loaded = import_weights.load(
        model, write_checkpoint(tmp_path / "raw" / "model.ckpt", raw)
    )
    assert loaded.kind == "TensorFlow 1 checkpoint, raw weights"
    logits = logits_of(model, numbers["images"])
    assert_close(logits, numbers["logits_raw"], record_property, "raw")
    difference = np.abs(numbers["logits_raw"] - numbers["logits_ema"]).max()
    assert difference > 0.5, "raw and averages are too close to tell apart"


def test_averages_alone_give_the_same(golden, record_property):
    folder = golden / "efficientnet" / "b0_w025_d05_64"
    model, numbers = golden_model(folder)
    import_weights.load(model, folder / "ckpt_ema_only" / "model.ckpt")
    logits = logits_of(model, numbers["images"])
    assert_close(logits, numbers["logits_ema"], record_property, "averages")


def test_official_weights_under_timms_names(golden, tmp_path, record_property):
    # What timm's tf_efficientnet files are: converted official checkpoints.
    folder = golden / "efficientnet" / "b0_w025_d05_64"
    model, numbers = golden_model(folder)
    checkpoint = read_checkpoint(folder / "ckpt_ema_only")
    arrays = {
        key: checkpoint[f"efficientnet-b0/{name}{EMA}"]
        for key, (name, _) in names_of(0.5).items()
    }
    path = write_safetensors(tmp_path / "a.safetensors", timm(arrays))
    import_weights.load(model, path)
    logits = logits_of(model, numbers["images"])
    assert_close(logits, numbers["logits_ema"], record_property, "timm")


def like_plain_efficientnet(model):
    """Pad and normalize as timm's models without `tf_`, in place."""

    def padded(call, pixels, images, **_):
        images = np.pad(images, [(0, 0), (pixels,) * 2, (pixels,) * 2, (0, 0)])
        return call(images)

    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 1e-5
        elif getattr(layer, "strides", None) == (2, 2):
            layer.padding = "valid"
            pixels = layer.kernel_size[0] // 2
            layer.call = functools.partial(padded, layer.call, pixels)


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_logits_of_timm(golden, record_property, name):
    # The golden numbers fit timm's plain efficientnet: symmetric padding and
    # an epsilon of 1e-5. The file cannot show it; the tensors are the same.
    numbers = np.load(golden / "timm" / f"{name}.npz")
    model = build(
        numbers["logits"].shape[1],
        image_size=numbers["images"].shape[1],
        **TIMM_MODELS[name],
    )
    loaded = import_weights.load(model, golden / "timm" / f"{name}.safetensors")
    assert loaded == import_weights.Loaded(
        "timm safetensors", len(model.weights), False
    )
    as_tf = logits_of(model, numbers["images"])
    like_plain_efficientnet(model)
    logits = logits_of(model, numbers["images"])
    assert_close(logits, numbers["logits"], record_property, "timm")
    assert np.abs(as_tf - numbers["logits"]).max() > 0.1


# Each format, whole.


@every_format
def test_every_tensor_arrives(
    write, model, source, arrays, source_logits, file_of
):
    randomize(model, 2)
    loaded = import_weights.load(model, file_of(write, source))
    assert (loaded.num_tensors, loaded.head_replaced) == (NUM_TENSORS, False)
    assert_same(arrays_of(model), arrays)
    np.testing.assert_array_equal(logits_of(model), source_logits)


def test_averages_come_before_raw_weights(model, arrays, tmp_path):
    raw, averages = randomize(model, 2), arrays
    tensors = official(raw) | official(averages, EMA)
    for slot in ("/RMSProp", "/RMSProp_1", "/Momentum"):
        tensors |= official(raw, slot)
    tensors["global_step"] = np.int64(12345)
    # The teacher of the official on-line training stands beside the student.
    for suffix in ("", EMA):
        tensors |= official(raw, suffix, "teacher_model/efficientnet-b0/")
    path = write_checkpoint(tmp_path / "model.ckpt", tensors)
    loaded = import_weights.load(model, path)
    assert loaded.kind == "TensorFlow 1 checkpoint, moving averages"
    assert_same(arrays_of(model), averages)


@pytest.mark.parametrize(
    ("scope", "suffix"), [("", EMA), ("efficientnet-l2/", ""), ("a/b/", EMA)]
)
def test_scope_and_kind_of_batch_normalization(
    model, arrays, tmp_path, scope, suffix
):
    tensors = official(arrays, suffix, scope)
    tensors = {k.replace("tpu_batch", "batch"): v for k, v in tensors.items()}
    randomize(model, 2)
    import_weights.load(model, write_checkpoint(tmp_path / "m", tensors))
    assert_same(arrays_of(model), arrays)


@pytest.mark.parametrize(
    "name",
    [
        "model.ckpt-7",
        "model.ckpt-7.index",
        "model.ckpt-7.data-00000-of-00001",
        ".",
    ],
)
def test_ways_to_name_a_checkpoint(model, arrays, tmp_path, name):
    if name == ".":
        # An older one beside it; the folder may have been moved here.
        write_checkpoint(
            tmp_path / "model.ckpt-3", official(randomize(model, 3))
        )
        (tmp_path / "checkpoint").write_text(
            'model_checkpoint_path: "/elsewhere/model.ckpt-7"\n'
            'all_model_checkpoint_paths: "/elsewhere/model.ckpt-3"\n'
            'all_model_checkpoint_paths: "/elsewhere/model.ckpt-7"\n'
        )
    write_checkpoint(tmp_path / "model.ckpt-7", official(arrays))
    randomize(model, 2)
    import_weights.load(model, str(tmp_path / name))
    assert_same(arrays_of(model), arrays)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_half_precision(model, arrays, tmp_path, dtype):
    tensors = {
        name: array.astype(dtype) if array.dtype == "float32" else array
        for name, array in timm(arrays).items()
    }
    path = write_safetensors(tmp_path / "half.safetensors", tensors)
    randomize(model, 2)
    import_weights.load(model, path)
    rounded = {
        key: array.astype(dtype).astype("float32")
        for key, array in arrays.items()
    }
    assert_same(arrays_of(model), rounded)


def test_a_model_that_computes_in_bfloat16(model, tmp_path):
    # Its weights are float32, so they pass to and fro without rounding.
    half = build(dtype="bfloat16")
    randomize(half, 1)
    half.save(tmp_path / "half.keras")
    import_weights.load(model, tmp_path / "half.keras")
    assert_same(arrays_of(model), arrays_of(half))
    randomize(model, 2)
    model.save(tmp_path / "whole.keras")
    import_weights.load(half, tmp_path / "whole.keras")
    assert_same(arrays_of(half), arrays_of(model))


@pytest.mark.slow
def test_a_network_of_88_blocks(tmp_path):
    depth = efficientnet.VARIANTS["l2"].depth
    # Keras walks a new graph by recursion, in more frames than Python allows
    # unasked, those of pytest included: `efficientnet` asks.
    model = build(depth=depth, image_size=8)
    assert weights_of(model).keys() == names_of(depth).keys()
    expected = randomize(model, 1)
    logits = logits_of(model)
    assert logits.std() > 1e-2, f"the logits hardly vary: {logits.std()}"
    tensors = official(randomize(model, 2)) | official(expected, EMA)
    path = write_checkpoint(tmp_path / "model.ckpt", tensors)
    assert import_weights.load(model, path).num_tensors == TENSORS["l2"]
    assert_same(arrays_of(model), expected)
    error = np.abs(logits_of(model) - logits).max() / np.abs(logits).max()
    assert error < 1e-5, f"logits are off by {error}, relatively"


def test_saved_at_other_pixels_with_an_optimizer(model, tmp_path):
    # The state of the optimizer and of the noise are no weights.
    trained = build(image_size=24, dropout_rate=0.5)
    randomize(trained, 1)
    trained.compile("adam", "mse")
    trained.optimizer.build(trained.trainable_variables)
    for write in (write_h5, write_keras):
        randomize(model, 2)
        import_weights.load(model, write(tmp_path, trained))
        assert_same(arrays_of(model), arrays_of(trained))


def test_frozen_layers_are_loaded_too(model, source, arrays, file_of):
    path = file_of(write_h5, source)
    randomize(model, 2)
    model.trainable = False
    try:
        import_weights.load(model, path)
        assert_same(arrays_of(model), arrays)
    finally:
        model.trainable = True


# The head.


@every_format
def test_other_classes(write, others, source, arrays, file_of):
    path, model = file_of(write, source), others["7 classes"]
    randomize(model, 2)
    with refused(model, path, "4 classes", " 7 ", "replace_head=True"):
        import_weights.load(model, path)
    head = {k: v for k, v in arrays_of(model).items() if "predictions" in k}
    loaded = import_weights.load(model, path, replace_head=True)
    assert (loaded.num_tensors, loaded.head_replaced) == (NUM_TENSORS - 2, True)
    assert_same(arrays_of(model), arrays | head)


def test_the_same_classes_keep_the_head(model, source, arrays, file_of):
    path = file_of(write_timm, source)
    randomize(model, 2)
    loaded = import_weights.load(model, path, replace_head=True)
    assert not loaded.head_replaced
    assert_same(arrays_of(model), arrays)


@every_format
def test_a_model_without_top(write, others, source, arrays, file_of):
    path, features = file_of(write, source), others["no top"]
    loaded = import_weights.load(features, path)
    assert (loaded.num_tensors, loaded.head_replaced) == (
        NUM_TENSORS - 2,
        False,
    )
    expected = arrays
    assert_same(
        arrays_of(features),
        {key: expected[key] for key in expected if "predictions" not in key},
    )


@every_format
def test_a_file_without_top(write, model, others, file_of):
    path = file_of(write, others["no top"])
    randomize(model, 2)
    with refused(model, path, "0 classes", "replace_head=True"):
        import_weights.load(model, path)
    assert import_weights.load(model, path, replace_head=True).head_replaced


# What is refused.


@pytest.mark.parametrize("other", ["7 classes", "deeper", "wider"])
@pytest.mark.parametrize("write", [write_h5, write_keras])
def test_a_keras_file_that_does_not_fit_is_not_called_damaged(
    write, other, others, source, file_of
):
    path, model = file_of(write, source), others[other]
    with pytest.raises(import_weights.WeightsError) as caught:
        import_weights.load(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path} (Keras "), message
    assert "does not fit the model" in message and "whole" not in message


def test_a_keras_file_of_networks_in_networks_is_whole(untouched, tmp_path):
    inputs = keras.Input((8, 8, 3))
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1)]
    )
    path = write_keras(tmp_path, keras.Model(inputs, inner(inputs)))
    with refused(untouched, path, "does not fit the model"):
        import_weights.load(untouched, path)


@pytest.mark.parametrize("kind", [PermissionError, MemoryError])
def test_what_may_not_be_read_is_not_called_damaged(
    kind, model, source, file_of, monkeypatch
):
    path = file_of(write_keras, source)

    def read(*arguments):
        raise kind(13, "Permission denied")

    monkeypatch.setattr("zipfile.ZipFile.read", read)
    with pytest.raises((UserError, MemoryError)) as caught:
        import_weights.load(model, path)
    assert "whole" not in str(caught.value)


@every_format
def test_files_of_other_networks(write, untouched, others, source, file_of):
    path = file_of(write, source)
    deeper, wider = others["deeper"], others["wider"]
    with refused(deeper, path, f"tensors missing: {3 * 19} (", ", ...)"):
        import_weights.load(deeper, path)
    with refused(
        wider,
        path,
        "tensors of another shape: ",
        "(3, 3, 3, 8), not (3, 3, 3, 16)",
    ):
        import_weights.load(wider, path)
    path = file_of(write, deeper)
    with refused(untouched, path, f"tensors left over: {3 * 19} (", ", ...)"):
        import_weights.load(untouched, path)
    path = file_of(write, wider)
    with refused(
        untouched,
        path,
        "tensors of another shape: ",
        "(3, 3, 3, 16), not (3, 3, 3, 8)",
    ):
        import_weights.load(untouched, path)


def test_it_says_which_variant_a_file_looks_like(untouched, tmp_path):
    # b1 and b2 have as many blocks; 352 is the last stage of b2.
    arrays = dict.fromkeys(names_of(1.2), np.zeros([1] * 4, "float32"))
    arrays["top_conv/kernel"] = np.zeros((1, 1, 352, 8), "float32")
    arrays["predictions/kernel"] = np.zeros((8, 4), "float32")
    path = write_safetensors(tmp_path / "a.safetensors", timm(arrays))
    with refused(untouched, path, "; the file looks like b2"):
        import_weights.load(untouched, path)
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, official(arrays, EMA))
    with refused(untouched, path, "; the file looks like b2"):
        import_weights.load(untouched, path)


@pytest.mark.parametrize("suffix", ["", EMA])
def test_missing_and_left_over_in_a_checkpoint(
    untouched, arrays, tmp_path, suffix
):
    path = tmp_path / "model.ckpt"
    whole = official(arrays, suffix)
    if suffix:
        whole |= official(arrays)
    name = f"efficientnet-b0/blocks_3/{BN}_1/moving_mean"
    tensors = {k: v for k, v in whole.items() if k != name + suffix}
    # That there is a raw one does not help when there are averages.
    write_checkpoint(path, tensors)
    with refused(untouched, path, f"tensors missing: 1 ({name}{suffix})"):
        import_weights.load(untouched, path)
    for name in ("efficientnet-b0/extra", "b1/stem/kernel", "stray/RMSProp"):
        write_checkpoint(path, whole | {name: np.zeros(3, "float32")})
        with refused(untouched, path, f"tensors left over: 1 ({name})"):
            import_weights.load(untouched, path)


def test_missing_and_left_over_in_safetensors(untouched, arrays, tmp_path):
    path = tmp_path / "a.safetensors"
    whole, name = timm(arrays), "blocks.1.0.bn1.running_mean"
    write_safetensors(path, {k: v for k, v in whole.items() if k != name})
    with refused(untouched, path, f"tensors missing: 1 ({name})"):
        import_weights.load(untouched, path)
    write_safetensors(path, whole | {"blocks.1.0.x": np.zeros(3, "float32")})
    with refused(untouched, path, "tensors left over: 1 (blocks.1.0.x)"):
        import_weights.load(untouched, path)


def test_missing_and_left_over_in_keras_files(untouched, source, tmp_path):
    path = write_h5(tmp_path, source)
    with h5py.File(path, "a") as file:
        # The third one is that of block2a_expand_bn.
        variables = file["layers/batch_normalization_3/vars"]
        assert variables.attrs["name"] == "block2a_expand_bn"
        variables.move("2", "4")
    with refused(
        untouched,
        path,
        "tensors missing: 1 (block2a_expand_bn/moving_mean)",
        "tensors left over: 1 (block2a_expand_bn/4)",
    ):
        import_weights.load(untouched, path)
    zipped = write_keras(tmp_path, source)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.write(path, "model.weights.h5")
    with refused(untouched, zipped, "block2a_expand_bn/moving_mean"):
        import_weights.load(untouched, zipped)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("config.json", "{}")
    with refused(untouched, zipped, "model.weights.h5"):
        import_weights.load(untouched, zipped)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [
        (write_official, ".index"),
        (write_official, ".data-00000-of-00001"),
        (write_timm, ""),
        (write_h5, ""),
        (write_keras, ""),
    ],
)
def test_truncated_files(write, suffix, untouched, source, tmp_path):
    path = write(tmp_path, source)
    file = path.with_name(path.name + suffix)
    content = file.read_bytes()
    for size in (0, 20, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with refused(untouched, path, "is not a whole"):
            import_weights.load(untouched, path)


def test_half_a_checkpoint(untouched, source, tmp_path):
    path = write_official(tmp_path, source)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.rename(tmp_path / "elsewhere")
    with refused(untouched, path, "No such file", data.name):
        import_weights.load(untouched, path)
    (tmp_path / "elsewhere").rename(data)
    (tmp_path / "model.ckpt.index").unlink()
    with refused(untouched, path, "does not exist", f"{path}.index"):
        import_weights.load(untouched, path)
    with refused(untouched, path, "is not a whole", "model.ckpt"):
        import_weights.load(untouched, data)


@pytest.mark.parametrize("write", [write_official, write_timm, write_h5])
def test_files_of_something_else(write, untouched, tmp_path):
    layer = keras.layers.Dense(3, name="dense")
    other = keras.Sequential([keras.Input((2,)), layer])
    if write is write_h5:
        path = write_h5(tmp_path, other)
    else:
        arrays = {k.replace("/", "."): v for k, v in arrays_of(other).items()}
        path = tmp_path / "model.safetensors"
        if write is write_timm:
            write_safetensors(path, arrays)
        else:
            write_checkpoint(path := tmp_path / "model.ckpt", arrays)
    with refused(untouched, path, f"tensors missing: {NUM_TENSORS - 2} ("):
        import_weights.load(untouched, path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.safetensors", "is not a whole .safetensors"),
        ("a.weights.h5", "is not a whole Keras file"),
        ("a.keras", "is not a whole Keras file"),
        ("a.index", "is not a whole TensorFlow checkpoint"),
        ("a.txt", "is no checkpoint"),
        ("a", "is no checkpoint"),
        ("a.tar.gz", "unpack it first"),
        ("a.tgz", "unpack it first"),
        ("a.tar.xz", "unpack it first"),
        ("a.pth", "PyTorch file: save it as .safetensors (docs/weights.md)"),
        ("pytorch_model.bin", "PyTorch file"),
    ],
)
def test_text_under_other_names(untouched, tmp_path, name, says):
    path = tmp_path / name
    path.write_text("These are no weights.\n" * 100)
    named = path.with_suffix("") if name == "a.index" else path
    with refused(untouched, named, says):
        import_weights.load(untouched, path)


@pytest.mark.parametrize("name", ["a", "a.index", "a.keras", "a.safetensors"])
def test_missing_files(untouched, tmp_path, name):
    path = tmp_path / name
    with refused(untouched, path, "does not exist", f"{path}.index"):
        import_weights.load(untouched, path)


def test_folders_without_a_single_checkpoint(untouched, source, tmp_path):
    with refused(untouched, tmp_path, "has no *.index"):
        import_weights.load(untouched, tmp_path)
    write_official(tmp_path, source)
    shutil.copy(tmp_path / "model.ckpt.index", tmp_path / "other.index")
    with refused(untouched, tmp_path, "several"):
        import_weights.load(untouched, tmp_path)
