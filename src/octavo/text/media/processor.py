"""The seam between a served model and what its family makes of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from octavo.base.media import PreparedMedia

if TYPE_CHECKING:
    import numpy as np


@runtime_checkable
class MediaProcessor(Protocol):
    """Of one family that sees, with the settings of one model's files. May be called from threads."""

    @property
    def placeholder(self) -> str:
        """What stands for an image in the text that a chat template makes, to be replaced by `PreparedMedia.text`."""
        ...

    @property
    def placeholder_id(self) -> int:
        """The token that `PreparedMedia.text` holds once a row."""
        ...

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        """`pixels` uint8 [height, width, 3], RGB. `options`: what a request asks for (`mm_processor_kwargs`).

        Raises InvalidRequest for an option that the family does not know, or an image that it cannot read.
        """
        ...


@runtime_checkable
class RowsProcessor(Protocol):
    """A `MediaProcessor` of a family that can be given rows in place of an image, of which only the number is known."""

    def rows_text(self, rows: int) -> str:
        """What stands for them, as `PreparedMedia.text` for those of an image."""
        ...
