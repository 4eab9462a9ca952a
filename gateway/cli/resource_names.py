"""Names of resources, which a person may write with or without their collection."""

from __future__ import annotations


def model_name(name: str) -> str:
    """`models/{model}`."""
    return _in("models", name)


def pipeline_name(name: str) -> str:
    """`pipelines/{pipeline}`."""
    return _in("pipelines", name)


def dataset_name(name: str) -> str:
    """`datasets/{dataset}`."""
    return _in("datasets", name)


def dead_letter_name(name: str) -> str:
    """`dead-letters/{offset}`."""
    return _in("dead-letters", name)


def source_name(name: str) -> str:
    """`sources/{source}`."""
    return _in("sources", name)


def _in(collection: str, name: str) -> str:
    return f"{collection}/{name.removeprefix(f'{collection}/')}"
