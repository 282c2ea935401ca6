"""Names of classes that look alike: how they differ, and one spelling for each class.

Out of scope: names that are the same in Unicode's form NFC (`image_files.label_of`).
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping


def alike(label: str) -> str:
    """Return a text that is the same for labels that differ only by case, spaces or Unicode form."""
    return unicodedata.normalize("NFKC", label).casefold().strip()


def describe_difference(first: str, second: str) -> str:
    """Return how two names that look alike differ, in words."""
    if first == second:
        return f"the same name '{first}'"
    if first.lower() == second.lower():
        how = "by upper and lower case"
    elif first.strip() == second.strip():
        how = "by spaces"
    else:
        how = f"by Unicode form or characters ({first!a} and {second!a})"
    return f"the names '{first}' and '{second}', which differ only {how}"


def one_spelling(weights: Mapping[str, float], known: Collection[str] = ()) -> dict[str, str]:
    """Return for each label the spelling of its class.

    weights: of each label; of several spellings, one of `known` counts, otherwise the one with the largest weight.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in weights:
        groups[alike(label)].append(label)
    of_known = {alike(label): label for label in known}
    spelling: dict[str, str] = {}
    for name, labels in groups.items():
        chosen = of_known.get(name) or min(labels, key=lambda label: (-weights[label], label))
        # Two classes of the model can differ only by case: these keep their names.
        spelling |= {label: label if label in known else chosen for label in labels}
    return spelling
