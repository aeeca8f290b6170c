"""`jaxclip classify IMAGES --labels "cat,dog"`, and `jaxclip classify --evaluate DIR`"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.cli.options import add_logit_scale, add_model_options, load
from jaxclip.cli.output import PICTURES, check_output, check_spares
from jaxclip.cli.printing import complain, print_skipped, printable, shortened

if TYPE_CHECKING:
    from jaxclip.clip import Clip
    from jaxclip.tasks.evaluation import ClassificationEvaluation
    from jaxclip.tasks.zero_shot import Classes, Classification

# Columns of a terminal that a class's name may take.
_LABEL = 24


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "classify",
        help="put photos into classes that you write down, or measure how well that works",
        usage="jaxclip classify [options] IMAGES... (--labels CLASSES | --labels-file FILE)\n"
        "       jaxclip classify [options] (--evaluate DIR | --dataset NAME) [--linear-probe]",
        description="Says for each photo which of some classes it shows: the most probable ones with their\n"
        "probabilities. With --evaluate or --dataset it counts how many of a set of labelled images are\n"
        "put into the right class. Files that can't be read are named on the error stream and skipped;\n"
        "the exit status is then 1.",
        epilog="examples:\n"
        '  jaxclip classify photos/ --labels "cat,dog,truck" -o classified.png\n'
        "  jaxclip classify photo.jpg --labels-file classes.txt --templates-file prompts.txt --json\n"
        "  jaxclip classify --evaluate imagenette/val --labels-file classes.tsv --index vectors/ -o confusion.png\n"
        "  jaxclip classify --evaluate imagenette/val --linear-probe --train imagenette/train\n"
        "  jaxclip classify --dataset frgfm/imagenette --subset 320px",
    )
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="photos, and folders with their sub-folders")
    parser.add_argument("--labels", metavar="CLASSES", help="the classes' names, separated by commas")
    parser.add_argument(
        "--labels-file",
        metavar="FILE",
        help="a class on each line, names that mean the same separated by commas; what stands before a tab is the "
        "name of its sub-folder, where that is another (n01440764)",
    )
    parser.add_argument(
        "--templates-file",
        metavar="FILE",
        help='a prompt on each line, as "a photo of a {}." (default: some of our own)',
    )
    parser.add_argument(
        "--embeddings",
        metavar="FILE",
        help="the classes' embeddings, ready-made, a row for each label (.npy, .safetensors): no text is encoded",
    )
    add_logit_scale(parser)
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes for each photo (default: %(default)s)")
    parser.add_argument(
        "--evaluate", metavar="DIR", help="a folder of labelled photos, with a sub-folder for each class"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="a dataset of the Hugging Face Hub, or a folder that `datasets` saved one to"
    )
    parser.add_argument("--subset", metavar="NAME", help="of a dataset that has more than one (its configuration)")
    parser.add_argument("--split", metavar="NAME", help="of a dataset (default: test, or else validation)")
    parser.add_argument("--label-column", metavar="NAME", help="of a dataset that has more than one with classes")
    parser.add_argument(
        "--index",
        metavar="INDEX",
        help="keep the labelled photos' vectors in this folder, as `jaxclip embed` does: a run that was interrupted "
        "goes on where it was",
    )
    parser.add_argument(
        "--linear-probe",
        action="store_true",
        help="fit a linear classifier to vectors of labelled photos, in place of words: on --train, or else in five "
        "folds of the photos themselves",
    )
    parser.add_argument(
        "--train", metavar="WHERE", help="what the probe is fitted on: a folder like DIR; with --dataset, a split"
    )
    parser.add_argument("--train-index", metavar="INDEX", help="as --index, for the photos of --train")
    parser.add_argument("--batch-size", type=int, metavar="N", help="photos at a time (default: what suits the device)")
    parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"draw the photos with their classes, or which classes are taken for which ({', '.join(PICTURES)})",
    )
    add_model_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    _check_usage(options)
    for path in (*options.images, options.evaluate, options.labels_file, options.templates_file, options.embeddings):
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
    if options.output:
        check_output(options.output, PICTURES)
        for folder in (*options.images, *([options.evaluate] if options.evaluate else [])):
            check_spares(options.output, folder=folder)
    return _evaluate(options) if options.evaluate or options.dataset else _classify(options)


def _check_usage(options: argparse.Namespace) -> None:
    evaluating = options.evaluate is not None or options.dataset is not None
    wrong = None
    if (options.evaluate is not None) + (options.dataset is not None) + bool(options.images) != 1:
        wrong = "say what to classify: IMAGES, --evaluate DIR or --dataset NAME, one of them"
    elif options.labels is not None and options.labels_file is not None:
        wrong = "--labels and --labels-file stand in each other's place: give one of both"
    elif options.labels is None and options.labels_file is None and (options.embeddings or not evaluating):
        wrong = "say which classes there are: --labels CLASSES or --labels-file FILE"
    elif options.linear_probe and (options.embeddings or options.templates_file):
        wrong = "--linear-probe takes neither --embeddings nor --templates-file: it learns from photos"
    elif options.embeddings and options.templates_file:
        wrong = "--embeddings stand in place of what --templates-file is for: give one of both"
    elif options.train and not options.linear_probe:
        wrong = "--train is what a --linear-probe is fitted on"
    elif options.train_index and not options.train:
        wrong = "--train-index is for the photos of --train"
    elif not evaluating and (options.index or options.linear_probe):
        wrong = "--index and --linear-probe are for labelled photos: --evaluate DIR or --dataset NAME"
    elif not options.dataset and (options.subset or options.split or options.label_column):
        wrong = "--subset, --split and --label-column are of a --dataset"
    elif options.top < 1:
        wrong = f"--top must be at least 1, got {options.top}"
    if wrong:
        options.parser.error(wrong)


def _classify(options: argparse.Namespace) -> int:
    import jaxclip

    labels = _labels(options)
    assert labels is not None
    # A joint model's text tower has the logit scale as well.
    clip = load(options, towers="vision" if options.embeddings and options.logit_scale is not None else "both")
    classes = _classes(options, clip, labels)
    result = jaxclip.classify(
        clip, options.images, classes, logit_scale=options.logit_scale, batch_size=options.batch_size
    )
    print_skipped(options, result.skipped)
    if not result.images:
        complain(options, f"no photos could be read in {', '.join(options.images)}")
        return 2
    if options.output:
        from jaxclip.plotting import classified_photos, write_figure

        paths = [Path(image) for image in result.images if isinstance(image, Path)]
        write_figure(options.output, classified_photos(paths, result.top(options.top)))
    if options.json:
        print(json.dumps(_document(options, clip, result), indent=1))
    else:
        _print_classes(result, options.top)
    return options.status


def _labels(options: argparse.Namespace) -> dict[str, list[str]] | None:
    """Class → its names."""
    from jaxclip.tasks.class_files import read_labels

    if options.labels_file is not None:
        return read_labels(options.labels_file)
    if options.labels is None:
        return None
    names = [name.strip() for name in options.labels.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--labels {options.labels}: name each class once, separated by commas")
    return {name: [name] for name in names}


def _classes(options: argparse.Namespace, clip: "Clip", labels: dict[str, list[str]]) -> "Classes":
    from jaxclip.tasks.class_files import read_embeddings, read_templates
    from jaxclip.tasks.zero_shot import TEMPLATES, classes_of

    if options.embeddings is None:
        templates = TEMPLATES if options.templates_file is None else read_templates(options.templates_file)
        return classes_of(clip, labels, templates)
    embeddings = read_embeddings(options.embeddings)
    if len(embeddings) != len(labels):
        raise ValueError(f"{options.embeddings}: has {len(embeddings)} rows, and there are {len(labels)} labels")
    classes = classes_of(clip, dict(zip(labels, embeddings, strict=True)))
    return dataclasses.replace(classes, labels=[names[0] for names in labels.values()])


def _document(options: argparse.Namespace, clip: "Clip", result: "Classification") -> dict[str, Any]:
    scores = [dict(zip(result.labels, row, strict=True)) for row in result.scores.tolist()]
    return {
        "model": {"source": clip.source, "revision": clip.revision},
        "labels": result.labels,
        "images": [
            {
                "item": str(image),
                "classes": [{"label": label, "probability": part, "score": row[label]} for label, part in best],
            }
            for image, best, row in zip(result.images, result.top(options.top), scores, strict=True)
        ],
        "skipped": [{"item": str(item), "reason": reason} for item, reason in result.skipped],
    }


def _print_classes(result: "Classification", top: int) -> None:
    """A line for each photo: its path, and its classes with their probabilities. Elsewhere than on a terminal they
    stand whole, with tabs between them."""
    paths = [printable(str(image)) for image in result.images]
    rows = [[(printable(label), part) for label, part in best] for best in result.top(top)]
    if not (sys.stdout and sys.stdout.isatty()):
        for path, best in zip(paths, rows, strict=True):
            print("\t".join([path, *(cell for label, part in best for cell in (label, f"{part:.4f}"))]))
        return
    from rich.cells import cell_len

    widths = [min(_LABEL, max(cell_len(label) for label, _ in column)) for column in zip(*rows, strict=True)]
    room = max(20, shutil.get_terminal_size().columns - sum(width + 8 for width in widths))
    room = min(room, max(map(cell_len, paths)))
    for path, best in zip(paths, rows, strict=True):
        cells = [_padded(path, room)]
        cells += [f"{part:.2f} {_padded(label, width)}" for (label, part), width in zip(best, widths, strict=True)]
        print("   ".join(cells).rstrip())


def _padded(text: str, columns: int) -> str:
    from rich.cells import cell_len

    text = shortened(text, columns)
    return text + " " * (columns - cell_len(text))


def _evaluate(options: argparse.Namespace) -> int:
    from jaxclip.tasks.evaluation import evaluate_linear_probe, evaluate_zero_shot

    data, train = _labelled(options)
    labels = _labels(options)
    if options.index:
        options.kept = "what was done is kept: run it again to go on"
    shared = {"index": options.index, "label_column": options.label_column, "batch_size": options.batch_size}
    words = not options.linear_probe and options.embeddings is None
    clip = load(options, towers="both" if words else "vision")
    if options.linear_probe:
        names = None if labels is None else {key: several[0] for key, several in labels.items()}
        result = evaluate_linear_probe(clip, data, train, labels=names, train_index=options.train_index, **shared)
    elif labels is None:
        templates = {}
        if options.templates_file is not None:
            from jaxclip.tasks.class_files import read_templates

            templates = {"templates": read_templates(options.templates_file)}
        result = evaluate_zero_shot(clip, data, **templates, **shared)
    else:
        result = evaluate_zero_shot(clip, data, _classes(options, clip, labels), **shared)
    print_skipped(options, result.skipped)
    name = Path(options.evaluate).resolve().name if options.evaluate else options.dataset
    if options.output:
        from jaxclip.plotting import confusion_matrix, write_figure

        metrics = result.metrics
        title = f"{name}: {metrics.images:,} images, {100 * metrics.top_1:.1f} % right"
        write_figure(options.output, confusion_matrix(metrics.confusion, metrics.labels, title=title))
    if options.json:
        print(json.dumps(_evaluation_document(name, clip, result), indent=1))
    else:
        _print_evaluation(name, result)
    return options.status


def _labelled(options: argparse.Namespace) -> tuple[Any, Any]:
    """What is classified, and what a probe is fitted on."""
    if options.evaluate:
        return options.evaluate, options.train
    from jaxclip.tasks.images import open_dataset

    data = open_dataset(options.dataset, subset=options.subset, split=options.split)
    train = options.train and open_dataset(options.dataset, subset=options.subset, split=options.train)
    return data, train


def _evaluation_document(name: str, clip: "Clip", result: "ClassificationEvaluation") -> dict[str, Any]:
    metrics = result.metrics
    return {
        "data": name,
        "model": {"source": clip.source, "revision": clip.revision},
        "images": metrics.images,
        "classes": len(metrics.labels),
        "top_1": metrics.top_1,
        "top_5": metrics.top_5,
        "mean_per_class": metrics.mean_per_class,
        "images_per_second": result.images_per_second,
        "per_class": metrics.per_class,
        "confusions": [dataclasses.asdict(pair) for pair in metrics.worst_confusions(None)],
        "penalties": list(result.penalties),
        "skipped": [{"item": str(item), "reason": reason} for item, reason in result.skipped],
    }


def _print_evaluation(name: str, result: "ClassificationEvaluation") -> None:
    metrics = result.metrics
    skipped = f", {len(result.skipped):,} skipped" if result.skipped else ""
    print(f"{printable(name)}: {metrics.images:,} images, {len(metrics.labels):,} classes{skipped}")
    print(f"top-1           {metrics.top_1:.4f}")
    if metrics.top_5 is not None:
        print(f"top-5           {metrics.top_5:.4f}")
    print(f"mean per class  {metrics.mean_per_class:.4f}")
    if result.images_per_second is not None:
        print(f"images/s        {result.images_per_second:.1f}")
    if result.penalties:
        print(f"L2              {', '.join(f'{l2:.3g}' for l2 in result.penalties)}")
    worst = metrics.worst_confusions()
    if worst:
        print("worst confusions")
        counts = [f"{pair.count:,} of {pair.images:,}" for pair in worst]
        width = max(map(len, counts))
        for pair, count in zip(worst, counts, strict=True):
            print(f"  {count:>{width}}  {printable(pair.label)} → {printable(pair.predicted)}")
