# SPDX-License-Identifier: Apache-2.0
"""A model card: what a model is, learned from and is good for, in Markdown."""

import re

from noisy_student.outputs.formats import FORMATS

# More names than this are in the record beside the card.
NAMES_SHOWN = 20

# How each format is loaded; `pixels` is described before.
LOADING = {
    "keras": """
import keras

model = keras.saving.load_model("model.keras")
logits = model.predict(pixels)
""",
    "savedmodel": """
import tensorflow as tf

model = tf.saved_model.load("saved_model")
image = tf.io.read_file("photo.jpg")
serve = model.signatures["serving_default"]
answer = serve(image_bytes=tf.stack([image]))
print(answer["classes"].numpy(), answer["class_probabilities"].numpy())
""",
    "onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {"pixels": pixels})
""",
    "tflite": """
from ai_edge_litert.interpreter import Interpreter  # or tf.lite.Interpreter

runner = Interpreter("model.tflite").get_signature_runner("serving_default")
logits = runner(pixels=pixels)["logits"]
""",
}


def render(facts):
    """Write a card.

    Args:
        facts: Dict as `export.json` holds it.

    Returns:
        Markdown.
    """
    model = facts["model"]
    role = _role(model["iteration"])
    parts = [
        f"# {role[0].upper()}{role[1:]}: EfficientNet-"
        f"{model['variant'].upper()} with {len(facts['classes'])} classes",
        _summary(facts),
        "## Use and limits",
        _limits(facts),
        "## Data",
        _data(facts["data"]),
        "## Accuracy and teachers",
        _chain(facts),
        "## Recipe",
        _recipe(facts),
        "## Files",
        _files(facts),
        "## Classes",
        _classes(facts["classes"]),
        "## Versions",
        _versions(facts),
        "## License",
        "The code that made this model is under Apache-2.0. What may be done "
        "with the weights depends on the images, and on the weights that the "
        "training began with, too: say it here before you pass them on.",
    ]
    return "\n\n".join(parts) + "\n"


def escape(text):
    """Any text as plain text in Markdown, on one line."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|&~#$])", r"\\\1", text)


def _role(iteration):
    if iteration is None:
        return "released weights"
    return f"student {iteration}" if iteration else "teacher"


def _summary(facts):
    model = facts["model"]
    size = model["image_size"]
    view = (
        f"the central square of {size} / {size + 32} of the shorter side, "
        f"resized to {size} x {size} pixels"
        if model["crop"] == "resized"
        else f"the whole image, resized to {size} x {size} pixels"
    )
    origin = escape(model["init_from"] or "")
    if model["iteration"] is None:
        made = f"that was trained elsewhere, the weights {origin}"
    else:
        made = (
            "made by Noisy Student Training "
            "([arXiv:1911.04252](https://arxiv.org/abs/1911.04252))"
        )
        if origin:
            made += f", beginning with the weights {origin}"
    lines = [
        f"An image classifier {made}; {model['parameters']:,} parameters. It "
        f"takes RGB pixels from 0 to 255, {view} with a bicubic kernel, and "
        "gives logits.",
    ]
    if model["trained_in"] != "float32":
        lines.append(
            f"It was trained in {model['trained_in']}; these files compute in "
            f"float32, and their logits differ by {facts['as_trained']:.1g} of "
            "the largest."
        )
    return " ".join(lines)


def _limits(facts):
    data = facts["data"]["evaluation"]
    seen = facts["data"]["labeled"]
    like = f"images like those of {escape(seen['name'])}" if seen else "images"
    measured = (
        f"was measured on {escape(data['name'])} alone"
        if data
        else "was not measured here"
    )
    return (
        f"It is meant to tell apart the {len(facts['classes'])} classes below "
        f"in {like}, and it gives one of them to every image, also to one that "
        f"shows none of them. Its accuracy {measured}: on other cameras, "
        "places and people it is unknown, its probabilities are not "
        "calibrated, and mistakes of a teacher live on in its students."
    )


def _data(data):
    lines = [
        "| images | from | number | cannot be decoded |",
        "|---|---|--:|--:|",
    ]
    for role, known in data.items():
        if known:
            broken = known["num_undecodable"]
            lines.append(
                f"| {role} | {escape(known['name'])} | {known['num_images']} | "
                f"{'not counted' if broken is None else broken} |"
            )
        else:
            lines.append(f"| {role} | none, or not known | | |")
    return "\n".join(lines)


def _chain(facts):
    if not facts["chain"]:
        return "Not known: the weights were trained elsewhere."
    lines = [
        "Top-1 in percent with the interval that holds the true value in 95 "
        "of 100 cases, by chance of the evaluation images alone (Clopper and "
        "Pearson).",
        "",
        "| model | network | pixels | steps | top-1 | top-5 | images |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for link in facts["chain"]:
        name = _role(link["iteration"])
        name += ", finetuned" if link["finetuned"] else ""
        lines.append(f"| {name} | {link['variant']} | {_measured(link)} |")
    stories = [_story(link, facts["chain"]) for link in facts["chain"]]
    return "\n".join([*lines, "", *stories])


def _measured(link):
    accuracy = link["accuracy"]
    if not accuracy:
        return "| | not measured | | "
    return (
        f"{accuracy['image_size']} | {accuracy['steps']} | "
        f"{accuracy['top1']:.2%} ({accuracy['top1_low']:.1%} to "
        f"{accuracy['top1_high']:.1%}) | {accuracy['top5']:.2%} | "
        f"{accuracy['num_images']}"
    ).replace("%", "")


def _story(link, chain):
    """Who taught a model, with which images, and its hash."""
    number = link["iteration"]
    digest = f"`{link['sha256']}`" if link["sha256"] else "not in the workdir"
    text = f"- **{_role(number)}**, SHA-256 {digest}"
    if not number:
        return text
    text += f"; taught by the {_role(number - 1)}"
    taught, teacher = link["teacher_sha256"], chain[number - 1]["sha256"]
    if taught and taught != teacher:
        text += f" as it was then (`{taught}`)"
    selection = link["selection"]
    if selection:
        balanced = selection["images_per_class"]
        text += (
            f", from {selection['num_kept']} of {selection['num_images']} "
            "unlabeled images with a confidence above "
            f"{selection['confidence_threshold']}"
            + (f", balanced to {balanced} a class" if balanced else "")
            + f": {selection['num_selected']} with duplicates"
        )
    return text


def _recipe(facts):
    if not facts["chain"]:
        return "Not known."
    parts = ["Every setting is as in the paper."]
    if facts["recipe"]:
        differs = _flags(facts["recipe"])
        parts = ["What differs from the paper's settings:", differs]
    if facts["finetuning"]:
        parts += ["The finetuning's:", _flags(facts["finetuning"])]
    return "\n\n".join(parts)


def _flags(settings):
    return _code("\n".join(f"--{k}={v}" for k, v in settings.items()))


def _files(facts):
    size = facts["model"]["image_size"]
    lines = [
        "Each was loaded in a new process and compared with the network: the "
        "largest difference of a logit, divided by the largest logit; "
        f"{facts['tolerance']:g} is allowed. `pixels` is float32 "
        f"`(N, {size}, {size}, 3)`.",
        "",
        "| file | format | difference |",
        "|---|---|--:|",
    ]
    formats = facts["formats"]
    for name, record in formats.items():
        lines.append(
            f"| `{record['file']}` | {FORMATS[name].title} | "
            f"{record['deviation']:.1g} |"
        )
    for name in formats:
        lines += [
            "",
            f"{FORMATS[name].title}:",
            "",
            _code(LOADING[name], "python"),
        ]
    return "\n".join(lines)


def _versions(facts):
    """What wrote the files; some may be there since an earlier export."""

    def text(versions):
        return ", ".join(f"{k} {escape(v)}" for k, v in versions.items())

    return "\n\n".join(
        [
            text(facts["versions"]),
            *(
                f"`{record['file']}`: {text(record['versions'])}"
                for record in facts["formats"].values()
                if record["versions"] != facts["versions"]
            ),
        ]
    )


def _classes(names):
    shown = ", ".join(escape(name) for name in names[:NAMES_SHOWN])
    more = ", ... (all of them in `export.json`)"
    return shown + (more if len(names) > NAMES_SHOWN else "")


def _code(text, language=""):
    """A block of code, with a fence longer than any in it."""
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * max(3, *(1 + run for run in runs), 3)
    return f"{fence}{language}\n{text.strip()}\n{fence}"
