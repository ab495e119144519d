"""Links to the repository come from git or the environment, or are left out."""

from __future__ import annotations

import subprocess

import pytest
from lossbook_repository import repository_url, theme_options, web_url


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@github.com:ada/lossbook.git", "https://github.com/ada/lossbook"),
        ("ssh://git@github.com/ada/lossbook.git", "https://github.com/ada/lossbook"),
        ("ssh://git@git.example.org:2222/ada/lossbook", "https://git.example.org/ada/lossbook"),
        ("https://github.com/ada/lossbook", "https://github.com/ada/lossbook"),
        ("https://github.com/ada/lossbook.git/\n", "https://github.com/ada/lossbook"),
        ("https://ghp_secret@github.com/ada/lossbook.git", "https://github.com/ada/lossbook"),
        ("https://ada:secret@gitlab.com/ada/lossbook", "https://gitlab.com/ada/lossbook"),
        ("https://gitlab.com/group/sub/lossbook.git", "https://gitlab.com/group/sub/lossbook"),
        ("git@gitlab.com:group/sub/lossbook.git", "https://gitlab.com/group/sub/lossbook"),
        ("https://git.example.org:8443/a/b.git", "https://git.example.org:8443/a/b"),
        ("http://git.example.org/a/b", "https://git.example.org/a/b"),
        ("/srv/git/lossbook.git", None),
        ("../lossbook", None),
        ("file:///srv/git/lossbook.git", None),
        ("C:\\books\\lossbook", None),
        ("https://github.com/", None),
        ("backup:lossbook", None),
        ("", None),
    ],
)
def test_a_remote_becomes_a_page_without_secrets(remote, url):
    assert web_url(remote) == url


def repository(folder, remote):
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    if remote:
        subprocess.run(["git", "-C", str(folder), "remote", "add", "origin", remote], check=True)
    return folder


def test_git_is_asked_and_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("LOSSBOOK_REPOSITORY_URL", raising=False)
    root = repository(tmp_path, "git@github.com:ada/lossbook.git")
    assert repository_url(root) == "https://github.com/ada/lossbook"
    monkeypatch.setenv("LOSSBOOK_REPOSITORY_URL", "https://gitlab.com/group/lossbook")
    assert repository_url(root) == "https://gitlab.com/group/lossbook"


def test_without_a_remote_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv("LOSSBOOK_REPOSITORY_URL", raising=False)
    assert repository_url(repository(tmp_path, None)) is None


DEFAULTS = {
    "repository_url": "https://github.com/executablebooks/jupyter-book",
    "launch_buttons": {"colab_url": ""},
    "use_issues_button": True,
    "extra_footer": "kept",
}


@pytest.mark.parametrize("url", [None, "https://git.example.org/a/b"])
def test_an_unknown_repository_leaves_no_trace(url):
    assert theme_options(DEFAULTS, url) == {"extra_footer": "kept"}


def test_github_opens_in_colab_and_gitlab_does_not():
    github = theme_options(DEFAULTS, "https://github.com/ada/lossbook")
    assert github["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert github["repository_url"] == "https://github.com/ada/lossbook"
    gitlab = theme_options(DEFAULTS, "https://gitlab.com/group/sub/lossbook")
    assert gitlab["use_repository_button"]
    assert "launch_buttons" not in gitlab


def test_a_readers_hub_is_offered_wherever_the_repository_is():
    options = theme_options({}, "https://gitlab.com/a/b", hub="https://hub.example.org")
    assert options["launch_buttons"]["jupyterhub_url"] == "https://hub.example.org"
