# SPDX-License-Identifier: Apache-2.0
"""What a run says on the terminal: plain text made of plain values."""

from absl import logging

# More names than this would bury what matters; the files hold them all.
NAMES_SHOWN = 10


def role(iteration):
    """What the model of an iteration is to the run."""
    return f"student {iteration}" if iteration else "teacher"


def data_summary(class_names, sources, *, batch_size, unlabeled_batch_size):
    """How many images there are, of what, and how often an epoch shows them.

    Args:
        class_names: Names of the classes.
        sources: Dict of what the images are for, `labeled`, `unlabeled` and
            `evaluation`, as far as they are read, to a `Source` or None.
        batch_size: B, global.
        unlabeled_batch_size: U of a student, global.

    Returns:
        A few lines of text.
    """
    shown = ", ".join(class_names[:NAMES_SHOWN])
    if len(class_names) > NAMES_SHOWN:
        shown += ", ..."
    lines = ["Data", f"  {'classes':<12}{len(class_names):>9}  {shown}"]
    for name, source in sources.items():
        count = source.num_examples if source else 0
        text = f"{source.name}" if source else "none"
        lines.append(f"  {name:<12}{count:>9}  {text}")
    evaluation = sources.get("evaluation")
    if evaluation and evaluation.absent:
        lines.append(absent_text(evaluation.absent))
    labeled, unlabeled = sources.get("labeled"), sources.get("unlabeled")
    if not labeled:
        return "\n".join(lines)
    steps_per_epoch = labeled.num_examples / batch_size
    lines.append(
        f"  an epoch is one pass over the labeled images: "
        f"{_steps(_amount(steps_per_epoch))} of {batch_size}"
    )
    if unlabeled:
        passes = steps_per_epoch * unlabeled_batch_size / unlabeled.num_examples
        lines.append(
            f"  a student's step adds {unlabeled_batch_size} unlabeled images: "
            f"{_amount(passes)} passes over all of them an epoch"
        )
    return "\n".join(lines)


def training_summary(
    *,
    role,
    variant,
    image_size,
    steps,
    batch_size,
    num_labeled,
    unlabeled_batch_size,
    num_unlabeled,
    num_replicas,
    selected=True,
    warmup_steps=0,
):
    """What an epoch is, and how often each image is seen.

    Args:
        role: Of `role`.
        variant: Name of the network.
        image_size: Pixels.
        steps: Training steps in all.
        batch_size: B, global; 0 for pseudo-labeled images alone.
        num_labeled: Labeled images.
        unlabeled_batch_size: U, global; 0 for a teacher.
        num_unlabeled: Pseudo-labeled images in a pass, duplicates counted.
        num_replicas: Devices.
        selected: Whether they were selected, or are all that there are.
        warmup_steps: Of the learning rate.

    Returns:
        A few lines of text.
    """
    devices = f" on {num_replicas} devices" if num_replicas > 1 else ""
    sizes = {"labeled": batch_size, "pseudo-labeled": unlabeled_batch_size}
    batch = " + ".join(f"{size} {kind}" for kind, size in sizes.items() if size)
    lines = [
        f"{role[0].upper()}{role[1:]}: EfficientNet-{variant.upper()} at "
        f"{image_size} pixels{devices}",
    ]
    if not steps:
        lines.append("  taken as it is, without training")
        return "\n".join(lines)
    lines.append(f"  {_steps(steps)} of {batch} images")
    passes = []
    if batch_size:
        times = _amount(steps * batch_size / num_labeled)
        passes.append(f"{num_labeled} labeled images {times} times")
    if unlabeled_batch_size:
        times = _amount(steps * unlabeled_batch_size / num_unlabeled)
        kind = "selected, with duplicates," if selected else "unlabeled"
        passes.append(f"{num_unlabeled} {kind} {times} times")
    lines.append(f"  it sees the {' and the '.join(passes)}")
    if warmup_steps >= steps:
        lines.append(
            f"  warning: the warm-up alone takes {_steps(warmup_steps)}, so "
            "the learning rate never reaches its peak: lower --warmup_epochs"
        )
    return "\n".join(lines)


def figures_text(values):
    """How well a network does on what it is shown at the moment.

    Args:
        values: Dict of the metrics of a training.

    Returns:
        Text; the total loss is left out, for it is the sum of the parts.
    """
    kinds = {
        "labeled": ("labeled", "labeled_accuracy", "right"),
        "unlabeled": ("pseudo-labeled", "unlabeled_agreement", "agree"),
    }
    return "  ".join(
        f"{name} loss {values[f'{part}_loss']:.3f}, {values[share]:>4.0%} {how}"
        for part, (name, share, how) in kinds.items()
        if f"{part}_loss" in values
    )


def print_loaded(loaded):
    """Say where a network's weights come from.

    Args:
        loaded: `import_weights.Loaded`, or None for fresh weights.
    """
    if loaded:
        head = ", the last layer too"
        if loaded.head_replaced:
            head = "; the last layer is new, for the file has other classes"
        print(
            f"  it begins with a file's weights ({loaded.kind}, "
            f"{loaded.num_tensors} tensors){head}"
        )


def accuracy_text(record, num_classes):
    """Top-1 and, where it says something, top-5.

    Args:
        record: Of `results.json`, with accuracies.
        num_classes: C.
    """
    text = f"top-1 {_percent(record['top1'])}"
    if num_classes > 5:
        text += f", top-5 {_percent(record['top5'])}"
    return text


def results_table(records, seconds, num_classes):
    """The models of a run, a line each.

    Args:
        records: Of `results.json`.
        seconds: How long each took, or None where that is not known.
        num_classes: C.

    Returns:
        Text.
    """
    rows = [("model", "network", "top-1", "top-5", "steps", "seconds")]
    for record, duration in zip(records, seconds, strict=True):
        if record["phase"] in ("teach", "distill", "finetune"):
            finetuned = record["phase"] == "finetune"
            rows.append(
                (
                    role(record["iteration"])
                    + (", finetuned" if finetuned else ""),
                    record["variant"],
                    _percent(record["top1"]),
                    _percent(record["top5"] if num_classes > 5 else None),
                    str(record["steps"]),
                    "-" if duration is None else f"{duration:.0f}",
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [
            cell.rjust(width)
            for cell, width in zip(row[2:], widths[2:], strict=True)
        ]
        lines.append("  ".join(cells))
    lines.insert(1, "-" * len(lines[0]))
    return "\n" + "\n".join(lines)


def absent_text(names, role="evaluation"):
    """Says which classes have no images.

    Args:
        names: Names of these classes, at least one.
        role: What the images are for.
    """
    shown = ", ".join(names[:NAMES_SHOWN])
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    kind = "class" if len(names) == 1 else f"{len(names)} classes"
    return f"  no {role} images of {kind} {shown}{more}"


def print_untrained(names):
    """Say which classes a model cannot learn, if any."""
    if names:
        text = absent_text(names, "labeled").strip()
        print(f"  warning: {text}: a model cannot learn them")


def warn_skipped(name, reason):
    """Name an image that is left out; call it for the first ones alone."""
    logging.warning("Skipping %s: %s", name, reason)


def print_skipped(count, name):
    """Say how many images of a source are left out, if any."""
    if count:
        print(
            f"  {count} files of {name} cannot be read as images and are left "
            "out: see skipped.csv"
        )


def print_evaluated(count, name):
    """Say how many images of a training set are evaluation images, if any."""
    if count:
        print(
            f"  warning: {_counted(count)} of {name} "
            f"{'is' if count == 1 else 'are'} in the evaluation set too and "
            "left out: see skipped.csv"
        )


def print_all_evaluated(count, name):
    """Say that a model is evaluated on what it is trained on."""
    print(
        f"  warning: all {count} labeled images of {name} are in the "
        "evaluation set too: the accuracy is that on images that the model has "
        "seen"
    )


def print_copies(num_copies, num_contradictions):
    """Say how many labeled images are there more than once, if any.

    Args:
        num_copies: Images that are not the first with their bytes.
        num_contradictions: Different images that have several labels.
    """
    if num_copies:
        several = ""
        if num_contradictions:
            several = f"; {_counted(num_contradictions)} in more than one class"
        print(
            f"  warning: exact copies among the labeled images: {num_copies}"
            f"{several}"
        )


def _counted(count):
    return "1 image" if count == 1 else f"{count} images"


def _percent(value):
    return "-" if value is None else f"{value:.2%}"


def _steps(number):
    return f"{number} step" if str(number) == "1" else f"{number} steps"


def _amount(value):
    """A number with as many digits as help."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def bytes_text(number):
    """Formats bytes in a decimal unit: `12.4 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
