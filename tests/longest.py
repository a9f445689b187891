"""Print the longest file and function of the package; fail above the house's limits."""

import ast
import sys
from pathlib import Path

MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 100


def main() -> int:
    files, functions = [], []
    for path in sorted(Path("src").rglob("*.py")):
        text = path.read_text()
        files.append((len(text.splitlines()), str(path)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                functions.append((lines, f"{path}:{node.lineno} {node.name}"))
    (file_lines, file), (function_lines, function) = max(files), max(functions)
    print(f"longest file: {file_lines} lines, {file}")
    print(f"longest function: {function_lines} lines, {function}")
    return file_lines > MOST_LINES_OF_A_FILE or function_lines > MOST_LINES_OF_A_FUNCTION


if __name__ == "__main__":
    sys.exit(main())
