# SPDX-License-Identifier: Apache-2.0
"""Sections of the page on models and labels: what the template fills in.

Each function takes facts and returns a dict for its part of `page.html`.
"""

from noisy_student.reporting import pictures
from noisy_student.reporting.report import figures
from noisy_student.reporting.report import labels
from noisy_student.reporting.report import words

# Before and after balancing of so many classes is shown one by one.
BARS = 30
ROUNDS_DRAWN = 6


def lacking(text, command=None):
    """What stands where a figure cannot be: why, and what would make it."""
    return {"missing": {"text": text, "command": command}}


def headline(models, rounds, seconds):
    """The few numbers that everybody asks for first.

    Args:
        models: Of `facts.models`.
        rounds: List of dicts, as `showing` gathers them.
        seconds: Of all phases together, or None.

    Returns:
        List of dicts of `label`, `value` and `detail`.
    """
    tiles = []
    known = [model for model in models if model["top1"] is not None]
    for model in known[:1] + known[1:][-1:]:
        tiles.append(
            {
                "label": f"{model['role']}, top-1",
                "value": words.percent(model["top1"]),
                "detail": f"{_range(model)}, 95% interval",
            }
        )
    if len(known) > 1:
        gain = 100 * (known[-1]["top1"] - known[0]["top1"])
        tiles.append(
            {
                "label": "gained over the teacher",
                "value": f"{gain:+.1f}".replace("-", "−"),
                "detail": "points of top-1",
            }
        )
    done = [r for r in rounds if r["selection"]]
    if done:
        selection = done[-1]["selection"]
        tiles.append(
            {
                "label": "pseudo-labels kept",
                "value": words.count(selection["num_kept"]),
                "detail": f"of {words.count(selection['num_images'])} images",
            }
        )
    if seconds and len(tiles) < 5:
        tiles.append(
            {
                "label": "time",
                "value": words.duration(seconds),
                "detail": "of the commands that ended a phase",
            }
        )
    return tiles


def _range(model):
    low, high = 100 * model["low"], 100 * model["high"]
    return f"{low:.1f}–{high:.1f}%"


def idea(models, rounds, num_students, sizes, few):
    """The idea in one picture.

    Args:
        models: Of `facts.models`.
        rounds: As in `headline`.
        num_students: Of the whole run.
        sizes: Dict of `labeled`, `unlabeled`: images, or None.
        few: Dict of `labeled`, `unlabeled`, `noised`: a few pictures each.
    """
    best = {model["iteration"]: model for model in models}
    by_iteration = {r["iteration"]: r for r in rounds}
    drawn = []
    for number in range(1, num_students + 1):
        teacher, student = best.get(number - 1), best.get(number)
        labeled = by_iteration.get(number)
        selection = labeled and labeled["selection"]
        row = {
            "number": number,
            "teacher": _accuracy(teacher),
            "student": _accuracy(student),
            "images": words.count(labeled["num_images"]) if labeled else "–",
            "kept": "–",
            "selected": "–",
            "kept_share": 0,
            "copies_share": 0,
        }
        if selection:
            kept, total = selection["num_kept"], selection["num_images"]
            shown = max(total, selection["num_selected"], 1)
            row["kept"] = words.count(kept)
            row["selected"] = words.count(selection["num_selected"])
            row["kept_share"] = round(100 * kept / shown, 1)
            copies = selection["num_selected"] - kept
            row["copies_share"] = round(100 * copies / shown, 1)
        drawn.append(row)
    left_out = max(0, len(drawn) - ROUNDS_DRAWN)
    return {
        "rounds": drawn[left_out:],
        "left_out": left_out,
        "teacher_only": not num_students and _accuracy(best.get(0)),
        "labeled": words.count(sizes["labeled"]),
        "unlabeled": words.count(sizes["unlabeled"]),
        "pictures": few,
    }


def _accuracy(model):
    if model is None:
        return "not yet"
    if model["top1"] is None:
        return "trained"
    return words.percent(model["top1"])


def accuracy(models, has_evaluation, commands):
    """Accuracy of each model, with its interval."""
    if not models:
        return lacking("No model is trained yet.", commands("teach"))
    if all(model["top1"] is None for model in models):
        return lacking(
            "Nobody knows how good the models are: this run has no evaluation "
            "images. Give it some that have labels and that it does not train "
            "on.",
            None
            if has_evaluation
            else commands("evaluate") + " --eval_dir=DIR",
        )
    axis = figures.accuracy_axis(models)
    return {
        "rows": [
            {
                **model,
                "network": f"{model['variant'].upper()}"
                + (
                    f", {model['image_size']} px" if model["image_size"] else ""
                ),
                "strip": figures.accuracy_strip(model, axis),
                "top1_text": words.percent(model["top1"]),
                "range": _range(model) if model["top1"] is not None else "",
                "top5_text": words.percent(model["top5"]),
                "num": words.count(model["num_examples"] or None),
            }
            for model in models
        ],
        "marks": axis.marks(),
    }


def training(curves_by_role, models, commands):
    """Training curves."""
    drawn = {role: curve for role, curve in curves_by_role.items() if curve}
    if not drawn:
        if models:
            return lacking("No model of this run was trained here.")
        return lacking("Nothing is trained yet.", commands("teach"))
    return {"plots": figures.curves(drawn), "legend": figures.legend(drawn)}


def confidence(rounds):
    """The teacher's confidence, a histogram for each round."""
    return {
        "plots": [
            figures.confidence(
                f"Round {r['iteration']}: labels by {r['teacher']}"
                + ("" if r["whole"] else ", so far"),
                r["counts"],
                r["threshold"] if r["selection"] else None,
                r["ceiling"],
            )
            for r in rounds
        ]
    }


def balance(rounds, commands):
    """Images of each class, before and after filter and balance.

    Args:
        rounds: Those with a selection.
        commands: Function from a mode to the command for it.
    """
    if not rounds:
        return lacking(
            "The labels are not complete, or nothing is selected of them yet.",
            commands("label"),
        )
    return {"rounds": [_balance_of(r) for r in reversed(rounds)]}


def _balance_of(labeled):
    counts, names = labeled["counts"], labeled["class_names"]
    rows = figures.class_bars(counts, names)
    selection = labeled["selection"]
    text = {
        "number": labeled["iteration"],
        "above": words.count(selection["num_above_threshold"]),
        "images": words.count(selection["num_images"]),
        "kept": words.count(selection["num_kept"]),
        "dropped": words.count(selection["num_images"] - selection["num_kept"]),
        "copies": words.count(
            selection["num_selected"] - selection["num_kept"]
        ),
        "per_class": words.count(selection["images_per_class"]),
        "undecodable": words.count(selection["num_undecodable"])
        if selection["num_undecodable"]
        else None,
        "threshold": selection["confidence_threshold"],
    }
    if len(rows) <= BARS:
        return {**text, "rows": rows, "profile": None, "rule": None}
    half = 6
    ordered = sorted(rows, key=lambda row: -row["above"])
    return {
        **text,
        "rows": ordered[:half] + ordered[-half:],
        "profile": figures.class_profile(counts),
        "rule": f"The {half} classes with the most sure images and the {half} "
        f"with the fewest, of {words.count(len(rows))}.",
    }


def gallery(labeled, album):
    """Pseudo-labeled images of each class, sure and unsure.

    Args:
        labeled: The newest round with a selection.
        album: Dict of (shard, row) -> picture.
    """
    titles = {
        "sure": "surest",
        "unsure": "least sure, kept",
        "left_out": "confident enough, but not selected",
        "dropped": "outside of the threshold",
    }
    shown = []
    for number, groups in labeled["chosen"].items():
        parts = []
        for key, images in groups.items():
            found = [
                {
                    **album[image["shard"], image["row"]],
                    "text": words.percent(image["confidence"], 0),
                    "badge": f"×{image['copies']}"
                    if image["copies"] > 1
                    else "",
                }
                for image in images
                if (image["shard"], image["row"]) in album
            ]
            if found:
                parts.append(
                    {"key": key, "title": titles[key], "pictures": found}
                )
        shown.append(
            {
                "name": labeled["class_names"][number],
                "reason": labeled["reasons"][number],
                "kept": words.count(int(labeled["counts"]["kept"][number])),
                "groups": parts,
            }
        )
    return {
        "number": labeled["iteration"],
        "teacher": labeled["teacher"],
        "classes": shown,
        "all_classes": len(labeled["class_names"]) <= labels.ALL_CLASSES,
        "num_classes": words.count(len(labeled["class_names"])),
        "part": labeled["part"],
        "threshold": labeled["threshold"],
    }


def noise(samples, operations, *, magnitude, used):
    """What the noise does to a few images.

    Args:
        samples: List of pairs of an image and the draws of its noise, uint8
            `(S, S, 3)`.
        operations: Dict of operations -> the first image after them.
        magnitude: M.
        used: Whether the student's images meet RandAugment.
    """
    return {
        "rows": [
            {
                "clean": pictures.small(clean, "original"),
                "draws": [pictures.small(draw) for draw in draws],
            }
            for clean, draws in samples
        ],
        "operations": [
            pictures.small(samples[0][0], "original"),
            *(pictures.small(image, n) for n, image in operations.items()),
        ],
        "magnitude": f"{magnitude:g}",
        "used": used,
    }
