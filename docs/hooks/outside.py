"""Links from a page to a file of the repository that is not a page lead to the repository."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\]\(\.\./(?=[\w.])")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    return _OUTSIDE.sub(f"]({config.repo_url.rstrip('/')}/blob/main/", markdown)
