"""`pydocs`, the English that every Python carries: its language reference and its docstrings.

The standard library's files are read as text and parsed; none is imported or run.
"""

import ast
import hashlib
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from clearhead.errors import ClearheadError

_EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload", "__pycache__"}
)
_BLOCKS = ("body", "handlers", "orelse", "finalbody")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def pydocs_files() -> list[Path]:
    """List the Python files that `pydocs` is made of, the topics first, the rest by module name.

    Raises:
        ClearheadError: This Python came without the topics or without the library's source.
    """
    library = _library()
    topics = library / "pydoc_data" / "topics.py"
    if not topics.is_file():
        raise ClearheadError(
            f"pydocs: this Python has no {topics.relative_to(library)} under {library}; "
            "give a text file as the source instead, or use a Python from python.org"
        )
    modules = []
    for current, folders, names in os.walk(library):
        folders[:] = [
            name
            for name in folders
            if name not in _EXCLUDED_FOLDERS and not name.startswith("config-")
        ]
        modules += [Path(current, name) for name in names if name.endswith(".py")]
    modules.remove(topics)
    return [topics, *sorted(modules, key=lambda path: _module_name(path, library))]


def pydocs_hash() -> str:
    """Return the SHA-256 of the names and contents of the files, in hexadecimal."""
    digest = hashlib.sha256()
    library = _library()
    for path in pydocs_files():
        content = path.read_bytes()
        digest.update(f"{_module_name(path, library)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def pydocs_documents() -> Iterator[tuple[str, int]]:
    """Yield each document, with its share of the bytes of the files.

    A document is one topic of the language reference, or all docstrings of one module, each below
    a line that names the object. Files that do not parse have no document. The order is that of
    the documents' hashes, so that the last ones, which are held out, are of the same kinds as the
    others.
    """
    library = _library()
    topics, *modules = pydocs_files()
    texts = [*_topics(topics), *(_module_text(path, library) for path in modules)]
    texts = sorted(filter(None, texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    size = sum(path.stat().st_size for path in (topics, *modules))
    for number, text in enumerate(texts, start=1):
        yield text, size * number // len(texts)


def _module_text(path: Path, library: Path) -> str:
    tree = _parse(path.read_bytes())
    parts = list(_docstrings(tree, _module_name(path, library), "module")) if tree else []
    return "\n\n".join(parts) + "\n" if parts else ""


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _module_name(path: Path, library: Path) -> str:
    parts = path.relative_to(library).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _parse(content: bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _topics(path: Path) -> Iterator[str]:
    """Read the dictionary `topics` of pydoc_data.topics; a text under two names comes once."""
    tree = _parse(path.read_bytes())
    for node in tree.body if tree else []:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == "topics":
            topics: dict[str, str] = ast.literal_eval(node.value)
            yield from dict.fromkeys(text for _, text in sorted(topics.items()))
            return
    raise ClearheadError(
        f"pydocs: {path} has no dictionary 'topics'; give a text file as the source instead"
    )


def _docstrings(node: ast.AST, name: str, kind: str = "") -> Iterator[str]:
    """Yield the node's docstring and those inside it, in the order of the source."""
    if isinstance(node, _DOCUMENTED):
        docstring = ast.get_docstring(node, clean=False)
        if docstring and docstring.strip():
            yield f"{kind} {name}\n{inspect.cleandoc(docstring)}"
    for child in (child for block in _BLOCKS for child in getattr(node, block, ())):
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}()", "function")
        else:  # what is defined under an if or a try
            yield from _docstrings(child, name)
