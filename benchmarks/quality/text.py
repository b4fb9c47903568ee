# SPDX-License-Identifier: MIT
"""Real English text for language modelling that is on every machine with Python."""

import hashlib
import platform
import pydoc_data.topics
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Text:
    """A text and where it came from."""

    content: str
    source: str
    sha256: str


def load_text(path: str | Path | None = None) -> Text:
    """A UTF-8 file, or by default the language reference topics that come with Python (PSF licence).

    ValueError for a file that is not UTF-8 text, FileNotFoundError where there is none.
    """
    if path is None:
        topics = pydoc_data.topics.topics
        content = "\n\n".join(topics[name].strip() for name in sorted(topics))
        source = f"pydoc_data.topics of Python {platform.python_version()} (language reference, PSF licence)"
    else:
        try:
            content = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
        source = Path(path).name
    return Text(content, source, hashlib.sha256(content.encode()).hexdigest())
