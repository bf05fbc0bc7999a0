"""`encrypted_content` of reasoning items: the thinking in a form that clients carry, and do not read.

Some clients send no more of a reasoning item back than this field, which OpenAI encrypts to hide the thinking. Nothing
is hidden here, for `content` has it too: the field is a mark and the text in base64.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "octavo-reasoning-1."


def encrypted(text: str) -> str:
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def decrypted(value: str) -> str | None:
    """The text; None where another server made the value."""
    if not value.startswith(_MARK):
        return None
    try:
        return base64.b64decode(value.removeprefix(_MARK), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
