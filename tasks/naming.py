"""Names for people: of task runs in Prefect, and of the ranges of classes, slices and epochs in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.tasks import TaskRunNameCallbackWithParameters


def span(numbers: range) -> str:
    """Return `first-last`, the last one included.

    Example:
        >>> span(range(0, 10))
        '0-9'
    """
    return f"{numbers.start}-{numbers.stop - 1}"


def called(template: str) -> TaskRunNameCallbackWithParameters:
    """Return a function that names a task's runs: `template` filled with its parameters, ranges written as by `span`.

    Example:
        >>> called("classify classes {classes}")({"classes": range(10, 20)})
        'classify classes 10-19'
    """

    def name(parameters: dict[str, Any]) -> str:
        shown = {key: span(value) if isinstance(value, range) else value for key, value in parameters.items()}
        return template.format(**shown)

    return name  # type: ignore[return-value]  # the protocol has a class method that nobody calls
