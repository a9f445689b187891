"""Set up before any module of the package is imported."""

from jaxtyping import install_import_hook

# Every array's shape is held against its annotation while the tests run.
install_import_hook("clearhead", "typechecker.check")
