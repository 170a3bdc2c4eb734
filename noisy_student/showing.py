# SPDX-License-Identifier: Apache-2.0
"""What people look at: `report.html` of a run, and `preview.png` before one.

Here a `Run` meets `reporting`. No model is loaded: what the models said is in
the workdir's files.
"""

import dataclasses
import time

from noisy_student import prerequisites
from noisy_student import previewing
from noisy_student.errors import UserError
from noisy_student.files import write_text
from noisy_student.reporting import pictures
from noisy_student.reporting.report import collect
from noisy_student.reporting.report import facts
from noisy_student.reporting.report import illustrated
from noisy_student.reporting.report import page
from noisy_student.reporting.report import sections
from noisy_student.reporting.report import words
from noisy_student.run import ROLES
from noisy_student.run import Run
from noisy_student.run import open_source
from noisy_student.workdir import Workdir


def refresh(run):
    """Make `report.html` anew at the end of a phase; never fail.

    Args:
        run: The `Run`.
    """
    try:
        # The report is of the run's own images; others may be evaluated too.
        if not (_is_current(run.workdir) or _evaluates_others(run)):
            complete, notes = _with_images(run)
            write_text(
                run.workdir.path / "report.html", make_page(complete, notes)
            )
    except Exception as error:  # a picture is not worth a run
        reason = str(error).partition("\n")[0][:200]
        print(
            f"  warning: report.html could not be made "
            f"({type(error).__name__}: {reason})"
        )


def _evaluates_others(run):
    """Whether a command has other evaluation images than its run."""
    known = run.workdir.data().get("evaluation")
    given = run.evaluation
    return bool(known and given and known["fingerprint"] != given.fingerprint)


def _is_current(workdir):
    """Whether no phase has ended since the report was made."""
    path = workdir.path / "report.html"
    if not path.exists():
        return False
    made_of = [
        workdir.path / "results.json",
        *workdir.path.glob("iteration_*/labels/selection.json"),
    ]
    made = path.stat().st_mtime_ns
    return all(p.stat().st_mtime_ns < made for p in made_of if p.exists())


def report(config):
    """`--mode=report`: `report.html` of a run that is done, or at work.

    Args:
        config: A `Config`.

    Raises:
        UserError: If there is no run.
    """
    workdir = Workdir(config.workdir)
    if not (workdir.results() or any(workdir.path.glob("iteration_*"))):
        raise UserError(
            f"there is no run in {workdir} to report on: train a teacher with "
            f"python main.py --mode=teach --workdir={workdir}"
        )
    run = Run(config, workdir, None, None, None, None, workdir.class_names())
    run, notes = _with_images(run)
    path = workdir.path / "report.html"
    # No lock: a run that is at work here writes the same file at its own time.
    write_text(path, make_page(run, notes), mark=".asked")
    print(f"Report: {path}")


def _with_images(run):
    """(`Run` with the images that are here, sentences on those that are not).

    A workdir tells most of its story without them, and may have been copied
    to where they are not.
    """
    notes = []
    for role, prefix in ROLES.items():
        if getattr(run, role) is None:
            try:
                source = open_source(run.config, prefix, run.class_names)
            except UserError as error:
                notes.append(f"No {role} images can be shown: {error}.")
                continue
            run = dataclasses.replace(run, **{role: source})
    return run, notes


def make_page(run, notes=()):
    """`report.html` as text.

    Args:
        run: The `Run`; its sources may be None.
        notes: Sentences on what could not be opened.
    """
    workdir, evaluation = run.workdir, run.evaluation
    iterations = range(run.last_iteration + 1)
    given = collect.answers(
        workdir, iterations, evaluation and evaluation.fingerprint
    )
    models = facts.models(workdir.results(), given)
    rounds = collect.rounds(workdir, iterations[1:])
    seconds = workdir.times()
    samples = previewing.samples(run)

    def command(mode):
        return prerequisites.command(run, mode)

    only_weights = bool(models) and all(m["phase"] == "weights" for m in models)
    return page.render(
        about=_about(run, models, notes),
        tiles=sections.headline(models, rounds, sum(seconds.values())),
        idea=None
        if only_weights
        else {
            **sections.idea(
                models,
                rounds,
                run.last_iteration,
                _sizes(run),
                _idea_pictures(run, samples),
            ),
            "online": run.config.online_teacher,
        },
        accuracy=sections.accuracy(models, evaluation is not None, command),
        curves=None
        if only_weights
        else sections.training(
            collect.curves(workdir, models, iterations), models, command
        ),
        **_labels(run, rounds, only_weights, command),
        noise=None if only_weights else _noise(run, samples, notes),
        **illustrated.answers_of(evaluation, models, given, command),
        settings={
            "times": collect.times(seconds),
            "versions": collect.versions(),
            "made": time.strftime("%Y-%m-%d %H:%M"),
            "flags": collect.settings(workdir),
            "command": command("report"),
        },
    )


def _sizes(run):
    return {
        name: source.num_examples if source else None
        for name, source in (
            ("labeled", run.labeled),
            ("unlabeled", run.unlabeled),
            ("evaluation", run.evaluation),
        )
    }


def _about(run, models, notes):
    """Title, what the run is made of, and whether it is done."""
    parts = []
    if models:
        variants = dict.fromkeys(m["variant"].upper() for m in models)
        parts.append(f"EfficientNet-{', '.join(variants)}")
    if run.class_names:
        parts.append(words.plural(run.num_classes, "class"))
    parts += [
        f"{words.count(size)} {name}"
        for name, size in _sizes(run).items()
        if size
    ]
    return {
        "title": run.workdir.path.resolve().name or str(run.workdir),
        "summary": " · ".join(parts),
        "state": _state(run, models),
        "notes": notes,
    }


def _state(run, models):
    """A sentence on what is still to come, or None."""
    if any(model["phase"] == "weights" for model in models):
        return None
    for phase, k in run.phases():
        if run.workdir.find_result(phase, k) is None:
            curves = collect.curves(run.workdir, models, [k])
            return facts.unfinished(phase, k, curves.get(facts.role(k)))
    return None


def _noise(run, samples, notes):
    if not samples:
        why = "None of its images can be read here." if notes else None
        return why and sections.lacking(why)
    operations = previewing.operations(run)
    return {
        "text": previewing.describe(run),
        **sections.noise(
            samples,
            operations,
            magnitude=previewing.magnitude(run),
            used=previewing.uses_randaugment(run),
        ),
    }


def _idea_pictures(run, samples):
    """A few pictures each for the labeled, unlabeled and noised images."""
    few = {"noised": [pictures.small(draws[0]) for _, draws in samples[:3]]}
    for name in ("labeled", "unlabeled"):
        source = getattr(run, name)
        found = {}
        if source:
            found = pictures.album(source, tuple(pictures.spread(source, 3)))
        few[name] = list(found.values())
    return few


def _labels(run, rounds, only_weights, command):
    """The sections on pseudo-labels; None for what can never come."""
    nothing = {"confidence": None, "balance": None, "gallery": None}
    if not rounds:
        if only_weights or not run.last_iteration:
            return nothing
        if run.config.online_teacher:
            why = sections.lacking(
                "With --online_teacher the teacher labels while the student "
                "learns: its labels are not stored, so there is nothing to "
                "filter, to balance or to show here."
            )
        elif run.unlabeled is None:
            why = sections.lacking(
                "There are no unlabeled images to label: give "
                "--unlabeled_dir=DIR."
            )
        else:
            why = sections.lacking(
                "The teacher has labeled nothing yet.", command("label")
            )
        return {**nothing, "confidence": why}
    selected = [labeled for labeled in rounds if labeled["selection"]]
    return {
        "confidence": sections.confidence(rounds),
        "balance": sections.balance(selected, command),
        "gallery": illustrated.gallery(run.unlabeled, selected[-1])
        if selected
        else None,
    }
