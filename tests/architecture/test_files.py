"""Small files, and nothing of a pickle in them."""

import re
import subprocess
from pathlib import Path

MAX_LINES = 500


def _sources(root: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [root / line for line in listed.stdout.splitlines() if (root / line).exists()]


def test_no_file_outgrows_a_screenful_of_thought(repo_root: Path) -> None:
    long = {
        str(path.relative_to(repo_root)): count
        for path in _sources(repo_root)
        if "migrations/versions" not in str(path) and (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_every_module_says_what_it_knows(repo_root: Path) -> None:
    bare = [
        str(path.relative_to(repo_root))
        for path in _sources(repo_root)
        if path.stat().st_size and not path.read_text().lstrip().startswith('"""')
    ]
    assert not bare


def test_no_pickle_and_no_remote_code(repo_root: Path) -> None:
    banned = re.compile(r"\b(import (pickle|joblib|dill|cloudpickle)|torch\.load\(|trust_remote_code=True|shell=True)")
    found = [str(path) for path in _sources(repo_root) if "tests/" not in str(path) and banned.search(path.read_text())]
    assert not found
