"""Compiles the native kernels while clearhead is installed, where there is a compiler."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface[Any]):
    """Without a compiler the package is complete all the same: torch does the kernels' work."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say so if it was not possible."""
        del version
        spec = spec_from_file_location("build", Path(self.root, "src/clearhead/native/build.py"))
        assert spec is not None
        assert spec.loader is not None
        native = module_from_spec(spec)
        spec.loader.exec_module(native)
        try:
            compiled = native.build()
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            print(f"clearhead's native kernels were not compiled: {reason}", file=sys.stderr)
            return
        if compiled:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
