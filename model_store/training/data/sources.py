"""Find the images of a data set, in any of the usual forms, with their classes and splits.

    photos/<class>/*                             no split: `split.py` chooses the images for validation
    photos/train/<class>/*, photos/val/<class>/* also valid/ or validation/, and optionally test/
    photos.csv, .tsv, .jsonl, .parquet           path,label[,split]
    a folder of images with one such table in it, or with one for each split: train.csv, val.csv, train/metadata.csv
    ILSVRC as distributed, or shards of `fc7 data prepare`

Guarantees: only names are read. Files that are not used are listed with the reason. A class is named after its folder,
in Unicode form NFC. Deeper folders belong to the class of the top folder.
Out of scope: archives, which `service.cli.data.unpack` unpacks; reading the images (reader.py).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from model_store.classes.names import alike, describe_difference
from model_store.errors import DatasetError
from model_store.image_files import Skipped, escape_name, label_of, split_of_folder, without_wrapper
from model_store.table_file import TABLE_SUFFIXES, is_table
from model_store.training.data.class_folders import class_folders, image_files
from model_store.training.data.ilsvrc import ilsvrc_source, is_ilsvrc
from model_store.training.data.image_file import ALL, SPLIT_ORDER, ImageFile, Source
from model_store.training.data.shards import is_sharded, read_folder, read_images
from model_store.training.data.table import TABLE, read_table, read_tables, tables_in

_FORMS = (
    "A data set is a folder with one folder per class (DIR/<class>/*, or DIR/train/<class>/* and DIR/val/<class>/*), "
    "or a table with the columns path,label. To create an example, run: fc7 data demo DIR"
)
_LISTED = 5  # examples in a message


def find_source(path: Path, *, nested: bool = False) -> Source:
    """Return the images of the data set at `path`. `~` stands for the home folder.

    nested: each folder that contains images is a class ("animals/cat"), not only the top folders.
    Raises DatasetError if there is no data set, and TableError.
    """
    path = path.expanduser()
    if path.is_file():
        if is_table(path):
            return read_table(path)
        raise DatasetError(
            f"{path} is not a table ({', '.join(TABLE_SUFFIXES)}). The fc7 commands unpack archives named .zip, .tar, "
            f".tar.gz or .tar.bz2. "
            f"{_FORMS}"
        )
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder or file. {_FORMS}")
    if is_sharded(path):
        folder = read_folder(path)
        splits = {split: tuple(read_images(folder, split)) for split in folder.splits}
        return Source(path, "shards", folder.classes, splits)
    if is_ilsvrc(path):
        return ilsvrc_source(path)
    return _find_folders(path, nested=nested)


def images_of_split(path: Path, split: str) -> tuple[Path, tuple[ImageFile, ...], tuple[Skipped, ...]]:
    """Return the folder or table, the images of a split, and what is ignored. split: "all" takes every image.

    Only the split's own folder is required. Raises DatasetError, TableError.
    """
    path = path.expanduser()
    folder = _split_folders(path).get(split, path / split) if path.is_dir() and split != ALL else path
    if folder != path and folder.is_dir() and class_folders(folder):
        source = _list_classes(path, {split: folder}, nested=False)
        if not any(source.splits.values()):
            raise DatasetError(f"{folder} has no images in class folders. They are expected as <class>/*.")
        return folder, source.splits[split], source.ignored
    source = find_source(path)
    if split == ALL:
        return path, tuple(image for images in source.splits.values() for image in images), source.ignored
    if split not in source.splits:
        found = ", ".join(source.splits) if source.is_split else "none"
        raise DatasetError(
            f"{path} has no split {split!r} (splits: {found}; {folder} is not a folder). Use --split all for all of "
            f"its images, or choose a split with: fc7 data split {path} TABLE.csv"
        )
    return path, source.splits[split], source.ignored


def require_trainable(source: Source) -> None:
    """Raise DatasetError unless there are at least two classes, and training images of every class.

    The message names the classes, where they are, and how to fix it.
    """
    trained = "train" if source.is_split else ALL
    counts = {split: source.counts(split) for split in source.splits}
    training = counts.get(trained, Counter())
    empty = [label for label in source.classes if not any(found.get(label) for found in counts.values())]
    if empty:
        if source.kind == TABLE:
            fix = f"The files of these rows do not exist; fc7 data check {source.root} lists them. Correct the paths."
        else:
            fix = f"Add images, or remove the {_plural(empty, 'folder')}."
        raise DatasetError(f"{_classes(empty)} no images in {source.root}. {fix}")
    missing = [label for label in source.classes if not training.get(label)]
    if missing:
        first = next(image for images in source.splits.values() for image in images if image.label == missing[0])
        twin = next((label for label in training if alike(label) == alike(missing[0])), None)
        hint = f" Training images have {describe_difference(twin, missing[0])}." if twin else ""
        raise DatasetError(
            f"{_classes(missing)} no training images in {source.root}, only others such as {first.file}. A net cannot "
            f"learn a class without training images.{hint} Add some to train, or remove the class."
        )
    if len(source.classes) < 2:
        only = source.classes[0] if source.classes else "none"
        fix = "Add rows of another class, or check the column label."
        if source.kind != TABLE:
            fix = "Put the images into one folder per class."
            parents = {image.file.parent for images in source.splits.values() for image in images}
            if len(parents) > 1:
                folder = Path(os.path.commonpath(parents))
                fix += (
                    f" If the folders in {folder} are the classes, give {folder} itself, or make each of them a class "
                    "with: fc7 data split --nested"
                )
        raise DatasetError(f"{source.root} has one class ('{only}'), but a classifier needs at least two. {fix}")


def class_notes(source: Source) -> list[str]:
    """Return what the user should know about the classes: alike names, and few or no images in a split."""
    notes = []
    groups: dict[str, list[str]] = defaultdict(list)
    for label in source.classes:
        groups[alike(label)].append(label)
    notes += [
        f"Two classes of {source.root} have {describe_difference(group[0], group[1])}. If they are the same class, "
        "rename one of them."
        for group in groups.values()
        if len(group) > 1
    ]
    if source.is_split and "val" in source.splits:
        counts = source.counts("val")
        if missing := [label for label in source.classes if not counts.get(label)]:
            notes.append(
                f"{_classes(missing)} no validation images in {source.root}, so no accuracy is measured for them."
            )
    counts = source.counts("train" if source.is_split else ALL)
    if single := [label for label in source.classes if counts.get(label) == 1]:
        notes.append(f"{_classes(single)} only one training image in {source.root}. Add more to get a useful answer.")
    return notes


def _plural(items: Sequence[object], word: str) -> str:
    return word if len(items) == 1 else f"{word}s"


def _classes(labels: Sequence[str]) -> str:
    """Return "The class 'a' has", or "The classes 'a', 'b' have"."""
    more = f" and {len(labels) - _LISTED:,} more" if len(labels) > _LISTED else ""
    names = ", ".join(f"'{label}'" for label in labels[:_LISTED])
    return f"The {'class' if len(labels) == 1 else 'classes'} {names}{more} {'has' if len(labels) == 1 else 'have'}"


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of `root` that are named after a split. Raises DatasetError."""
    found: dict[str, Path] = {}
    for folder in class_folders(root):
        split = split_of_folder(folder.name)
        if split is not None:
            if split in found:
                raise DatasetError(f"{found[split]} and {folder} are the same split. Remove or rename one of them.")
            found[split] = folder
    return found


def _find_folders(path: Path, *, nested: bool) -> Source:
    """List the images of a data set in the folder `path`: its class folders, or its tables."""
    root = without_wrapper(path)
    splits = _split_folders(root)
    others = [folder for folder in class_folders(root) if folder not in splits.values()]
    with_classes = [split for split, folder in splits.items() if class_folders(folder)]
    if len(others) < 2 and not with_classes and (source := _from_tables(root, splits, others)):
        return source
    if not others and splits and not with_classes:
        folder = next(iter(splits.values()))
        raise DatasetError(f"{folder} has no class folders; they are expected as {folder.name}/<class>/*. {_FORMS}")
    if not others and not splits:
        raise DatasetError(f"{path} has no class folders. {_FORMS}")
    if others and ("train" not in with_classes or not {"val", "test"} & splits.keys()):
        splits = {}  # classes with such names, for example trains
    source = _list_classes(root, splits or {ALL: root}, nested=nested)
    if not any(source.splits.values()):
        raise DatasetError(f"{path} has no images in class folders. {_FORMS}")
    notes = list(source.notes)
    if root != path:
        notes.insert(0, f"The class folders are in {root}.")
    if splits and others:
        names = ", ".join(escape_name(folder.name) for folder in others[:_LISTED])
        notes.append(f"Folders beside train that are not used: {names}.")
    notes += [
        f"{escape_name(str(table))} was not used, because there are class folders. To train on it, give its path."
        for table in tables_in(root)
    ]
    return replace(source, notes=tuple(notes))


def _from_tables(root: Path, splits: dict[str, Path], others: Sequence[Path]) -> Source | None:
    """Read the table of each split folder, or those in `root` or in the only other folder. None: there are none."""
    inner = {split: tables_in(folder) for split, folder in splits.items()}
    if inner and all(len(found) == 1 for found in inner.values()):
        return read_tables(root, {split: found[0] for split, found in inner.items()})
    for folder in (root, *others):
        found = tables_in(folder)
        if len(found) == 1:
            return read_table(found[0])
        by_split = {split_of_folder(file.stem): file for file in found}
        if found and len(by_split) == len(found) and None not in by_split:
            return read_tables(root, {split: file for split, file in by_split.items() if split})
        if found:
            names = ", ".join(escape_name(file.name) for file in found[:_LISTED])
            raise DatasetError(f"{folder} has several tables: {names}. Give the path of the one with the labels.")
    return None


def _list_classes(root: Path, folders: dict[str, Path], *, nested: bool) -> Source:
    """List the images in the class folders of each split."""
    ignored: list[Skipped] = []
    splits: dict[str, tuple[ImageFile, ...]] = {}
    classes: dict[str, str] = {}  # by label, the folder name that came first
    notes: dict[str, None] = {}
    deeper = 0
    for split, folder in sorted(folders.items(), key=lambda item: SPLIT_ORDER.index(item[0])):
        images: list[ImageFile] = []
        for class_folder in class_folders(folder, ignored.append):
            label = label_of(class_folder.name)
            first = classes.setdefault(label, class_folder.name)
            if first != class_folder.name:
                how = "with other spaces" if first.strip() == class_folder.name.strip() else "in two Unicode forms"
                notes[
                    f"The folders of the class '{label}' in {root} are spelled {how} ({first!a} and "
                    f"{class_folder.name!a}), which are the same name. Their images are one class."
                ] = None
            found = image_files(root, class_folder, ignored.append)
            deeper += sum(image.file.parent != class_folder for image in found)
            if nested:
                found = _nested(folder, found)
            images += found
        splits[split] = tuple(images)
    labels = {image.label for images in splits.values() for image in images} if nested else set(classes)
    if deeper and not nested:
        notes[
            f"{deeper:,} images in deeper folders belong to the class of the top folder. To make each folder a class, "
            "use: fc7 data split --nested"
        ] = None
    kind = "class folders" if ALL not in splits else "class folders without a split"
    return Source(root, kind, tuple(sorted(labels)), splits, tuple(ignored), tuple(notes))


def _nested(folder: Path, images: Iterable[ImageFile]) -> list[ImageFile]:
    return [
        ImageFile(image.name, label_of(image.file.parent.relative_to(folder).as_posix()), image.file)
        for image in images
    ]
