"""Every error that this room raises on purpose, drawn once.

Fc7Error
├── ShapeError                 an array of a wrong shape or dtype
├── MissingExtraError          a package of an optional extra is not installed
├── ImageError
│   ├── ImageUnreadableError   no image, or a broken one
│   ├── ImageFormatError       a format that is not taken
│   └── ImageTooLargeError     more pixels than the limit
"""

from __future__ import annotations


class Fc7Error(Exception):
    """Base of all errors that a user can meet. The text names the thing and the mend."""
