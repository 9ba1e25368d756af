"""What the documents promise to be in the repository is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "examples/README.md", "CONTRIBUTING.md", "CHANGELOG.md")
# [text](target), ![text](target "title"), [label]: target, and src="target" or href="target" of HTML.
LINK = re.compile(r"\]\(<?([^)>\s]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)", re.MULTILINE)


def relative_links(text: str) -> list[str]:
    """Return the targets of links and images that are no addresses, without anchors; code blocks hold none."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = [next(filter(None, groups)) for groups in LINK.findall(text)]
    targets = [target.split("#")[0] for target in targets if not re.match(r"[a-z+]+:", target)]
    return [target for target in targets if target]


def test_links_of_every_kind_are_seen():
    text = 'a [b](c.md#d) ![e](f/g.png "title") [h](https://i) [j](#k) `[l](m)`\n[n]: o.md\n<img src="p.png">\n'
    assert relative_links(text) == ["c.md", "f/g.png", "o.md", "p.png"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_and_images_resolve(name):
    document = ROOT / name
    missing = [link for link in relative_links(document.read_text()) if not (document.parent / link).exists()]
    assert not missing
