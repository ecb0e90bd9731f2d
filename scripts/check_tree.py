"""Checks of the tree itself: lengths, words, links, and that the README's commands exist.

Prints every finding and exits 1 when there is one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
WORDS = ("TODO", "FIXME", "NotImplementedError", "XXX")


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def sources() -> Iterator[str]:
    for path in tracked("src/*.py"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            yield f"{name} has {lines} lines, expected no more than {MAX_FILE_LINES}"
        for word in WORDS:
            if word in text:
                yield f"{name} says {word}"
        tree = ast.parse(text)
        names = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets
                 if isinstance(t, ast.Name)]  # fmt: skip
        annotated = [n.target.id for n in tree.body if isinstance(n, ast.AnnAssign)
                     and isinstance(n.target, ast.Name)]  # fmt: skip
        if "__all__" not in names + annotated and len(tree.body) > 1:
            yield f"{name} has no __all__"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES and not _is_declaration(node):
                    yield (
                        f"{name}:{node.lineno} {node.name} has {length} lines, "
                        f"expected no more than {MAX_FUNCTION_LINES}"
                    )


def _is_declaration(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A command of the command line is mostly its options: only its body counts."""
    first, last = node.body[0].lineno, node.end_lineno or node.lineno
    return bool(node.decorator_list) and last - first < MAX_FUNCTION_LINES // 2


def _anchor(heading: str) -> str:
    text = re.sub(r"[`*_]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def links() -> Iterator[str]:
    pages = tracked("*.md")
    anchors = {
        page: {
            _anchor(m[1]) for m in re.finditer(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
        }
        for page in pages
    }
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            found = (page.parent / file).resolve() if file else page
            if not found.exists():
                yield f"{page.relative_to(ROOT)} links to {target}, which is not there"
            elif anchor and found in anchors and anchor not in anchors[found]:
                yield f"{page.relative_to(ROOT)} links to {target}, which has no such heading"


def commands() -> Iterator[str]:
    """Every `make X` and `forebay X Y` in a code block of the docs exists."""
    sys.path.insert(0, str(ROOT / "src"))
    import typer.main

    from forebay.cli import app

    root = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in [ROOT / "README.md", *tracked("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL))
        name = page.relative_to(ROOT)
        for target in re.findall(r"^\$? ?make ([a-z]+)", code, re.MULTILINE):
            if target not in targets:
                yield f"{name} says make {target}, which is no target"
        for line in re.findall(r"^\$? ?(?:\.venv/bin/)?forebay ([^\n#|]+)", code, re.MULTILINE):
            yield from _command(root, line.split(), str(name))


def _command(root: object, words: list[str], page: str) -> Iterator[str]:
    at = root
    for word in words:
        subcommands = getattr(at, "commands", None)
        if subcommands is None or word.startswith("-"):
            break
        if word not in subcommands:
            yield f"{page} says forebay {' '.join(words)}, and there is no command {word}"
            return
        at = subcommands[word]
    known = {opt for p in getattr(at, "params", []) for opt in (*p.opts, *p.secondary_opts)}
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}:
            yield f"{page} says forebay {' '.join(words)}, and there is no option {word}"


def names() -> Iterator[str]:
    """Modules of tests have no package: pytest cannot import a second one of the same name."""
    seen: dict[str, Path] = {}
    for path in tracked("tests/*.py"):
        if path.name.startswith("conftest"):
            continue
        name = path.relative_to(ROOT)
        if path.name in seen:
            yield f"{name} has the name of {seen[path.name]}, and tests need names of their own"
        seen[path.name] = name


def main() -> int:
    found = [*sources(), *links(), *names(), *commands()]
    for line in found:
        sys.stdout.write(line + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
