"""The checks of a whole set: leaks between splits, duplicates, odd slices; and what it holds."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import LESION_VALUES
from ssm_jax.data.findings import Findings
from ssm_jax.data.inspection import Facts, Inspected, Slice, size_of
from ssm_jax.data.objects import Values, area_field, exceeds

SPLITS = ("train", "val", "test")


def check_set(
    inspected: Sequence[Inspected],
    findings: Findings,
    min_area: int,
    groups: Sequence[Values] = (LESION_VALUES,),
) -> None:
    """Notes what readable slices have in common, or have not.

    Args:
      inspected: slices of which all files are readable.
      findings: receives what is odd.
      min_area: see `objects.exceeds`.
      groups: mask values that make lesions together.
    """
    sizes = collections.Counter(size_of(found.picture) for found in inspected)
    common = sizes.most_common(1)[0][0] if sizes else ""
    alike: dict[str, list[Slice]] = {}
    for found in inspected:
        where, size = found.item.where, size_of(found.picture)
        if size != common:
            findings.add("size_outlier", f"{where} ({size}, most are {common})")
        # Where values are wrong, nobody knows which of them is a lesion.
        if (
            found.mask
            and not found.foreign_values(findings.classes)
            and not has_lesion(found.mask, min_area, groups)
        ):
            findings.add("no_lesion", where)
        if found.picture["blank"]:
            findings.add("blank", where)
        else:
            alike.setdefault(found.picture["hash"], []).append(found.item)
    for items in alike.values():
        if len(items) > 1:
            _note_duplicates(items, findings)


def has_lesion(mask: Facts, min_area: int, groups: Sequence[Values] = (LESION_VALUES,)) -> bool:
    """Whether a mask has a lesion larger than the least area, by its facts; see `check_set`."""
    size = mask["height"], mask["width"]
    return any(exceeds(mask[area_field(own)], min_area, *size).any() for own in groups)


def check_patients(slices: Sequence[Slice], findings: Findings) -> None:
    """Notes patients in more than one split."""
    counts: dict[str, collections.Counter] = {}
    for item in slices:
        if item.patient is not None:
            counts.setdefault(item.patient, collections.Counter())[item.split] += 1
    for patient, splits in counts.items():
        if len(splits) > 1:
            shares = ", ".join(f"{splits[split]} in {split}" for split in SPLITS if splits[split])
            findings.add("patient_overlap", f"{patient} ({shares})")


def _note_duplicates(items: Sequence[Slice], findings: Findings) -> None:
    """Notes slices with equal pixels, under every kind that holds."""
    names = " = ".join(item.where for item in items)
    splits = collections.Counter(item.split for item in items)
    if len(splits) > 1:
        findings.add("split_duplicate", names)
    if max(splits.values()) > 1:
        findings.add("duplicate", names)
    if len({item.label for item in items}) > 1:
        findings.add("duplicate_class", names)


def counts_of(
    inspected: Sequence[Inspected],
    classes: ClassSet,
    min_area: int,
    groups: Sequence[Values] = (LESION_VALUES,),
) -> dict[str, dict[str, Any]]:
    """Split -> how many slices, sizes, patients, and classes or lesions it has; see `check_set`."""
    result = {}
    for split in SPLITS:
        chosen = [found for found in inspected if found.item.split == split]
        if not chosen:
            continue
        sizes = collections.Counter(size_of(found.picture) for found in chosen)
        counts: dict[str, Any] = {"slices": len(chosen), "sizes": dict(sizes.most_common())}
        patients = {found.item.patient for found in chosen} - {None}
        if patients:
            counts["patients"] = len(patients)
        if chosen[0].mask is None:
            labels = collections.Counter(found.item.label for found in chosen)
            counts["classes"] = {one.name: labels[one.number] for one in classes.image}
        else:
            masks = [found.mask for found in chosen if found.mask]
            values = collections.Counter(v for mask in masks for v in mask["values"])
            counts["with_lesions"] = sum(has_lesion(mask, min_area, groups) for mask in masks)
            counts["mask_values"] = {str(k): values[k] for k in sorted(values)}
        result[split] = counts
    return result
