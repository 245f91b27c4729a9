"""What MkDocs does beside its own while it builds the site: the page of the command line, and the icon."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ICON = Path(__file__).resolve().parents[2] / "SDFSMIS" / "Resources" / "Icons" / "SDFSMIS.svg"
PAGE = "reference/command-line.md"
MARK = "<!-- the commands -->"


def on_files(files: Any, *, config: Any) -> Any:
    files.append(File.generated(config, "icon.svg", abs_src_path=str(ICON)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return markdown.replace(MARK, commands()) if page.file.src_uri == PAGE else markdown


def commands() -> str:
    """Markdown with a section for each command: usage, options and examples, from the typer app itself."""
    words = [sys.executable, "-m", "typer", "SDFSMISLib.cli.app", "utils", "docs", "--name", "sdfsmis"]
    text = subprocess.run(words, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    text = "## " + text.partition("\n## ")[2]  # behind the list of the commands
    text = re.sub(r"(?m)^  (?=[ \w])", "      ", text)  # examples become code
    text = re.sub(r"(?m)^(\* `[^`]+`: )(.+)$", lambda option: option[1] + with_code(option[2]), text)
    return re.sub(r"\*\*(Usage|Options)\*\*:\n\n", "", text).replace("```console\n$ ", "```\n")


def with_code(text: str) -> str:
    """The help of an option with the names of options, and its default, as code."""
    text = re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", text)
    return re.sub(r"\s+\[default: (.+)\]$", r" Default: `\1`.", text).replace("  [required]", " **Required.**")
