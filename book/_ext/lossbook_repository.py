"""Where the book's repository lives: links and launch buttons follow from it, or are left out."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
# What a remote may look like: scp-like, ssh://, http(s):// with or without a user or token.
SCP = re.compile(r"(?:[\w.-]+@)?(?P<host>[\w-]+(?:\.[\w-]+)+):(?!//)(?P<path>[^\s]+)")
BUTTONS = ("repository", "issues", "edit_page", "source")
PROVIDERS = ("github", "gitlab", "bitbucket")


def web_url(remote: str) -> str | None:
    """The page of a git remote, ``https://host/owner/name``, or None for a path on this machine.

    User names, tokens and ssh ports do not survive; an explicit web port does.
    """
    remote = remote.strip()
    if "://" in remote:
        parts = urlsplit(remote)
        if parts.scheme not in ("http", "https", "ssh", "git") or not parts.hostname:
            return None
        port = f":{parts.port}" if parts.port and parts.scheme.startswith("http") else ""
        host, path = parts.hostname + port, parts.path
    elif match := SCP.fullmatch(remote):
        host, path = match["host"], match["path"]
    else:
        return None
    path = path.strip("/").removesuffix(".git").strip("/")
    return f"https://{host}/{path}" if "." in host and path.count("/") >= 1 else None


def remote_of(root: Path = ROOT) -> str:
    """What ``git remote get-url origin`` says, or an empty string."""
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def repository_url(root: Path = ROOT) -> str | None:
    """The environment's word first, then git's."""
    return web_url(os.environ.get("LOSSBOOK_REPOSITORY_URL") or remote_of(root))


def provider_of(url: str) -> str | None:
    """The kind of forge, read from its host name; None when the theme would not know it."""
    host = urlsplit(url).netloc.lower()
    return next((name for name in PROVIDERS if name in host), None)


def launch_buttons(provider: str, hub: str | None) -> dict[str, str]:
    """Colab opens notebooks from GitHub only; a JupyterHub is the reader's own."""
    buttons = {"colab_url": "https://colab.research.google.com"} if provider == "github" else {}
    return buttons | ({"jupyterhub_url": hub} if hub else {})


def theme_options(options: dict, url: str | None, hub: str | None = None) -> dict:
    """The theme's options with the repository filled in, or with every trace of one removed.

    An empty URL crashes the theme, and its default points at somebody else's repository.
    """
    drop = {"repository_url", "repository_branch", "path_to_docs", "launch_buttons"}
    drop |= {f"use_{name}_button" for name in BUTTONS}
    kept = {key: value for key, value in options.items() if key not in drop}
    provider = url and provider_of(url)
    if not url or not provider:
        return kept
    kept |= {
        "repository_url": url,
        "repository_provider": provider,
        "repository_branch": os.environ.get("LOSSBOOK_REPOSITORY_BRANCH", "main"),
        "path_to_docs": "",
        "use_repository_button": True,
        "use_issues_button": provider != "bitbucket",
    }
    buttons = launch_buttons(provider, hub)
    return kept | (
        {"launch_buttons": {"notebook_interface": "jupyterlab"} | buttons} if buttons else {}
    )
