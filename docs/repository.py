"""The site's link to the repository: the one that this checkout was cloned from, if any."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

# https://host/name, ssh://user@host:port/name and user@host:name
_REMOTE = re.compile(r"(?:https?://|ssh://|(?=[^/]+@))(?:[^@/]+@)?([^/:@]+)(?::\d+)?[:/]/?(.+)")


def web_address(remote: str) -> str | None:
    """The page of a Git remote, without user or password; None for a path on a disk."""
    match = _REMOTE.fullmatch(remote.strip())
    return match and f"https://{match[1]}/{match[2].rstrip('/').removesuffix('.git')}"


def on_config(config: MkDocsConfig) -> None:
    """Take the address from Git, unless mkdocs.yml has one."""
    command = ["git", "-C", str(Path(__file__).parent), "remote", "get-url", "origin"]
    try:
        remote = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:  # no Git
        return
    config.repo_url = config.repo_url or web_address(remote)
    if config.repo_url:
        config.repo_name = config.repo_url.split("/", 3)[-1]


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, **kwargs: Any) -> str | None:
    """Name it at the end of the home page's table."""
    if not (page.is_homepage and config.repo_url):
        return None
    return f"{markdown.rstrip()}\n| read the code | [{config.repo_name}]({config.repo_url}) |\n"
